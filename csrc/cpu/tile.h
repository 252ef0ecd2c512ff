// A tile: the logits of a few neighbouring pixels in cache, float32, one row for each class. The
// kernels solve tiles; the functions here fill them from memory and empty them again, in whatever
// type and order the tensors lie.
//
// Pixels from `pixels` up to the next multiple of kLanes are padding; they are zero, and nothing
// that is computed from them leaves the tile. A pixel's answer thus never depends on its neighbours
// or on its place in a vector.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

CSCL_CORE_BEGIN

constexpr int64_t kMaximumTilePixels = 256;
constexpr int kTileFloats = 4096;  // 16 KiB: half of the smallest first-level cache in use

CSCL_HD int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

CSCL_HD int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Pixels per tile: a multiple of 16, so that tiles of any type start at an aligned address. A tile
// of interleaved pixels is held twice, in its two orders, and does best well inside the cache.
CSCL_HD int64_t tile_pixels(int64_t classes, bool interleaved) {
  const int64_t pixels = (interleaved ? kTileFloats / 4 : kTileFloats) / classes / 16 * 16;
  return pixels < 16 ? 16 : smaller_of(pixels, kMaximumTilePixels);
}

// Up to kLanes values that may not fill a vector.
template <typename Element>
CSCL_HD Float widen_some(const Element* from, int64_t count) {
  if (count >= kLanes) return widen(from);
  Element padded[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
  return widen(padded);
}

template <typename Element>
CSCL_HD void narrow_some(Element* to, Float value, int64_t count) {
  if (count >= kLanes) return narrow(to, value);
  Element padded[kLanes];
  narrow(padded, value);
  for (int64_t i = 0; i < count; ++i) to[i] = padded[i];
}

template <typename Element>
CSCL_HD void narrow_stream(Element* to, Float value) {
  alignas(64) Element narrowed[kLanes];
  narrow(narrowed, value);
  if constexpr (sizeof(Element) == 4) {
    stream(to, load<Float>(narrowed));
  } else {
    stream(to, load<Short>(narrowed));
  }
}

// How the pixels of an image follow each other in memory; strides of axes of length 1 mean nothing.
enum class PixelOrder { planes, interleaved, strided };

inline PixelOrder pixel_order(const cscl::LogitsView& view) {
  const bool one_row = view.height == 1, one_column = view.width == 1;
  if ((one_column || view.stride_column == 1) && (one_row || view.stride_row == view.width)) {
    return PixelOrder::planes;
  }
  if (view.stride_class == 1 && (one_column || view.stride_column == view.classes) &&
      (one_row || view.stride_row == view.width * view.classes)) {
    return PixelOrder::interleaved;
  }
  return PixelOrder::strided;
}

// ---- contiguous tensors: one plane for each class -----------------------------------------------

template <typename Element>
inline void load_planes(const Element* from, int64_t plane, int64_t classes, int64_t pixels,
                        float* tile, int64_t row) {
  for (int64_t k = 0; k < classes; ++k) {
    for (int64_t i = 0; i < pixels; i += kLanes) {
      store(tile + k * row + i, widen_some(from + k * plane + i, pixels - i));
    }
  }
}

template <typename Element, bool kStream>
inline void store_planes(const float* tile, int64_t row, int64_t classes, int64_t pixels,
                         Element* to, int64_t plane) {
  for (int64_t k = 0; k < classes; ++k) {
    for (int64_t i = 0; i < pixels; i += kLanes) {
      const Float value = load<Float>(tile + k * row + i);
      if (kStream && pixels - i >= kLanes) {
        narrow_stream(to + k * plane + i, value);
      } else {
        narrow_some(to + k * plane + i, value, pixels - i);
      }
    }
  }
}

// ---- channels-last tensors: the classes of a pixel are neighbours -------------------------------

// How many groups of kLanes pixels are asked for before they are read.
constexpr int64_t kGroupsAhead = 4;

// [pixels, classes] float32 to the tile. The last group of four classes overlaps the one before.
inline void transpose_to_tile(const float* from, int64_t classes, int64_t pixels, float* tile,
                              int64_t row) {
  const int64_t whole = classes >= 4 ? pixels / kLanes * kLanes : 0;
  for (int64_t i = 0; i < whole; i += kLanes) {
    // A group reads all its lines at once; the processor's own prefetching comes too late for that.
    const char* ahead = reinterpret_cast<const char*>(from + (i + kGroupsAhead * kLanes) * classes);
    for (int64_t b = 0; b < kLanes * classes * 4; b += 64) __builtin_prefetch(ahead + b);
    for (int64_t c = 0; c < classes; c += 4) {
      const int64_t k = smaller_of(c, classes - 4);
      Float four[4];
      gather_four(from + i * classes + k, classes, four);
      for (int j = 0; j < 4; ++j) store(tile + (k + j) * row + i, four[j]);
    }
  }
  for (int64_t k = 0; k < classes; ++k) {
    for (int64_t i = whole; i < pixels; ++i) tile[k * row + i] = from[i * classes + k];
    for (int64_t i = pixels; i < round_up(pixels, kLanes); ++i) tile[k * row + i] = 0.0f;
  }
}

inline void transpose_from_tile(const float* tile, int64_t row, int64_t classes, int64_t pixels,
                                float* to) {
  const int64_t whole = classes >= 4 ? pixels / kLanes * kLanes : 0;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t c = 0; c < classes; c += 4) {
      const int64_t k = smaller_of(c, classes - 4);
      Float four[4];
      for (int j = 0; j < 4; ++j) four[j] = load<Float>(tile + (k + j) * row + i);
      scatter_four(four, to + i * classes + k, classes);
    }
  }
  for (int64_t i = whole; i < pixels; ++i) {
    for (int64_t k = 0; k < classes; ++k) to[i * classes + k] = tile[k * row + i];
  }
}

