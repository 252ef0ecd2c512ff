// Every function of the subset that csrc/cuda is written in, against what CUDA's manual says.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/shared.h"
#include "kernels.h"

using cscl::cuda::Shared;
using cscl::cuda::shared_bytes;
using cscl::cuda::SharedMemory;

namespace planted {

namespace {

struct Results {
  int* holds;
  int next;
  __device__ void expect(bool condition) {
    if (!condition) holds[next] = 0;  // whichever thread finds it out
    ++next;
  }
};

constexpr unsigned kAll = 0xFFFFFFFFu;

__device__ __noinline__ void check_warp(Results& r, int lane) {
  r.expect(__shfl_sync(kAll, lane * 3, 5) == 15);
  r.expect(__shfl_sync(kAll, lane, lane + 33) == (lane + 1) % 32);
  r.expect(__shfl_sync(kAll, lane, 2, 8) == lane / 8 * 8 + 2);
  r.expect(__shfl_up_sync(kAll, lane, 3) == (lane < 3 ? lane : lane - 3));
  r.expect(__shfl_up_sync(kAll, lane, 1, 4) == (lane % 4 == 0 ? lane : lane - 1));
  r.expect(__shfl_down_sync(kAll, 0.5f * lane, 4) == 0.5f * (lane > 27 ? lane : lane + 4));
  r.expect(__shfl_down_sync(kAll, lane, 1, 16) == (lane % 16 == 15 ? lane : lane + 1));
  r.expect(__shfl_xor_sync(kAll, int64_t{lane} << 40, 9) == int64_t{lane ^ 9} << 40);
  r.expect(__shfl_xor_sync(kAll, lane, 4, 4) == (lane % 8 < 4 ? lane : lane - 4));
  r.expect(__shfl_xor_sync(kAll, static_cast<uint64_t>(lane), 1) ==
           static_cast<uint64_t>(lane ^ 1));
  r.expect(__ballot_sync(kAll, lane % 3 == 0) == 0x49249249u);
  r.expect(__any_sync(kAll, lane == 31) == 1 && __any_sync(kAll, lane == 32) == 0);
  r.expect(__all_sync(kAll, lane < 32) == 1 && __all_sync(kAll, lane < 31) == 0);
  const unsigned half = lane < 16 ? 0xFFFFu : 0xFFFF0000u;
  r.expect(__ballot_sync(half, lane % 16 == 1) == (lane < 16 ? 0x2u : 0x20000u));
  unsigned sum = 0;
  if (lane % 2 == 0) sum = __shfl_xor_sync(0x55555555u, static_cast<unsigned>(lane), 2);
  __syncwarp();
  r.expect(sum == (lane % 2 == 0 ? static_cast<unsigned>(lane ^ 2) : 0u));
}

__device__ void check_barriers(Results& r, int t) {
  r.expect(__syncthreads_or(t == 40) != 0 && __syncthreads_or(t == 64) == 0);
  r.expect(__syncthreads_and(t < 64) != 0 && __syncthreads_and(t < 63) == 0);
  r.expect(__syncthreads_count(t % 5) == 51);
}

__device__ void check_shared(Results& r, int t) {
  SharedMemory memory;
  const Shared<float> wide = memory.array<float>(64 * 4);
  const Shared<unsigned char> bytes = memory.array<unsigned char>(65);
  const Shared<unsigned long long> sums = memory.array<unsigned long long>(2);
  const Shared<int> counter = memory.array<int>(1);
  wide.set_wide(4 * t, make_float4(1.f, 2.f, 3.f, static_cast<float>(t)));
  bytes.at(1).set(t, static_cast<unsigned char>(t));
  if (t == 0) bytes.set(0, 99);
  if (t < 2) sums.set(t, 0ull);
  if (t == 0) counter.set(0, -1);
  __syncthreads();
  const float4 other = wide.read_wide<float4>(4 * (63 - t));
  r.expect(other.z == 3.f && other.w == static_cast<float>(63 - t));
  r.expect(wide[4 * t + 1] == 2.f && wide.at(4)[3] == 1.f);
  r.expect(bytes[0] == 99 && bytes.at(2)[0] == 1 && bytes[64] == 63);
  const int before = counter.atomic_add(0, 1);
  r.expect(before >= -1 && before < 63);
  sums.atomic_add(t % 2, 1ull << 33);
  __syncthreads();
  r.expect(counter[0] == 63 && sums[1] == 32ull << 33);
  __syncthreads();
  wide.add(t, 0.5f);
  r.expect(wide[t] == (t % 4 == 3 ? static_cast<float>(t / 4) : 1.f + t % 4) + 0.5f);
}

__device__ void check_numbers(Results& r) {
  r.expect(__popc(0xF0F0u) == 8 && __clz(1) == 31 && __clz(0) == 32 && __clz(-1) == 0);
  r.expect(__ffs(0) == 0 && __ffs(8) == 4);
  r.expect(__float_as_int(1.f) == 0x3F800000 && __int_as_float(0x40000000) == 2.f);
  r.expect(__float_as_uint(-0.f) == 0x80000000u && __uint_as_float(0xC0000000u) == -2.f);
  const float tenth = 1.f / 10, ten = 10.f;
  r.expect(__fadd_rn(__fmul_rn(tenth, ten), -1.f) == 0.f && fmaf(tenth, ten, -1.f) > 0.f);
  r.expect(__fmaf_rn(tenth, ten, -1.f) == fmaf(tenth, ten, -1.f));
  r.expect(__fsub_rn(3.f, 1.f) == 2.f && __fdiv_rn(1.f, 4.f) == 0.25f);
  r.expect(fabsf(rsqrtf(16.f) - 0.25f) < 1e-6f);
  const float nothing = __int_as_float(0x7FC00000);
  r.expect(fminf(nothing, 2.f) == 2.f && fmaxf(1.f, nothing) == 1.f);
  r.expect(min(3, 2) == 2 && max(3u, 2u) == 3u && min(1.f, 2.f) == 1.f && max(1ll, 2ll) == 2ll);
}

__device__ void check_sixteen_bits(Results& r) {
  r.expect(__half2float(__ushort_as_half(0x3C01)) == 1.f + 0x1p-10f);
  r.expect(__half2float(__ushort_as_half(0x8001)) == -0x1p-24f);
  r.expect(__half_as_ushort(__float2half_rn(1.f + 0x1p-11f)) == 0x3C00);
  r.expect(__half_as_ushort(__float2half_rn(65520.f)) == 0x7C00);
  r.expect(__bfloat162float(__ushort_as_bfloat16(0xC040)) == -3.f);
  r.expect(__bfloat16_as_ushort(__float2bfloat16_rn(1.f + 0x1.8p-7f)) == 0x3F82);
}

__global__ void language_kernel(int* holds) {
  Results r{holds, 0};
  const int t = static_cast<int>(threadIdx.x + threadIdx.y * blockDim.x +
                                 threadIdx.z * blockDim.x * blockDim.y);
  check_warp(r, t % warpSize);
  check_barriers(r, t);
  check_shared(r, t);
  check_numbers(r);
  check_sixteen_bits(r);
  r.expect(r.next == kLanguageChecks - 1);
}

__global__ void atomics_kernel(int* numbers, unsigned long long* large) {
  const int t = static_cast<int>(threadIdx.x + blockIdx.x * blockDim.x);
  atomicAdd(numbers, t);
  atomicMax(numbers + 1, t);
  atomicMin(numbers + 2, -t);
  if (atomicCAS(numbers + 3, 0, t + 1) == 0) atomicExch(numbers + 4, t + 1);
  atomicAdd(large, 1ull << 40);
  atomicAdd(reinterpret_cast<unsigned*>(numbers + 5), 0xFFFFFFFFu);
  __threadfence();
}

}  // namespace

cudaError_t language(int* holds) {
  const size_t bytes = shared_bytes<float>(256) + shared_bytes<unsigned char>(65) +
                       shared_bytes<unsigned long long>(2) + shared_bytes<int>(1);
  return launch(1, dim3(8, 2, 4), bytes, language_kernel, holds);
}

cudaError_t atomics(int* numbers, unsigned long long* large) {
  return launch(4, 50, 0, atomics_kernel, numbers, large);
}

}  // namespace planted
