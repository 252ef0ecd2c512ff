// Bilinear resampling in PyTorch's convention, one axis at a time.
#pragma once

#include "core/arithmetic.h"

CSCL_CORE_BEGIN

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
// `Integer` holds 2 * output * source.
template <typename Integer>
CSCL_HD LinePositionOf<Integer> line_position(Integer i, Integer source, Integer output,
                                              bool align_corners) {
  Integer numerator = i * (source - 1);
  Integer denominator = output > 1 ? output - 1 : 1;
  if (!align_corners) {
    numerator = (2 * i + 1) * source - output;
    denominator = 2 * output;
    if (numerator < 0) numerator = 0;
  }
  LinePositionOf<Integer> position;
  position.first = numerator / denominator;
  const Integer remainder = numerator - position.first * denominator;
  position.near_weight =
      static_cast<float>(denominator - remainder) / static_cast<float>(denominator);
  position.far_weight = static_cast<float>(remainder) / static_cast<float>(denominator);
  return position;
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
  const Integer found = (numerator + denominator - 1) / denominator;
  return found < output ? found : output;
}

// Written literally: a NaN or an infinity on either side is seen even at weight 0, as in PyTorch.
template <typename Real>
CSCL_HD Real interpolate(Real near_weight, Real near, Real far_weight, Real far) {
  return multiply_add(far_weight, far, near_weight * near);
}

CSCL_CORE_END
