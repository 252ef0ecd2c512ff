// Symmetric divergence of two distributions s and t over the channels, Eq. 11.
//
// ½(KL(s‖t) + KL(t‖s)) = ½ Σ (s_c - t_c)(log s_c - log t_c): no term is negative, so that nothing
// cancels when the two sides agree. With r = log s - log t the gradient by log s, each s_c for
// itself, is
//
//     g_c = s_c ∂/∂s_c = ½ (s_c (r_c + 1) - t_c),
//
// and by what s was normalised from: softmax(x): g_c - s_c Σ g; q / Σ q: the same over q_c.
#pragma once

#include "core/arithmetic.h"
#include "core/exponential.h"

CSCL_CORE_BEGIN

// One channel of one side.
template <typename Real>
struct Share {
  Real value;      // s_c
  Real logarithm;  // log s_c
};

// Twice the channel's part of the divergence.
template <typename Real>
CSCL_HD Real divergence_of(const Share<Real>& s, const Share<Real>& t) {
  return (s.value - t.value) * (s.logarithm - t.logarithm);
}

// g_c of the side `s`.
template <typename Real>
CSCL_HD Real slope_by_logarithm(const Share<Real>& s, const Share<Real>& t) {
  const Real ratio = s.logarithm - t.logarithm;
  return (s.value * (ratio + ScalarOf<Real>(1)) - t.value) * ScalarOf<Real>(0.5);
}

// What "l1" takes the logarithm of: never 0. A NaN stays one.
template <typename Real>
CSCL_HD Real positive_part(Real centroid, ScalarOf<Real> eps) {
  const Real zero = {};
  return select(centroid < zero, zero, centroid) + eps;
}

// The gradient by x (softmax) or by the centroid itself ("l1"); total = Σ g.
template <typename Real>
CSCL_HD Real softmax_slope(Real slope, Real share, ScalarOf<Real> total) {
  return slope - share * total;
}

template <typename Real>
CSCL_HD Real l1_slope(Real slope, Real share, ScalarOf<Real> total, Real centroid,
                      ScalarOf<Real> eps) {
  const Real zero = {};
  const Real by_positive = (slope - share * total) / positive_part(centroid, eps);
  return select(centroid >= zero, by_positive, zero);
}

CSCL_CORE_END
