// The sums Σ weight * feature [K, C] over the locations of each class.
//
// Bytes that must move: the features once, whatever the classes; the labels are a hundredth.
//
// Two walks. Where the channels of a location are neighbours (channels-last), a task takes a part
// of the locations and kBlockChannels channels. It sorts each window of locations by class, so that
// one row of sums stays in the first-level cache while four locations at a time are added to it.
// Otherwise a task takes 16 channels and a part of the locations: 16 x kTileLocations features are
// copied to a tile, transposed in registers four locations at a time, and added to the class's 16
// sums, all of which stay in the first-level cache.
//
// At most kFloatLocations locations are added in float32 before their sum goes on in double.
#include "cpu/class_sums.h"

#include <stdlib.h>

#include "core/soft_pseudo_label_plan.h"
#include "cpu/threads.h"
#include "cpu/tile.h"

namespace cscl::cpu::CSCL_ISA {
namespace {

constexpr int64_t kFloatLocations = 512;
constexpr int64_t kWindow = 1024;  // locations that are sorted at once
constexpr int64_t kAhead = 8;      // locations that are asked for before they are read
constexpr int64_t kBlockChannels = 2048;
constexpr int64_t kGroupChannels = 16;
constexpr int64_t kTileLocations = 64;
constexpr int64_t kTilesAhead = 6;                 // asked for before they are read
constexpr int64_t kTileRow = kTileLocations + 16;  // not a power of two apart
constexpr int64_t kMaximumPartBytes = int64_t{16} << 20;

CSCL_HD int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }

bool has_neighbouring_channels(const LogitsView& features) {
  return features.stride_class == 1 && features.classes > 1;
}

// ---- channels that are neighbours ---------------------------------------------------------------

// The locations of a window that have a class, sorted by it.
struct Window {
  int64_t offset[kWindow + kAhead + 4];  // of the location's channels, in elements
  float weight[kWindow + kAhead + 4];
  int32_t end[kMaximumClasses + 1];  // of each class's locations
};

void sort_window(const LabelledFeatures& side, int64_t begin, int64_t count, Window& window) {
  const LogitsView& view = side.features;
  const int64_t classes = side.labels.classes;
  for (int64_t k = 0; k <= classes; ++k) window.end[k] = 0;
  for (int64_t i = 0; i < count; ++i) ++window.end[side.row[begin + i]];
  int32_t next = 0;
  for (int64_t k = 0; k <= classes; ++k) {  // where each class begins, which grows to its end
    const int32_t size = window.end[k];
    window.end[k] = next;
    next += size;
  }
  int64_t x = begin % view.width, y = begin / view.width % view.height;
  int64_t image = begin / view.width / view.height;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t at = window.end[side.row[begin + i]]++;
    window.offset[at] = image * view.stride_batch + y * view.stride_row + x * view.stride_column;
    window.weight[at] = side.weight[begin + i];
    if (++x == view.width) {
      x = 0;
      if (++y == view.height) {
        y = 0;
        ++image;
      }
    }
  }
  for (int64_t i = count; i < count + kAhead + 4; ++i) window.offset[i] = window.offset[count - 1];
}

// sums[c] += Σ weight * location[c] over kCount locations; asks for those four further on.
template <int kCount, typename Element>
CSCL_HD void add_locations(const Element* channels, const int64_t* offset, const float* weight,
                           int64_t count, float* sums) {
  const Element* from[kCount];
  const Element* ahead[kCount];
  for (int j = 0; j < kCount; ++j) from[j] = channels + offset[j];
  for (int j = 0; j < kCount; ++j) ahead[j] = channels + offset[kAhead + j];
  const auto add = [&](int64_t c, auto read) {
    Float part[kCount];
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) part[j] = read(from[j] + c) * weight[j];
    Float total = part[0];
    if constexpr (kCount == 4) {
      total = (part[0] + part[1]) + (part[2] + part[3]);
    }
    store(sums + c, load<Float>(sums + c) + total);
  };
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) __builtin_prefetch(ahead[j] + c, 0, 2);
    add(c, [](const Element* at) { return widen(at); });
  }
  if (c < count) add(c, [&](const Element* at) { return widen_some(at, count - c); });
}

// sums[0 .. count) in double += those in float32, which become 0.
void move_to_doubles(float* sums, int64_t count, double* to) {
  for (int64_t c = 0; c < count; c += kDoubleLanes) {
    const Double wide = __builtin_convertvector(load<HalfFloat>(sums + c), Double);
    store(to + c, load<Double>(to + c) + wide);
    store(sums + c, HalfFloat{});
  }
}

