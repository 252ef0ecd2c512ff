// Class and weight of one location, Eq. 12-13.
//
// A hard label k counts with weight 1. Of a soft label ŷ only the largest entry counts (ties: the
// lowest class), with weight ŷ_k; a location whose entries are all 0 was rejected and has no class.
#pragma once

#include "core/arithmetic.h"

CSCL_CORE_BEGIN

constexpr int64_t kIgnoredLabel = 255;
// Soft labels are probabilities; half types round them up by at most this much.
constexpr float kLargestSoftLabel = 1.0f + 1.0f / 128.0f;

// What has no class goes to the row after the last one.
CSCL_HD int32_t row_of_label(int64_t label, int64_t classes) {
  const bool counted = label >= 0 && label < classes && label != kIgnoredLabel;
  return static_cast<int32_t>(counted ? label : classes);
}

CSCL_HD bool label_in_range(int64_t label, int64_t classes) {
  return (label >= 0 && label < classes) || label == kIgnoredLabel;
}

template <typename Real>
struct Assignment {
  IntegerOf<Real> row;
  Real weight;
  MaskOf<Real> in_range;  // every entry
};

// The largest of the entries column.get(0 .. classes-1).
template <typename Real, typename Column>
CSCL_HD Assignment<Real> assign_soft_label(const Column& column, int classes) {
  const Real zero = {};
  Assignment<Real> found = {broadcast_integer<Real>(classes), zero, zero == zero};
  for (int k = 0; k < classes; ++k) {
    const Real entry = column.get(k);
    found.in_range = found.in_range & (entry >= zero) & (entry <= kLargestSoftLabel);
    found.row = select(entry > found.weight, broadcast_integer<Real>(k), found.row);
    found.weight = larger(entry, found.weight);  // of two numbers: a NaN is lost
  }
  return found;
}

CSCL_CORE_END
