// Soft pseudo-label of one pixel, Eq. 8-10.
//
// With logits z, p = softmax(z), thresholds δ and sharpness γ, a_k = (log p_k - log δ_k) / γ. The
// pixel is kept if and only if logsumexp(a) > 0, and its label is then ŷ = softmax(a). Written with
// m = max z, S = Σ exp(z_k - m) and
//
//     q_k = (exp(z_k - m) / δ_k)^(1/γ),   T = Σ q_k,
//
// the pixel is kept iff T > S^(1/γ), and ŷ_k = q_k / T: no logarithm of a probability is taken.
// Where 1/γ is a power of two the power is a few squarings and a class costs one exponential.
#pragma once

#include "core/arithmetic.h"
#include "core/exponential.h"
#include "core/soft_pseudo_label_plan.h"

CSCL_CORE_BEGIN

// 1/γ = 2^squarings. kSquarings < 0: known at run time only.
template <typename Real, int kSquarings, typename Plan = SoftPseudoLabelPlan>
struct PowerRule {
  const Plan& plan;

  CSCL_HD Real power(Real value) const {
    const int squarings = kSquarings < 0 ? plan.squarings : kSquarings;
    CSCL_UNROLL(4)
    for (int i = 0; i + 1 < kNotAPower; ++i) {
      if (i < squarings) value = value * value;
    }
    return value;
  }
  // q of class k, whose logit lies at `below` <= 0 from the largest and exponential(below) is e.
  CSCL_HD Real weigh(Real /*below*/, Real e, int k) const { return power(e * plan.scale[k]); }
  CSCL_HD MaskOf<Real> keeps(Real sum, Real total) const { return total > power(sum); }
};

// Any γ; a second exponential for each class.
template <typename Real, typename Plan = SoftPseudoLabelPlan>
struct ExponentialRule {
  const Plan& plan;

  CSCL_HD Real weigh(Real below, Real /*e*/, int k) const {
    return exponential(below * plan.inverse_gamma) * plan.scale[k];
  }
  CSCL_HD MaskOf<Real> keeps(Real sum, Real total) const {
    return plan.gamma * logarithm(total) > logarithm(sum);
  }
};

template <typename Real>
struct SolvedPixel {
  IntegerOf<Real> hard;  // class of the largest entry, the lowest one of several, or kRejected
  MaskOf<Real> kept;
  Real sum;    // S
  Real scale;  // 1 / T
};

// Replaces the logits of `column` (get(k), set(k, value), k < classes) by the soft label, zeros if
// the pixel is rejected. A NaN or infinite logit rejects the pixel. column.weighed(k, z_k - m, e_k,
// q_k) is told what has been computed on the way.
template <typename Real, typename Rule, typename Column, typename Classes>
CSCL_HD SolvedPixel<Real> solve_soft_pseudo_label(Column& column, Classes classes,
                                                  const Rule& rule) {
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
  Real total[2] = {zero, zero};
  Real best = zero;
  IntegerOf<Real> hard = {};
  CSCL_UNROLL(32)
  for (int k = 0; k < end; ++k) {
    const Real below = column.get(k) - largest;
    const Real e = exponential(below);
    const Real q = rule.weigh(below, e, k);
    column.set(k, q);
    column.weighed(k, below, e, q);
    sum[partial_of(k, classes)] = sum[partial_of(k, classes)] + e;
    total[partial_of(k, classes)] = total[partial_of(k, classes)] + q;
    hard = select(q > best, broadcast_integer<Real>(k), hard);
    best = larger(q, best);
  }

  const Real weight = total[0] + total[1];
  const Real all = sum[0] + sum[1];
  const MaskOf<Real> kept = rule.keeps(all, weight) & (disorder[0] + disorder[1] == zero);
  const Real scale = ScalarOf<Real>(1) / weight;
  CSCL_UNROLL(32)
  for (int k = 0; k < end; ++k) {
    column.set(k, select(kept, column.get(k) * scale, zero));
  }
  return {select(kept, hard, broadcast_integer<Real>(kRejected)), kept, all, scale};
}

// The same in the log domain, for δ or γ so small that the powers above would overflow or lose
// their accuracy: d_k = log p_k - log δ_k up to a constant, and the largest of them taken off
// before the division by γ. Real has more digits than a float: double, or a FloatPair.
template <typename Real>
struct CarefulPixel {
  IntegerOf<Real> hard;  // as in SolvedPixel
  MaskOf<Real> kept;
  Real largest, sum;  // m, S
  Real best, scale;   // the largest d, 1 / T
};

template <typename Real, typename Column, typename Plan>
CSCL_HD CarefulPixel<Real> solve_carefully(const Column& column, int classes, const Plan& plan) {
  const Real zero = {};
  CarefulPixel<Real> pixel;
  pixel.largest = column.get(0);
  Real disorder = zero;
  for (int k = 0; k < classes; ++k) {
    pixel.largest = larger(column.get(k), pixel.largest);
    disorder = multiply_add(column.get(k), zero, disorder);
  }
  pixel.sum = zero;
  pixel.best = column.get(0) - pixel.largest + plan.penalty[0];
  IntegerOf<Real> hard = {};
  for (int k = 0; k < classes; ++k) {
    const Real below = column.get(k) - pixel.largest;
    const Real distance = below + plan.penalty[k];
    pixel.sum = pixel.sum + exponential(below);
    hard = select(distance > pixel.best, broadcast_integer<Real>(k), hard);
    pixel.best = larger(distance, pixel.best);
  }
  Real total = zero;
  for (int k = 0; k < classes; ++k) {
    const Real distance = column.get(k) - pixel.largest + plan.penalty[k];
    total = total + exponential((distance - pixel.best) / plan.careful_gamma);
  }
  pixel.kept = (pixel.best + plan.careful_gamma * logarithm(total) > logarithm(pixel.sum)) &
               (disorder == zero);
  pixel.scale = ScalarOf<Real>(1) / total;
  pixel.hard = select(pixel.kept, hard, broadcast_integer<Real>(kRejected));
  return pixel;
}

// ŷ_k, of the logit z_k.
template <typename Real, typename Plan>
CSCL_HD Real careful_label(const CarefulPixel<Real>& pixel, Real logit, int k, const Plan& plan) {
  const Real zero = {};
  const Real distance = logit - pixel.largest + plan.penalty[k];
  const Real q = exponential((distance - pixel.best) / plan.careful_gamma);
  return select(pixel.kept, q * pixel.scale, zero);
}

CSCL_CORE_END
