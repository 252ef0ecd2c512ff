// The few operations that the formulas need besides + - * / and comparisons, for every arithmetic
// type: float and double (one pixel), and vectors of them (one pixel in each lane; their overloads
// are in cpu/simd.h). A formula is written once, as a template over the type.
//
// Everything lives in an inline namespace named after the instruction set. The same header is
// compiled several times with different flags, and functions of one name would be merged by the
// linker: the AVX-512 body could end up in the baseline code.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define CSCL_HD __host__ __device__ __forceinline__
#else
#define CSCL_HD inline __attribute__((always_inline))
#endif

#ifndef CSCL_ISA
#define CSCL_ISA device
#endif

// Before a loop of at most so many rounds: all written out, so that an array indexed by the loop
// can live in registers.
#define CSCL_PRAGMA(text) _Pragma(#text)
#if defined(__CUDACC__)
#define CSCL_UNROLL(times) CSCL_PRAGMA(unroll)
#else
#define CSCL_UNROLL(times) CSCL_PRAGMA(GCC unroll times)
#endif

#define CSCL_CORE_BEGIN \
  namespace cscl {      \
  inline namespace CSCL_ISA {
#define CSCL_CORE_END \
  }                   \
  }

CSCL_CORE_BEGIN

// What an arithmetic type brings: Scalar, the type of one lane; Integer, integers of the same width
// and number; Mask, the result of comparing; larger, multiply_add and truncate, see below.
template <typename Real>
struct Traits;

template <typename Real, typename Bits>
struct ScalarTraits {
  using Scalar = Real;
  using Integer = Bits;
  using Mask = bool;
  CSCL_HD static Real larger(Real value, Real than) { return value > than ? value : than; }
  CSCL_HD static Real multiply_add(Real a, Real b, Real c) { return a * b + c; }
  CSCL_HD static Bits truncate(Real value) { return static_cast<Bits>(value); }
};

template <>
struct Traits<float> : ScalarTraits<float, int32_t> {};
template <>
struct Traits<double> : ScalarTraits<double, int64_t> {};

template <typename Real>
using ScalarOf = typename Traits<Real>::Scalar;
template <typename Real>
using IntegerOf = typename Traits<Real>::Integer;
template <typename Real>
using MaskOf = typename Traits<Real>::Mask;

// The larger of two; a NaN may be lost.
template <typename Real>
CSCL_HD Real larger(Real value, Real than) {
  return Traits<Real>::larger(value, than);
}

// a * b + c, rounded once where the instruction set can.
template <typename Real>
CSCL_HD Real multiply_add(Real a, Real b, Real c) {
  return Traits<Real>::multiply_add(a, b, c);
}

// The integer part of a value that fits.
template <typename Real>
CSCL_HD IntegerOf<Real> truncate(Real value) {
  return Traits<Real>::truncate(value);
}

// The number of classes, as loops over them take it: an int, or one of the types below, where a
// pixel's classes lie in registers and every loop has to be unrolled. The loops go from 0 to
// loop_end(classes).
template <int kCount>
struct Exactly {
  CSCL_HD constexpr operator int() const { return kCount; }
};
// Loops go over all kMaximum: the classes after the last one have the logit kPaddingLogit, which
// wins nothing and weighs nothing. Straight code for a few classes more is faster than a branch for
// each.
template <int kMaximum>
struct UpTo {
  int count;
  CSCL_HD constexpr operator int() const { return count; }
};
constexpr float kPaddingLogit = -1e38f;

// Any number, of classes that lie in memory.
struct Rolled {
  int count;
  CSCL_HD constexpr operator int() const { return count; }
};

// Which of two partial results class k goes to; of a loop that stays one, always the first: an
// index that is not known while compiling would take both out of the registers.
CSCL_HD constexpr int partial_of(int k, int /*classes*/) { return k % 2; }
CSCL_HD constexpr int partial_of(int /*k*/, Rolled) { return 0; }

CSCL_HD constexpr int loop_end(int classes) { return classes; }
template <int kCount>
CSCL_HD constexpr int loop_end(Exactly<kCount>) {
  return kCount;
}
template <int kMaximum>
CSCL_HD constexpr int loop_end(UpTo<kMaximum>) {
  return kMaximum;
}

// Whether k is past the last class: in loops to loop_end that read or write memory.
template <typename Classes>
CSCL_HD constexpr bool past_the_end(int /*k*/, Classes /*classes*/) {
  return false;
}
template <int kMaximum>
CSCL_HD constexpr bool past_the_end(int k, UpTo<kMaximum> classes) {
  return k >= classes.count;
}

CSCL_HD float to_float(float value) { return value; }
CSCL_HD float to_float(double value) { return static_cast<float>(value); }

template <typename Mask, typename Value>
CSCL_HD Value select(Mask mask, Value yes, Value no) {
  return mask ? yes : no;
}

template <typename Real>
CSCL_HD Real broadcast(ScalarOf<Real> value) {
  return value - Real{};  // a vector minus zeros takes the scalar to every lane
}

template <typename Real>
CSCL_HD IntegerOf<Real> broadcast_integer(int32_t value) {
  return IntegerOf<Real>{} + value;
}

template <typename Real>
CSCL_HD IntegerOf<Real> bits_of(Real value) {
  static_assert(sizeof(IntegerOf<Real>) == sizeof(Real), "same width");
  IntegerOf<Real> bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

template <typename Real>
CSCL_HD Real from_bits(IntegerOf<Real> bits) {
  Real value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// bits << by; what is shifted out is lost, without the undefined behaviour of a signed number.
template <typename Integer>
CSCL_HD Integer shift_left(Integer bits, int by) {
  return bits << by;
}
CSCL_HD int32_t shift_left(int32_t bits, int by) {
  return static_cast<int32_t>(static_cast<uint32_t>(bits) << by);
}
CSCL_HD int64_t shift_left(int64_t bits, int by) {
  return static_cast<int64_t>(static_cast<uint64_t>(bits) << by);
}

CSCL_CORE_END
