// Reward of one location, R = R^s + R^a (Eq. 4-6): R^s is 1 where the gated argmax is the label
// (ties: the lowest class), R^a where the gate makes the label's class strictly likelier.
//
// With m = max z and S = Σ exp(z_k - m), log p_label = (z_label - m) - log S: both sides by the
// same arithmetic, so that equal logits are never a gain. A difference within the rounding of
// float32 is left undecided, to be decided once more in double.
#pragma once

#include "core/arithmetic.h"
#include "core/exponential.h"

CSCL_CORE_BEGIN

// What one of the two sides says about a location.
template <typename Real>
struct LabelledLocation {
  Real below;              // z_label - m <= 0
  Real log_probability;    // of the label's class
  IntegerOf<Real> winner;  // argmax, the lowest one of several
  Real disorder;           // 0, or NaN if a logit is not finite
};

// `column` has get(k), k < classes. A label that is no class leaves the probability meaningless.
template <typename Real, typename Column, typename Classes>
CSCL_HD LabelledLocation<Real> locate_label(const Column& column, Classes classes,
                                            IntegerOf<Real> label) {
  const Real zero = {};
  const int end = loop_end(classes);
  LabelledLocation<Real> location;
  Real largest = column.get(0);
  Real labelled = largest;
  Real disorder[2] = {largest * zero, zero};
  location.winner = broadcast_integer<Real>(0);
  CSCL_UNROLL(32)
  for (int k = 1; k < end; ++k) {
    const Real value = column.get(k);
    const IntegerOf<Real> here = broadcast_integer<Real>(k);
    labelled = select(label == here, value, labelled);
    location.winner = select(value > largest, here, location.winner);
    largest = larger(value, largest);
    disorder[partial_of(k, classes)] = multiply_add(value, zero, disorder[partial_of(k, classes)]);
  }
  location.disorder = disorder[0] + disorder[1];

  Real sum[2] = {zero, zero};  // half the rounding errors in a row and half the waiting
  CSCL_UNROLL(32)
  for (int k = 0; k < end; ++k) {
    sum[partial_of(k, classes)] =
        sum[partial_of(k, classes)] + exponential(column.get(k) - largest);
  }
  location.below = labelled - largest;
  location.log_probability = location.below - logarithm(sum[0] + sum[1]);
  return location;
}

template <typename Real>
struct Gain {
  MaskOf<Real> positive;  // the gated probability is strictly larger
  MaskOf<Real> decided;   // beyond doubt; false as well for what is no number
};

// The error of each log-probability is that of its sum, and of z_label - m, which may be large.
template <typename Real>
CSCL_HD Gain<Real> gain_of(const LabelledLocation<Real>& gated,
                           const LabelledLocation<Real>& plain) {
  const Real gain = gated.log_probability - plain.log_probability;
  const Real doubt = ScalarOf<Real>(1e-5) - ScalarOf<Real>(2.5e-7) * (gated.below + plain.below);
  return {gain > Real{}, larger(gain, -gain) >= doubt};
}

CSCL_CORE_END
