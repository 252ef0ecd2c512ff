// A walk that reads every pixel's logits once, at their own size or at H x W.
//
// The pixels are cut into tasks of about kWalkPixels, whatever the number of threads: pieces of an
// image, or bands of output rows. A task hands its pixels in order to a solver,
//
//     solve(in, in_row, place, pixels)
//
// class k of its pixels place .. place + pixels - 1 lies at in + k * in_row; up to the next
// multiple of kLanes may be read. float32 planes are handed over where they lie, all else in a
// tile.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/tile.h"
#include "cpu/upsample.h"

CSCL_CORE_BEGIN

constexpr int64_t kWalkPixels = 8192;

struct PixelWalk {
  cscl::LogitsView view;
  bool resized;
  int64_t lines;   // output rows of a task, or with one row of all pixels its pixels
  int64_t pieces;  // tasks of an image
  int64_t tasks;
  int64_t task_pixels;  // at most
  // With H x W other than h x w only:
  int64_t row_floats;  // of one source row in scratch
  ColumnPositions columns;
  float* rows;
};

CSCL_HD PixelWalk plan_pixel_walk(const cscl::LogitsView& view) {
  PixelWalk walk = {};
  walk.view = view;
  walk.resized = view.height != view.out_height || view.width != view.out_width;
  const int64_t plane = view.out_height * view.out_width;
  if (view.batch * plane == 0) return walk;
  const int64_t width = walk.resized ? view.out_width : 1;
  const int64_t lines = plane / width;
  walk.lines = (kWalkPixels + width - 1) / width;
  walk.pieces = (lines + walk.lines - 1) / walk.lines;
  walk.tasks = view.batch * walk.pieces;
  walk.task_pixels = smaller_of(walk.lines, lines) * width;
  walk.row_floats = (view.classes + 1) * scratch_stride(view.width);
  return walk;
}

// Where the pixels of a task begin, counted over the whole batch, and how many they are.
CSCL_HD int64_t task_begin(const PixelWalk& walk, int64_t task) {
  const int64_t width = walk.resized ? walk.view.out_width : 1;
  return task / walk.pieces * walk.view.out_height * walk.view.out_width +
         task % walk.pieces * walk.lines * width;
}
CSCL_HD int64_t pixels_of_task(const PixelWalk& walk, int64_t task) {
  const int64_t plane = walk.view.out_height * walk.view.out_width;
  return smaller_of(walk.task_pixels, plane - task_begin(walk, task) % plane);
}

// Floats of scratch that the walk needs, 64-byte aligned, and the walk made ready to use them.
CSCL_HD int64_t walk_scratch(const PixelWalk& walk, int64_t workers) {
  if (!walk.resized) return 0;
  return round_up(walk.view.out_width, 16) * 5 + workers * 3 * walk.row_floats;
}
inline void prepare_walk(PixelWalk& walk, float* scratch) {
  if (!walk.resized) return;
  const int64_t width = round_up(walk.view.out_width, 16);
  walk.columns.first = reinterpret_cast<int64_t*>(scratch);
  walk.columns.order = reinterpret_cast<Int*>(scratch + width * 2);
  walk.columns.near_weight = scratch + width * 3;
  walk.columns.far_weight = scratch + width * 4;
  prepare_columns(walk.view, walk.columns);
  walk.rows = scratch + width * 5;
}

template <typename Element, typename Solve>
inline void walk_pixels(const PixelWalk& walk, const Element* image, int64_t begin, int64_t end,
                        const Solve& solve) {
  const cscl::LogitsView& view = walk.view;
  const PixelOrder order = pixel_order(view);
  alignas(64) float tile[kTileFloats];
  const int64_t step = tile_pixels(view.classes, order == PixelOrder::interleaved);
  for (int64_t p = begin; p < end; p += step) {
    const int64_t pixels = smaller_of(step, end - p);
    if (sizeof(Element) == 4 && order == PixelOrder::planes && pixels % kLanes == 0) {
      solve(reinterpret_cast<const float*>(image) + p, view.stride_class, p - begin, pixels);
    } else {
      const int64_t row = round_up(pixels, kLanes);
      load_tile(image, view, order, p, pixels, tile, row);
      solve(tile, row, p - begin, pixels);
    }
  }
}

template <typename Element, typename Solve>
inline void walk_rows(const PixelWalk& walk, const Element* image, int64_t begin, int64_t end,
                      int worker, const Solve& solve) {
  const cscl::LogitsView& view = walk.view;
  RowScratch scratch;
  scratch.source[0] = walk.rows + worker * 3 * walk.row_floats;
  scratch.source[1] = scratch.source[0] + walk.row_floats;
  scratch.between = scratch.source[1] + walk.row_floats;
  scratch.row[0] = scratch.row[1] = -1;
  alignas(64) float tile[kTileFloats];
  const int64_t width = view.out_width;
  const int64_t step = tile_pixels(view.classes, false);
  for (int64_t y = begin; y < end; ++y) {
    interpolate_rows(image, view, y, scratch);
    for (int64_t x = 0; x < width; x += step) {
      const int64_t pixels = smaller_of(step, width - x);
      const int64_t row = round_up(pixels, kLanes);
      interpolate_columns(scratch, walk.columns, view.width, x, pixels, view.classes, tile, row);
      solve(tile, row, (y - begin) * width + x, pixels);
    }
  }
}

template <typename Element, typename Solve>
inline void walk_task(const PixelWalk& walk, int64_t task, int worker, const Solve& solve) {
  const FlushTinyResults flush;
  const cscl::LogitsView& view = walk.view;
  const Element* image =
      static_cast<const Element*>(view.data) + task / walk.pieces * view.stride_batch;
  const int64_t begin = task % walk.pieces * walk.lines;
  if (walk.resized) {
    walk_rows(walk, image, begin, smaller_of(begin + walk.lines, view.out_height), worker, solve);
  } else {
    const int64_t plane = view.height * view.width;
    walk_pixels(walk, image, begin, smaller_of(begin + walk.lines, plane), solve);
  }
}

CSCL_CORE_END
