// The words of the language, and its small vector types.
#pragma once

#include <cstddef>
#include <cstdint>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
// Empty: libstdc++ writes __attribute__((__noinline__)), which has to stay valid.
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

#define CUDA_ON_CPU_VECTOR2(name, Scalar)                                       \
  struct __attribute__((aligned(2 * sizeof(Scalar)))) name##2 { Scalar x, y; }; \
  inline name##2 make_##name##2(Scalar x, Scalar y) { return {x, y}; }
#define CUDA_ON_CPU_VECTOR4(name, Scalar)                                             \
  struct __attribute__((aligned(4 * sizeof(Scalar)))) name##4 { Scalar x, y, z, w; }; \
  inline name##4 make_##name##4(Scalar x, Scalar y, Scalar z, Scalar w) { return {x, y, z, w}; }

CUDA_ON_CPU_VECTOR2(float, float)
CUDA_ON_CPU_VECTOR2(int, int)
CUDA_ON_CPU_VECTOR2(uint, unsigned)
CUDA_ON_CPU_VECTOR4(float, float)
CUDA_ON_CPU_VECTOR4(int, int)
CUDA_ON_CPU_VECTOR4(uint, unsigned)

#undef CUDA_ON_CPU_VECTOR2
#undef CUDA_ON_CPU_VECTOR4
