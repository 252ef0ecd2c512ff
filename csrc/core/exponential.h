// exp and log without tables and without branches, for every arithmetic type.
#pragma once

#include "core/arithmetic.h"

CSCL_CORE_BEGIN

// What differs between float and double. The polynomials are minimax for the relative error of exp
// on [-ln 2 / 2, ln 2 / 2], highest power first, with the last two coefficients held at 1 so that
// exp(0) is 1: errors below 1.1e-7 (float) and 4e-18 (double).
template <typename Scalar>
struct ExponentialConstants;

template <>
struct ExponentialConstants<float> {
  static constexpr int terms = 6;
  static constexpr int mantissa_bits = 23;
  static constexpr int logarithm_terms = 5;
  CSCL_HD static constexpr float coefficient(int i) {
    constexpr float values[terms] = {0.008312501f, 0.04189033f, 0.16667116f,
                                     0.49999231f,  1.0f,        1.0f};
    return values[i];
  }
  CSCL_HD static constexpr float lowest() { return -86.0f; }
  CSCL_HD static constexpr float rounder() { return 12582912.0f; }  // 1.5 * 2^23
  CSCL_HD static constexpr float inverse_ln2() { return 1.44269504f; }
  CSCL_HD static constexpr float ln2_high() { return 0.693145752f; }  // times 0 .. 255: exact
  CSCL_HD static constexpr float ln2_low() { return 1.42860677e-6f; }
  CSCL_HD static constexpr float ln2() { return 0.693147182f; }
  CSCL_HD static constexpr int32_t root_half_bits() { return 0x3f3504f3; }
  CSCL_HD static constexpr int32_t mantissa_mask() { return 0x007fffff; }
};

template <>
struct ExponentialConstants<double> {
  static constexpr int terms = 12;
  static constexpr int mantissa_bits = 52;
  static constexpr int logarithm_terms = 11;
  CSCL_HD static constexpr double coefficient(int i) {
    constexpr double values[terms] = {2.500001885308334e-08,
                                      2.7630306255647857e-07,
                                      2.755758680384707e-06,
                                      2.480149294961707e-05,
                                      0.00019841269505773806,
                                      0.0013888888943759984,
                                      0.008333333333494976,
                                      0.041666666666529725,
                                      0.1666666666666641,
                                      0.5000000000000011,
                                      1.0,
                                      1.0};
    return values[i];
  }
  CSCL_HD static constexpr double lowest() { return -690.0; }
  CSCL_HD static constexpr double rounder() { return 6755399441055744.0; }  // 1.5 * 2^52
  CSCL_HD static constexpr double inverse_ln2() { return 1.4426950408889634; }
  CSCL_HD static constexpr double ln2_high() { return 0.6931471803691238; }
  CSCL_HD static constexpr double ln2_low() { return 1.9082149292705877e-10; }
  CSCL_HD static constexpr double ln2() { return 0.6931471805599453; }
  CSCL_HD static constexpr int64_t root_half_bits() { return 0x3fe6a09e667f3bcd; }
  CSCL_HD static constexpr int64_t mantissa_mask() { return 0x000fffffffffffff; }
};

// exp(x) = 2^n p for x <= 0, relative error about 2 ulp; returns p and leaves in `shifted` a number
// whose lowest bits are n + bias. Below lowest() the answer stays at exp(lowest()), 4e-38 or
// 1e-300: small enough never to be seen, large enough to be a normal number.
template <typename Real>
CSCL_HD Real exponential_parts(Real x, ScalarOf<Real> bias, Real& shifted) {
  using Constants = ExponentialConstants<ScalarOf<Real>>;
  // Adding 1.5 * 2^mantissa leaves the nearest integer n of x / ln 2 in the lowest bits.
  const ScalarOf<Real> rounder = Constants::rounder() + bias;
  shifted = multiply_add(x, broadcast<Real>(Constants::inverse_ln2()), broadcast<Real>(rounder));
  const Real n = shifted - rounder;
#if defined(__FMA__) || defined(__CUDA_ARCH__) || defined(__ARM_FEATURE_FMA)
  // Unrounded product: the error of the constant, 2e-9 n, is all that is left.
  const Real f = multiply_add(n, broadcast<Real>(-Constants::ln2()), x);
#else
  const Real f = (x - n * Constants::ln2_high()) - n * Constants::ln2_low();
#endif
  Real p = broadcast<Real>(Constants::coefficient(0));
  CSCL_UNROLL(16)
  for (int i = 1; i < Constants::terms; ++i) {
    p = multiply_add(p, f, broadcast<Real>(Constants::coefficient(i)));
  }
  return p;
}

// exp(x) for x <= 0; a NaN becomes a tiny number.
template <typename Real>
CSCL_HD Real exponential(Real x) {
  using Constants = ExponentialConstants<ScalarOf<Real>>;
  Real shifted;
  const Real p = exponential_parts(larger(x, broadcast<Real>(Constants::lowest())), 0, shifted);
  return from_bits<Real>(bits_of(p) + shift_left(bits_of(shifted), Constants::mantissa_bits));
}

// The same for one multiplication more, and a NaN stays one.
template <typename Real>
CSCL_HD Real exponential_or_nan(Real x) {
  using Constants = ExponentialConstants<ScalarOf<Real>>;
  constexpr int bias = (1 << (8 * sizeof(ScalarOf<Real>) - 2 - Constants::mantissa_bits)) - 1;
  Real shifted;
  const Real p = exponential_parts(larger(broadcast<Real>(Constants::lowest()), x), bias, shifted);
  return p * from_bits<Real>(shift_left(bits_of(shifted), Constants::mantissa_bits));
}

// log(x) for normal x > 0: x = 2^n m with m in [sqrt(1/2), sqrt(2)), and log m by the series of the
// inverse hyperbolic tangent.
template <typename Real>
CSCL_HD Real logarithm(Real x) {
  using Constants = ExponentialConstants<ScalarOf<Real>>;
  const IntegerOf<Real> above = bits_of(x) - Constants::root_half_bits();
  const IntegerOf<Real> exponent = above >> Constants::mantissa_bits;
  const Real m =
      from_bits<Real>((above & Constants::mantissa_mask()) + Constants::root_half_bits());
  const Real rounder = broadcast<Real>(Constants::rounder());
  const Real n = from_bits<Real>(exponent + bits_of(rounder)) - rounder;
  const Real s = (m - ScalarOf<Real>(1)) / (m + ScalarOf<Real>(1));
  const Real square = s * s;
  Real series = broadcast<Real>(ScalarOf<Real>(1) / (2 * Constants::logarithm_terms - 1));
  CSCL_UNROLL(16)
  for (int i = Constants::logarithm_terms - 2; i >= 0; --i) {
    series = multiply_add(series, square, broadcast<Real>(ScalarOf<Real>(1) / (2 * i + 1)));
  }
  return n * Constants::ln2() + (s + s) * series;
}

CSCL_CORE_END
