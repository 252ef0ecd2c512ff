// Kernels without a fault, of the kinds that csrc/cuda is made of.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/shared.h"
#include "kernels.h"

using cscl::cuda::Shared;
using cscl::cuda::shared_bytes;
using cscl::cuda::SharedMemory;

namespace planted {

__global__ void block_sums_kernel(const float* __restrict__ values, int count,
                                  float* __restrict__ sums) {
  SharedMemory memory;
  const Shared<float> partial = memory.array<float>(256);
  const int t = static_cast<int>(threadIdx.x);
  const int i = static_cast<int>(blockIdx.x) * 256 + t;
  partial.set(t, i < count ? __ldg(values + i) : 0.f);
  for (int half = 128; half > 0; half /= 2) {
    __syncthreads();
    if (t < half) partial.add(t, partial[t + half]);
  }
  if (t == 0) sums[blockIdx.x] = partial[0];
}

cudaError_t block_sums(const float* values, int count, float* sums) {
  const unsigned blocks = static_cast<unsigned>(count + 255) / 256;
  return launch(blocks, 256, shared_bytes<float>(256), block_sums_kernel, values, count, sums);
}

__device__ __forceinline__ float warp_sum(float value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
  return value;
}

__global__ void __launch_bounds__(256)
    block_sums_by_warp_kernel(const float* __restrict__ values, int count,
                              float* __restrict__ sums) {
  SharedMemory memory;
  const Shared<float> partial = memory.array<float>(8);
  const int t = static_cast<int>(threadIdx.x);
  const int i = static_cast<int>(blockIdx.x) * 256 + t;
  const float of_warp = warp_sum(i < count ? values[i] : 0.f);
  if (t % warpSize == 0) partial.set(t / warpSize, of_warp);
  __syncthreads();
  if (t < warpSize) {
    const float of_block = warp_sum(t < 8 ? partial[t] : 0.f);
    if (t == 0) sums[blockIdx.x] = of_block;
  }
}

cudaError_t block_sums_by_warp(const float* values, int count, float* sums) {
  const unsigned blocks = static_cast<unsigned>(count + 255) / 256;
  return launch(blocks, 256, shared_bytes<float>(8), block_sums_by_warp_kernel, values, count,
                sums);
}

constexpr int kTile = 16;

__global__ void transpose_kernel(const float* __restrict__ in, int height, int width,
                                 float* __restrict__ out) {
  SharedMemory memory;
  const Shared<float> tile = memory.array<float>(kTile * (kTile + 1));
  const int tx = static_cast<int>(threadIdx.x), ty = static_cast<int>(threadIdx.y);
  const int left = static_cast<int>(blockIdx.x) * kTile, top = static_cast<int>(blockIdx.y) * kTile;
  if (left + tx < width && top + ty < height) {
    tile.set(ty * (kTile + 1) + tx, in[(top + ty) * width + left + tx]);
  }
  __syncthreads();
  if (top + tx < height && left + ty < width) {
    out[(left + ty) * height + top + tx] = tile[tx * (kTile + 1) + ty];
  }
}

cudaError_t transpose(const float* in, int height, int width, float* out) {
  const dim3 grid(static_cast<unsigned>(width + kTile - 1) / kTile,
                  static_cast<unsigned>(height + kTile - 1) / kTile);
  return launch(grid, dim3(kTile, kTile), shared_bytes<float>(kTile * (kTile + 1)),
                transpose_kernel, in, height, width, out);
}

__global__ void histogram_kernel(const unsigned char* __restrict__ bytes, int count,
                                 unsigned* __restrict__ counts) {
  SharedMemory memory;
  const Shared<unsigned> own = memory.array<unsigned>(256);
  const int threads = static_cast<int>(blockDim.x), t = static_cast<int>(threadIdx.x);
  for (int i = t; i < 256; i += threads) own.set(i, 0u);
  __syncthreads();
  const int stride = static_cast<int>(gridDim.x) * threads;
  for (int i = static_cast<int>(blockIdx.x) * threads + t; i < count; i += stride) {
    own.atomic_add(bytes[i], 1u);
  }
  __syncthreads();
  for (int i = t; i < 256; i += threads) {
    if (own[i] > 0) atomicAdd(counts + i, own[i]);
  }
}

cudaError_t histogram(const unsigned char* bytes, int count, unsigned* counts) {
  static const int processors = [] {
    int device = 0, found = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device);
    return found;
  }();
  return launch(static_cast<unsigned>(processors), 96, shared_bytes<unsigned>(256),
                histogram_kernel, bytes, count, counts);
}

}  // namespace planted
