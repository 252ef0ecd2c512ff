// Self-training loss of one pixel, the second term of Eq. 7: the cross-entropy of its probabilities
// with its soft pseudo-label ŷ (core/soft_pseudo_label.h), and its gradient.
//
// With m = max z, e_k = exp(z_k - m), S = Σ e_k and Σ ŷ_k = 1 the loss is log S - Σ ŷ_k (z_k - m),
// and its gradient by z_k is e_k / S - ŷ_k: ŷ is a constant.
#pragma once

#include "core/soft_pseudo_label.h"
#include "core/upsampled_cross_entropy.h"

CSCL_CORE_BEGIN

// The network labels itself: solves ŷ into `column` and keeps the e_k, which the rule has to take
// anyway, in `shares` (set(k, value)).
template <typename Real, typename Rule, typename Column, typename Shares, typename Classes>
CSCL_HD PixelLoss<Real> solve_own_label_loss(Column& column, Shares& shares, Classes classes,
                                             const Rule& rule, MaskOf<Real> inside) {
  struct Watched {
    Column& column;
    Shares& shares;
    Real dot;  // Σ q_k (z_k - m)
    CSCL_HD Real get(int k) const { return column.get(k); }
    CSCL_HD void set(int k, Real value) { column.set(k, value); }
    CSCL_HD void weighed(int k, Real below, Real e, Real q) {
      shares.set(k, e);
      dot = multiply_add(q, below, dot);
    }
  } watched{column, shares, Real{}};
  const SolvedPixel<Real> solved = solve_soft_pseudo_label<Real>(watched, classes, rule);
  const MaskOf<Real> kept = solved.kept & inside;
  const Real zero = {};
  return {select(kept, logarithm(solved.sum) - watched.dot * solved.scale, zero),
          select(kept, ScalarOf<Real>(1) / solved.sum, zero), kept};
}

// Another network has given the label: `soft` holds ŷ, zeros where rejected; `column` the logits,
// which the e_k replace. Where the logits are not finite the pixel is rejected, and `soft` cleared.
template <typename Real, typename Column, typename Soft, typename Classes>
CSCL_HD PixelLoss<Real> solve_given_label_loss(Column& column, Soft& soft, Classes classes,
                                               MaskOf<Real> kept) {
  const Real zero = {};
  const int end = loop_end(classes);
  Real highest[2] = {column.get(0), column.get(0)};
  Real disorder[2] = {zero, zero};
  CSCL_UNROLL(32)
  for (int k = 0; k < end; ++k) {
    highest[partial_of(k, classes)] = larger(column.get(k), highest[partial_of(k, classes)]);
    disorder[partial_of(k, classes)] =
        multiply_add(column.get(k), zero, disorder[partial_of(k, classes)]);
  }
  const Real largest = larger(highest[0], highest[1]);
  kept = kept & (disorder[0] + disorder[1] == zero);
  Real sum[2] = {zero, zero};
  Real dot[2] = {zero, zero};
  CSCL_UNROLL(32)
  for (int k = 0; k < end; ++k) {
    const Real below = column.get(k) - largest;
    const Real e = exponential(below);
    const Real label = select(kept, soft.get(k), zero);
    dot[partial_of(k, classes)] = multiply_add(label, below, dot[partial_of(k, classes)]);
    sum[partial_of(k, classes)] = sum[partial_of(k, classes)] + e;
    soft.set(k, label);
    column.set(k, e);
  }
  const Real all = sum[0] + sum[1];
  return {select(kept, logarithm(all) - (dot[0] + dot[1]), zero),
          select(kept, ScalarOf<Real>(1) / all, zero), kept};
}

// The network labels itself, by the careful rule. Replaces the logits of the column by `scale`
// times the gradient, if one is wanted, a class at a time: nothing but numbers of the pixel is
// kept. Real is what the rule needs; the rest is in floats. Returns the loss, negative where the
// pixel is rejected.
template <typename Real, typename Column, typename Plan>
CSCL_HD float solve_own_label_loss_carefully(Column& column, int classes, const Plan& plan,
                                             bool want_gradient, float scale) {
  const CarefulPixel<Real> pixel = solve_carefully<Real>(column, classes, plan);
  const float largest = to_float(pixel.largest), share = 1.0f / to_float(pixel.sum);
  float dot = 0.0f;
  for (int k = 0; k < classes; ++k) {
    const Real logit = column.get(k);
    const float below = to_float(logit) - largest;
    const float label = to_float(careful_label(pixel, logit, k, plan));
    dot = multiply_add(label, below, dot);
    if (want_gradient) {
      const float gradient = exponential(below) * share - label;
      column.set(k, pixel.kept ? gradient * scale : 0.0f);
    }
  }
  return pixel.kept ? to_float(logarithm(pixel.sum)) - dot : -1.0f;
}

CSCL_CORE_END
