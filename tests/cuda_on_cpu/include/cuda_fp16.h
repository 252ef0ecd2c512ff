// Stands in for the CUDA toolkit's header of this name: IEEE half precision, in software.
#pragma once

#include <cuda_on_cpu/sixteen_bits.h>

struct __half {
  unsigned short __x;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half value) { return value.__x; }
inline float __half2float(__half value) { return cuda_on_cpu::HalfPrecision::widen(value.__x); }
inline __half __float2half_rn(float value) { return {cuda_on_cpu::HalfPrecision::round(value)}; }
