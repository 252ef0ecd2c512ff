// Vectors of this instruction set: GCC's vector types for arithmetic, intrinsics where the compiler
// needs to be told. A vector's lanes are neighbouring pixels.
#pragma once

#include "core/arithmetic.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

CSCL_CORE_BEGIN

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kDoubleLanes = kLanes / 2;

// The same bytes as floats, as integers, as half as many doubles; and kLanes 16-bit values.
typedef float Float __attribute__((vector_size(4 * kLanes)));
typedef int32_t Int __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Unsigned __attribute__((vector_size(4 * kLanes)));
typedef double Double __attribute__((vector_size(4 * kLanes)));
typedef int64_t Long __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Short __attribute__((vector_size(2 * kLanes)));
typedef float HalfFloat __attribute__((vector_size(2 * kLanes)));
typedef int32_t HalfInt __attribute__((vector_size(2 * kLanes)));

template <>
struct Traits<Float> {
  using Scalar = float;
  using Integer = Int;
  using Mask = Int;
  CSCL_HD static Float larger(Float value, Float than) {
#if defined(__AVX512F__)
    return (Float)_mm512_max_ps((__m512)value, (__m512)than);
#elif defined(__AVX2__)
    return (Float)_mm256_max_ps((__m256)value, (__m256)than);
#elif defined(__x86_64__)
    return (Float)_mm_max_ps((__m128)value, (__m128)than);
#else
    return value > than ? value : than;
#endif
  }
  CSCL_HD static Float multiply_add(Float a, Float b, Float c) {
#if defined(__AVX512F__)
    return (Float)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (Float)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
  }
  CSCL_HD static Int truncate(Float value) { return __builtin_convertvector(value, Int); }
};

template <>
struct Traits<Double> {
  using Scalar = double;
  using Integer = Long;
  using Mask = Long;
  CSCL_HD static Double larger(Double value, Double than) { return value > than ? value : than; }
  CSCL_HD static Double multiply_add(Double a, Double b, Double c) { return a * b + c; }
};

// Whether any lane of a mask is set.
CSCL_HD bool any(Int mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_testz_si256((__m256i)mask, (__m256i)mask) == 0;
#elif defined(__x86_64__)
  return _mm_movemask_epi8((__m128i)mask) != 0;
#else
  int32_t found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found |= mask[lane];
  return found != 0;
#endif
}

// ---- memory -------------------------------------------------------------------------------------

template <typename Vector>
CSCL_HD Vector load(const void* from) {
  Vector value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

template <typename Vector>
CSCL_HD void store(void* to, Vector value) {
  __builtin_memcpy(to, &value, sizeof(value));
}

// Past the caches, for results too large to stay in them; `to` is aligned to the vector.
template <typename Vector>
CSCL_HD void stream(void* to, Vector value) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Vector) == 64) return _mm512_stream_si512((__m512i*)to, (__m512i)value);
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(Vector) == 32) return _mm256_stream_si256((__m256i*)to, (__m256i)value);
#endif
#if defined(__x86_64__)
  if constexpr (sizeof(Vector) == 16) return _mm_stream_si128((__m128i*)to, (__m128i)value);
#endif
  store(to, value);
}

// Streamed stores are seen by other threads in order after this.
CSCL_HD void finish_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// While it lives, results below 1e-38 are zero on this thread. They are common here (the square of
// an unlikely class) and some processors take a hundred cycles for each.
class FlushTinyResults {
 public:
#if defined(__x86_64__)
  FlushTinyResults() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushTinyResults() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  FlushTinyResults() {}
#endif
};

// ---- 16-bit types -------------------------------------------------------------------------------

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

CSCL_HD Float widen(const float* from) { return load<Float>(from); }

CSCL_HD Float widen(const BFloat16* from) {
  return (Float)(__builtin_convertvector(load<Short>(from), Unsigned) << 16);
}

