// The dynamic shared memory of a block, as arrays.
//
//     SharedMemory memory;
//     const Shared<float> tile = memory.array<float>(1024);
//     const Shared<int> counts = memory.array<int>(classes);
//     tile.set(i, value);
//
// and on the host dynamicSmemBytes = shared_bytes<float>(1024) + shared_bytes<int>(classes).
//
// Kernels reach shared memory in no other way. On the device every member is one plain access. The
// tests compile the same kernels for the CPU (tests/cuda_on_cpu), where every member checks the
// index, that somebody has written what is read, and that barriers order whoever writes.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace cscl::cuda {

// What SharedMemory::array<T>(count) takes: every array starts at a multiple of 16 bytes.
template <typename T>
__host__ __device__ constexpr size_t shared_bytes(size_t count) {
  return (count * sizeof(T) + 15) / 16 * 16;
}

}  // namespace cscl::cuda

#if defined(CSCL_CUDA_ON_CPU)
#include <cuda_on_cpu/shared_memory.h>
#else

namespace cscl::cuda {

__device__ __forceinline__ unsigned char* shared_memory_begin() {
  extern __shared__ __align__(16) unsigned char cscl_shared_memory[];
  return cscl_shared_memory;
}

// A handle, passed by value. It keeps an offset rather than a pointer, so that the compiler knows
// the address space wherever the handle goes.
template <typename T>
class Shared {
 public:
  Shared() = default;

  __device__ __forceinline__ T operator[](int i) const { return *place<T>(i); }
  __device__ __forceinline__ void set(int i, T value) const { *place<T>(i) = value; }
  // By one thread; not atomic.
  __device__ __forceinline__ void add(int i, T value) const { *place<T>(i) += value; }
  // Returns what was there before.
  __device__ __forceinline__ T atomic_add(int i, T value) const {
    return atomicAdd(place<T>(i), value);
  }

  // Several elements at once, as V (float4, int4, ...): i counts elements, and their first byte is
  // at a multiple of sizeof(V).
  template <typename V>
  __device__ __forceinline__ V read_wide(int i) const {
    return *place<V>(i);
  }
  template <typename V>
  __device__ __forceinline__ void set_wide(int i, V value) const {
    *place<V>(i) = value;
  }

  // The array from element `offset` on.
  __device__ __forceinline__ Shared at(int offset) const {
    return Shared(begin_ + static_cast<unsigned>(offset) * static_cast<unsigned>(sizeof(T)));
  }

 private:
  friend class SharedMemory;
  __device__ __forceinline__ explicit Shared(unsigned begin) : begin_(begin) {}

  template <typename V>
  __device__ __forceinline__ V* place(int i) const {
    return reinterpret_cast<V*>(shared_memory_begin() + begin_ +
                                static_cast<unsigned>(i) * static_cast<unsigned>(sizeof(T)));
  }

  unsigned begin_;  // in bytes
};

// Lays arrays into the block's shared memory, in the order in which they are asked for.
class SharedMemory {
 public:
  __device__ __forceinline__ SharedMemory() : end_(0) {}

  template <typename T>
  __device__ __forceinline__ Shared<T> array(int count) {
    const unsigned begin = end_;
    end_ += static_cast<unsigned>(shared_bytes<T>(static_cast<size_t>(count)));
    return Shared<T>(begin);
  }

 private:
  unsigned end_;
};

}  // namespace cscl::cuda

#endif
