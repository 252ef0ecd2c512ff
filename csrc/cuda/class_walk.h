// How a warp sums the features of its locations by class: for class_sums.cu, which says why so.
#pragma once

#include "cuda/class_sums.h"
#include "cuda/locations.h"

namespace cscl::cuda {

// A warp adds no more than these in plain floats.
constexpr int kFloatLocations = 512;
constexpr int kTileRow = kWarpLanes + 1;

// Features and their classes, and where the sums go.
struct SummedSide {
  const void* features;
  DataType type;
  Locations place;
  int64_t stride_channel, locations;
  const int32_t* row;
  const float* weight;
  int chunks;      // into which the channels are cut
  int64_t length;  // locations of a part
  PartialSums sums;
};

// ---- the sums of one warp -----------------------------------------------------------------------

// [K, 32, kWidth], of which each lane touches only its own, and the masses [K] as pairs, which only
// the first lane does.
template <int kWidth>
struct WarpSums {
  using Few = Pack<float, kWidth>;
  Shared<float> sums, mass;
  int lane;

  CSCL_D void clear(int classes) const {
    for (int k = 0; k < classes; ++k) {
      sums.template set_wide<Few>((k * kWarpLanes + lane) * kWidth, Few{});
      if (lane == 0) mass.set(2 * k, 0.0f);
      if (lane == 0) mass.set(2 * k + 1, 0.0f);
    }
  }
};

// Locations of one class, one after the other, summed in registers.
template <int kWidth>
struct Run {
  int row = -1;
  float weight = 0.0f;
  float sum[kWidth] = {};

  CSCL_D void finish(const WarpSums<kWidth>& to) const {
    if (row < 0) return;
    const int at = (row * kWarpLanes + to.lane) * kWidth;
    auto some = to.sums.template read_wide<Pack<float, kWidth>>(at);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) some.values[i] += sum[i];
    to.sums.template set_wide<Pack<float, kWidth>>(at, some);
    if (to.lane == 0) {
      const FloatPair mass = add_to({to.mass[2 * row], to.mass[2 * row + 1]}, weight);
      to.mass.set(2 * row, mass.high);
      to.mass.set(2 * row + 1, mass.low);
    }
  }
  // Goes on with this class.
  CSCL_D void turn_to(int other, const WarpSums<kWidth>& to) {
    if (other == row) return;
    finish(to);
    *this = Run();
    row = other;
  }
};

// Class and weight of a lane's location among those that a warp looks at, 32 at a time; those of
// the next 32 are on their way while these are worked on.
class Labels {
 public:
  CSCL_D Labels(const SummedSide& side, int64_t begin, int count, int lane)
      : side_(side), begin_(begin + lane), left_(count - lane) {
    fetch();
  }
  CSCL_D void next() {
    row = next_row_;
    weight = next_weight_;
    fetch();
  }
  int row;  // K: no class, or no location
  float weight;

 private:
  CSCL_D void fetch() {
    next_row_ = side_.sums.classes;
    next_weight_ = 0.0f;
    if (left_ > 0) {
      next_row_ = side_.row[begin_];
      next_weight_ = side_.weight[begin_];
    }
    begin_ += kWarpLanes;
    left_ -= kWarpLanes;
  }
  const SummedSide& side_;
  int64_t begin_;
  int left_;
  int next_row_;
  float next_weight_;
};

// ---- channels that are neighbours ---------------------------------------------------------------

template <typename Element, int kWidth>
struct Rows {
  static constexpr int width = kWidth;
  static constexpr int scratch_floats = 0;  // of a warp
  static constexpr int ahead = kWidth == 1 ? 16 : 8;

  CSCL_D static void walk(const SummedSide& side, int64_t begin, int count, int first,
                          const WarpSums<kWidth>& to, const Shared<float>&) {
    const int channel = first + to.lane * kWidth;
    const bool inside = channel < side.sums.channels;
    const Element* channels = static_cast<const Element*>(side.features) + channel;
    Labels labels(side, begin, count, to.lane);
    Cursor cursor(side.place, begin + to.lane);
    for (int done = 0; done < count; done += kWarpLanes) {
      labels.next();
      // The lanes whose locations have a class and were not read yet.
      unsigned left = __ballot_sync(kWholeWarp, labels.row < side.sums.classes);
      Run<kWidth> run;
      while (left != 0) {
        float values[ahead][kWidth], weights[ahead];
        int rows[ahead];
        int from = 0;
#pragma unroll
        for (int j = 0; j < ahead; ++j) {
          const bool more = left != 0;
          if (more) from = __ffs(static_cast<int>(left)) - 1;
          left &= left - 1;
          rows[j] = __shfl_sync(kWholeWarp, labels.row, from);
          const float weight = __shfl_sync(kWholeWarp, labels.weight, from);
          const int64_t offset =
              __shfl_sync(kWholeWarp, static_cast<long long>(cursor.offset()), from);
          weights[j] = more ? weight : 0.0f;
#pragma unroll
          for (int i = 0; i < kWidth; ++i) values[j][i] = 0.0f;
          if (more && inside) read_pack(channels + offset, values[j]);
        }
#pragma unroll
        for (int j = 0; j < ahead; ++j) {
          run.turn_to(rows[j], to);
          run.weight += weights[j];
#pragma unroll
          for (int i = 0; i < kWidth; ++i) {
            run.sum[i] = multiply_add(weights[j], values[j][i], run.sum[i]);
          }
        }
      }
      run.finish(to);
      cursor.advance(side.place, kWarpLanes);
    }
  }
};

// ---- channels that are not ----------------------------------------------------------------------

template <typename Element>
struct Tiles {
  static constexpr int width = 1;
  static constexpr int scratch_floats = kWarpLanes * kTileRow;

  CSCL_D static void walk(const SummedSide& side, int64_t begin, int count, int first,
                          const WarpSums<1>& to, const Shared<float>& tile) {
    const int channels = side.sums.channels - first;
    const Element* features =
        static_cast<const Element*>(side.features) + first * side.stride_channel;
    Labels labels(side, begin, count, to.lane);
    Cursor cursor(side.place, begin + to.lane);
    for (int done = 0; done < count; done += kWarpLanes) {
      labels.next();
      const bool counted = labels.row < side.sums.classes;
      if (__ballot_sync(kWholeWarp, counted) != 0) {
        float values[kWarpLanes];
        const Element* from = features + cursor.offset();
#pragma unroll
        for (int c = 0; c < kWarpLanes; ++c) {
          values[c] = 0.0f;
          if (counted && c < channels) values[c] = widen(from[c * side.stride_channel]);
        }
        __syncwarp();  // nobody reads the tile before any more
#pragma unroll
        for (int c = 0; c < kWarpLanes; ++c) {
          tile.set(c * kTileRow + to.lane, values[c] * labels.weight);
        }
        __syncwarp();
        Run<1> run;
#pragma unroll 8
        for (int i = 0; i < kWarpLanes; ++i) {
          const int row = __shfl_sync(kWholeWarp, labels.row, i);
          const float weight = __shfl_sync(kWholeWarp, labels.weight, i);
          if (row == side.sums.classes) continue;
          run.turn_to(row, to);
          run.weight += weight;
          run.sum[0] += tile[to.lane * kTileRow + i];
        }
        run.finish(to);
      }
      cursor.advance(side.place, kWarpLanes);
    }
  }
};

}  // namespace cscl::cuda