CSCL_HD Float widen(const Float16* from) {
#if defined(__AVX512F__)
  return (Float)_mm512_cvtph_ps(load<__m256i>(from));
#elif defined(__AVX2__)
  return (Float)_mm256_cvtph_ps(load<__m128i>(from));
#else
  // Moving the exponent to its place leaves a number that is 2^112 times too small, which one
  // multiplication puts right for normal and subnormal numbers; infinity and NaN by hand.
  const Unsigned half = __builtin_convertvector(load<Short>(from), Unsigned);
  const Unsigned magnitude = (half & 0x7fff) << 13;
  const Unsigned huge = (Unsigned)(magnitude >= 0x0f800000u);  // exponent all ones
  const Unsigned exponent = magnitude + (112u << 23);
  const Unsigned tiny = (Unsigned)(magnitude < 0x00800000u);  // zero or subnormal
  const Float subnormal =
      __builtin_convertvector((Int)(half & 0x3ff), Float) * 5.9604644775390625e-08f;
  const Unsigned finite = (tiny & (Unsigned)subnormal) | (~tiny & exponent);
  const Unsigned value = (huge & (magnitude | 0x7f800000)) | (~huge & finite);
  return (Float)(value | ((half & 0x8000) << 16));
#endif
}

CSCL_HD void narrow(float* to, Float value) { store(to, value); }

// Rounded to nearest even. The value is not a NaN.
CSCL_HD Short to_bfloat16(Float value) {
  const Unsigned bits = (Unsigned)value;
  return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Short);
}

CSCL_HD Short to_float16(Float value) {  // |value| <= 1
#if defined(__AVX512F__)
  return (Short)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__AVX2__)
  return (Short)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
#else
  const Unsigned bits = (Unsigned)value;
  const Unsigned tiny = (Unsigned)(value < 6.103515625e-05f);
  const Unsigned normal = (bits + 0xfff + ((bits >> 13) & 1)) >> 13;
  // Adding 0.5 rounds a subnormal result to its last place, which is where the mantissa of 0.5
  // ends.
  const Unsigned subnormal = (Unsigned)(value + 0.5f) - 0x3f000000;
  return __builtin_convertvector((tiny & subnormal) | (~tiny & (normal - (112u << 10))), Short);
#endif
}

CSCL_HD void narrow(BFloat16* to, Float value) { store(to, to_bfloat16(value)); }
CSCL_HD void narrow(Float16* to, Float value) { store(to, to_float16(value)); }

// ---- transposition ------------------------------------------------------------------------------

// gather_four: four classes of kLanes pixels, from pixel-major memory (`from` + pixel * classes) to
// four vectors of one class each. scatter_four: and back.

#if defined(__x86_64__)

// In each 128-bit block: rows become columns.
CSCL_HD void transpose_blocks(Float (&v)[4]) {
#if defined(__AVX512F__)
  const __m512 a = _mm512_unpacklo_ps((__m512)v[0], (__m512)v[1]),
               b = _mm512_unpackhi_ps((__m512)v[0], (__m512)v[1]);
  const __m512 c = _mm512_unpacklo_ps((__m512)v[2], (__m512)v[3]),
               d = _mm512_unpackhi_ps((__m512)v[2], (__m512)v[3]);
  v[0] = (Float)_mm512_shuffle_ps(a, c, 0x44);
  v[1] = (Float)_mm512_shuffle_ps(a, c, 0xee);
  v[2] = (Float)_mm512_shuffle_ps(b, d, 0x44);
  v[3] = (Float)_mm512_shuffle_ps(b, d, 0xee);
#elif defined(__AVX2__)
  const __m256 a = _mm256_unpacklo_ps((__m256)v[0], (__m256)v[1]),
               b = _mm256_unpackhi_ps((__m256)v[0], (__m256)v[1]);
  const __m256 c = _mm256_unpacklo_ps((__m256)v[2], (__m256)v[3]),
               d = _mm256_unpackhi_ps((__m256)v[2], (__m256)v[3]);
  v[0] = (Float)_mm256_shuffle_ps(a, c, 0x44);
  v[1] = (Float)_mm256_shuffle_ps(a, c, 0xee);
  v[2] = (Float)_mm256_shuffle_ps(b, d, 0x44);
  v[3] = (Float)_mm256_shuffle_ps(b, d, 0xee);
#else
  const __m128 a = _mm_unpacklo_ps((__m128)v[0], (__m128)v[1]),
               b = _mm_unpackhi_ps((__m128)v[0], (__m128)v[1]);
  const __m128 c = _mm_unpacklo_ps((__m128)v[2], (__m128)v[3]),
               d = _mm_unpackhi_ps((__m128)v[2], (__m128)v[3]);
  v[0] = (Float)_mm_shuffle_ps(a, c, 0x44);
  v[1] = (Float)_mm_shuffle_ps(a, c, 0xee);
  v[2] = (Float)_mm_shuffle_ps(b, d, 0x44);
  v[3] = (Float)_mm_shuffle_ps(b, d, 0xee);
#endif
}