template <typename Element>
void sum_rows(const LabelledFeatures& side, const SumPlan& plan, int64_t part, int64_t block,
              double* to) {
  const LogitsView& view = side.features;
  const int64_t classes = side.labels.classes;
  const int64_t first = block * kBlockChannels;
  const int64_t count = smaller_of(kBlockChannels, view.classes - first);
  const int64_t padded = round_up(count, 16);
  const Element* channels = static_cast<const Element*>(view.data) + first;
  alignas(64) float sums[kBlockChannels] = {};
  Window window;
  to += part * classes * plan.row + first;
  for (int64_t k = 0; k < classes; ++k) {
    for (int64_t c = 0; c < padded; ++c) to[k * plan.row + c] = 0.0;
  }
  const Range range = range_of(part, plan.parts, plan.locations);
  const int64_t windows = divide_up(range.end - range.begin, kWindow);
  const int64_t step = windows > 0 ? divide_up(range.end - range.begin, windows) : 1;
  for (int64_t begin = range.begin; begin < range.end; begin += step) {
    sort_window(side, begin, smaller_of(step, range.end - begin), window);
    int64_t i = 0;
    for (int64_t k = 0; k < classes; ++k) {
      while (i < window.end[k]) {
        const int64_t end = smaller_of(window.end[k], i + kFloatLocations);
        for (; i + 4 <= end; i += 4) {
          add_locations<4>(channels, window.offset + i, window.weight + i, count, sums);
        }
        for (; i < end; ++i) {
          add_locations<1>(channels, window.offset + i, window.weight + i, count, sums);
        }
        move_to_doubles(sums, padded, to + k * plan.row);
      }
    }
  }
}

// ---- channels that are not ----------------------------------------------------------------------

// Adds a tile of 16 channels; `count` is a multiple of 4.
void add_tile(const float* tile, const int32_t* row, const float* weight, int64_t count,
              float* sums) {
  for (int64_t i = 0; i < count; i += 4) {
    const int32_t* r = row + i;
    const float* w = weight + i;
    const bool one_class = r[0] == r[1] && r[0] == r[2] && r[0] == r[3];
#pragma GCC unroll 4
    for (int64_t c = 0; c < kGroupChannels; c += kLanes) {
      Float four[4];
      gather_four(tile + c * kTileRow + i, kTileRow, four);
      if (one_class) {  // no waiting for the sum of the location before
        float* to = sums + r[0] * kGroupChannels + c;
        const Float total = (four[0] * w[0] + four[1] * w[1]) + (four[2] * w[2] + four[3] * w[3]);
        store(to, load<Float>(to) + total);
      } else {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          float* to = sums + r[j] * kGroupChannels + c;
          store(to, load<Float>(to) + four[j] * w[j]);
        }
      }
    }
  }
}

// As load_planes of tile.h, asking for what a later tile will hold.
template <typename Element>
CSCL_HD void load_group(const Element* from, int64_t plane, int64_t channels, int64_t count,
                        float* tile) {
  for (int64_t c = 0; c < channels; ++c) {
    const Element* channel = from + c * plane;
    for (int64_t i = 0; i < count; i += kLanes) {
      __builtin_prefetch(channel + i + kTilesAhead * kTileLocations, 0, 2);
      store(tile + c * kTileRow + i, widen_some(channel + i, count - i));
    }
  }
}

