// Rewards of two tensors of logits [B, K, h, w] and labels [B, h, w] int64: reward float32 and
// valid bool, both [B, 1, h, w].
//
// Bytes that must move for a float32 location: 8 K + 8 read, 5 written. Both logits are read once,
// in the order in which each lies in memory.
//
// The locations of an image are cut into blocks, whatever the number of threads; a thread takes a
// block and walks it in tiles (cpu/tile.h), kLanes locations at a time, each in one lane. The few
// locations that float32 leaves undecided are decided one by one in double.
#include "core/transfer_reward.h"

#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/threads.h"
#include "cpu/tile.h"

namespace cscl::cpu::CSCL_ISA {
namespace {

constexpr int64_t kBlockLocations = 1024;
constexpr int64_t kIgnored = 255;
constexpr int32_t kNoLabel = -1;

// One side of a tile: class k of location i at data[k * row + i].
struct Side {
  const float* data;
  int64_t row;
};

// The logits of kLanes locations, kClasses of them in registers.
template <int kClasses>
struct RegisterColumn {
  Float values[kClasses];
  CSCL_HD explicit RegisterColumn(const Side& side, int64_t i, int /*classes*/) {
#pragma GCC unroll 32
    for (int k = 0; k < kClasses; ++k) values[k] = load<Float>(side.data + k * side.row + i);
  }
  CSCL_HD Float get(int k) const { return values[k]; }
};

// Any number of classes: where they lie.
struct MemoryColumn {
  const float* data;
  int64_t row;
  CSCL_HD explicit MemoryColumn(const Side& side, int64_t i, int /*classes*/)
      : data(side.data + i), row(side.row) {}
  CSCL_HD Float get(int k) const { return load<Float>(data + k * row); }
};

// One location, in double.
struct DoubleLocation {
  const float* data;
  int64_t row;
  CSCL_HD double get(int k) const { return data[k * row]; }
};

// What a tile knows of its locations; padded to whole vectors.
struct Locations {
  alignas(64) int32_t label[kMaximumTilePixels];  // kNoLabel: ignored or out of range
  alignas(64) float reward[kMaximumTilePixels];
  alignas(64) int32_t undecided[kMaximumTilePixels];
};

// Where the logits of both sides are not the same, bit for bit.
CSCL_HD Int different_logits(const Side& gated, const Side& plain, int classes, int64_t i) {
  Int differs = {};
  for (int k = 0; k < classes; ++k) {
    differs |=
        load<Int>(gated.data + k * gated.row + i) ^ load<Int>(plain.data + k * plain.row + i);
  }
  return differs != 0;
}

// Rewards of `count` locations (a multiple of kLanes); whether any is undecided. An undecided one
// has its R^s only.
template <typename Column>
bool solve(const Side& gated, const Side& plain, int classes, int64_t count, Locations& locations) {
  const Float zero = {};
  const Float one = broadcast<Float>(1.0f);
  bool found = false;
  for (int64_t i = 0; i < count; i += kLanes) {
    const Int label = load<Int>(locations.label + i);
    const Column gated_column(gated, i, classes);
    const LabelledLocation<Float> with = locate_label<Float>(gated_column, classes, label);
    const Column plain_column(plain, i, classes);
    const LabelledLocation<Float> without = locate_label<Float>(plain_column, classes, label);
    const Int usable = (with.disorder == zero) & (label >= 0);
    const Int comparable = usable & (without.disorder == zero);
    const Gain<Float> gain = gain_of(with, without);
    const Int right = usable & (with.winner == label);
    const Int likelier = comparable & gain.decided & gain.positive;
    Int undecided = comparable & ~gain.decided;
    if (any(undecided)) {  // equal logits are no gain, and common before the gate has learned
      undecided &= different_logits(gated, plain, classes, i);
      found |= any(undecided);
    }
    store(locations.reward + i, select(right, one, zero) + select(likelier, one, zero));
    store(locations.undecided + i, undecided);
  }
  return found;
}

// For what float32 cannot tell apart; as the reference does it, by log-probabilities in double.
__attribute__((noinline)) void decide_again(const Side& gated, const Side& plain, int classes,
                                            int64_t count, Locations& locations) {
  for (int64_t i = 0; i < count; ++i) {
    if (locations.undecided[i] == 0) continue;
    const int64_t label = locations.label[i];
    const DoubleLocation with{gated.data + i, gated.row}, without{plain.data + i, plain.row};
    const double gain = locate_label<double>(with, classes, label).log_probability -
                        locate_label<double>(without, classes, label).log_probability;
    if (gain > 0) locations.reward[i] += 1.0f;
  }
}

void solve_tile(const Side& gated, const Side& plain, int classes, int64_t count,
                Locations& locations) {
  bool undecided;
  switch (classes) {
    case 13:
      undecided = solve<RegisterColumn<13>>(gated, plain, 13, count, locations);
      break;
    case 16:
      undecided = solve<RegisterColumn<16>>(gated, plain, 16, count, locations);
      break;
    case 19:
      undecided = solve<RegisterColumn<19>>(gated, plain, 19, count, locations);
      break;
    default:
      undecided = solve<MemoryColumn>(gated, plain, classes, count, locations);
  }
  if (undecided) decide_again(gated, plain, classes, count, locations);
}

// Labels of a tile; true if all are classes or ignored.
bool read_labels(const int64_t* from, int64_t classes, int64_t count, int32_t* to) {
  int64_t outside = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t label = from[i];
    const bool is_class = static_cast<uint64_t>(label) < static_cast<uint64_t>(classes);
    outside |= !is_class & (label != kIgnored);
    to[i] = is_class & (label != kIgnored) ? static_cast<int32_t>(label) : kNoLabel;
  }
  for (int64_t i = count; i < round_up(count, kLanes); ++i) to[i] = kNoLabel;
  return outside == 0;
}

// One side of a tile: in place where its planes are float32 and the tile is whole vectors,
// otherwise brought to `tile`.
template <typename Element>
Side side_of(const LogitsView& view, PixelOrder order, int64_t image, int64_t begin, int64_t count,
             float* tile) {
  const Element* logits = static_cast<const Element*>(view.data) + image * view.stride_batch;
  if (sizeof(Element) == 4 && order == PixelOrder::planes && count % kLanes == 0) {
    return {reinterpret_cast<const float*>(logits) + begin, view.stride_class};
  }
  const int64_t row = round_up(count, kLanes);
  if (order == PixelOrder::planes) {
    load_planes(logits + begin, view.stride_class, view.classes, count, tile, row);
  } else if (order == PixelOrder::interleaved) {
    load_interleaved(logits + begin * view.classes, view.classes, count, tile, row);
  } else {
    load_strided(logits, view, begin, count, tile, row);
  }
  return {tile, row};
}

template <typename Element>
void walk(const TransferRewardCall& call, int threads) {
  const LogitsView& view = call.gated;
  const int64_t plane = view.height * view.width;
  const int64_t blocks = (plane + kBlockLocations - 1) / kBlockLocations;
  const PixelOrder gated_order = pixel_order(call.gated), plain_order = pixel_order(call.plain);
  const bool interleaved =
      gated_order == PixelOrder::interleaved || plain_order == PixelOrder::interleaved;
  const int64_t step = tile_pixels(view.classes, interleaved);
  const int classes = static_cast<int>(view.classes);
  parallel_for(view.batch * blocks, threads, [&](int64_t task, int) {
    alignas(64) float gated_tile[kTileFloats];
    alignas(64) float plain_tile[kTileFloats];
    Locations locations;
    const int64_t image = task / blocks;
    const int64_t begin = task % blocks * kBlockLocations;
    const int64_t end = smaller_of(begin + kBlockLocations, plane);
    for (int64_t p = begin; p < end; p += step) {
      const int64_t count = smaller_of(step, end - p);
      const int64_t at = image * plane + p;
      if (!read_labels(call.labels + at, view.classes, count, locations.label)) {
        __atomic_store_n(call.labels_in_range, false, __ATOMIC_RELAXED);
      }
      const Side gated = side_of<Element>(call.gated, gated_order, image, p, count, gated_tile);
      const Side plain = side_of<Element>(call.plain, plain_order, image, p, count, plain_tile);
      solve_tile(gated, plain, classes, round_up(count, kLanes), locations);
      for (int64_t i = 0; i < count; ++i) call.reward[at + i] = locations.reward[i];
      for (int64_t i = 0; i < count; ++i) call.valid[at + i] = locations.label[i] >= 0;
    }
  });
}

}  // namespace

void transfer_reward(const TransferRewardCall& call, int threads) {
  switch (call.gated.type) {
    case DataType::float32:
      return walk<float>(call, threads);
    case DataType::float16:
      return walk<Float16>(call, threads);
    case DataType::bfloat16:
      return walk<BFloat16>(call, threads);
  }
}

}  // namespace cscl::cpu::CSCL_ISA
