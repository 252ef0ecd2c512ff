// Kernels with one fault each. All of them compile as CUDA; some even give the right answer there,
// most of the time.
#include "cuda/shared.h"
#include "kernels.h"

using cscl::cuda::Shared;
using cscl::cuda::shared_bytes;
using cscl::cuda::SharedMemory;

namespace planted {

__device__ __forceinline__ int number() { return static_cast<int>(threadIdx.x); }

__global__ void missing_barrier_kernel(const float* values, float* sums) {
  SharedMemory memory;
  const Shared<float> partial = memory.array<float>(256);
  const int t = number();
  partial.set(t, values[t]);
  __syncthreads();
  for (int half = 128; half > 0; half /= 2) {
    if (t < half) partial.add(t, partial[t + half]);  // and no barrier before the next half
  }
  __syncthreads();
  if (t == 0) sums[0] = partial[0];
}

cudaError_t missing_barrier(const float* values, float* sums) {
  return launch(1, 256, shared_bytes<float>(256), missing_barrier_kernel, values, sums);
}

__global__ void missing_warp_barrier_kernel(const float* values, float* sums) {
  SharedMemory memory;
  const Shared<float> partial = memory.array<float>(32);
  const int t = number();
  partial.set(t, values[t]);
  __syncwarp();
  const float right = partial[(t + 1) % 32];
  partial.set(t, right);  // the left neighbour may not have read yet
  __syncwarp();
  sums[t] = partial[t];
}

cudaError_t missing_warp_barrier(const float* values, float* sums) {
  return launch(1, 32, shared_bytes<float>(32), missing_warp_barrier_kernel, values, sums);
}

__global__ void relies_on_shuffle_kernel(const float* values, float* sums) {
  SharedMemory memory;
  const Shared<float> partial = memory.array<float>(32);
  const int t = number();
  partial.set(t, values[t]);
  const float sum = __shfl_xor_sync(0xFFFFFFFFu, values[t], 1);  // orders no memory, on paper
  sums[t] = sum + partial[t ^ 1];
}

cudaError_t relies_on_shuffle(const float* values, float* sums) {
  return launch(1, 32, shared_bytes<float>(32), relies_on_shuffle_kernel, values, sums);
}

__global__ void reads_too_far_kernel(const float* values, int count, float* out) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x) + number();
  if (i <= count) out[i % count] = values[i];
}

cudaError_t reads_too_far(const float* values, int count, float* out) {
  return launch(static_cast<unsigned>(count) / 32 + 1, 32, 0, reads_too_far_kernel, values, count,
                out);
}

__global__ void writes_before_kernel(float* out) { out[number() - 1] = 1.f; }

cudaError_t writes_before(float* out) { return launch(1, 32, 0, writes_before_kernel, out); }

namespace {

__global__ void shared_index_kernel(int index, float* out) {
  SharedMemory memory;
  const Shared<float> first = memory.array<float>(32);
  const Shared<float> second = memory.array<float>(32);
  first.set(number(), 1.f);
  second.set(number(), 2.f);
  __syncthreads();
  if (number() == 3) out[0] = first[index];
}

}  // namespace

cudaError_t shared_index(int index, float* out) {
  return launch(1, 32, 2 * shared_bytes<float>(32), shared_index_kernel, index, out);
}

__global__ void misaligned_wide_kernel(float* out) {
  SharedMemory memory;
  const Shared<float> array = memory.array<float>(32);
  array.set(number(), 1.f);
  __syncthreads();
  out[0] = array.read_wide<float4>(2).x;
}

cudaError_t misaligned_wide(float* out) {
  return launch(1, 32, shared_bytes<float>(32), misaligned_wide_kernel, out);
}

cudaError_t shared_too_small(float* out) {
  return launch(1, 32, shared_bytes<float>(32), shared_index_kernel, 0, out);
}

__global__ void divergent_barrier_kernel(float* out) {
  if (number() % 2 == 0) {
    out[0] = 1.f;
    __syncthreads();
  } else {
    out[1] = 1.f;
    __syncthreads();
  }
}

cudaError_t divergent_barrier(float* out) {
  return launch(1, 64, 0, divergent_barrier_kernel, out);
}

__global__ void exits_early_kernel(int stay, float* out) {
  if (number() >= stay) return;
  __syncthreads();
  out[number()] = 1.f;
}

cudaError_t exits_early(int stay, float* out) {
  return launch(1, 64, 0, exits_early_kernel, stay, out);
}

__global__ void missing_lane_kernel(float* out) {
  float value = static_cast<float>(number());
  if (number() != 7) value += __shfl_xor_sync(0xFFFFFFFFu, value, 1);
  __syncthreads();
  out[number()] = value;
}

cudaError_t missing_lane(float* out) { return launch(1, 64, 0, missing_lane_kernel, out); }

__global__ void own_lane_missing_kernel(float* out) {
  out[number()] = __shfl_xor_sync(0x0000FFFFu, static_cast<float>(number()), 1);
}

cudaError_t own_lane_missing(float* out) { return launch(1, 32, 0, own_lane_missing_kernel, out); }

__global__ void shuffle_from_nowhere_kernel(float* out) {
  // A block of 48: the second warp has no lane 16.
  out[number()] = __shfl_xor_sync(0xFFFFFFFFu, static_cast<float>(number()), 16);
}

cudaError_t shuffle_from_nowhere(float* out) {
  return launch(1, 48, 0, shuffle_from_nowhere_kernel, out);
}

__global__ void global_race_kernel(int* out) { out[0] = number(); }

cudaError_t global_race(int* out) { return launch(1, 64, 0, global_race_kernel, out); }

__global__ void uninitialised_kernel(float* out) {
  SharedMemory memory;
  const Shared<float> array = memory.array<float>(64);
  if (number() != 9) array.set(number(), 1.f);
  __syncthreads();
  out[number()] = array[number()];
}

cudaError_t uninitialised(float* out) {
  return launch(2, 64, shared_bytes<float>(64), uninitialised_kernel, out);
}

__global__ void spins_kernel(int* flag) {
  while (atomicAdd(flag, 0) == 0) {
  }
}

cudaError_t spins(int* flag) { return launch(1, 2, 0, spins_kernel, flag); }

__device__ __noinline__ int deeper(int* out, int depth) {
  volatile int room[1000];
  room[depth % 1000] = depth;
  if (depth == out[0]) return 1;
  return deeper(out, depth + 1) + room[depth % 1000];
}

__global__ void overflows_stack_kernel(int* out) { out[1] = deeper(out, 0); }

cudaError_t overflows_stack(int* out) { return launch(1, 1, 0, overflows_stack_kernel, out); }

__global__ void nothing_kernel() {}

cudaError_t launch_shape(dim3 grid, dim3 block, size_t bytes, int allowed_shared_bytes) {
  if (allowed_shared_bytes > 0) {
    const cudaError_t error = cudaFuncSetAttribute(
        nothing_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed_shared_bytes);
    if (error != cudaSuccess) return error;
  }
  return launch(grid, block, bytes, nothing_kernel);
}

}  // namespace planted
