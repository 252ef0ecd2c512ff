// Confidence of one pixel and what Algorithm 1 makes of it.
//
// The confidence is the largest probability of softmax(z), 1 / Σ exp(z_k - max z), in float32; the
// pixel belongs to the class of its largest logit, the lowest one of several. Streaming counts the
// confidence in one of 65536 equal bins; the exact order statistic compares its bits, which for
// positive numbers are ordered as the numbers are.
#pragma once

#include "core/arithmetic.h"
#include "core/exponential.h"

CSCL_CORE_BEGIN

constexpr int kThresholdBinBits = 16;
constexpr int32_t kThresholdBins = 1 << kThresholdBinBits;

// A confidence is at least 1/256, up to rounding: its bits lie above those of 2^-9, and with these
// taken off 27 bits hold every one up to that of 1.
constexpr int32_t kLowestConfidenceBits = (127 - 9) << 23;
constexpr int kConfidenceBits = 27;

template <typename Real>
struct PixelConfidence {
  Real confidence;         // in (0, 1]; 0 where the pixel does not count
  IntegerOf<Real> winner;  // its class
  MaskOf<Real> counted;    // every logit is finite
};

// Of the logits of `column`: get(k), k < classes.
template <typename Real, typename Column, typename Classes>
CSCL_HD PixelConfidence<Real> pixel_confidence(const Column& column, Classes classes) {
  const Real zero = {};
  const int end = loop_end(classes);
  // Two partial results of each kind: half the rounding errors in a row and half the waiting.
  Real highest[2] = {column.get(0), column.get(0)};
  Real disorder[2] = {zero, zero};  // 0, or NaN once a logit is not finite
  CSCL_UNROLL(32)
  for (int k = 0; k < end; ++k) {
    highest[partial_of(k, classes)] = larger(column.get(k), highest[partial_of(k, classes)]);
    disorder[partial_of(k, classes)] =
        multiply_add(column.get(k), zero, disorder[partial_of(k, classes)]);
  }
  const Real largest = larger(highest[0], highest[1]);

  Real sum[2] = {zero, zero};
  IntegerOf<Real> winner = {};
  CSCL_UNROLL(32)
  for (int k = end - 1; k >= 0; --k) {  // downwards: the lowest class comes last
    const Real value = column.get(k);
    sum[partial_of(k, classes)] = sum[partial_of(k, classes)] + exponential(value - largest);
    winner = select(value == largest, broadcast_integer<Real>(k), winner);
  }

  PixelConfidence<Real> pixel;
  pixel.counted = disorder[0] + disorder[1] == zero;
  pixel.confidence = select(pixel.counted, ScalarOf<Real>(1) / (sum[0] + sum[1]), zero);
  pixel.winner = winner;
  return pixel;
}

// Where the pixel is counted: its class above the 16 bits of its bin. Pixels that do not count have
// the first key of the class after the last.
template <typename Real>
CSCL_HD IntegerOf<Real> threshold_key(const PixelConfidence<Real>& pixel, int classes) {
  const IntegerOf<Real> last = broadcast_integer<Real>(kThresholdBins - 1);
  const IntegerOf<Real> scaled = truncate(pixel.confidence * ScalarOf<Real>(kThresholdBins));
  const IntegerOf<Real> bin = select(scaled > last, last, scaled);
  return select(pixel.counted, (pixel.winner << kThresholdBinBits) + bin,
                broadcast_integer<Real>(classes << kThresholdBinBits));
}

// The confidence as an integer of kConfidenceBits bits, ordered as it is; -1: does not count.
template <typename Real>
CSCL_HD IntegerOf<Real> confidence_order(const PixelConfidence<Real>& pixel) {
  return select(pixel.counted, bits_of(pixel.confidence) - kLowestConfidenceBits,
                broadcast_integer<Real>(-1));
}

CSCL_HD float confidence_of_order(int32_t order) {
  return from_bits<float>(order + kLowestConfidenceBits);
}

CSCL_HD float centre_of_bin(int32_t bin) {  // 17 bits: exact
  return static_cast<float>(2 * bin + 1) / static_cast<float>(2 * kThresholdBins);
}

// Index of δ in the descending order of n > 0 confidences.
CSCL_HD int64_t threshold_rank(int64_t n, double portion) {
  const int64_t rank = static_cast<int64_t>(portion * static_cast<double>(n));
  return rank < n - 1 ? rank : n - 1;
}

// The same without a floating-point number, for where doubles are slow: portion = mantissa /
// 2^shift.
struct PortionBits {
  uint64_t mantissa;  // 53 bits
  int shift;          // 52 and more
};

inline PortionBits portion_bits(double portion) {  // in (0, 1]
  uint64_t bits;
  __builtin_memcpy(&bits, &portion, sizeof(bits));
  const int exponent = static_cast<int>(bits >> 52);
  const uint64_t fraction = bits & ((uint64_t{1} << 52) - 1);
  if (exponent == 0) return {fraction, 1074};  // subnormal
  return {fraction | uint64_t{1} << 52, 1075 - exponent};
}

// n below 2^62. The product is rounded to 53 bits, to the nearest and to even, as a double's is.
CSCL_HD int64_t threshold_rank(int64_t n, PortionBits portion) {
  unsigned __int128 product =
      static_cast<unsigned __int128>(portion.mantissa) * static_cast<uint64_t>(n);
  int excess = 0;  // bits beyond 53
  while ((product >> excess) >> 53 != 0) ++excess;
  if (excess > 0) {
    const unsigned __int128 unit = static_cast<unsigned __int128>(1) << excess;
    const unsigned __int128 rest = product & (unit - 1), half = unit >> 1;
    product -= rest;
    if (rest > half || (rest == half && (product & unit) != 0)) product += unit;
  }
  const int64_t rank = portion.shift < 128 ? static_cast<int64_t>(product >> portion.shift) : 0;
  return rank < n - 1 ? rank : n - 1;
}

CSCL_CORE_END
