// Algorithm 1 over logits [B, K, h, w], at their own size or at H x W.
//
//   class_threshold_keys    keys [B, H, W] int32: class above the bin of the confidence
//   class_threshold_update  the keys counted in a histogram [K, 65536] int64
//   class_thresholds        thresholds [K] float32: the exact order statistics
//
// Bytes that must move for a float32 pixel: 4 K read. What is kept of it is 4 bytes (keys), 2 of a
// bounded chunk of pixels (update), or 5 (exact).
//
// A histogram of 19 classes has 10 MB, and neighbouring pixels fall far apart in it. Counting in
// place would miss the near caches for every pixel, and threads would need atomics that collide
// where the pixels are certain. Instead each task sorts its keys into at most 256 ranges of bins;
// then a range is counted by one thread, from all tasks of the chunk, inside its own 64 KiB or
// more. Integers: neither the order nor the threads change a count.
#include "core/class_threshold.h"

#include "cpu/class_threshold_select.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/pixel_walk.h"
#include "cpu/simd.h"
#include "cpu/threads.h"

namespace cscl::cpu::CSCL_ISA {
namespace {

// Pixels whose keys are held before they are counted.
constexpr int64_t kChunkPixels = int64_t{1} << 20;
constexpr int kMaximumRanges = 256;
// Workers of the exact kernel, each with counts of its own.
constexpr int kMaximumWorkers = 64;

char* take_or_throw(Block& block, int64_t bytes) {
  if (bytes == 0) return nullptr;
  block = take_scratch(static_cast<size_t>(bytes));
  if (block.data == nullptr) throw OutOfMemory{};
  return static_cast<char*>(block.data);
}

bool any_bit(Unsigned value) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)value, (__m512i)value) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)value, (__m256i)value);
#else
  const Long wide = (Long)value;
  int64_t bits = 0;
  for (int lane = 0; lane < kDoubleLanes; ++lane) bits |= wide[lane];
  return bits != 0;
#endif
}

void store_some(int32_t* to, Int value, int64_t count) {
  if (count >= kLanes) return store(to, value);
  for (int64_t i = 0; i < count; ++i) to[i] = value[i];
}

// ---- one tile -----------------------------------------------------------------------------------

// The logits of kLanes pixels: kClasses of them in registers, or any number where they lie.
template <int kClasses>
struct RegisterColumn {
  Float values[kClasses];
  CSCL_HD RegisterColumn(const float* in, int64_t row) {
#pragma GCC unroll 32
    for (int k = 0; k < kClasses; ++k) values[k] = load<Float>(in + k * row);
  }
  CSCL_HD Float get(int k) const { return values[k]; }
};
struct MemoryColumn {
  const float* in;
  int64_t row;
  CSCL_HD MemoryColumn(const float* from, int64_t step) : in(from), row(step) {}
  CSCL_HD Float get(int k) const { return load<Float>(in + k * row); }
};

// sink(place, pixel, count) of every kLanes pixels.
template <typename Column, typename Sink>
CSCL_HD void solve_columns(int classes, const float* in, int64_t in_row, int64_t place,
                           int64_t pixels, const Sink& sink) {
  for (int64_t i = 0; i < pixels; i += kLanes) {
    const Column column(in + i, in_row);
    sink(place + i, pixel_confidence<Float>(column, classes), smaller_of(kLanes, pixels - i));
  }
}

template <typename Sink>
void solve(int classes, const float* in, int64_t in_row, int64_t place, int64_t pixels,
           const Sink& sink) {
  switch (classes) {
    case 11:
      return solve_columns<RegisterColumn<11>>(11, in, in_row, place, pixels, sink);
    case 13:
      return solve_columns<RegisterColumn<13>>(13, in, in_row, place, pixels, sink);
    case 16:
      return solve_columns<RegisterColumn<16>>(16, in, in_row, place, pixels, sink);
    case 19:
      return solve_columns<RegisterColumn<19>>(19, in, in_row, place, pixels, sink);
    default:
      return solve_columns<MemoryColumn>(classes, in, in_row, place, pixels, sink);
  }
}

template <typename Sink>
void solve_task(const PixelWalk& walk, int64_t task, int worker, const Sink& sink) {
  const int classes = static_cast<int>(walk.view.classes);
  const auto solver = [&](const float* in, int64_t in_row, int64_t place, int64_t pixels) {
    solve(classes, in, in_row, place, pixels, sink);
  };
  switch (walk.view.type) {
    case DataType::float32:
      return walk_task<float>(walk, task, worker, solver);
    case DataType::float16:
      return walk_task<Float16>(walk, task, worker, solver);
    case DataType::bfloat16:
      return walk_task<BFloat16>(walk, task, worker, solver);
  }
}

