// Sums of features by class, in double: what class_centroids and symmetric_soft_divergence share.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

namespace cscl::cpu::CSCL_ISA {

// Below this many features a second thread costs more than it saves.
constexpr int64_t kSerialFeatures = int64_t{1} << 16;

CSCL_HD int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Locations begin .. end-1 of a part, counted through all images.
struct Range {
  int64_t begin, end;
};

CSCL_HD Range range_of(int64_t part, int64_t parts, int64_t locations) {
  const int64_t length = divide_up(locations, parts);
  return {smaller_of(part * length, locations), smaller_of((part + 1) * length, locations)};
}

// body(image, first location in it, how many) for every image of a range, `step` at most at once.
template <typename Body>
CSCL_HD void for_each_piece(const Range& range, int64_t plane, int64_t step, const Body& body) {
  for (int64_t n = range.begin; n < range.end;) {
    const int64_t image = n / plane, p = n % plane;
    const int64_t count = smaller_of(smaller_of(step, plane - p), range.end - n);
    body(image, p, count, n);
    n += count;
  }
}

// Memory of one call, given back at its end.
class Scratch {
 public:
  explicit Scratch(int64_t bytes);  // throws OutOfMemory
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  double* doubles() const { return static_cast<double*>(data_); }

 private:
  void* data_;
};

// Into how many parts the locations are cut; it follows from the sizes alone.
struct SumPlan {
  int64_t locations;     // B h w
  int64_t row;           // C, rounded up to whole vectors
  int64_t assign_parts;  // of the assignment and of the masses
  int64_t parts;         // of the sums
  int64_t doubles;       // memory that is needed
};

SumPlan plan_sums(const LabelledFeatures& side);

struct ClassSums {
  SumPlan plan;
  const double* sums;  // [parts, K, row]
  const double* mass;  // [K]
};

// Finds row, weight and in_range of `side`, the masses of the parts [assign_parts, K + 1] and their
// sum [K].
void assign_all(const LabelledFeatures& side, const SumPlan& plan, double* part_mass, double* mass,
                int threads);

// Finds row, weight and in_range of `side` and sums its features; `memory` has plan.doubles.
ClassSums sum_by_class(const LabelledFeatures& side, const SumPlan& plan, double* memory,
                       int threads);

// Channels c .. of the centroid of class k: the parts added in their order, over the mass. A class
// without mass has the centroid 0.
CSCL_HD Double centroid_of(const ClassSums& sums, int64_t classes, int64_t k, int64_t c) {
  Double total = {};
  const double* part = sums.sums + k * sums.plan.row + c;
  for (int64_t p = 0; p < sums.plan.parts; ++p) {
    total = total + load<Double>(part + p * classes * sums.plan.row);
  }
  const double mass = sums.mass[k];
  return mass > 0 ? total / mass : Double{};
}

}  // namespace cscl::cpu::CSCL_ISA