// Block i of vector j holds pixel 4 i + j, so that the transposed lanes are in the pixels' order.
CSCL_HD void gather_four(const float* from, int64_t classes, Float (&out)[4]) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const float* pixel = from + j * classes;
#if defined(__AVX512F__)
    __m512 row = _mm512_castps128_ps512(_mm_loadu_ps(pixel));
    row = _mm512_insertf32x4(row, _mm_loadu_ps(pixel + 4 * classes), 1);
    row = _mm512_insertf32x4(row, _mm_loadu_ps(pixel + 8 * classes), 2);
    out[j] = (Float)_mm512_insertf32x4(row, _mm_loadu_ps(pixel + 12 * classes), 3);
#elif defined(__AVX2__)
    const __m256 row = _mm256_castps128_ps256(_mm_loadu_ps(pixel));
    out[j] = (Float)_mm256_insertf128_ps(row, _mm_loadu_ps(pixel + 4 * classes), 1);
#else
    out[j] = (Float)_mm_loadu_ps(pixel);
#endif
  }
  transpose_blocks(out);
}

CSCL_HD void scatter_four(const Float (&in)[4], float* to, int64_t classes) {
  Float rows[4] = {in[0], in[1], in[2], in[3]};
  transpose_blocks(rows);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    float* pixel = to + j * classes;
#if defined(__AVX512F__)
    _mm_storeu_ps(pixel, _mm512_castps512_ps128((__m512)rows[j]));
    _mm_storeu_ps(pixel + 4 * classes, _mm512_extractf32x4_ps((__m512)rows[j], 1));
    _mm_storeu_ps(pixel + 8 * classes, _mm512_extractf32x4_ps((__m512)rows[j], 2));
    _mm_storeu_ps(pixel + 12 * classes, _mm512_extractf32x4_ps((__m512)rows[j], 3));
#elif defined(__AVX2__)
    _mm_storeu_ps(pixel, _mm256_castps256_ps128((__m256)rows[j]));
    _mm_storeu_ps(pixel + 4 * classes, _mm256_extractf128_ps((__m256)rows[j], 1));
#else
    _mm_storeu_ps(pixel, (__m128)rows[j]);
#endif
  }
}

#else

CSCL_HD void gather_four(const float* from, int64_t classes, Float (&out)[4]) {
  for (int j = 0; j < 4; ++j) {
    for (int lane = 0; lane < kLanes; ++lane) out[j][lane] = from[lane * classes + j];
  }
}

CSCL_HD void scatter_four(const Float (&in)[4], float* to, int64_t classes) {
  for (int j = 0; j < 4; ++j) {
    for (int lane = 0; lane < kLanes; ++lane) to[lane * classes + j] = in[j][lane];
  }
}

#endif

// The lanes of the vector at `from` in the order that `order` names, each in 0 .. kLanes-1.
CSCL_HD Float permute(const float* from, Int order) {
#if defined(__AVX512F__)
  return (Float)_mm512_permutexvar_ps((__m512i)order, _mm512_loadu_ps(from));
#elif defined(__AVX2__)
  return (Float)_mm256_permutevar8x32_ps(_mm256_loadu_ps(from), (__m256i)order);
#else
  Float value;
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = from[order[lane]];
  return value;
#endif
}

CSCL_CORE_END
