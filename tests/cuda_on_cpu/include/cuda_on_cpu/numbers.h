// CUDA's arithmetic functions that C++ lacks.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace cuda_on_cpu {

template <typename To, typename From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same width");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// Passes a value on so that the compiler cannot fuse its multiplication with an addition to come:
// that is what CUDA promises of the _rn functions, whatever the flags.
inline float unfused(float value) {
#if defined(__SSE__)
  __asm__("" : "+x"(value));
#elif defined(__aarch64__)
  __asm__("" : "+w"(value));
#else
  __asm__("" : "+m"(value));
#endif
  return value;
}

}  // namespace cuda_on_cpu

inline float __fmul_rn(float a, float b) { return cuda_on_cpu::unfused(a * b); }
inline float __fadd_rn(float a, float b) {
  return cuda_on_cpu::unfused(cuda_on_cpu::unfused(a) + cuda_on_cpu::unfused(b));
}
inline float __fsub_rn(float a, float b) {
  return cuda_on_cpu::unfused(cuda_on_cpu::unfused(a) - cuda_on_cpu::unfused(b));
}
inline float __fdiv_rn(float a, float b) { return cuda_on_cpu::unfused(a / b); }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float rsqrtf(float value) { return 1 / std::sqrt(value); }

inline int __float_as_int(float value) { return cuda_on_cpu::bits_as<int>(value); }
inline float __int_as_float(int bits) { return cuda_on_cpu::bits_as<float>(bits); }
inline unsigned __float_as_uint(float value) { return cuda_on_cpu::bits_as<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return cuda_on_cpu::bits_as<float>(bits); }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

template <typename T>
T __ldg(const T* address) {
  return *address;
}

template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}

#define CUDA_ON_CPU_MIN_MAX(T)                     \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }

CUDA_ON_CPU_MIN_MAX(int)
CUDA_ON_CPU_MIN_MAX(unsigned)
CUDA_ON_CPU_MIN_MAX(long)
CUDA_ON_CPU_MIN_MAX(unsigned long)
CUDA_ON_CPU_MIN_MAX(long long)
CUDA_ON_CPU_MIN_MAX(unsigned long long)

#undef CUDA_ON_CPU_MIN_MAX

// A NaN loses against a number.
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
