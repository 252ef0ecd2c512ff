// A number as the sum of two floats, about 46 bits: what stands in for double on GPUs, whose
// consumer models compute doubles at 1/64 of the speed of floats.
//
// `low` is at most half a unit in the last place of `high`. Sums of infinities and NaN are what
// they are with floats; products and quotients are not, and whoever needs to know looks at the
// floats.
#pragma once

#include <cmath>

#include "core/arithmetic.h"
#include "core/exponential.h"

CSCL_CORE_BEGIN

struct FloatPair {
  float high, low;

  CSCL_HD constexpr FloatPair() : high(0.0f), low(0.0f) {}
  CSCL_HD constexpr FloatPair(float value) : high(value), low(0.0f) {}
  CSCL_HD constexpr FloatPair(float high_part, float low_part) : high(high_part), low(low_part) {}
};

template <>
struct Traits<FloatPair> {
  using Scalar = FloatPair;
  using Integer = int32_t;
  using Mask = bool;
  CSCL_HD static FloatPair larger(FloatPair value, FloatPair than);
  CSCL_HD static FloatPair multiply_add(FloatPair a, FloatPair b, FloatPair c);
};

// a + b without any error, by Knuth; and where |a| >= |b|, by Dekker.
CSCL_HD FloatPair exact_sum(float a, float b) {
  const float sum = a + b;
  const float of_b = sum - a;
  return {sum, (a - (sum - of_b)) + (b - of_b)};
}
CSCL_HD FloatPair exact_sum_of_ordered(float a, float b) {
  const float sum = a + b;
  return {sum, b - (sum - a)};
}
// a * b without any error.
CSCL_HD FloatPair exact_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  const float product = __fmul_rn(a, b);  // not to be fused with what is done to it
#else
  const float product = a * b;
#endif
  return {product, fmaf(a, b, -product)};
}

CSCL_HD FloatPair operator-(FloatPair a) { return {-a.high, -a.low}; }
CSCL_HD FloatPair operator+(FloatPair a, FloatPair b) {
  const FloatPair high = exact_sum(a.high, b.high);
  if (!(high.high - high.high == 0.0f)) return FloatPair(high.high);  // infinite, or NaN
  const FloatPair low = exact_sum(a.low, b.low);
  const FloatPair sum = exact_sum_of_ordered(high.high, high.low + low.high);
  return exact_sum_of_ordered(sum.high, sum.low + low.low);
}
CSCL_HD FloatPair operator-(FloatPair a, FloatPair b) { return a + (-b); }
CSCL_HD FloatPair operator*(FloatPair a, FloatPair b) {
  const FloatPair product = exact_product(a.high, b.high);
  return exact_sum_of_ordered(product.high, product.low + fmaf(a.high, b.low, a.low * b.high));
}
CSCL_HD FloatPair operator/(FloatPair a, FloatPair b) {
  const float first = a.high / b.high;
  const FloatPair rest = a - b * FloatPair(first);
  const float second = rest.high / b.high;
  const FloatPair left = rest - b * FloatPair(second);
  return exact_sum_of_ordered(first, second) + FloatPair(left.high / b.high);
}

CSCL_HD float to_float(FloatPair a) { return a.high; }

CSCL_HD bool operator>(FloatPair a, FloatPair b) {
  return a.high > b.high || (a.high == b.high && a.low > b.low);
}
CSCL_HD bool operator==(FloatPair a, FloatPair b) { return a.high == b.high && a.low == b.low; }

CSCL_HD FloatPair Traits<FloatPair>::larger(FloatPair value, FloatPair than) {
  return value > than ? value : than;
}
CSCL_HD FloatPair Traits<FloatPair>::multiply_add(FloatPair a, FloatPair b, FloatPair c) {
  return a * b + c;
}
template <>
CSCL_HD FloatPair broadcast<FloatPair>(FloatPair value) {
  return value;
}
template <>
CSCL_HD int32_t broadcast_integer<FloatPair>(int32_t value) {
  return value;
}

// exp(x) for x <= 0 to about 40 bits; stays at e^-86 below that.
template <>
CSCL_HD FloatPair exponential<FloatPair>(FloatPair x) {
  if (!(x.high >= -86.0f)) x = -86.0f;  // a NaN, too
  // x = n ln 2 + f, |f| <= ln 2 / 2; ln 2 in three parts, of which the first has 15 bits.
  const float n = rintf(x.high * 1.44269504f);
  const FloatPair f = FloatPair(x.high - n * 0.693145752f) -
                      FloatPair(n) * FloatPair(1.42860677e-6f, 5.49792302e-14f) + FloatPair(x.low);
  // The series 1 + f + f²/2 + ...: from the fifth power on the first 24 bits are enough.
  const float t = f.high;
  float tail = 1.0f / 39916800.0f;
  tail = fmaf(tail, t, 1.0f / 3628800.0f);
  tail = fmaf(tail, t, 1.0f / 362880.0f);
  tail = fmaf(tail, t, 1.0f / 40320.0f);
  tail = fmaf(tail, t, 1.0f / 5040.0f);
  tail = fmaf(tail, t, 1.0f / 720.0f);
  tail = fmaf(tail, t, 1.0f / 120.0f);
  FloatPair p = FloatPair(tail) * f + FloatPair(0.0416666679f, -1.24176212e-09f);
  p = p * f + FloatPair(0.166666672f, -4.96705388e-09f);
  p = p * f + FloatPair(0.5f);
  p = p * f + FloatPair(1.0f);
  p = p * f + FloatPair(1.0f);
  const float scale = from_bits<float>((static_cast<int32_t>(n) + 127) << 23);
  return {p.high * scale, p.low * scale};
}

// log(x) for x > 0 to about 40 bits: one step of Newton's method from a float's logarithm.
template <>
CSCL_HD FloatPair logarithm<FloatPair>(FloatPair x) {
  constexpr float tiny = 1e-18f;
  FloatPair offset = 0.0f;
  if (x.high < tiny) {  // away from what a float cannot hold to all its digits
    x = {x.high * 18446744073709551616.0f, x.low * 18446744073709551616.0f};
    offset = {-44.3614197f, 1.21897875e-07f};
    if (x.high < tiny) {
      x = {x.high * 18446744073709551616.0f, x.low * 18446744073709551616.0f};
      offset = offset + offset;
    }
  }
  const float start = logarithm<float>(x.high);
  const FloatPair there =
      start > 0.0f ? x * exponential(FloatPair(-start)) : x / exponential(FloatPair(start));
  const FloatPair step = there - FloatPair(1.0f);  // log(1 + step) = step - step²/2
  return offset + (FloatPair(start) + (step - step * step * FloatPair(0.5f)));
}

CSCL_CORE_END
