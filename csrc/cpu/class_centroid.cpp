// Class centroids [K, C] and masses [K] of features, and the gradient by the features of whatever
// is computed from centroids.
//
// Bytes that must move: forward, the features read once (cpu/class_sums.h); backward, the gradient
// written once, past the caches when it outgrows them. What is read for it is small: a class and a
// weight for each location and one row or one column of [K, C].
#include <stdint.h>

#include "core/soft_pseudo_label_plan.h"
#include "cpu/class_sums.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/simd.h"
#include "cpu/threads.h"
#include "cpu/tile.h"

namespace cscl::cpu::CSCL_ISA {
namespace {

// From this size on the gradient is streamed past the caches.
constexpr int64_t kStreamBytes = int64_t{8} << 20;
constexpr int64_t kTaskElements = int64_t{1} << 17;

// ---- numbers of any size to 16 bits -------------------------------------------------------------

CSCL_HD void narrow_any(float* to, Float value) { store(to, value); }

CSCL_HD void narrow_any(BFloat16* to, Float value) {
  const Unsigned quiet = Unsigned{} + 0x7fc00000u;
  const Unsigned number = (Unsigned)(value == value);
  narrow(to, (Float)((number & (Unsigned)value) | (~number & quiet)));
}

CSCL_HD void narrow_any(Float16* to, Float value) {
#if defined(__AVX2__)
  narrow(to, value);
#else
  const Unsigned bits = (Unsigned)value;
  const Unsigned magnitude = bits & 0x7fffffffu;
  const Unsigned tiny = (Unsigned)(magnitude < 0x38800000u);
  const Unsigned normal = ((magnitude + 0xfff + ((magnitude >> 13) & 1)) >> 13) - (112u << 10);
  const Unsigned subnormal = (Unsigned)((Float)magnitude + 0.5f) - 0x3f000000u;
  const Unsigned above = (Unsigned)(magnitude >= 0x477ff000u);  // rounds to infinity
  const Unsigned missing = (Unsigned)(magnitude > 0x7f800000u);
  Unsigned half = (tiny & subnormal) | (~tiny & normal);
  half = (above & 0x7c00u) | (~above & half);
  half = half | (missing & 0x0200u);
  store(to, __builtin_convertvector(half | ((bits >> 16) & 0x8000u), Short));
#endif
}

template <typename Element>
CSCL_HD void narrow_any_some(Element* to, Float value, int64_t count) {
  Element padded[kLanes];
  narrow_any(padded, value);
  for (int64_t i = 0; i < count; ++i) to[i] = padded[i];
}

template <bool kStream, typename Element>
CSCL_HD void put(Element* to, Float value) {
  if constexpr (!kStream) {
    narrow_any(to, value);
  } else if constexpr (sizeof(Element) == 4) {
    stream(to, value);
  } else {
    alignas(64) Element narrowed[kLanes];
    narrow_any(narrowed, value);
    stream(to, load<Short>(narrowed));
  }
}

// Elements before the first address that a vector can be streamed to.
template <typename Element>
int64_t elements_to_alignment(const Element* to, int64_t count) {
  constexpr uintptr_t kVector = sizeof(Element) * kLanes;
  const uintptr_t past = reinterpret_cast<uintptr_t>(to) % kVector;
  return smaller_of(past == 0 ? 0 : static_cast<int64_t>((kVector - past) / sizeof(Element)),
                    count);
}

// to[i] = value(i), a vector from i on, for i < count. some(i, n): the first n lanes of it.
template <typename Element, bool kStream, typename Values, typename Some>
CSCL_HD void write(Element* to, int64_t count, const Values& values, const Some& some) {
  int64_t i = 0;
  if (kStream) {
    i = elements_to_alignment(to, count);
    if (i > 0) narrow_any_some(to, some(0, i), i);
  }
  for (; i + kLanes <= count; i += kLanes) put<kStream>(to + i, values(i));
  if (i < count) narrow_any_some(to + i, some(i, count - i), count - i);
}

// ---- channels-last: a row of the slopes for each location ---------------------------------------

// What a slope of class k is multiplied by, at weight 1.
CSCL_HD float factor_of(const CentroidGradientCall& call, int64_t k) {
  const float scale = call.scale != nullptr ? *call.scale : 1.0f;
  if (call.mass == nullptr) return scale;
  return call.mass[k] > 0 ? scale / call.mass[k] : 0.0f;
}

template <typename Element, bool kStream>
void write_rows(const CentroidGradientCall& call, int64_t begin, int64_t end) {
  const int64_t channels = call.channels;
  for (int64_t n = begin; n < end; ++n) {
    Element* to = static_cast<Element*>(call.gradient) + n * channels;
    const int64_t k = call.row[n];
    if (k >= call.classes) {  // 0 * slope would not be 0 for a slope that is not finite
      const auto zero = [](int64_t, int64_t = 0) { return Float{}; };
      write<Element, kStream>(to, channels, zero, zero);
    } else {
      const float* slope = call.slope + k * channels;
      const float factor = call.weight[n] * factor_of(call, k);
      write<Element, kStream>(
          to, channels, [&](int64_t c) { return load<Float>(slope + c) * factor; },
          [&](int64_t c, int64_t count) { return widen_some(slope + c, count) * factor; });
    }
  }
}

// ---- contiguous: a column of the slopes for each channel ----------------------------------------

// Up to four vectors are looked up in registers: entry `index` of a table of kVectors.
template <int kVectors>
CSCL_HD Float look_up(const float* table, Int index) {
#if defined(__AVX512F__)
  if constexpr (kVectors == 2) {
    return (Float)_mm512_permutex2var_ps(_mm512_loadu_ps(table), (__m512i)index,
                                         _mm512_loadu_ps(table + kLanes));
  }
#endif
#if defined(__AVX2__)
  Float found = permute(table, index);  // looks at the lowest bits of the index only
#pragma GCC unroll 4
  for (int i = 1; i < kVectors; ++i) {
    found = select(index >= i * kLanes, permute(table + i * kLanes, index), found);
  }
  return found;
#else
  Float found;
  for (int lane = 0; lane < kLanes; ++lane) found[lane] = table[index[lane]];
  return found;
#endif
}

// A table of any size.
template <>
CSCL_HD Float look_up<0>(const float* table, Int index) {
#if defined(__AVX512F__)
  return (Float)_mm512_i32gather_ps((__m512i)index, table, 4);
#elif defined(__AVX2__)
  return (Float)_mm256_i32gather_ps(table, (__m256i)index, 4);
#else
  return look_up<1>(table, index);
#endif
}

template <typename Element, bool kStream, int kVectors>
void write_plane(const float* table, const int32_t* row, const float* weight, int64_t plane,
                 Element* to) {
  write<Element, kStream>(
      to, plane,
      [&](int64_t i) {
        return look_up<kVectors>(table, load<Int>(row + i)) * load<Float>(weight + i);
      },
      [&](int64_t i, int64_t count) {
        Float some = {};
        for (int64_t j = 0; j < count; ++j) some[j] = table[row[i + j]] * weight[i + j];
        return some;
      });
}

template <typename Element, bool kStream>
void write_channel(const CentroidGradientCall& call, int64_t image, int64_t channel) {
  constexpr int64_t kMost = kMaximumClasses + 1;
  alignas(64) float table[(kMost + kLanes - 1) / kLanes * kLanes];
  const int64_t classes = call.classes;
  for (int64_t k = 0; k < classes; ++k) {
    const float factor = factor_of(call, k);
    table[k] = factor == 0 && call.mass != nullptr
                   ? 0.0f
                   : call.slope[k * call.channels + channel] * factor;
  }
  const int64_t vectors = divide_up(classes + 1, kLanes);
  for (int64_t k = classes; k < vectors * kLanes; ++k) table[k] = 0.0f;
  const int32_t* row = call.row + image * call.plane;
  const float* weight = call.weight + image * call.plane;
  Element* to =
      static_cast<Element*>(call.gradient) + (image * call.channels + channel) * call.plane;
  switch (vectors) {
    case 1:
      return write_plane<Element, kStream, 1>(table, row, weight, call.plane, to);
    case 2:
      return write_plane<Element, kStream, 2>(table, row, weight, call.plane, to);
    case 3:
      return write_plane<Element, kStream, 3>(table, row, weight, call.plane, to);
    case 4:
      return write_plane<Element, kStream, 4>(table, row, weight, call.plane, to);
    default:
      return write_plane<Element, kStream, 0>(table, row, weight, call.plane, to);
  }
}

// ---- the gradient -------------------------------------------------------------------------------

template <typename Element, bool kStream>
void walk(const CentroidGradientCall& call, int threads) {
  const int64_t locations = call.batch * call.plane;
  if (call.channels_last) {
    const int64_t step = divide_up(kTaskElements, call.channels);
    parallel_for(divide_up(locations, step), threads, [&](int64_t task, int) {
      const int64_t begin = task * step;
      write_rows<Element, kStream>(call, begin, smaller_of(begin + step, locations));
      if (kStream) finish_streams();
    });
  } else {
    const int64_t planes = call.batch * call.channels;
    const int64_t step = divide_up(kTaskElements, call.plane);
    parallel_for(divide_up(planes, step), threads, [&](int64_t task, int) {
      for (int64_t i = task * step; i < smaller_of((task + 1) * step, planes); ++i) {
        write_channel<Element, kStream>(call, i / call.channels, i % call.channels);
      }
      if (kStream) finish_streams();
    });
  }
}

template <typename Element>
void walk(const CentroidGradientCall& call, int threads) {
  const int64_t elements = call.batch * call.plane * call.channels;
  if (elements == 0) return;
  const bool aligned = reinterpret_cast<uintptr_t>(call.gradient) % sizeof(Element) == 0;
  if (aligned && elements * static_cast<int64_t>(sizeof(Element)) >= kStreamBytes) {
    walk<Element, true>(call, threads);
  } else {
    walk<Element, false>(call, elements < kSerialFeatures ? 1 : threads);
  }
}

}  // namespace

void class_centroids(const ClassCentroidsCall& call, int threads) {
  const LabelledFeatures& side = call.side;
  const int64_t classes = side.labels.classes, channels = side.features.classes;
  const SumPlan plan = plan_sums(side);
  const Scratch scratch(plan.doubles * 8);
  const ClassSums sums = sum_by_class(side, plan, scratch.doubles(), threads);
  for (int64_t k = 0; k < classes; ++k) {
    call.mass[k] = static_cast<float>(sums.mass[k]);
    for (int64_t c = 0; c < channels; c += kDoubleLanes) {
      const HalfFloat some = __builtin_convertvector(centroid_of(sums, classes, k, c), HalfFloat);
      float* to = call.centroids + k * channels + c;
      if (c + kDoubleLanes <= channels) {
        store(to, some);
      } else {
        for (int64_t i = 0; i < channels - c; ++i) to[i] = some[i];
      }
    }
  }
}

void centroid_gradient(const CentroidGradientCall& call, int threads) {
  switch (call.type) {
    case DataType::float32:
      return walk<float>(call, threads);
    case DataType::float16:
      return walk<Float16>(call, threads);
    case DataType::bfloat16:
      return walk<BFloat16>(call, threads);
  }
}

}  // namespace cscl::cpu::CSCL_ISA
