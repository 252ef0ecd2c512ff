// Logits at H x W pixels, bilinear in those at h x w, without ever storing them: rows first, into
// scratch of one row, then columns, into the tile that is being solved.
#pragma once

#include "core/bilinear.h"
#include "cpu/kernels.h"
#include "cpu/tile.h"

CSCL_CORE_BEGIN

// The columns of the output, kLanes at a time; the same for every row, image and class.
struct ColumnPositions {
  int64_t* first;      // [W] source column
  Int* order;          // [W / kLanes] first - the group's base, or -1 in lane 0: too far apart
  float* near_weight;  // [W], padded to whole vectors
  float* far_weight;
};

// Scratch of one worker: the two source rows in use as float32 planes, each location's largest
// logit taken off (no softmax sees it, and float32 then rounds differences between classes rather
// than a common offset), and the row between them.
struct RowScratch {
  float* source[2];  // [K, stride]
  int64_t row[2];    // which source row each holds; -1: none
  float* between;    // [K, stride]
};

// Floats of one row of scratch: the row, its last value once more, and room to read past it.
CSCL_HD int64_t scratch_stride(int64_t width) { return round_up(width + 1 + kLanes, 16); }

template <typename Element>
inline void read_source_row(const Element* from, const cscl::LogitsView& view, float* to,
                            int64_t stride) {
  const int64_t width = view.width;
  float* largest = to + view.classes * stride;  // one more row, for the maxima
  for (int64_t k = 0; k < view.classes; ++k) {
    float* row = to + k * stride;
    const Element* source = from + k * view.stride_class;
    if (view.stride_column == 1) {
      for (int64_t x = 0; x < width; x += kLanes) store(row + x, widen_some(source + x, width - x));
    } else {
      for (int64_t x = 0; x < width; x += kLanes) {
        Element values[kLanes] = {};
        const int64_t count = smaller_of(kLanes, width - x);
        for (int64_t i = 0; i < count; ++i) values[i] = source[(x + i) * view.stride_column];
        store(row + x, widen(values));
      }
    }
    for (int64_t x = 0; x < width; x += kLanes) {
      const Float value = load<Float>(row + x);
      store(largest + x, k == 0 ? value : larger(value, load<Float>(largest + x)));
    }
  }
  for (int64_t k = 0; k < view.classes; ++k) {
    float* row = to + k * stride;
    for (int64_t x = 0; x < width; x += kLanes) {
      store(row + x, load<Float>(row + x) - load<Float>(largest + x));
    }
    for (int64_t x = width; x < stride; ++x) row[x] = row[width - 1];
  }
}

// Makes scratch.between the logits of output row y of one image.
template <typename Element>
inline void interpolate_rows(const Element* image, const cscl::LogitsView& view, int64_t y,
                             RowScratch& scratch) {
  const int64_t stride = scratch_stride(view.width);
  const LinePosition position =
      line_position<int64_t>(y, view.height, view.out_height, view.align_corners);
  const int64_t rows[2] = {position.first, smaller_of(position.first + 1, view.height - 1)};
  if (scratch.row[0] != rows[0] && scratch.row[1] == rows[0]) {
    float* spare = scratch.source[0];
    scratch.source[0] = scratch.source[1];
    scratch.source[1] = spare;
    scratch.row[0] = rows[0];
    scratch.row[1] = -1;
  }
  for (int i = 0; i < 2; ++i) {
    if (scratch.row[i] == rows[i]) continue;
    read_source_row(image + rows[i] * view.stride_row, view, scratch.source[i], stride);
    scratch.row[i] = rows[i];
  }
  const Float near_weight = broadcast<Float>(position.near_weight);
  const Float far_weight = broadcast<Float>(position.far_weight);
  for (int64_t i = 0; i < view.classes * stride; i += kLanes) {
    store(scratch.between + i, interpolate(near_weight, load<Float>(scratch.source[0] + i),
                                           far_weight, load<Float>(scratch.source[1] + i)));
  }
}

// Output columns x .. x + pixels - 1 of the row at `between` [K, scratch_stride(width)], to the
// tile.
inline void interpolate_columns(const float* between, const ColumnPositions& columns, int64_t width,
                                int64_t x, int64_t pixels, int64_t classes, float* tile,
                                int64_t tile_row) {
  const int64_t stride = scratch_stride(width);
  for (int64_t i = 0; i < pixels; i += kLanes) {
    const int64_t* first = columns.first + x + i;
    const Int order = columns.order[(x + i) / kLanes];
    const Float near_weight = load<Float>(columns.near_weight + x + i);
    const Float far_weight = load<Float>(columns.far_weight + x + i);
    const int64_t lanes = smaller_of(kLanes, pixels - i);
    for (int64_t k = 0; k < classes; ++k) {
      const float* row = between + k * stride;
      Float near = {}, far = {};
      if (order[0] >= 0) {
        near = permute(row + first[0], order);
        far = permute(row + first[0] + 1, order);
      } else {
        for (int64_t lane = 0; lane < lanes; ++lane) {
          near[lane] = row[first[lane]];
          far[lane] = row[first[lane] + 1];
        }
      }
      store(tile + k * tile_row + i, interpolate(near_weight, near, far_weight, far));
    }
  }
}

inline void interpolate_columns(const RowScratch& scratch, const ColumnPositions& columns,
                                int64_t width, int64_t x, int64_t pixels, int64_t classes,
                                float* tile, int64_t tile_row) {
  interpolate_columns(scratch.between, columns, width, x, pixels, classes, tile, tile_row);
}

// Fills in `columns`, whose arrays are there already.
inline void prepare_columns(const cscl::LogitsView& view, ColumnPositions& columns) {
  for (int64_t x = 0; x < round_up(view.out_width, kLanes); ++x) {
    // Lanes past the end repeat the last column.
    const int64_t column = smaller_of(x, view.out_width - 1);
    const LinePosition position =
        line_position<int64_t>(column, view.width, view.out_width, view.align_corners);
    columns.first[x] = position.first;
    columns.near_weight[x] = position.near_weight;
    columns.far_weight[x] = position.far_weight;
    Int& order = columns.order[x / kLanes];
    const int64_t lane = x % kLanes;
    const int64_t distance = position.first - columns.first[x - lane];
    if (lane == 0) order = Int{};
    order[lane] = static_cast<int32_t>(distance);
    if (distance >= kLanes) order[0] = -1;
  }
}

CSCL_CORE_END
