// Soft pseudo-labels of logits [B, K, h, w], Eq. 8-10, at their own size or at H x W: soft
// [B, K, H, W] in the logits' type, zeros where rejected; hard [B, H, W] int64, 255 where rejected.
//
// Bytes that must move for a float32 pixel: 4 K read, 4 K + 8 written. Results that outgrow the
// caches are written past them, so that no line is read only to be overwritten.
//
// The pixels of an image are cut into blocks, whatever the number of threads; a thread takes a
// block and walks it in tiles (cpu/tile.h), kLanes pixels at a time, each in one lane.
#include "core/soft_pseudo_label.h"

#include <stdlib.h>

#include "core/soft_pseudo_label_plan.h"
#include "cpu/columns.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/simd.h"
#include "cpu/threads.h"
#include "cpu/tile.h"
#include "cpu/upsample.h"

namespace cscl::cpu::CSCL_ISA {
namespace {

constexpr int64_t kBlockPixels = 2048;
// From this size on the result is streamed past the caches.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

// ---- one tile -----------------------------------------------------------------------------------

// Solves `pixels` pixels (a multiple of kLanes) whose class k lies at in + k * in_row, to
// out + k * out_row; in and out may be one.
template <int kClasses, bool kStream, typename Rule>
void solve_fixed(const float* in, int64_t in_row, float* out, int64_t out_row, int64_t pixels,
                 const Rule& rule, int32_t* hard) {
  for (int64_t i = 0; i < pixels; i += kLanes) {
    RegisterColumn<kClasses> column;
#pragma GCC unroll 32
    for (int k = 0; k < kClasses; ++k) column.values[k] = load<Float>(in + k * in_row + i);
    store(hard + i, solve_soft_pseudo_label<Float>(column, kClasses, rule).hard);
#pragma GCC unroll 32
    for (int k = 0; k < kClasses; ++k) {
      if (kStream) {
        stream(out + k * out_row + i, column.values[k]);
      } else {
        store(out + k * out_row + i, column.values[k]);
      }
    }
  }
}

template <bool kStream, typename Rule>
void solve_fixed(int classes, const float* in, int64_t in_row, float* out, int64_t out_row,
                 int64_t pixels, const Rule& rule, int32_t* hard) {
  switch (classes) {
    case 11:
      return solve_fixed<11, kStream>(in, in_row, out, out_row, pixels, rule, hard);
    case 13:
      return solve_fixed<13, kStream>(in, in_row, out, out_row, pixels, rule, hard);
    case 16:
      return solve_fixed<16, kStream>(in, in_row, out, out_row, pixels, rule, hard);
    case 19:
      return solve_fixed<19, kStream>(in, in_row, out, out_row, pixels, rule, hard);
  }
}

template <typename Rule>
void solve_any(int classes, float* tile, int64_t row, int64_t pixels, const Rule& rule,
               int32_t* hard) {
  for (int64_t i = 0; i < pixels; i += kLanes) {
    TileColumn column{tile + i, row};
    store(hard + i, solve_soft_pseudo_label<Float>(column, classes, rule).hard);
  }
}

bool has_fixed_kernel(const SoftPseudoLabelPlan& plan, int64_t classes) {
  return plan.rule != SolveRule::careful &&
         (classes == 11 || classes == 13 || classes == 16 || classes == 19);
}

// For what has_fixed_kernel() is true of.
template <bool kStream>
void solve_fixed(const SoftPseudoLabelPlan& plan, int classes, const float* in, int64_t in_row,
                 float* out, int64_t out_row, int64_t pixels, int32_t* hard) {
  if (plan.rule == SolveRule::power && plan.squarings == 2) {
    const PowerRule<Float, 2> rule{plan};
    solve_fixed<kStream>(classes, in, in_row, out, out_row, pixels, rule, hard);
  } else if (plan.rule == SolveRule::power) {
    const PowerRule<Float, -1> rule{plan};
    solve_fixed<kStream>(classes, in, in_row, out, out_row, pixels, rule, hard);
  } else {
    const ExponentialRule<Float> rule{plan};
    solve_fixed<kStream>(classes, in, in_row, out, out_row, pixels, rule, hard);
  }
}

void solve_tile(const SoftPseudoLabelPlan& plan, int classes, float* tile, int64_t row,
                int64_t pixels, int32_t* hard) {
  pixels = round_up(pixels, kLanes);
  if (has_fixed_kernel(plan, classes)) {
    solve_fixed<false>(plan, classes, tile, row, tile, row, pixels, hard);
  } else if (plan.rule == SolveRule::power) {
    solve_any(classes, tile, row, pixels, PowerRule<Float, -1>{plan}, hard);
  } else if (plan.rule == SolveRule::exponential) {
    solve_any(classes, tile, row, pixels, ExponentialRule<Float>{plan}, hard);
  } else {
    solve_tile_carefully(classes, tile, row, pixels, plan, hard);
  }
}

// ---- the walk over pixels -----------------------------------------------------------------------

// Pixels begin .. end-1 of one image at the logits' own size.
template <typename Element, bool kStream>
void solve_pixels(const SoftPseudoLabelCall& call, const SoftPseudoLabelPlan& plan, int64_t image,
                  int64_t begin, int64_t end) {
  const LogitsView& view = call.logits;
  const int64_t classes = view.classes;
  const int64_t plane = view.height * view.width;
  const PixelOrder order = pixel_order(view);
  const Element* logits = static_cast<const Element*>(view.data) + image * view.stride_batch;
  Element* soft = static_cast<Element*>(call.soft) + image * classes * plane;
  int64_t* hard = call.hard + image * plane;
  alignas(64) float tile[kTileFloats];
  alignas(64) int32_t labels[kMaximumTilePixels];

  const int64_t step =
      tile_pixels(classes, order == PixelOrder::interleaved || call.soft_channels_last);
  for (int64_t p = begin; p < end; p += step) {
    const int64_t pixels = smaller_of(step, end - p);
    const int64_t row = round_up(pixels, kLanes);
    if (sizeof(Element) == 4 && order == PixelOrder::planes && !call.soft_channels_last &&
        pixels % kLanes == 0 && has_fixed_kernel(plan, classes)) {
      // float32 planes need no tile: logits go straight to registers, labels straight to memory.
      solve_fixed<kStream>(plan, static_cast<int>(classes),
                           reinterpret_cast<const float*>(logits) + p, view.stride_class,
                           reinterpret_cast<float*>(soft) + p, plane, pixels, labels);
    } else {
      load_tile(logits, view, order, p, pixels, tile, row);
      solve_tile(plan, static_cast<int>(classes), tile, row, pixels, labels);
      if (call.soft_channels_last) {
        store_interleaved<Element, kStream>(tile, row, classes, pixels, soft + p * classes);
      } else {
        store_planes<Element, kStream>(tile, row, classes, pixels, soft + p, plane);
      }
    }
    store_labels<kStream>(labels, pixels, hard + p);
  }
}

template <typename Element, bool kStream>
void walk_pixels(const SoftPseudoLabelCall& call, const SoftPseudoLabelPlan& plan, int threads) {
  const int64_t pixels = call.logits.height * call.logits.width;
  const int64_t blocks = (pixels + kBlockPixels - 1) / kBlockPixels;
  parallel_for(call.logits.batch * blocks, threads, [&](int64_t task, int) {
    const FlushTinyResults flush;
    const int64_t begin = task % blocks * kBlockPixels;
    solve_pixels<Element, kStream>(call, plan, task / blocks, begin,
                                   smaller_of(begin + kBlockPixels, pixels));
    if (kStream) finish_streams();
  });
}

// ---- the walk over upsampled rows ---------------------------------------------------------------

// Output rows begin .. end-1 of one image.
template <typename Element, bool kStream>
void solve_rows(const SoftPseudoLabelCall& call, const SoftPseudoLabelPlan& plan,
                const ColumnPositions& columns, RowScratch& scratch, int64_t image, int64_t begin,
                int64_t end) {
  const LogitsView& view = call.logits;
  const int64_t classes = view.classes, width = view.out_width;
  const int64_t plane = view.out_height * width;
  const Element* logits = static_cast<const Element*>(view.data) + image * view.stride_batch;
  Element* soft = static_cast<Element*>(call.soft) + image * classes * plane;
  int64_t* hard = call.hard + image * plane;
  alignas(64) float tile[kTileFloats];
  alignas(64) int32_t labels[kMaximumTilePixels];

  scratch.row[0] = scratch.row[1] = -1;
  const int64_t step = tile_pixels(classes, call.soft_channels_last);
  for (int64_t y = begin; y < end; ++y) {
    interpolate_rows(logits, view, y, scratch);
    for (int64_t x = 0; x < width; x += step) {
      const int64_t pixels = smaller_of(step, width - x);
      const int64_t row = round_up(pixels, kLanes);
      const int64_t p = y * width + x;
      interpolate_columns(scratch, columns, view.width, x, pixels, classes, tile, row);
      solve_tile(plan, classes, tile, row, pixels, labels);
      if (call.soft_channels_last) {
        store_interleaved<Element, kStream>(tile, row, classes, pixels, soft + p * classes);
      } else {
        store_planes<Element, kStream>(tile, row, classes, pixels, soft + p, plane);
      }
      store_labels<kStream>(labels, pixels, hard + p);
    }
  }
}

template <typename Element, bool kStream>
void walk_rows(const SoftPseudoLabelCall& call, const SoftPseudoLabelPlan& plan, int threads) {
  const LogitsView& view = call.logits;
  const int64_t band = (kBlockPixels * 4 + view.out_width - 1) / view.out_width;
  const int64_t bands = (view.out_height + band - 1) / band;
  const int64_t tasks = view.batch * bands;
  const int64_t workers = smaller_of(threads, tasks);

  // All scratch of this call in one piece.
  const int64_t padded_width = round_up(view.out_width, 16);
  const int64_t row_floats = (view.classes + 1) * scratch_stride(view.width);
  const int64_t floats = padded_width * 5 + workers * 3 * row_floats;
  float* memory = static_cast<float*>(aligned_alloc(64, static_cast<size_t>(floats) * 4));
  if (memory == nullptr) throw OutOfMemory{};
  ColumnPositions columns;
  columns.first = reinterpret_cast<int64_t*>(memory);
  columns.order = reinterpret_cast<Int*>(memory + padded_width * 2);
  columns.near_weight = memory + padded_width * 3;
  columns.far_weight = memory + padded_width * 4;
  prepare_columns(view, columns);
  float* rows = memory + padded_width * 5;

  parallel_for(tasks, static_cast<int>(workers), [&](int64_t task, int worker) {
    const FlushTinyResults flush;
    RowScratch scratch;
    scratch.source[0] = rows + worker * 3 * row_floats;
    scratch.source[1] = scratch.source[0] + row_floats;
    scratch.between = scratch.source[1] + row_floats;
    const int64_t begin = task % bands * band;
    solve_rows<Element, kStream>(call, plan, columns, scratch, task / bands, begin,
                                 smaller_of(begin + band, view.out_height));
    if (kStream) finish_streams();
  });
  free(memory);
}

// ---- choosing the walk --------------------------------------------------------------------------

template <typename Element, bool kStream>
void walk(const SoftPseudoLabelCall& call, const SoftPseudoLabelPlan& plan, int threads) {
  const LogitsView& view = call.logits;
  if (view.height == view.out_height && view.width == view.out_width) {
    walk_pixels<Element, kStream>(call, plan, threads);
  } else {
    walk_rows<Element, kStream>(call, plan, threads);
  }
}

template <typename Element>
void walk(const SoftPseudoLabelCall& call, const SoftPseudoLabelPlan& plan, int threads) {
  const LogitsView& view = call.logits;
  const int64_t plane = view.out_height * view.out_width;
  const int64_t bytes = view.batch * view.classes * plane * static_cast<int64_t>(sizeof(Element));
  // Streamed stores need every vector at an aligned address: planes and rows of whole vectors.
  const bool aligned = reinterpret_cast<uintptr_t>(call.soft) % 64 == 0 &&
                       reinterpret_cast<uintptr_t>(call.hard) % 64 == 0 && plane % 64 == 0 &&
                       (view.out_width % 16 == 0 || view.height == view.out_height);
  prefer_large_pages(call.soft, static_cast<size_t>(bytes));
  prefer_large_pages(call.hard, static_cast<size_t>(view.batch * plane) * sizeof(int64_t));
  if (bytes >= kStreamBytes && aligned) {
    walk<Element, true>(call, plan, threads);
  } else {
    walk<Element, false>(call, plan, threads);
  }
}

}  // namespace

void soft_pseudo_labels(const SoftPseudoLabelCall& call, int threads) {
  const SoftPseudoLabelPlan plan =
      plan_soft_pseudo_labels(call.thresholds, static_cast<int>(call.logits.classes), call.gamma);
  switch (call.logits.type) {
    case DataType::float32:
      return walk<float>(call, plan, threads);
    case DataType::float16:
      return walk<Float16>(call, plan, threads);
    case DataType::bfloat16:
      return walk<BFloat16>(call, plan, threads);
  }
}

}  // namespace cscl::cpu::CSCL_ISA
