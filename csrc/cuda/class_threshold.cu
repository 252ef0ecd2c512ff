// Algorithm 1 on logits [B, K, h, w] at H x W: each pixel's confidence, counted in a histogram
// [K, 65536] int64 that lives between calls, or ranked exactly for one tensor.
//
// Bytes that must move for a float32 pixel at the logits' own size: 4 K. How the pixels are walked:
// pixel_walk.h and upsampled_walk.h; what is done with a confidence:
//
// - Counting. Trained networks are sure of most pixels, so that most fall in the last few of a
//   class's 65536 bins: added to one address each, they would wait for one another. These bins are
//   counted in shared memory, once for each block, and merged at its end; the others go to global
//   memory, where they hardly meet.
// - Ranking. The confidence's 27 bits are found nine at a time: a histogram of the highest nine for
//   each class, in shared memory, says which 1/512 of the range the answer lies in; the next walk,
//   over one integer a pixel, counts only those; the third knows all bits. Three launches, one of
//   them over the logits. Every block finds the earlier answers itself, from the merged histograms.
//
// Integers only are added atomically, so that the order in which blocks run changes nothing.
#include "core/class_threshold.h"
#include "cuda/upsampled_kernels.h"

namespace cscl::cuda {
namespace {

using Count = unsigned long long;  // what atomicAdd takes for int64

// ---- counting -----------------------------------------------------------------------------------

__host__ __device__ constexpr int hot_bins(int classes) { return classes <= 32 ? 256 : 32; }

struct CountingBody {
  struct Arguments {
    int64_t* histogram;
  };
  static constexpr int kInputs = 1;
  static constexpr bool kPlanesOnly = false;
  static constexpr bool kStores = false, kScratch = false, kOtherColumn = false, kGradient = false;
  static constexpr size_t bytes(int classes) {
    return shared_bytes<int>(static_cast<size_t>(classes) * hot_bins(classes));
  }

  Count* histogram;
  Shared<int> hot;  // [K, hot_bins], the last bins of each class
  int classes, hot_count;

  CSCL_D CountingBody(const Arguments& arguments, int class_count, SharedMemory& memory)
      : histogram(reinterpret_cast<Count*>(arguments.histogram)),
        hot(memory.array<int>(class_count * hot_bins(class_count))),
        classes(class_count),
        hot_count(hot_bins(class_count)) {
    for (int i = static_cast<int>(threadIdx.x); i < classes * hot_count;
         i += static_cast<int>(blockDim.x)) {
      hot.set(i, 0);
    }
    __syncthreads();
  }

  template <typename Column, typename Classes>
  CSCL_D int solve(Column& column, Column& /*other*/, Classes count, const TileColumn&, int64_t) {
    const auto pixel = pixel_confidence<float>(column, count);
    if (!pixel.counted) return 0;
    const int key = threshold_key<float>(pixel, classes);
    const int bin = key & (kThresholdBins - 1);
    const int from_hot = bin - (kThresholdBins - hot_count);
    if (from_hot >= 0) {
      hot.atomic_add(pixel.winner * hot_count + from_hot, 1);
    } else {
      atomicAdd(histogram + key, Count{1});
    }
    return 0;
  }
  template <int kCount>
  CSCL_D void results(const int (&)[kCount], int64_t) const {}
  CSCL_D void finish() const {
    __syncthreads();
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    for (int k = warp; k < classes; k += static_cast<int>(blockDim.x) / 32) {
      for (int i = lane; i < hot_count; i += 32) {
        const int found = hot[k * hot_count + i];
        const int64_t bin = (static_cast<int64_t>(k) + 1) * kThresholdBins - hot_count + i;
        if (found > 0) atomicAdd(histogram + bin, static_cast<Count>(found));
      }
    }
  }
};

// ---- reading the histogram ----------------------------------------------------------------------

constexpr int kPortions = 8;  // of a launch
struct Portions {
  PortionBits each[kPortions];
  int count;
};

constexpr int kScanThreads = 512;
constexpr int kChunkBins = 128, kChunks = kThresholdBins / kChunkBins;

CSCL_D int64_t bin_count(const int64_t* histogram, const int64_t* other, int64_t bin) {
  return histogram[bin] + (other == nullptr ? 0 : other[bin]);
}

// Lane i's sum over the lanes i, i + 1, ...
CSCL_D int64_t suffix_sum(int64_t value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int64_t above = static_cast<int64_t>(
        __shfl_down_sync(0xffffffffu, static_cast<Count>(value), static_cast<unsigned>(step)));
    if (lane + step < 32) value += above;
  }
  return value;
}

// A place in a descending order: the highest of 32 * each cells such that more than `rank` lie in
// it or above, and what is left of the rank there. get(i) is the count of cell i; by a whole warp,
// and every lane gets the answer.
struct Found {
  int cell;
  int64_t rank;
};
template <typename Get>
CSCL_D Found find_rank(int each, int64_t rank, const Get& get) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int64_t own = 0;
  for (int i = 0; i < each; ++i) own += get(lane * each + i);
  const int64_t from_here = suffix_sum(own);
  int64_t left = rank - (from_here - own);  // what is left of it below the lanes above
  int cell = -1;
  if (left >= 0 && left < own) {
    for (cell = lane * each + each - 1; left >= get(cell); --cell) left -= get(cell);
  }
  const unsigned here = __ballot_sync(0xffffffffu, cell >= 0);
  const int source = here == 0 ? 0 : __ffs(static_cast<int>(here)) - 1;
  return {__shfl_sync(0xffffffffu, cell, source),
          static_cast<int64_t>(__shfl_sync(0xffffffffu, static_cast<Count>(left), source))};
}

