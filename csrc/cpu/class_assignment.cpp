// Class and weight of every location from its label, whether all labels were in range, and the mass
// of every class.
//
// Bytes that must move: the labels read once, 8 written for a location.
#include "core/class_centroid.h"
#include "cpu/class_sums.h"
#include "cpu/threads.h"
#include "cpu/tile.h"

namespace cscl::cpu::CSCL_ISA {
namespace {

bool assign_hard(const LabelledFeatures& side, const Range& range) {
  const LogitsView& view = side.labels;
  const int64_t plane = view.height * view.width, classes = view.classes;
  const bool dense = pixel_order(view) == PixelOrder::planes;
  bool in_range = true;
  for_each_piece(range, plane, plane, [&](int64_t image, int64_t p, int64_t count, int64_t n) {
    const int64_t* labels = static_cast<const int64_t*>(view.data) + image * view.stride_batch;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t q = p + i;
      const int64_t label =
          dense ? labels[q]
                : labels[q / view.width * view.stride_row + q % view.width * view.stride_column];
      const int32_t row = row_of_label(label, classes);
      in_range &= label_in_range(label, classes);
      side.row[n + i] = row;
      side.weight[n + i] = row < classes ? 1.0f : 0.0f;
    }
  });
  return in_range;
}

struct SoftColumn {
  const float* tile;
  int64_t row;
  CSCL_HD Float get(int k) const { return load<Float>(tile + k * row); }
};

template <typename Element>
bool assign_soft(const LabelledFeatures& side, const Range& range) {
  const LogitsView& view = side.labels;
  const int64_t classes = view.classes;
  const PixelOrder order = pixel_order(view);
  alignas(64) float tile[kTileFloats];
  alignas(64) int32_t rows[kMaximumTilePixels];
  alignas(64) float weights[kMaximumTilePixels];
  Int in_range = ~Int{};
  const int64_t step = tile_pixels(classes, order == PixelOrder::interleaved);
  for_each_piece(range, view.height * view.width, step,
                 [&](int64_t image, int64_t p, int64_t count, int64_t n) {
                   const Element* from =
                       static_cast<const Element*>(view.data) + image * view.stride_batch;
                   const int64_t row = round_up(count, kLanes);
                   if (order == PixelOrder::planes) {
                     load_planes(from + p, view.stride_class, classes, count, tile, row);
                   } else if (order == PixelOrder::interleaved) {
                     load_interleaved(from + p * classes, classes, count, tile, row);
                   } else {
                     load_strided(from, view, p, count, tile, row);
                   }
                   for (int64_t i = 0; i < count; i += kLanes) {
                     const Assignment<Float> found = assign_soft_label<Float>(
                         SoftColumn{tile + i, row}, static_cast<int>(classes));
                     store(rows + i, found.row);
                     store(weights + i, found.weight);
                     in_range = in_range & found.in_range;  // padding is 0, which is
                   }
                   for (int64_t i = 0; i < count; ++i) side.row[n + i] = rows[i];
                   for (int64_t i = 0; i < count; ++i) side.weight[n + i] = weights[i];
                 });
  bool all = true;
  for (int lane = 0; lane < kLanes; ++lane) all &= in_range[lane] != 0;
  return all;
}

bool assign(const LabelledFeatures& side, const Range& range) {
  if (side.hard) return assign_hard(side, range);
  switch (side.labels.type) {
    case DataType::float32:
      return assign_soft<float>(side, range);
    case DataType::float16:
      return assign_soft<Float16>(side, range);
    case DataType::bfloat16:
      return assign_soft<BFloat16>(side, range);
  }
  return false;
}

}  // namespace

void assign_all(const LabelledFeatures& side, const SumPlan& plan, double* part_mass, double* mass,
                int threads) {
  const int64_t classes = side.labels.classes;
  bool part_in_range[64];
  parallel_for(plan.assign_parts, threads, [&](int64_t part, int) {
    const Range range = range_of(part, plan.assign_parts, plan.locations);
    part_in_range[part] = assign(side, range);
    double* found = part_mass + part * (classes + 1);
    for (int64_t k = 0; k <= classes; ++k) found[k] = 0.0;
    for (int64_t n = range.begin; n < range.end; ++n) {
      found[side.row[n]] += static_cast<double>(side.weight[n]);
    }
  });
  *side.in_range = true;
  for (int64_t k = 0; k < classes; ++k) mass[k] = 0.0;
  for (int64_t part = 0; part < plan.assign_parts; ++part) {
    *side.in_range = *side.in_range && part_in_range[part];
    for (int64_t k = 0; k < classes; ++k) mass[k] += part_mass[part * (classes + 1) + k];
  }
}

}  // namespace cscl::cpu::CSCL_ISA
