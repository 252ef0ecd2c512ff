// Stands in for the CUDA toolkit's header of this name: the upper half of a float, in software.
#pragma once

#include <cuda_on_cpu/sixteen_bits.h>

struct __nv_bfloat16 {
  unsigned short __x;
};

inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.__x; }
inline float __bfloat162float(__nv_bfloat16 value) {
  return cuda_on_cpu::BrainFloat::widen(value.__x);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  return {cuda_on_cpu::BrainFloat::round(value)};
}