// One block for each class. All threads sum chunks of 128 bins, then a warp for each portion walks
// down: chunks first, then the bins of one.
__global__ void __launch_bounds__(kScanThreads)
    read_histogram(const int64_t* histogram, const int64_t* other, int classes, Portions portions,
                   float* thresholds) {
  SharedMemory memory;
  const Shared<int64_t> chunks = memory.array<int64_t>(kChunks);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int k = static_cast<int>(blockIdx.x);
  const int64_t begin = static_cast<int64_t>(k) * kThresholdBins;
  for (int chunk = warp; chunk < kChunks; chunk += kScanThreads / 32) {
    int64_t sum = 0;
    for (int i = lane; i < kChunkBins; i += 32) {
      sum += bin_count(histogram, other, begin + chunk * kChunkBins + i);
    }
    sum = suffix_sum(sum);
    if (lane == 0) chunks.set(chunk, sum);
  }
  __syncthreads();
  if (warp >= portions.count) return;
  int64_t n = 0;
  for (int i = lane; i < kChunks; i += 32) n += chunks[i];
  n = suffix_sum(n);
  n = static_cast<int64_t>(__shfl_sync(0xffffffffu, static_cast<Count>(n), 0));
  float threshold = 1.0f;
  if (n > 0) {
    const int64_t rank = threshold_rank(n, portions.each[warp]);
    const Found chunk = find_rank(kChunks / 32, rank, [&](int i) { return chunks[i]; });
    const Found bin = find_rank(kChunkBins / 32, chunk.rank, [&](int i) {
      return bin_count(histogram, other, begin + chunk.cell * kChunkBins + i);
    });
    threshold = centre_of_bin(chunk.cell * kChunkBins + bin.cell);
  }
  if (lane == 0) thresholds[warp * classes + k] = threshold;
}

// ---- ranking ------------------------------------------------------------------------------------

constexpr int kLevelBits = kConfidenceBits / 3, kLevelBins = 1 << kLevelBits, kLevels = 3;
static_assert(kLevels * kLevelBits == kConfidenceBits, "three digits make a confidence");

// In scratch. The histograms and the counter start at 0.
struct Ranking {
  unsigned* levels;  // [3, K, 512]
  unsigned* done;    // blocks of the last walk that are
  int32_t* orders;   // [B, H, W], confidence_order
  uint8_t* winners;  // [B, H, W]
};

// A histogram of one digit for each class: the block's own, for as many classes as shared memory
// has room for; beyond them, everybody's.
struct LevelHistogram {
  Shared<int> own;
  unsigned* global;
  int classes;
  bool shared;

