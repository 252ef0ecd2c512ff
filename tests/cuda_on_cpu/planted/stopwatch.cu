// Kernels that do one thing many times, to see what the simulation costs.
#include "cuda/shared.h"
#include "kernels.h"

using cscl::cuda::Shared;
using cscl::cuda::shared_bytes;
using cscl::cuda::SharedMemory;

namespace planted {

__global__ void many_barriers_kernel(int barriers, int* out) {
  int reached = 0;
  for (int i = 0; i < barriers; ++i) {
    __syncthreads();
    ++reached;
  }
  if (reached < barriers) out[0] = reached;
}

cudaError_t many_barriers(int blocks, int barriers, int* out) {
  return launch(static_cast<unsigned>(blocks), 256, 0, many_barriers_kernel, barriers, out);
}

__global__ void many_shuffles_kernel(int shuffles, int* out) {
  int value = static_cast<int>(threadIdx.x);
  for (int i = 0; i < shuffles; ++i) value = __shfl_xor_sync(0xFFFFFFFFu, value, 1 + i % 31);
  if (value < 0) out[0] = value;
}

cudaError_t many_shuffles(int blocks, int shuffles, int* out) {
  return launch(static_cast<unsigned>(blocks), 256, 0, many_shuffles_kernel, shuffles, out);
}

__global__ void many_threads_kernel(int* out) { out[threadIdx.x] = 1; }

cudaError_t many_threads(int blocks, int* out) {
  return launch(static_cast<unsigned>(blocks), 256, 0, many_threads_kernel, out);
}

__global__ void many_shared_accesses_kernel(int accesses, float* out) {
  SharedMemory memory;
  const Shared<float> own = memory.array<float>(256);
  const int t = static_cast<int>(threadIdx.x);
  own.set(t, 1.f);
  for (int i = 1; i < accesses; ++i) own.add(t, 1.f);
  out[t] = own[t];
}

cudaError_t many_shared_accesses(int blocks, int accesses, float* out) {
  return launch(static_cast<unsigned>(blocks), 256, shared_bytes<float>(256),
                many_shared_accesses_kernel, accesses, out);
}

}  // namespace planted
