// Elements of the three types, read as floats and written from them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/launch.h"

namespace cscl::cuda {

// A half type as it lies in memory.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

CSCL_D float widen(float value) { return value; }
CSCL_D float widen(Float16 value) { return __half2float(__ushort_as_half(value.bits)); }
CSCL_D float widen(BFloat16 value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}

template <typename Element>
CSCL_D Element narrow(float value);
template <>
CSCL_D float narrow<float>(float value) {
  return value;
}
template <>
CSCL_D Float16 narrow<Float16>(float value) {
  return {__half_as_ushort(__float2half_rn(value))};
}
template <>
CSCL_D BFloat16 narrow<BFloat16>(float value) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
}

// kCount neighbours at once: 16 bytes for four floats, aligned to their size.
template <typename Element, int kCount>
struct alignas(sizeof(Element) * kCount) Pack {
  Element values[kCount];
};

template <int kCount, typename Element>
CSCL_D void read_pack(const Element* from, float (&to)[kCount]) {
  const auto pack = *reinterpret_cast<const Pack<Element, kCount>*>(from);
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = widen(pack.values[i]);
}

// Written past the caches, which have nothing to do with a result that is larger than they are; and
// spelled as one access, which the compiler does not make of four on its own.
template <int kCount, typename Element>
CSCL_D void write_pack(Element* to, const float (&from)[kCount]) {
  if constexpr (kCount == 4 && sizeof(Element) == 4) {
    __stcs(reinterpret_cast<float4*>(to), make_float4(from[0], from[1], from[2], from[3]));
  } else if constexpr (kCount == 2 && sizeof(Element) == 4) {
    __stcs(reinterpret_cast<float2*>(to), make_float2(from[0], from[1]));
  } else if constexpr (kCount == 4) {
    const auto two = [&](int i) {
      return static_cast<unsigned>(narrow<Element>(from[i]).bits) |
             static_cast<unsigned>(narrow<Element>(from[i + 1]).bits) << 16;
    };
    __stcs(reinterpret_cast<uint2*>(to), make_uint2(two(0), two(2)));
  } else {
    Pack<Element, kCount> pack;
#pragma unroll
    for (int i = 0; i < kCount; ++i) pack.values[i] = narrow<Element>(from[i]);
    *reinterpret_cast<Pack<Element, kCount>*>(to) = pack;
  }
}

// Whether packs of so many elements can be read from there, element by element of these strides.
inline bool packs_fit(const void* data, DataType type, int count) {
  const size_t bytes = (type == DataType::float32 ? 4 : 2) * static_cast<size_t>(count);
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

// Calls action(Element{}) for the element type. The branch is the same for all threads, and the
// arithmetic behind it is compiled once, for floats.
template <typename Action>
CSCL_D void with_element(DataType type, const Action& action) {
  if (type == DataType::float32) {
    action(float{});
  } else if (type == DataType::float16) {
    action(Float16{});
  } else {
    action(BFloat16{});
  }
}

}  // namespace cscl::cuda
