// What every test of the kernel library uses: failures, floating point types, guarded memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cpu/kernels.h"

using cscl::DataType;

// ---- failures: counted, the first few printed ---------------------------------------------------

inline long failures = 0;

inline void fail(const std::string& where, const std::string& what) {
  if (++failures <= 20) std::printf("FAILED %s: %s\n", where.c_str(), what.c_str());
}

inline void check(bool holds, const std::string& where, const std::string& what) {
  if (!holds) fail(where, what);
}

// ---- how many of the cases
// ------------------------------------------------------------------------

// With CSCL_FAST_TEST_SHARE=n in the environment one case of n: for kernels that run slowly, in a
// simulation under a sanitizer.
inline long test_share() {
  static const long share = [] {
    const char* text = std::getenv("CSCL_FAST_TEST_SHARE");
    return text == nullptr ? 1L : std::max(1L, std::atol(text));
  }();
  return share;
}
inline bool chosen() {
  static long cases = 0;
  return cases++ % test_share() == 0;
}

// ---- the three floating point types
// ---------------------------------------------------------------

inline const char* name_of(DataType type) {
  return type == DataType::float32 ? "float32" : type == DataType::float16 ? "float16" : "bfloat16";
}

inline size_t size_of(DataType type) { return type == DataType::float32 ? 4 : 2; }

inline double from_bits(DataType type, const void* at) {
  if (type == DataType::float32) {
    float value;
    std::memcpy(&value, at, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  const int mantissa_bits = type == DataType::float16 ? 10 : 7;
  const int exponent_bits = 15 - mantissa_bits;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

// Rounded to the nearest, ties to even, as the processor does it in its default mode.
inline void to_bits(DataType type, double value, void* at) {
  if (type == DataType::float32) {
    const float rounded = static_cast<float>(value);
    std::memcpy(at, &rounded, 4);
    return;
  }
  const int mantissa_bits = type == DataType::float16 ? 10 : 7;
  const int exponent_bits = 15 - mantissa_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int largest = (1 << exponent_bits) - 1;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  uint16_t bits;
  if (std::isnan(value)) {
    bits = static_cast<uint16_t>(largest << mantissa_bits | 1);
  } else {
    int exponent = 0;
    std::frexp(value, &exponent);  // |value| in [1/2, 1) * 2^exponent
    if (value == 0 || exponent < 2 - bias) exponent = 2 - bias;
    const int step = exponent - 1 - mantissa_bits;  // log2 of what the last bit is worth
    const double steps =
        std::isinf(value) ? 0 : std::nearbyint(std::ldexp(std::fabs(value), -step));
    // Consecutive numbers have consecutive bits, across the powers of two as well.
    const long above = static_cast<long>(step + mantissa_bits + bias - 1) << mantissa_bits;
    const long all = above + static_cast<long>(steps);
    const long infinity = static_cast<long>(largest) << mantissa_bits;
    bits = static_cast<uint16_t>(std::isinf(value) || all > infinity ? infinity : all);
  }
  bits |= sign;
  std::memcpy(at, &bits, 2);
}

inline double rounded(DataType type, double value) {
  uint32_t bits = 0;
  to_bits(type, value, &bits);
  return from_bits(type, &bits);
}

// ---- memory with guards around it
// -----------------------------------------------------------------

// Room for a kernel's result, at an address as even as a tensor's: filled with a pattern, and with
// guards on both sides that a kernel which writes too far changes.
class Guarded {
 public:
  explicit Guarded(size_t bytes) : bytes_(bytes), memory_(bytes + 2 * kGuard + kAlignment) {
    std::memset(begin(), kPattern, all());
  }
  Guarded(Guarded&&) = default;
  Guarded(const Guarded&) = delete;

  void* data() { return begin() + kGuard; }
  const unsigned char* data() const { return begin() + kGuard; }

  bool guards_intact() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (begin()[i] != kPattern || begin()[kGuard + bytes_ + i] != kPattern) return false;
    }
    return true;
  }

  bool operator==(const Guarded& other) const {
    return bytes_ == other.bytes_ && std::memcmp(begin(), other.begin(), all()) == 0;
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr size_t kAlignment = 64;
  static constexpr unsigned char kPattern = 0xA5;

  size_t all() const { return bytes_ + 2 * kGuard; }
  const unsigned char* begin() const {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.data());
    return memory_.data() + (kAlignment - address % kAlignment) % kAlignment;
  }
  unsigned char* begin() { return const_cast<unsigned char*>(std::as_const(*this).begin()); }

  size_t bytes_;
  std::vector<unsigned char> memory_;
};

// ---- reproducible random numbers, the same with every standard library
// ------------------------------

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}

  double uniform() {  // [0, 1)
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<double>(state_ >> 11) * 0x1p-53;
  }

  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(6.283185307179586 * uniform());
  }

 private:
  uint64_t state_;
};

// ---- the tests, one function a file
// -----------------------------------------------------------------

// Each prints one line with what it has checked.
void test_threads();
void test_class_thresholds();
void test_soft_pseudo_labels();
void test_transfer_reward();
void test_class_centroids();
void test_pseudo_label_loss();
void test_symmetric_soft_divergence();
void test_upsampled_cross_entropy();