void find_keys(const PixelWalk& walk, int64_t task, int worker, int32_t* keys) {
  const int classes = static_cast<int>(walk.view.classes);
  solve_task(walk, task, worker,
             [&](int64_t place, const PixelConfidence<Float>& pixel, int64_t count) {
               store_some(keys + place, threshold_key(pixel, classes), count);
             });
}

// ---- counting -----------------------------------------------------------------------------------

// Keys in ranges of 2^shift: never more than kMaximumRanges for all classes.
struct KeyRanges {
  int shift;
  int count;
};

KeyRanges ranges_of(int64_t classes) {
  int shift = kThresholdBinBits - 3;
  while ((classes << kThresholdBinBits) >> shift > kMaximumRanges) ++shift;
  return {shift, static_cast<int>((classes << kThresholdBinBits) >> shift)};
}

// Keys of a task as they are found, and how many lie in each range. Counting goes on beside the
// arithmetic of the next pixels and costs next to nothing there.
void find_and_count_keys(const PixelWalk& walk, int64_t task, int worker, const KeyRanges& ranges,
                         int32_t* keys, uint32_t* counts) {
  const int classes = static_cast<int>(walk.view.classes);
  for (int r = 0; r <= ranges.count; ++r) counts[r] = 0;
  solve_task(walk, task, worker,
             [&](int64_t place, const PixelConfidence<Float>& pixel, int64_t count) {
               const Int found = threshold_key(pixel, classes);
               store_some(keys + place, found, count);
               for (int64_t i = 0; i < count; ++i) ++counts[keys[place + i] >> ranges.shift];
             });
}

// The place of each key in its range, keys of one range behind each other: range r has the entries
// starts[r] .. starts[r + 1] - 1 of `sorted`. Pixels that do not count come last.
void sort_keys(const int32_t* keys, int64_t pixels, const KeyRanges& ranges, uint32_t* counts,
               uint16_t* sorted, uint32_t* starts) {
  uint32_t start = 0;
  for (int r = 0; r <= ranges.count; ++r) {
    starts[r] = start;
    const uint32_t after = start + counts[r];
    counts[r] = start;
    start = after;
  }
  const int32_t within = (1 << ranges.shift) - 1;
  for (int64_t i = 0; i < pixels; ++i) {
    sorted[counts[keys[i] >> ranges.shift]++] = static_cast<uint16_t>(keys[i] & within);
  }
}

// Adds the counters to the histogram and clears them. What is zero (every bin below 1/K, and most
// where the pixels are certain) is not touched there.
void move_counts(uint32_t* counters, int64_t bins, int64_t* histogram) {
  for (int64_t i = 0; i < bins; i += kLanes) {
    const Unsigned found = load<Unsigned>(counters + i);
    if (!any_bit(found)) continue;
    store(counters + i, Unsigned{});
    for (int half = 0; half < 2; ++half) {
      int64_t* to = histogram + i + half * kDoubleLanes;
      const HalfInt more =
          load<HalfInt>(reinterpret_cast<const char*>(&found) + half * sizeof more);
      store(to, load<Long>(to) + __builtin_convertvector(more, Long));
    }
  }
}

// Few pixels need no ranges.
void count_directly(const PixelWalk& walk, int64_t* histogram) {
  const int classes = static_cast<int>(walk.view.classes);
  const int32_t end = classes << kThresholdBinBits;
  for (int64_t task = 0; task < walk.tasks; ++task) {
    solve_task(walk, task, 0, [&](int64_t, const PixelConfidence<Float>& pixel, int64_t count) {
      alignas(64) int32_t keys[kLanes];
      store(keys, threshold_key(pixel, classes));
      for (int64_t i = 0; i < count; ++i) {
        if (keys[i] < end) ++histogram[keys[i]];
      }
    });
  }
}

}  // namespace

void class_threshold_keys(const ClassThresholdKeysCall& call, int threads) {
  PixelWalk walk = plan_pixel_walk(call.logits);
  const int64_t workers = smaller_of(threads, walk.tasks);
  Block block = {};
  char* memory = take_or_throw(block, walk_scratch(walk, workers) * 4);
  prepare_walk(walk, reinterpret_cast<float*>(memory));
  parallel_for(walk.tasks, static_cast<int>(workers), [&](int64_t task, int worker) {
    find_keys(walk, task, worker, call.keys + task_begin(walk, task));
  });
  give_back_scratch(block);
}