  __host__ __device__ static constexpr bool fits(int classes) { return classes <= 32; }
  static constexpr size_t bytes(int classes) {
    return fits(classes) ? shared_bytes<int>(static_cast<size_t>(classes) * kLevelBins) : 0;
  }
  CSCL_D LevelHistogram(unsigned* to, int class_count, SharedMemory& memory)
      : own(memory.array<int>(fits(class_count) ? class_count * kLevelBins : 0)),
        global(to),
        classes(class_count),
        shared(fits(class_count)) {
    if (shared) {
      for (int i = static_cast<int>(threadIdx.x); i < classes * kLevelBins;
           i += static_cast<int>(blockDim.x)) {
        own.set(i, 0);
      }
      __syncthreads();
    }
  }
  CSCL_D void count(int k, int digit) const {
    const int place = k * kLevelBins + digit;
    if (shared) {
      own.atomic_add(place, 1);
    } else {
      atomicAdd(global + place, 1u);
    }
  }
  CSCL_D void finish() const {  // by all threads
    if (!shared) return;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < classes * kLevelBins;
         i += static_cast<int>(blockDim.x)) {
      const int found = own[i];
      if (found > 0) atomicAdd(global + i, static_cast<unsigned>(found));
    }
  }
};

struct RankingBody {
  struct Arguments {
    Ranking ranking;
  };
  static constexpr int kInputs = 1;
  static constexpr bool kPlanesOnly = false;
  static constexpr bool kStores = false, kScratch = false, kOtherColumn = false, kGradient = false;
  static constexpr size_t bytes(int classes) { return LevelHistogram::bytes(classes); }

  int32_t* orders;
  uint8_t* winners;
  LevelHistogram histogram;

  CSCL_D RankingBody(const Arguments& arguments, int classes, SharedMemory& memory)
      : orders(arguments.ranking.orders),
        winners(arguments.ranking.winners),
        histogram(arguments.ranking.levels, classes, memory) {}

  template <typename Column, typename Classes>
  CSCL_D int solve(Column& column, Column& /*other*/, Classes classes, const TileColumn&,
                   int64_t pixel) const {
    const auto found = pixel_confidence<float>(column, classes);
    const int order = confidence_order<float>(found);
    if (order >= 0) histogram.count(found.winner, order >> (2 * kLevelBits));
    winners[pixel] = static_cast<uint8_t>(found.winner);
    return order;
  }
  template <int kCount>
  CSCL_D void results(const int (&found)[kCount], int64_t pixel) const {
    Pack<int32_t, kCount> pack;
#pragma unroll
    for (int i = 0; i < kCount; ++i) pack.values[i] = found[i];
    *reinterpret_cast<Pack<int32_t, kCount>*>(orders + pixel) = pack;
  }
  CSCL_D void finish() const { histogram.finish(); }
};

constexpr int kRankThreads = 256;

// What the histograms of the first `levels` digits say of each class: the digits, as a number, and
// what is left of the rank; -1 for a class without a pixel. By all threads of a block.
CSCL_D void find_digits(const unsigned* histograms, int levels, int classes, PortionBits portion,
                        const Shared<int>& digits) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int k = warp; k < classes; k += kRankThreads / 32) {
    int prefix = 0;
    int64_t rank = 0;
    for (int level = 0; level < levels && prefix >= 0; ++level) {
      const volatile unsigned* histogram =
          histograms + (static_cast<int64_t>(level) * classes + k) * kLevelBins;
      if (level == 0) {
        int64_t n = 0;
        for (int i = lane; i < kLevelBins; i += 32) n += histogram[i];
        n = suffix_sum(n);
        n = static_cast<int64_t>(__shfl_sync(0xffffffffu, static_cast<Count>(n), 0));
        if (n == 0) {
          prefix = -1;
          break;
        }
        rank = threshold_rank(n, portion);
      }
      const Found found = find_rank(kLevelBins / 32, rank,
                                    [&](int i) { return static_cast<int64_t>(histogram[i]); });
      prefix = (prefix << kLevelBits) + found.cell;
      rank = found.rank;
    }
    if (lane == 0) digits.set(k, prefix);
  }
  __syncthreads();
}

// The walk that finds digit `level` (1 or 2) of the pixels that agree with the digits before it.
// After the last one the block that is done last knows the answer.
__global__ void __launch_bounds__(kRankThreads)
    rank_digit(Ranking ranking, int level, int64_t pixels, int classes, PortionBits portion,
               float* thresholds) {
  SharedMemory memory;
  const Shared<int> digits = memory.array<int>(classes);
  const Shared<int> last = memory.array<int>(1);
  const LevelHistogram histogram(
      ranking.levels + static_cast<int64_t>(level) * classes * kLevelBins, classes, memory);
  find_digits(ranking.levels, level, classes, portion, digits);
  const int shift = (kLevels - level) * kLevelBits;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kRankThreads + threadIdx.x; i < pixels;
       i += static_cast<int64_t>(gridDim.x) * kRankThreads) {
    const int order = ranking.orders[i];
    const int k = ranking.winners[i];
    if (order >= 0 && order >> shift == digits[k]) {
      histogram.count(k, (order >> (shift - kLevelBits)) & (kLevelBins - 1));
    }
  }
  histogram.finish();
  if (level + 1 < kLevels) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last.set(0, atomicAdd(ranking.done, 1u) + 1 == gridDim.x ? 1 : 0);
  __syncthreads();
  if (last[0] == 0) return;
  __threadfence();
  find_digits(ranking.levels, kLevels, classes, portion, digits);
  for (int k = static_cast<int>(threadIdx.x); k < classes; k += kRankThreads) {
    thresholds[k] = digits[k] < 0 ? 1.0f : confidence_of_order(digits[k]);
  }
}

