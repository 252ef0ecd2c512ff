// The walk of both losses over the pixels, forward and backward in one.
//
// A loss is a class with, for kLanes pixels at a time,
//
//     begin(image, pixel, count)        what belongs to the pixels pixel .. pixel + count - 1
//     solve(i, column, other, classes)  their loss, from the logits in `column`
//     gradient(i, k, column, other, solved)
//
// At the logits' own size a tile of neighbouring pixels is solved after the other; upsampled, see
// cpu/loss_upsampled.h.
#pragma once

#include "cpu/loss_upsampled.h"

CSCL_CORE_BEGIN

// Where a tile of logits lies: in memory itself if it can be read as vectors, else in the tile.
struct TilePlace {
  const float* from;
  int64_t row;
};

template <typename Element>
inline TilePlace place_tile(const LogitsView& view, PixelOrder order, int64_t image, int64_t begin,
                            int64_t pixels, float* tile) {
  const Element* logits = static_cast<const Element*>(view.data) + image * view.stride_batch;
  if (sizeof(Element) == 4 && order == PixelOrder::planes && pixels % kLanes == 0) {
    return {reinterpret_cast<const float*>(logits + begin), view.stride_class};
  }
  const int64_t row = round_up(pixels, kLanes);
  load_tile(logits, view, order, begin, pixels, tile, row);
  return {tile, row};
}

template <typename Element, int kClasses, typename Loss, typename Call>
void walk_loss_pixels(const Call& call, const Loss& prototype, const LogitsView& other_view,
                      int threads) {
  constexpr int64_t kBlock = 2048;
  const LogitsView& view = call.logits;
  const LossResult& result = call.result;
  const int classes = kClasses == 0 ? static_cast<int>(view.classes) : kClasses;
  const int64_t plane = view.height * view.width;
  const int64_t blocks = (plane + kBlock - 1) / kBlock;
  const int64_t tasks = view.batch * blocks;
  const Scratch totals_memory(tasks * 4);
  LossTotal* totals = reinterpret_cast<LossTotal*>(totals_memory.data());
  const PixelOrder order = pixel_order(view);
  const PixelOrder other_order = Loss::kOtherLogits ? pixel_order(other_view) : order;
  const int64_t step = tile_pixels(classes, true);

  cscl::cpu::parallel_for(tasks, threads, [&](int64_t task, int) {
    const FlushTinyResults flush;
    const int64_t image = task / blocks, begin = task % blocks * kBlock;
    const int64_t end = smaller_of(begin + kBlock, plane);
    alignas(64) float tile[kTileFloats];
    alignas(64) float other_tile[Loss::kOtherLogits ? kTileFloats : kLanes];
    alignas(64) float gradient_tile[kTileFloats];
    Loss loss = prototype;
    totals[task] = {0.0, 0};
    for (int64_t p = begin; p < end; p += step) {
      const int64_t pixels = smaller_of(step, end - p);
      const int64_t row = round_up(pixels, kLanes);
      const TilePlace at = place_tile<Element>(view, order, image, p, pixels, tile);
      TilePlace other_at = at;
      if (Loss::kOtherLogits) {
        other_at = place_tile<Element>(other_view, other_order, image, p, pixels, other_tile);
      }
      loss.begin(image, p, pixels);
      TileTotal sum = {};
      for (int64_t i = 0; i < pixels; i += kLanes) {
        RegisterColumn<kClasses> column, other;
#pragma GCC unroll 32
        for (int k = 0; k < classes; ++k) {
          column.values[k] = load<Float>(at.from + k * at.row + i);
          if (Loss::kOtherLogits) {
            other.values[k] = load<Float>(other_at.from + k * other_at.row + i);
          }
        }
        const PixelLoss<Float> solved = loss.template solve<kClasses>(i, column, other, classes);
        sum.add(solved);
        if (result.gradient == nullptr) continue;
#pragma GCC unroll 32
        for (int k = 0; k < classes; ++k) {
          const Float g = loss.template gradient<kClasses>(i, k, column, other, solved);
          store(gradient_tile + k * row + i, g * result.gradient_scale);
        }
      }
      sum.finish(totals[task]);
      if (result.gradient == nullptr) continue;
      float* to = result.gradient + image * view.classes * plane;
      if (result.gradient_channels_last) {
        store_interleaved<float, false>(gradient_tile, row, classes, pixels, to + p * classes);
      } else {
        store_planes<float, false>(gradient_tile, row, classes, pixels, to + p, plane);
      }
    }
  });
  LossTotal all;
  finish_totals(totals, tasks, result, all);
  if (result.gradient == nullptr || !result.gradient_of_mean) return;
  const float scale = static_cast<float>(1.0 / static_cast<double>(all.count > 0 ? all.count : 1));
  const int64_t elements = view.batch * view.classes * plane;
  for (int64_t i = 0; i < elements; ++i) result.gradient[i] *= scale;
}

template <typename Element, int kClasses, typename Loss, typename Call>
void walk_loss(const Call& call, const Loss& prototype, const LogitsView& other_view, int threads) {
  if (resized(call.logits)) {
    walk_loss_upsampled<Element, kClasses>(call, prototype, other_view, threads);
  } else {
    walk_loss_pixels<Element, kClasses>(call, prototype, other_view, threads);
  }
}

CSCL_CORE_END