void class_threshold_update(const ClassThresholdUpdateCall& call, int threads) {
  PixelWalk walk = plan_pixel_walk(call.logits);
  if (walk.tasks == 0) return;
  const KeyRanges ranges = ranges_of(walk.view.classes);
  const int64_t room = round_up(walk.task_pixels, 32);
  const int64_t chunk = smaller_of(kChunkPixels / room > 0 ? kChunkPixels / room : 1, walk.tasks);
  const int64_t workers = smaller_of(threads, chunk);
  const int64_t row = round_up(ranges.count + 1, 16);  // of starts
  const bool alone = walk.tasks == 1;

  Block block = {};
  const int64_t rows = walk_scratch(walk, workers);
  const int64_t counting = smaller_of(threads, ranges.count) << ranges.shift;
  const int64_t ints = rows + (alone ? 0 : workers * room + chunk * (room / 2 + row) + counting);
  float* memory = reinterpret_cast<float*>(take_or_throw(block, ints * 4));
  prepare_walk(walk, memory);
  int32_t* keys = reinterpret_cast<int32_t*>(memory + rows);
  uint16_t* sorted = reinterpret_cast<uint16_t*>(keys + workers * room);
  uint32_t* starts = reinterpret_cast<uint32_t*>(sorted + chunk * room);
  uint32_t* counters = starts + chunk * row;
  for (int64_t i = 0; i < counting && !alone; ++i) counters[i] = 0;

  if (alone) count_directly(walk, call.histogram);
  for (int64_t begin = 0; begin < walk.tasks && !alone; begin += chunk) {
    const int64_t tasks = smaller_of(chunk, walk.tasks - begin);
    parallel_for(tasks, static_cast<int>(workers), [&](int64_t task, int worker) {
      uint32_t counts[kMaximumRanges + 1];
      int32_t* own = keys + worker * room;
      find_and_count_keys(walk, begin + task, worker, ranges, own, counts);
      sort_keys(own, pixels_of_task(walk, begin + task), ranges, counts, sorted + task * room,
                starts + task * row);
    });
    parallel_for(ranges.count, threads, [&](int64_t range, int worker) {
      uint32_t* own = counters + (static_cast<int64_t>(worker) << ranges.shift);
      for (int64_t task = 0; task < tasks; ++task) {
        const uint16_t* places = sorted + task * room;
        const uint32_t* edges = starts + task * row + range;
        for (uint32_t i = edges[0]; i < edges[1]; ++i) ++own[places[i]];
      }
      move_counts(own, int64_t{1} << ranges.shift, call.histogram + (range << ranges.shift));
    });
  }
  give_back_scratch(block);
}

// ---- the exact order statistic ------------------------------------------------------------------

void class_thresholds(const ClassThresholdsCall& call, int threads) {
  PixelWalk walk = plan_pixel_walk(call.logits);
  const int64_t classes = walk.view.classes;
  const int64_t pixels = walk.view.batch * walk.view.out_height * walk.view.out_width;
  const int64_t workers =
      walk.tasks < 1 ? 1 : smaller_of(smaller_of(threads, walk.tasks), kMaximumWorkers);
  const int64_t counters = classes << kOrderDigitBits;

  Block block = {};
  const int64_t scratch = walk_scratch(walk, workers) * 4;
  const int64_t room = round_up(pixels, 64);
  char* memory = take_or_throw(block, scratch + workers * counters * 8 + room * 5 + 64);
  prepare_walk(walk, reinterpret_cast<float*>(memory));
  int64_t* counts = reinterpret_cast<int64_t*>(memory + scratch);
  int32_t* orders = reinterpret_cast<int32_t*>(counts + workers * counters);
  uint8_t* winners = reinterpret_cast<uint8_t*>(orders + room);
  for (int64_t i = 0; i < workers * counters; ++i) counts[i] = 0;

  // The most significant digits are counted on the way.
  parallel_for(walk.tasks, static_cast<int>(workers), [&](int64_t task, int worker) {
    const int64_t begin = task_begin(walk, task);
    int64_t* own = counts + worker * counters;
    solve_task(
        walk, task, worker, [&](int64_t place, const PixelConfidence<Float>& pixel, int64_t count) {
          const Int order = confidence_order(pixel);
          store_some(orders + begin + place, order, count);
          for (int64_t i = 0; i < count; ++i) {
            const int32_t winner = pixel.winner[i];
            winners[begin + place + i] = static_cast<uint8_t>(winner);
            if (order[i] < 0) continue;
            ++own[(winner << kOrderDigitBits) + (order[i] >> (kConfidenceBits - kOrderDigitBits))];
          }
        });
  });
  select_confidences({orders, winners, pixels}, static_cast<int>(classes), call.portion, counts,
                     static_cast<int>(workers), call.thresholds);
  give_back_scratch(block);
}

}  // namespace cscl::cpu::CSCL_ISA
