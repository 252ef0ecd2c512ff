// Order statistics of what has been counted or stored, by class. Plain integers, no vectors:
// compiled once for all instruction sets.
#pragma once

#include <cstdint>

namespace cscl::cpu {

// Bits of a confidence that one pass of the exact selection looks at.
constexpr int kOrderDigitBits = 9;

// Confidences as confidence_order() has them, -1 where the pixel does not count; their classes.
struct StoredConfidences {
  const int32_t* orders;
  const uint8_t* winners;
  int64_t count;
};

// thresholds [K] float32: Algorithm 1's order statistic. `counts` [threads, K, 2^kOrderDigitBits]
// holds, in `threads` parts, how often each most significant digit occurs; it is used up.
void select_confidences(const StoredConfidences& stored, int classes, double portion,
                        int64_t* counts, int threads, float* thresholds);

// thresholds [K] of keys [count], as class_threshold_keys makes them: the same answer as that of
// the histogram of these keys.
void select_keys(const int32_t* keys, int64_t count, int classes, double portion,
                 float* thresholds);

struct HistogramScan {
  const int64_t* histogram;  // [K, 65536]
  const int64_t* other;      // a second one that is added to it, or null
  int classes;
  const double* portions;  // [P]
  int64_t portion_count;
  float* thresholds;  // [P, K]
};

// For each portion and class the centre of the bin of its order statistic; all in one scan.
void thresholds_of_histogram(const HistogramScan& scan, int threads);

}  // namespace cscl::cpu
