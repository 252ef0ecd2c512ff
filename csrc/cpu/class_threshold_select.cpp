// Selection by digits: count the most significant digit of every value, for each class; find the
// digit of the order statistic; count the next digit of the values that begin with it; and so on.
// Every pass is a walk over the values in their order, and nothing is sorted.
#include "cpu/class_threshold_select.h"

#include <algorithm>
#include <vector>

#include "core/class_threshold.h"
#include "cpu/threads.h"

namespace cscl::cpu {
namespace {

constexpr int64_t kTaskValues = 1 << 16;
constexpr int32_t kNoClass = -2;  // no value begins with it, not even -1

// What is known of each class's order statistic.
struct Search {
  explicit Search(int classes) : begins(classes, 0), rank(classes, 0) {}
  std::vector<int32_t> begins;  // its leading digits
  std::vector<int64_t> rank;    // its index among the values that begin with these, descending
};

// Goes down one digit; `counts` [K, 2^digit_bits] are those of the values that begin alike.
void find_digits(Search& search, const int64_t* counts, int digit_bits) {
  for (size_t k = 0; k < search.begins.size(); ++k) {
    if (search.begins[k] == kNoClass) continue;
    const int64_t* own = counts + (static_cast<int64_t>(k) << digit_bits);
    int32_t digit = (1 << digit_bits) - 1;
    int64_t rank = search.rank[k];
    while (rank >= own[digit]) rank -= own[digit--];
    search.begins[k] = (search.begins[k] << digit_bits) | digit;
    search.rank[k] = rank;
  }
}

// The rank to look for, and the first digit.
void begin_search(Search& search, const int64_t* counts, int digit_bits, double portion) {
  for (size_t k = 0; k < search.begins.size(); ++k) {
    const int64_t* own = counts + (static_cast<int64_t>(k) << digit_bits);
    int64_t n = 0;
    for (int32_t digit = 0; digit < 1 << digit_bits; ++digit) n += own[digit];
    if (n == 0) {
      search.begins[k] = kNoClass;
    } else {
      search.rank[k] = threshold_rank(n, portion);
    }
  }
  find_digits(search, counts, digit_bits);
}

// The sum of the workers' counts, left in the first.
void add_up(int64_t* counts, int64_t counters, int workers) {
  for (int worker = 1; worker < workers; ++worker) {
    for (int64_t i = 0; i < counters; ++i) counts[i] += counts[worker * counters + i];
  }
}

// The bins of one class, a block of them at a time, so that a search steps over most of them.
constexpr int kBlockBits = 8;
constexpr int64_t kBlocks = kThresholdBins >> kBlockBits;

int64_t count_of(const HistogramScan& scan, int64_t bin) {
  return scan.histogram[bin] + (scan.other != nullptr ? scan.other[bin] : 0);
}

void scan_class(const HistogramScan& scan, int64_t k) {
  const int64_t first = k << kThresholdBinBits;
  int64_t blocks[kBlocks];
  int64_t n = 0;
  for (int64_t block = 0; block < kBlocks; ++block) {
    const int64_t begin = first + (block << kBlockBits);
    int64_t sum = 0;
    for (int64_t i = 0; i < 1 << kBlockBits; ++i) sum += scan.histogram[begin + i];
    if (scan.other != nullptr) {
      for (int64_t i = 0; i < 1 << kBlockBits; ++i) sum += scan.other[begin + i];
    }
    blocks[block] = sum;
    n += sum;
  }
  for (int64_t p = 0; p < scan.portion_count; ++p) {
    float& threshold = scan.thresholds[p * scan.classes + k];
    threshold = 1.0f;
    if (n == 0) continue;
    int64_t rank = threshold_rank(n, scan.portions[p]);
    int64_t block = kBlocks - 1;
    while (rank >= blocks[block]) rank -= blocks[block--];
    int64_t bin = ((block + 1) << kBlockBits) - 1;
    while (rank >= count_of(scan, first + bin)) rank -= count_of(scan, first + bin--);
    threshold = centre_of_bin(static_cast<int32_t>(bin));
  }
}

}  // namespace

void select_confidences(const StoredConfidences& stored, int classes, double portion,
                        int64_t* counts, int threads, float* thresholds) {
  const int64_t counters = static_cast<int64_t>(classes) << kOrderDigitBits;
  const int64_t tasks = (stored.count + kTaskValues - 1) / kTaskValues;
  Search search(classes);
  add_up(counts, counters, threads);
  begin_search(search, counts, kOrderDigitBits, portion);
  for (int shift = kConfidenceBits - 2 * kOrderDigitBits; shift >= 0; shift -= kOrderDigitBits) {
    std::fill(counts, counts + threads * counters, 0);
    parallel_for(tasks, threads, [&](int64_t task, int worker) {
      int64_t* own = counts + worker * counters;
      const int32_t* begins = search.begins.data();
      const int64_t end = std::min((task + 1) * kTaskValues, stored.count);
      for (int64_t i = task * kTaskValues; i < end; ++i) {
        const int32_t order = stored.orders[i], k = stored.winners[i];
        if (order >> (shift + kOrderDigitBits) != begins[k]) continue;
        ++own[(k << kOrderDigitBits) + ((order >> shift) & ((1 << kOrderDigitBits) - 1))];
      }
    });
    add_up(counts, counters, threads);
    find_digits(search, counts, kOrderDigitBits);
  }
  for (int k = 0; k < classes; ++k) {
    const int32_t order = search.begins[static_cast<size_t>(k)];
    thresholds[k] = order == kNoClass ? 1.0f : confidence_of_order(order);
  }
}

void select_keys(const int32_t* keys, int64_t count, int classes, double portion,
                 float* thresholds) {
  constexpr int kDigitBits = kThresholdBinBits / 2;
  Search search(classes);
  // One class more, for the pixels that do not count.
  std::vector<int64_t> counts(static_cast<size_t>(classes + 1) << kDigitBits);
  for (int64_t i = 0; i < count; ++i) ++counts[static_cast<size_t>(keys[i] >> kDigitBits)];
  begin_search(search, counts.data(), kDigitBits, portion);
  search.begins.push_back(kNoClass);
  std::fill(counts.begin(), counts.end(), 0);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t k = keys[i] >> kThresholdBinBits, bin = keys[i] & (kThresholdBins - 1);
    const int32_t digit = bin & ((1 << kDigitBits) - 1);
    if (bin >> kDigitBits != search.begins[static_cast<size_t>(k)]) continue;
    ++counts[static_cast<size_t>((k << kDigitBits) + digit)];
  }
  search.begins.pop_back();
  find_digits(search, counts.data(), kDigitBits);
  for (int k = 0; k < classes; ++k) {
    const int32_t bin = search.begins[static_cast<size_t>(k)];
    thresholds[k] = bin == kNoClass ? 1.0f : centre_of_bin(bin);
  }
}

void thresholds_of_histogram(const HistogramScan& scan, int threads) {
  parallel_for(scan.classes, threads, [&](int64_t k, int) { scan_class(scan, k); });
}

}  // namespace cscl::cpu
