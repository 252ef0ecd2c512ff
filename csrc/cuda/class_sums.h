// Sums of features by class, as class_sums.cu leaves them, and how the parts of a class are added:
// what class_centroids and symmetric_soft_divergence share.
#pragma once

#include "core/float_pair.h"
#include "cuda/elements.h"
#include "cuda/shared.h"

namespace cscl::cuda {

constexpr unsigned kWholeWarp = 0xFFFFFFFFu;
constexpr int kWarpLanes = 32;

// Σ weight * feature and Σ weight of the locations of each class, in parts that each hold some of
// the locations.
struct PartialSums {
  float* high;      // [parts, K, row]
  float* low;       // what rounding took from `high`; nullptr: nothing
  FloatPair* mass;  // [K, parts]
  int parts, classes, channels;
  int row;  // C, rounded up to a multiple of four; zeros in between
};

struct ClassSums {
  PartialSums side[2];
  unsigned* counter;  // 0 at the start of the next kernel
};

// Finds class and weight of every location of one or two sides: class_assignment.cu. Sets the
// counter to 0.
void assign_classes(const LabelledFeatures* sides, int count, unsigned* counter,
                    const Context& context);

// The same, and the sums: class_sums.cu.
ClassSums sum_by_class(const LabelledFeatures* sides, int count, const Context& context);

// ---- adding up the parts ------------------------------------------------------------------------

// Adds b to a. `high` is what plain floats would give, so that an infinity or a NaN stays one.
CSCL_D FloatPair add_to(FloatPair a, float b) {
  const FloatPair sum = exact_sum(a.high, b);
  return {sum.high, a.low + sum.low};
}
CSCL_D float rounded(FloatPair sum) {
  return sum.low - sum.low == 0.0f ? sum.high + sum.low : sum.high;
}

// The mass of class k, for all lanes of a warp.
CSCL_D float mass_of(const PartialSums& sums, int k) {
  const int lane = threadIdx.x % kWarpLanes;
  FloatPair total;
  for (int part = lane; part < sums.parts; part += kWarpLanes) {
    total = total + sums.mass[static_cast<int64_t>(k) * sums.parts + part];
  }
#pragma unroll
  for (int step = kWarpLanes / 2; step > 0; step /= 2) {
    const float high = __shfl_xor_sync(kWholeWarp, total.high, step);
    total = total + FloatPair(high, __shfl_xor_sync(kWholeWarp, total.low, step));
  }
  return total.high + total.low;
}

// Whether class k has a mass: weights are never negative. For all lanes of a warp.
CSCL_D bool has_mass(const PartialSums& sums, int k) {
  bool found = false;
  for (int part = threadIdx.x % kWarpLanes; part < sums.parts; part += kWarpLanes) {
    found |= sums.mass[static_cast<int64_t>(k) * sums.parts + part].high > 0.0f;
  }
  return __ballot_sync(kWholeWarp, found) != 0;
}

// A warp adds up this many channels, four a lane.
constexpr int kFinishChannels = 4 * kWarpLanes;
constexpr int kFinishFloats = 4;  // room for a thread of the block

// Calls give(c, sums of the channels c .. c+3) once for every four of the channels first .. end-1
// of class k. All threads of the block have to call it. Few channels: several warps share them and
// take every so many of the parts; the order of the additions follows from the sizes alone.
template <typename Give>
CSCL_D void finish_class(const PartialSums& sums, int k, int first, int end,
                         const Shared<float>& room, const Give& give) {
  const int warp = threadIdx.x / kWarpLanes, warps = blockDim.x / kWarpLanes;
  const int lane = threadIdx.x % kWarpLanes;
  const int tiles = (end - first + kFinishChannels - 1) / kFinishChannels;
  const int groups = tiles < warps ? warps / tiles : 1;
  const int64_t part_floats = static_cast<int64_t>(sums.classes) * sums.row;

  const auto add_parts = [&](int c, int begin, float (&result)[4]) {
    FloatPair total[4];
    const int64_t from = static_cast<int64_t>(k) * sums.row + c;
#pragma unroll 8
    for (int part = begin; part < sums.parts; part += groups) {
      float some[4];
      read_pack(sums.high + from + part * part_floats, some);
#pragma unroll
      for (int i = 0; i < 4; ++i) total[i] = add_to(total[i], some[i]);
    }
    if (sums.low != nullptr) {
#pragma unroll 4
      for (int part = begin; part < sums.parts; part += groups) {
        float some[4];
        read_pack(sums.low + from + part * part_floats, some);
#pragma unroll
        for (int i = 0; i < 4; ++i) total[i].low += some[i];
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) result[i] = rounded(total[i]);
  };

  float result[4];
  if (groups == 1) {
    for (int tile = warp; tile < tiles; tile += warps) {
      const int c = first + tile * kFinishChannels + 4 * lane;
      if (c >= end) continue;
      add_parts(c, 0, result);
      give(c, result);
    }
    return;
  }
  const int group = warp / tiles;
  const int c = first + warp % tiles * kFinishChannels + 4 * lane;
  if (group < groups && c < end) {
    add_parts(c, group, result);
    room.set_wide(4 * threadIdx.x, Pack<float, 4>{result[0], result[1], result[2], result[3]});
  }
  __syncthreads();
  if (group == 0 && c < end) {
    FloatPair total[4];
    for (int g = 0; g < groups; ++g) {
      const int at = 4 * (threadIdx.x + g * tiles * kWarpLanes);
      const auto some = room.template read_wide<Pack<float, 4>>(at);
#pragma unroll
      for (int i = 0; i < 4; ++i) total[i] = add_to(total[i], some.values[i]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) result[i] = rounded(total[i]);
    give(c, result);
  }
  __syncthreads();  // before somebody writes to the room again
}

}  // namespace cscl::cuda