// Runs a body over the logits, at whatever size.
template <typename Body>
void run(const char* name, const LogitsView& view, const typename Body::Arguments& arguments,
         const Context& context) {
  const PixelStore nowhere = {};
  with_classes(view.classes, [&](auto classes) {
    using Classes = decltype(classes);
    if (view.height == view.out_height && view.width == view.out_width) {
      const OwnSizeWalk walk = plan_walk<Classes, Body>(view, nullptr, nowhere, context);
      walk_logits<Classes, Body>(name, walk, view, nullptr, classes, arguments, nowhere, context);
    } else {
      const Tiling tiling = plan_upsampled<Classes, Body>(view, context);
      walk_upsampled_logits<Classes, Body>(name, tiling, view, nullptr, classes, arguments, nowhere,
                                           nullptr, context);
    }
  });
}

}  // namespace

void class_threshold_update(const ClassThresholdUpdateCall& call, const Context& context) {
  const DeviceScope scope(context);
  run<CountingBody>("class_threshold_update", call.logits, {call.histogram}, context);
}

void thresholds_of_histogram(const ThresholdsOfHistogramCall& call, const Context& context) {
  const DeviceScope scope(context);
  const int classes = static_cast<int>(call.classes);
  for (int64_t begin = 0; begin < call.portion_count; begin += kPortions) {
    Portions portions = {};
    portions.count = static_cast<int>(std::min<int64_t>(kPortions, call.portion_count - begin));
    for (int i = 0; i < portions.count; ++i) {
      portions.each[i] = portion_bits(call.portions[begin + i]);
    }
    launch("thresholds_of_histogram", read_histogram, context, classes, kScanThreads,
           shared_bytes<int64_t>(kChunks), call.histogram, call.other, classes, portions,
           call.thresholds + begin * classes);
  }
}

void class_thresholds(const ClassThresholdsCall& call, const Context& context) {
  const DeviceScope scope(context);
  const LogitsView& view = call.logits;
  const int classes = static_cast<int>(view.classes);
  const int64_t pixels = view.batch * view.out_height * view.out_width;
  const size_t histogram_bytes = static_cast<size_t>(kLevels * classes * kLevelBins) * 4;
  const size_t order_bytes = (static_cast<size_t>(pixels) * 4 + 15) / 16 * 16;
  char* memory = static_cast<char*>(
      context.scratch(histogram_bytes + 16 + order_bytes + static_cast<size_t>(pixels)));
  Ranking ranking;
  ranking.levels = reinterpret_cast<unsigned*>(memory);
  ranking.done = reinterpret_cast<unsigned*>(memory + histogram_bytes);
  ranking.orders = reinterpret_cast<int32_t*>(memory + histogram_bytes + 16);
  ranking.winners = reinterpret_cast<uint8_t*>(memory + histogram_bytes + 16 + order_bytes);
  check(cudaMemsetAsync(memory, 0, histogram_bytes + 16, static_cast<cudaStream_t>(context.stream)),
        "class_thresholds");
  if (pixels > 0) run<RankingBody>("class_thresholds", view, {ranking}, context);

  const PortionBits portion = portion_bits(call.portion);
  const int64_t blocks = std::max<int64_t>(
      1, std::min((pixels + kRankThreads - 1) / kRankThreads, resident_blocks(context, 4)));
  const size_t bytes = shared_bytes<int>(static_cast<size_t>(classes)) + shared_bytes<int>(1) +
                       LevelHistogram::bytes(classes);
  for (int level = 1; level < kLevels; ++level) {
    launch("class_thresholds", rank_digit, context, blocks, kRankThreads, bytes, ranking, level,
           pixels, classes, portion, call.thresholds);
  }
}

}  // namespace cscl::cuda
