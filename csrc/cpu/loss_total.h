// What a loss adds up, whatever its walk over the pixels.
#pragma once

#include <stdlib.h>

#include "core/upsampled_cross_entropy.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

CSCL_CORE_BEGIN

using cscl::LogitsView;
using cscl::cpu::LossResult;

struct LossTotal {
  double loss;
  int64_t count;
};

// Adds up kLanes pixels at a time; float32 only for as many as a tile has.
struct TileTotal {
  Float loss;
  Int count;  // negative: a mask is -1 where it is set

  CSCL_HD void add(const PixelLoss<Float>& pixels) {
    loss = loss + pixels.loss;
    count = count + pixels.counted;
  }
  CSCL_HD void finish(LossTotal& total) const {
    for (int lane = 0; lane < kLanes; ++lane) {
      total.loss += static_cast<double>(loss[lane]);
      total.count -= count[lane];
    }
  }
};

// Memory that is given back at the end of the scope.
class Scratch {
 public:
  explicit Scratch(int64_t floats)
      : data_(static_cast<float*>(aligned_alloc(64, round_up(floats * 4, 64)))) {
    if (data_ == nullptr) throw cscl::cpu::OutOfMemory{};
  }
  ~Scratch() { free(data_); }
  Scratch(const Scratch&) = delete;
  float* data() const { return data_; }

 private:
  float* data_;
};

inline bool resized(const LogitsView& view) {
  return view.height != view.out_height || view.width != view.out_width;
}

inline void finish_totals(const LossTotal* totals, int64_t tasks, const LossResult& result,
                          LossTotal& all) {
  all = {0.0, 0};
  for (int64_t task = 0; task < tasks; ++task) {
    all.loss += totals[task].loss;
    all.count += totals[task].count;
  }
  const double count = static_cast<double>(all.count > 0 ? all.count : 1);
  if (result.loss != nullptr) *result.loss = static_cast<float>(all.loss / count);
  if (result.count != nullptr) *result.count = all.count;
}

CSCL_CORE_END
