// Bilinear resampling in PyTorch's convention, one axis at a time.
#pragma once

#include "core/arithmetic.h"

CSCL_CORE_BEGIN

// Output line i reads source lines `first` and `first + 1` (the last source line stands for the
// one after it) with these weights.
struct LinePosition {
  int64_t first;
  float near_weight;  // of `first`
  float far_weight;   // of the line after it
};

// Coordinates are integer fractions: a line that falls exactly on a source line does so here, too,
// and each weight is rounded once (up to 2^24 output lines; beyond them by three units).
CSCL_HD LinePosition line_position(int64_t i, int64_t source, int64_t output, bool align_corners) {
  int64_t numerator = i * (source - 1);
  int64_t denominator = output > 1 ? output - 1 : 1;
  if (!align_corners) {
    numerator = (2 * i + 1) * source - output;
    denominator = 2 * output;
    if (numerator < 0) numerator = 0;
  }
  LinePosition position;
  position.first = numerator / denominator;
  const int64_t remainder = numerator - position.first * denominator;
  position.near_weight =
      static_cast<float>(denominator - remainder) / static_cast<float>(denominator);
  position.far_weight = static_cast<float>(remainder) / static_cast<float>(denominator);
  return position;
}

// Written literally: a NaN or an infinity on either side is seen even at weight 0, as in PyTorch.
template <typename Real>
CSCL_HD Real interpolate(Real near_weight, Real near, Real far_weight, Real far) {
  return multiply_add(far_weight, far, near_weight * near);
}

CSCL_CORE_END
