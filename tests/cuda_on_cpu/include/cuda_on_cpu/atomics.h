// Atomics on global memory. Threads change over only where they say so, hence a plain
// read-modify-write is atomic; each of them first lets a random thread go on.
#pragma once

#include <cuda_on_cpu/threads.h>

namespace cuda_on_cpu {

// Overflow wraps, as on the device and without the undefined behaviour of C++.
inline int wrapping_sum(int a, int b) {
  return static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
}
inline unsigned wrapping_sum(unsigned a, unsigned b) { return a + b; }
inline unsigned long long wrapping_sum(unsigned long long a, unsigned long long b) { return a + b; }

// Not an access that global_races.cpp should see twice.
template <typename T, typename Update>
__attribute__((no_sanitize("thread"))) T atomic_update(T* address, const Update& update) {
  give_way();
  note_atomic(address, sizeof(T));
  const T before = *address;
  *address = update(before);
  return before;
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_ATOMICS(T)                                                            \
  inline T atomicAdd(T* address, T value) {                                               \
    return cuda_on_cpu::atomic_update(                                                    \
        address, [value](T before) { return cuda_on_cpu::wrapping_sum(before, value); }); \
  }                                                                                       \
  inline T atomicMax(T* address, T value) {                                               \
    return cuda_on_cpu::atomic_update(                                                    \
        address, [value](T before) { return before > value ? before : value; });          \
  }                                                                                       \
  inline T atomicMin(T* address, T value) {                                               \
    return cuda_on_cpu::atomic_update(                                                    \
        address, [value](T before) { return before < value ? before : value; });          \
  }                                                                                       \
  inline T atomicExch(T* address, T value) {                                              \
    return cuda_on_cpu::atomic_update(address, [value](T) { return value; });             \
  }                                                                                       \
  inline T atomicCAS(T* address, T expected, T value) {                                   \
    return cuda_on_cpu::atomic_update(                                                    \
        address, [=](T before) { return before == expected ? value : before; });          \
  }

CUDA_ON_CPU_ATOMICS(int)
CUDA_ON_CPU_ATOMICS(unsigned)
CUDA_ON_CPU_ATOMICS(unsigned long long)

#undef CUDA_ON_CPU_ATOMICS

inline void __threadfence() {
  cuda_on_cpu::note_fence();
  cuda_on_cpu::give_way();
}
