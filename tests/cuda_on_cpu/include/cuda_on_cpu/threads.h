// A kernel's view of its threads: who am I, barriers, and the exchanges within a warp.
//
// Every place where threads meet is known by its file and line, through default arguments: all of
// them must meet at the same place, and a message can name it.
#pragma once

#include <cuda_on_cpu/vectors.h>

#include <cstring>

namespace cuda_on_cpu {

struct Builtins {
  uint3 thread{}, block{};
  dim3 block_size, grid_size;
  int lane = 0;
};
extern Builtins current;  // of the thread that is running

enum class Barrier { sync, any, all, count };
enum class WarpOperation { sync, shuffle, ballot, any, all };

int meet_block(Barrier kind, int predicate, const char* file, int line);
uint64_t meet_warp(WarpOperation kind, unsigned mask, uint64_t value, int source_lane,
                   const char* file, int line);
void give_way();  // lets a random thread go on
void note_atomic(const void* address, int bytes);
void note_fence();

template <typename T>
T shuffle(unsigned mask, T value, int source_lane, const char* file, int line) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = meet_warp(WarpOperation::shuffle, mask, bits, source_lane, file, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// A warp falls into segments of `width` lanes; a lane whose source is beyond its segment keeps its
// own value.
inline int first_of_segment(int width) { return current.lane & ~(width - 1); }
inline int last_of_segment(int width) { return current.lane | (width - 1); }
inline int source_of_indexed(int lane, int width) {
  return first_of_segment(width) | (lane & (width - 1));
}
inline int source_of_up(unsigned delta, int width) {
  const int64_t source = int64_t{current.lane} - delta;
  return source < first_of_segment(width) ? current.lane : static_cast<int>(source);
}
inline int source_of_down(unsigned delta, int width) {
  const int64_t source = int64_t{current.lane} + delta;
  return source > last_of_segment(width) ? current.lane : static_cast<int>(source);
}
inline int source_of_xor(int lanes, int width) {
  const int source = current.lane ^ lanes;
  return source > last_of_segment(width) ? current.lane : source;
}

}  // namespace cuda_on_cpu

inline constexpr const uint3& threadIdx = cuda_on_cpu::current.thread;
inline constexpr const uint3& blockIdx = cuda_on_cpu::current.block;
inline constexpr const dim3& blockDim = cuda_on_cpu::current.block_size;
inline constexpr const dim3& gridDim = cuda_on_cpu::current.grid_size;
inline constexpr int warpSize = 32;

#define CUDA_ON_CPU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CUDA_ON_CPU_HERE) {
  cuda_on_cpu::meet_block(cuda_on_cpu::Barrier::sync, 0, file, line);
}
inline int __syncthreads_or(int predicate, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::meet_block(cuda_on_cpu::Barrier::any, predicate, file, line);
}
inline int __syncthreads_and(int predicate, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::meet_block(cuda_on_cpu::Barrier::all, predicate, file, line);
}
inline int __syncthreads_count(int predicate, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::meet_block(cuda_on_cpu::Barrier::count, predicate, file, line);
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, CUDA_ON_CPU_HERE) {
  cuda_on_cpu::meet_warp(cuda_on_cpu::WarpOperation::sync, mask, 0, cuda_on_cpu::current.lane, file,
                         line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_HERE) {
  return static_cast<unsigned>(cuda_on_cpu::meet_warp(cuda_on_cpu::WarpOperation::ballot, mask,
                                                      predicate != 0, cuda_on_cpu::current.lane,
                                                      file, line));
}
inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_HERE) {
  return static_cast<int>(cuda_on_cpu::meet_warp(cuda_on_cpu::WarpOperation::any, mask,
                                                 predicate != 0, cuda_on_cpu::current.lane, file,
                                                 line));
}
inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_HERE) {
  return static_cast<int>(cuda_on_cpu::meet_warp(cuda_on_cpu::WarpOperation::all, mask,
                                                 predicate != 0, cuda_on_cpu::current.lane, file,
                                                 line));
}

// Overloads rather than a template: a short becomes an int, as in CUDA.
#define CUDA_ON_CPU_SHUFFLES(T)                                                                    \
  inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, CUDA_ON_CPU_HERE) {       \
    return cuda_on_cpu::shuffle(mask, value, cuda_on_cpu::source_of_indexed(lane, width), file,    \
                                line);                                                             \
  }                                                                                                \
  inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,                  \
                          CUDA_ON_CPU_HERE) {                                                      \
    return cuda_on_cpu::shuffle(mask, value, cuda_on_cpu::source_of_up(delta, width), file, line); \
  }                                                                                                \
  inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,                \
                            CUDA_ON_CPU_HERE) {                                                    \
    return cuda_on_cpu::shuffle(mask, value, cuda_on_cpu::source_of_down(delta, width), file,      \
                                line);                                                             \
  }                                                                                                \
  inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_ON_CPU_HERE) {  \
    return cuda_on_cpu::shuffle(mask, value, cuda_on_cpu::source_of_xor(lanes, width), file,       \
                                line);                                                             \
  }

CUDA_ON_CPU_SHUFFLES(int)
CUDA_ON_CPU_SHUFFLES(unsigned)
CUDA_ON_CPU_SHUFFLES(long)
CUDA_ON_CPU_SHUFFLES(unsigned long)
CUDA_ON_CPU_SHUFFLES(long long)
CUDA_ON_CPU_SHUFFLES(unsigned long long)
CUDA_ON_CPU_SHUFFLES(float)
CUDA_ON_CPU_SHUFFLES(double)

#undef CUDA_ON_CPU_SHUFFLES
