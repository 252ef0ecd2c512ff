// Cross-entropy of one pixel with its label, the first term of Eq. 7, and its gradient.
//
// With m = max z, e_k = exp(z_k - m) and S = Σ e_k the loss is log S - (z_label - m), and its
// gradient by z_k is e_k / S - [k = label]. A NaN or +inf among the logits of a labelled pixel
// reaches both; a class at -inf has probability 0, as in PyTorch.
#pragma once

#include "core/arithmetic.h"
#include "core/exponential.h"

CSCL_CORE_BEGIN

constexpr int32_t kUnlabelled = -1;

template <typename Real>
struct PixelLoss {
  Real loss;             // 0 where the pixel does not count
  Real scale;            // 1 / S, 0 where it does not count: gradient k is e_k * scale - target k
  MaskOf<Real> counted;  // all bits set where it does
};

// Replaces the logits of `column` (get(k), set(k, value), k < classes) by the e_k. `label` is a
// class or kUnlabelled.
template <typename Real, typename Column, typename Classes>
CSCL_HD PixelLoss<Real> solve_cross_entropy(Column& column, Classes classes,
                                            IntegerOf<Real> label) {
  const Real zero = {};
  const int end = loop_end(classes);
  Real highest[2] = {column.get(0), column.get(0)};
  CSCL_UNROLL(32)
  for (int k = 0; k < end; ++k) {
    highest[partial_of(k, classes)] = larger(column.get(k), highest[partial_of(k, classes)]);
  }
  const Real largest = larger(highest[0], highest[1]);

  Real sum[2] = {zero, zero};
  Real chosen = zero;
  CSCL_UNROLL(32)
  for (int k = 0; k < end; ++k) {
    const Real below = column.get(k) - largest;
    const Real e = exponential_or_nan(below);  // inf - inf is one, too
    chosen = select(label == k, below, chosen);
    column.set(k, e);
    sum[partial_of(k, classes)] = sum[partial_of(k, classes)] + e;
  }
  const Real all = sum[0] + sum[1];
  const MaskOf<Real> counted = label >= 0;
  return {select(counted, logarithm(all) - chosen + (all - all), zero),
          select(counted, ScalarOf<Real>(1) / all, zero), counted};
}

CSCL_CORE_END
