// Threads that meet in global memory: two right ways, and what is left when a piece is missing.
// Most of the faults give the right answer on the CPU, whatever the order of the threads; only
// global_races.cpp sees them.
#include "cuda/shared.h"
#include "kernels.h"

using cscl::cuda::Shared;
using cscl::cuda::shared_bytes;
using cscl::cuda::SharedMemory;

namespace planted {

// Each block stores the sum of its values; the block that is the last to do so adds up the sums.
__global__ void last_block_kernel(const float* __restrict__ values, bool fence, float* sums,
                                  unsigned* finished, float* total) {
  SharedMemory memory;
  const Shared<float> own = memory.array<float>(64);
  const Shared<int> is_last = memory.array<int>(1);
  const int t = static_cast<int>(threadIdx.x);
  own.set(t, values[blockIdx.x * 64 + threadIdx.x]);
  __syncthreads();
  if (t == 0) {
    float sum = 0;
    for (int i = 0; i < 64; ++i) sum += own[i];
    sums[blockIdx.x] = sum;
    if (fence) __threadfence();
    is_last.set(0, atomicAdd(finished, 1u) == gridDim.x - 1);
  }
  __syncthreads();
  if (is_last[0] == 0 || t != 1) return;  // not the thread of the atomic: the barrier is enough
  float sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += sums[i];
  *total = sum;
}

cudaError_t last_block(const float* values, bool fence, float* sums, unsigned* finished,
                       float* total) {
  return launch(5, 64, shared_bytes<float>(64) + shared_bytes<int>(1), last_block_kernel, values,
                fence, sums, finished, total);
}

// Each thread shows its number to its neighbour, by way of global memory.
__global__ void neighbours_kernel(bool barrier, int* numbers, int* of_neighbour) {
  const int first = static_cast<int>(blockIdx.x * blockDim.x), t = static_cast<int>(threadIdx.x);
  numbers[first + t] = t;
  if (barrier) __syncthreads();
  of_neighbour[first + t] = numbers[first + (t + 1) % static_cast<int>(blockDim.x)];
}

cudaError_t neighbours(bool barrier, int* numbers, int* of_neighbour) {
  return launch(3, 64, 0, neighbours_kernel, barrier, numbers, of_neighbour);
}

__global__ void lost_update_kernel(int* count) {
  if (threadIdx.x == 0) count[0] += 1;
}

cudaError_t lost_update(int* count) { return launch(3, 32, 0, lost_update_kernel, count); }

__global__ void same_flag_kernel(int* flag) {
  if (threadIdx.x % 2 == 0) *flag = 1;
}

cudaError_t same_flag(int* flag) { return launch(3, 32, 0, same_flag_kernel, flag); }

}  // namespace planted
