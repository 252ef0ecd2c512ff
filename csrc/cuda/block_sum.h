// Sums over the threads of a block, always in the same order.
#pragma once

#include "core/float_pair.h"
#include "cuda/launch.h"
#include "cuda/shared.h"

namespace cscl::cuda {

constexpr unsigned kWholeWarp = 0xffffffffu;

CSCL_D float warp_sum(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kWholeWarp, value, step);
  return value;
}
CSCL_D int warp_sum(int value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kWholeWarp, value, step);
  return value;
}
CSCL_D int64_t warp_sum(int64_t value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    value += static_cast<int64_t>(
        __shfl_xor_sync(kWholeWarp, static_cast<unsigned long long>(value), step));
  }
  return value;
}
CSCL_D FloatPair warp_sum(FloatPair value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const FloatPair other(__shfl_xor_sync(kWholeWarp, value.high, step),
                          __shfl_xor_sync(kWholeWarp, value.low, step));
    // a + b and b + a are the same number, so that all lanes agree.
    value = value + other;
  }
  return value;
}

// Room for one value of each warp.
template <typename Value>
struct BlockSum {
  Shared<Value> warps;

  static constexpr size_t bytes() { return shared_bytes<Value>(32); }
  BlockSum() = default;
  CSCL_D explicit BlockSum(SharedMemory& memory) : warps(memory.array<Value>(32)) {}

  // By all threads of a block of whole warps; every one gets the sum.
  CSCL_D Value operator()(Value value) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    value = warp_sum(value);
    if (lane == 0) warps.set(warp, value);
    __syncthreads();
    Value total = warps[0];
    for (int i = 1; i < static_cast<int>(blockDim.x) / 32; ++i) total = total + warps[i];
    __syncthreads();  // free for the next sum
    return total;
  }
};

}  // namespace cscl::cuda