template <typename Element>
void sum_planes(const LabelledFeatures& side, const SumPlan& plan, int64_t part, int64_t group,
                double* to) {
  LogitsView view = side.features;
  const int64_t classes = side.labels.classes;
  const int64_t first = group * kGroupChannels;
  view.classes = smaller_of(kGroupChannels, view.classes - first);
  const bool dense = pixel_order(view) == PixelOrder::planes;
  alignas(64) float tile[kGroupChannels * kTileRow] = {};
  alignas(64) float sums[(kMaximumClasses + 1) * kGroupChannels];
  alignas(64) int32_t rows[kTileLocations];
  alignas(64) float weights[kTileLocations];
  to += part * classes * plan.row + first;
  for (int64_t i = 0; i < (classes + 1) * kGroupChannels; ++i) sums[i] = 0.0f;
  for (int64_t k = 0; k < classes; ++k) {
    for (int64_t c = 0; c < kGroupChannels; ++c) to[k * plan.row + c] = 0.0;
  }
  int64_t waiting = 0;  // locations whose sum is in float32
  const auto move_all = [&] {
    for (int64_t k = 0; k < classes; ++k) {
      move_to_doubles(sums + k * kGroupChannels, kGroupChannels, to + k * plan.row);
    }
    waiting = 0;
  };
  for_each_piece(range_of(part, plan.parts, plan.locations), view.height * view.width,
                 kTileLocations, [&](int64_t image, int64_t p, int64_t count, int64_t n) {
                   const Element* from = static_cast<const Element*>(view.data) +
                                         image * view.stride_batch + first * view.stride_class;
                   if (dense) {
                     load_group(from + p, view.stride_class, view.classes, count, tile);
                   } else {
                     load_strided(from, view, p, count, tile, kTileRow);
                   }
                   const int32_t* row = side.row + n;
                   const float* weight = side.weight + n;
                   if (count % 4 != 0) {  // what fills up the last four has no class
                     for (int64_t i = 0; i < round_up(count, 4); ++i) {
                       rows[i] = i < count ? row[i] : static_cast<int32_t>(classes);
                       weights[i] = i < count ? weight[i] : 0.0f;
                     }
                     row = rows;
                     weight = weights;
                   }
                   if (waiting + count > kFloatLocations) move_all();
                   add_tile(tile, row, weight, round_up(count, 4), sums);
                   waiting += count;
                 });
  move_all();
}

template <typename Element>
void sum_all(const LabelledFeatures& side, const SumPlan& plan, double* to, int threads) {
  const int64_t channels = side.features.classes;
  if (has_neighbouring_channels(side.features)) {
    const int64_t blocks = divide_up(channels, kBlockChannels);
    parallel_for(plan.parts * blocks, threads, [&](int64_t task, int) {
      sum_rows<Element>(side, plan, task / blocks, task % blocks, to);
    });
  } else {
    const int64_t groups = divide_up(channels, kGroupChannels);
    parallel_for(plan.parts * groups, threads, [&](int64_t task, int) {
      sum_planes<Element>(side, plan, task % plan.parts, task / plan.parts, to);
    });
  }
}

}  // namespace

Scratch::Scratch(int64_t bytes)
    : data_(aligned_alloc(64, static_cast<size_t>(round_up(larger_of(bytes, 64), 64)))) {
  if (data_ == nullptr) throw OutOfMemory{};
}

Scratch::~Scratch() { free(data_); }

SumPlan plan_sums(const LabelledFeatures& side) {
  const LogitsView& view = side.features;
  const int64_t classes = side.labels.classes;
  SumPlan plan;
  plan.locations = view.batch * view.height * view.width;
  plan.row = round_up(view.classes, 16);
  plan.assign_parts = smaller_of(divide_up(plan.locations, 4096), 64);
  // Enough tasks for the threads of a large processor, as long as the partial sums stay small.
  const bool rows = has_neighbouring_channels(view);
  const int64_t tasks_of_a_part = divide_up(view.classes, rows ? kBlockChannels : kGroupChannels);
  const int64_t most = kMaximumPartBytes / (classes * plan.row * 8);
  plan.parts = smaller_of(divide_up(64, tasks_of_a_part), divide_up(plan.locations, kWindow));
  plan.parts = larger_of(smaller_of(plan.parts, most), 1);
  if (plan.parts > 4) plan.parts = plan.parts / 4 * 4;  // even shares for 2 and 4 threads
  plan.doubles =
      round_up(plan.parts * classes * plan.row + classes, 8) + plan.assign_parts * (classes + 1);
  plan.doubles = round_up(plan.doubles, 8);
  return plan;
}

ClassSums sum_by_class(const LabelledFeatures& side, const SumPlan& plan, double* memory,
                       int threads) {
  const int64_t classes = side.labels.classes;
  double* mass = memory + plan.parts * classes * plan.row;
  double* part_mass = memory + round_up(plan.parts * classes * plan.row + classes, 8);
  if (plan.locations * side.features.classes < kSerialFeatures) threads = 1;
  assign_all(side, plan, part_mass, mass, threads);
  switch (side.features.type) {
    case DataType::float32:
      sum_all<float>(side, plan, memory, threads);
      break;
    case DataType::float16:
      sum_all<Float16>(side, plan, memory, threads);
      break;
    case DataType::bfloat16:
      sum_all<BFloat16>(side, plan, memory, threads);
      break;
  }
  return {plan, memory, mass};
}

}  // namespace cscl::cpu::CSCL_ISA
