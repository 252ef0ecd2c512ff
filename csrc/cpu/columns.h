// The logits of kLanes pixels, as the formulas of core/ take them: get(k) and set(k, value).
#pragma once

#include "core/soft_pseudo_label.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

CSCL_CORE_BEGIN

// In registers, as far as they reach; kClasses = 0: any number, in the cache.
template <int kClasses>
struct RegisterColumn {
  Float values[kClasses == 0 ? cscl::kMaximumClasses : kClasses];
  CSCL_HD Float get(int k) const { return values[k]; }
  CSCL_HD void set(int k, Float value) { values[k] = value; }
  CSCL_HD void weighed(int, Float, Float, Float) {}
};

// Any number of classes: in the tile.
struct TileColumn {
  float* tile;
  int64_t row;
  CSCL_HD Float get(int k) const { return load<Float>(tile + k * row); }
  CSCL_HD void set(int k, Float value) { store(tile + k * row, value); }
  CSCL_HD void weighed(int, Float, Float, Float) {}
};

// Half of the lanes, in double.
struct DoubleColumn {
  float* tile;
  int64_t row;
  CSCL_HD Double get(int k) const {
    return __builtin_convertvector(load<HalfFloat>(tile + k * row), Double);
  }
  CSCL_HD void set(int k, Double value) {
    store(tile + k * row, __builtin_convertvector(value, HalfFloat));
  }
};

// Soft labels by the careful rule for `pixels` pixels of a tile, a multiple of kLanes.
inline void solve_tile_carefully(int classes, float* tile, int64_t row, int64_t pixels,
                                 const cscl::SoftPseudoLabelPlan& plan, int32_t* hard) {
  for (int64_t i = 0; i < pixels; i += kDoubleLanes) {
    DoubleColumn column{tile + i, row};
    const CarefulPixel<Double> pixel = solve_carefully<Double>(column, classes, plan);
    for (int k = 0; k < classes; ++k) {
      column.set(k, careful_label(pixel, column.get(k), k, plan));
    }
    store(hard + i, __builtin_convertvector(pixel.hard, HalfInt));
  }
}

CSCL_CORE_END
