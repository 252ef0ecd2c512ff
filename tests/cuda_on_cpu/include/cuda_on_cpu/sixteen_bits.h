// float to 16 bits, rounded to the nearest, ties to even, and back.
#pragma once

#include <cuda_on_cpu/numbers.h>

namespace cuda_on_cpu {

inline constexpr unsigned short kNotANumber = 0x7FFF;  // the one NaN that the device makes

// `bits` without its `dropped` lowest ones, rounded. A carry into the exponent is the right answer:
// the next number has the next bits, across powers of two and up to infinity.
inline uint32_t round_bits(uint32_t bits, int dropped) {
  const uint32_t half = 1u << (dropped - 1);
  const uint32_t odd = (bits >> dropped) & 1;
  return (bits + half - 1 + odd) >> dropped;
}

struct BrainFloat {
  static float widen(unsigned short bits) { return bits_as<float>(uint32_t{bits} << 16); }
  static unsigned short round(float value) {
    if (value != value) return kNotANumber;
    return static_cast<unsigned short>(round_bits(bits_as<uint32_t>(value), 16));
  }
};

struct HalfPrecision {
  static float widen(unsigned short bits) {
    const uint32_t sign = uint32_t{bits} >> 15 << 31;
    const uint32_t exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    if (exponent == 31) return bits_as<float>(sign | 0x7F800000u | mantissa << 13);
    if (exponent == 0) {  // a multiple of 2^-24, exact in float
      const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
      return sign != 0 ? -magnitude : magnitude;
    }
    return bits_as<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  }
  static unsigned short round(float value) {
    if (value != value) return kNotANumber;
    const uint32_t bits = bits_as<uint32_t>(value);
    const uint32_t sign = bits >> 31 << 15, magnitude = bits & 0x7FFFFFFFu;
    const int exponent = static_cast<int>(magnitude >> 23) - 127;
    uint32_t rounded;
    if (exponent >= 16) {
      rounded = 0x7C00;  // 2^16 and above: infinity
    } else if (exponent >= -14) {
      rounded = round_bits(magnitude - (112u << 23), 13);
    } else if (exponent >= -25) {  // a multiple of 2^-24; below 2^-25 nothing is left
      const uint32_t mantissa = (magnitude & 0x7FFFFFu) | 0x800000u;
      rounded = round_bits(mantissa, -1 - exponent);
    } else {
      rounded = 0;
    }
    return static_cast<unsigned short>(sign | rounded);
  }
};

}  // namespace cuda_on_cpu