template <typename Element>
inline void load_interleaved(const Element* from, int64_t classes, int64_t pixels, float* tile,
                             int64_t row) {
  alignas(64) float values[kTileFloats + kLanes];
  for (int64_t i = 0; i < pixels * classes; i += kLanes) {
    store(values + i, widen_some(from + i, pixels * classes - i));
  }
  transpose_to_tile(values, classes, pixels, tile, row);
}

inline void load_interleaved(const float* from, int64_t classes, int64_t pixels, float* tile,
                             int64_t row) {
  transpose_to_tile(from, classes, pixels, tile, row);
}

template <typename Element, bool kStream>
inline void store_interleaved(const float* tile, int64_t row, int64_t classes, int64_t pixels,
                              Element* to) {
  if constexpr (sizeof(Element) == 4 && !kStream) {
    transpose_from_tile(tile, row, classes, pixels, to);
  } else {
    alignas(64) float values[kTileFloats + kLanes];
    transpose_from_tile(tile, row, classes, pixels, values);
    store_planes<Element, kStream>(values, 0, 1, pixels * classes, to, 0);
  }
}

// ---- tensors in any other order -----------------------------------------------------------------

// Pixels `begin` .. `begin` + `pixels` - 1 of one image, counted row by row.
template <typename Element>
inline void load_strided(const Element* image, const cscl::LogitsView& view, int64_t begin,
                         int64_t pixels, float* tile, int64_t row) {
  for (int64_t k = 0; k < view.classes; ++k) {
    const Element* plane = image + k * view.stride_class;
    for (int64_t i = 0; i < round_up(pixels, kLanes); i += kLanes) {
      Element values[kLanes] = {};
      for (int64_t lane = 0; lane < smaller_of(kLanes, pixels - i); ++lane) {
        const int64_t y = (begin + i + lane) / view.width, x = (begin + i + lane) % view.width;
        values[lane] = plane[y * view.stride_row + x * view.stride_column];
      }
      store(tile + k * row + i, widen(values));
    }
  }
}

// ---- tensors in whatever order ------------------------------------------------------------------

// Pixels `begin` .. `begin` + `pixels` - 1 of one image of this order, counted row by row.
template <typename Element>
inline void load_tile(const Element* image, const cscl::LogitsView& view, PixelOrder order,
                      int64_t begin, int64_t pixels, float* tile, int64_t row) {
  if (order == PixelOrder::planes) {
    load_planes(image + begin, view.stride_class, view.classes, pixels, tile, row);
  } else if (order == PixelOrder::interleaved) {
    load_interleaved(image + begin * view.classes, view.classes, pixels, tile, row);
  } else {
    load_strided(image, view, begin, pixels, tile, row);
  }
}

// ---- labels -------------------------------------------------------------------------------------

// int32 in cache to int64 in memory. `labels` may be read up to the next multiple of kLanes.
template <bool kStream>
inline void store_labels(const int32_t* labels, int64_t pixels, int64_t* to) {
  int64_t i = 0;
  for (; i + kLanes <= pixels; i += kLanes) {
    for (int half = 0; half < 2; ++half) {
      const Long wide =
          __builtin_convertvector(load<HalfInt>(labels + i + half * kDoubleLanes), Long);
      if (kStream) {
        stream(to + i + half * kDoubleLanes, wide);
      } else {
        store(to + i + half * kDoubleLanes, wide);
      }
    }
  }
  for (; i < pixels; ++i) to[i] = labels[i];
}

CSCL_CORE_END
