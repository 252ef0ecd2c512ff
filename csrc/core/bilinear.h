// Bilinear resampling in PyTorch's convention, one axis at a time.
#pragma once

#include "core/arithmetic.h"

CSCL_CORE_BEGIN

// numerator / denominator, rounded down, for 0 <= numerator < 2^62 and 0 < denominator < 2^32 whose
// quotient is below 2^32: by two floats' worth of quotient and a last correction. GPUs have no
// 64-bit division; the one that compilers call is a function, for which registers are spilled.
CSCL_HD int64_t quotient_by_floats(int64_t numerator, int64_t denominator) {
#if defined(__CUDA_ARCH__)
  const float inverse = __fdividef(1.0f, static_cast<float>(denominator));
#else
  const float inverse = 1.0f / static_cast<float>(denominator);
#endif
  int64_t quotient = static_cast<int64_t>(static_cast<float>(numerator) * inverse);
  int64_t rest = numerator - quotient * denominator;
  const int64_t correction = static_cast<int64_t>(static_cast<float>(rest) * inverse);
  quotient += correction;
  rest -= correction * denominator;
  if (rest < 0) return quotient - 1;
  return rest >= denominator ? quotient + 1 : quotient;
}

CSCL_HD int64_t quotient(int64_t numerator, int64_t denominator) {
#if defined(__CUDA_ARCH__)
  return quotient_by_floats(numerator, denominator);
#else
  return numerator / denominator;
#endif
}
CSCL_HD int32_t quotient(int32_t numerator, int32_t denominator) { return numerator / denominator; }

// Output line i reads source lines `first` and `first + 1` (the last source line stands for the
// one after it) with these weights.
template <typename Integer>
struct LinePositionOf {
  Integer first;
  float near_weight;  // of `first`
  float far_weight;   // of the line after it
};

using LinePosition = LinePositionOf<int64_t>;

// Coordinates are integer fractions: a line that falls exactly on a source line does so here, too,
// and each weight is rounded once (up to 2^24 output lines; beyond them by three units).
// The same in integers: the weights are near / denominator and far / denominator. Sums of values
// times these are exact for values of few bits, so that classes that tie by other values at other
// locations go on doing so. `Integer` holds 2 * output * source.
template <typename Integer>
struct LineFraction {
  Integer first, near, far;
};

template <typename Integer>
CSCL_HD Integer line_denominator(Integer output, bool align_corners) {
  if (!align_corners) return 2 * output;
  return output > 1 ? output - 1 : 1;
}

template <typename Integer>
CSCL_HD LineFraction<Integer> line_fraction(Integer i, Integer source, Integer output,
                                            bool align_corners) {
  const Integer denominator = line_denominator(output, align_corners);
  Integer numerator = i * (source - 1);
  if (!align_corners) {
    numerator = (2 * i + 1) * source - output;
    if (numerator < 0) numerator = 0;
  }
  LineFraction<Integer> line;
  line.first = quotient(numerator, denominator);
  line.far = numerator - line.first * denominator;
  line.near = denominator - line.far;
  return line;
}

template <typename Integer>
CSCL_HD LinePositionOf<Integer> line_position(Integer i, Integer source, Integer output,
                                              bool align_corners) {
  const LineFraction<Integer> line = line_fraction(i, source, output, align_corners);
  const float denominator = static_cast<float>(line_denominator(output, align_corners));
  return {line.first, static_cast<float>(line.near) / denominator,
          static_cast<float>(line.far) / denominator};
}

// The first output line whose source line is `line` or a later one; `output` if there is none.
template <typename Integer>
CSCL_HD Integer first_line_from(Integer line, Integer source, Integer output, bool align_corners) {
  if (line <= 0) return 0;
  if (line >= source) return output;
  Integer numerator = line * (output > 1 ? output - 1 : 1);
  Integer denominator = source - 1;
  if (!align_corners) {
    numerator = (2 * line + 1) * output - source;
    denominator = 2 * source;
  }
  const Integer found = quotient(numerator + denominator - 1, denominator);
  return found < output ? found : output;
}

// Written literally: a NaN or an infinity on either side is seen even at weight 0, as in PyTorch.
template <typename Real>
CSCL_HD Real interpolate(Real near_weight, Real near, Real far_weight, Real far) {
  return multiply_add(far_weight, far, near_weight * near);
}

CSCL_CORE_END
