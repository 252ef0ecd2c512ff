// The walk of both losses over upsampled pixels; what a loss is to it: cpu/loss_walk.h.
//
// An output row lies between two source rows, and all the output rows between the same
// two (eight of them, for an eightfold size) are one task. It walks them in tiles of a few columns:
// both source rows are interpolated along the columns once, and each output row is then one
// multiply-add of the two for a class. The gradient goes the same way back: into one sum for each
// of the two source rows, in the first-level cache, and only when all output rows are done along
// the columns into [w, K]. Nothing of the size of the image is ever stored, nothing is scattered,
// and each task has its own part of the workspace, so that no number depends on the threads.
#pragma once

#include "cpu/columns.h"
#include "cpu/loss_total.h"
#include "cpu/threads.h"
#include "cpu/upsample.h"

CSCL_CORE_BEGIN

// Sizes of the pieces of scratch, in floats.
struct LossPlan {
  int64_t classes, padded;  // K, and 2 K up to a multiple of 4: both source rows' gradients
  int64_t tile;             // columns of a tile
  int64_t source_row;       // one source row, with its maxima
  int64_t tile_floats;      // one class-major tile

  explicit LossPlan(const LogitsView& view) {
    classes = view.classes;
    padded = round_up(2 * classes, 4);
    const int64_t columns = kTileFloats / 4 / classes / kLanes * kLanes;
    tile = columns < kLanes ? kLanes : smaller_of(columns, 64);
    source_row = (classes + 1) * scratch_stride(view.width);
    tile_floats = classes * tile;
  }
  // Two source rows and their tiles, for each of two networks; gradient tile, and it turned.
  int64_t worker_floats() const {
    return 2 * (2 * source_row + 2 * tile_floats) + 2 * padded * tile + 16;
  }
};

// The source rows of one network around a task's output rows.
struct SourceRows {
  float* near_row;
  float* far_row;
  float* near_tile;  // the same, interpolated along the columns of the tile
  float* far_tile;

  SourceRows(const LossPlan& plan, float* memory)
      : near_row(memory),
        far_row(memory + plan.source_row),
        near_tile(memory + 2 * plan.source_row),
        far_tile(near_tile + plan.tile_floats) {}

  template <typename Element>
  void read(const LogitsView& view, int64_t image, int64_t first) {
    const Element* from = static_cast<const Element*>(view.data) + image * view.stride_batch;
    const int64_t stride = scratch_stride(view.width);
    const int64_t second = smaller_of(first + 1, view.height - 1);
    read_source_row(from + first * view.stride_row, view, near_row, stride);
    read_source_row(from + second * view.stride_row, view, far_row, stride);
  }
  void interpolate(const LossPlan& plan, const ColumnPositions& columns, int64_t width, int64_t x,
                   int64_t count) const {
    interpolate_columns(near_row, columns, width, x, count, plan.classes, near_tile, plan.tile);
    interpolate_columns(far_row, columns, width, x, count, plan.classes, far_tile, plan.tile);
  }
};

// Takes the gradient tile [2 K, tile] along the columns back to the source columns: adds to
// `lines` [w + 1, padded], where the line after the last one stands for the last.
inline void fold_columns(const LossPlan& plan, const ColumnPositions& columns, int64_t x,
                         int64_t count, const float* tile, float* turned, float* lines) {
  // Turned, the classes of a column are neighbours, and a column's sums are vectors.
  for (int64_t c = 0; c < plan.padded; c += 4) {
    for (int64_t i = 0; i < count; i += kLanes) {
      Float four[4];
      for (int j = 0; j < 4; ++j) four[j] = load<Float>(tile + (c + j) * plan.tile + i);
      scatter_four(four, turned + i * plan.padded + c, plan.padded);
    }
  }
  const int64_t whole = plan.padded / kLanes * kLanes;
  for (int64_t begin = 0; begin < count;) {
    const int64_t first = columns.first[x + begin];
    int64_t end = begin + 1;
    while (end < count && columns.first[x + end] == first) ++end;
    float* near_line = lines + first * plan.padded;
    float* far_line = near_line + plan.padded;
    for (int64_t c = 0; c < whole; c += kLanes) {
      Float near = load<Float>(near_line + c), far = load<Float>(far_line + c);
      for (int64_t i = begin; i < end; ++i) {
        const Float g = load<Float>(turned + i * plan.padded + c);
        near = multiply_add(broadcast<Float>(columns.near_weight[x + i]), g, near);
        far = multiply_add(broadcast<Float>(columns.far_weight[x + i]), g, far);
      }
      store(near_line + c, near);
      store(far_line + c, far);
    }
    for (int64_t c = whole; c < plan.padded; ++c) {
      float near = near_line[c], far = far_line[c];
      for (int64_t i = begin; i < end; ++i) {
        near += columns.near_weight[x + i] * turned[i * plan.padded + c];
        far += columns.far_weight[x + i] * turned[i * plan.padded + c];
      }
      near_line[c] = near;
      far_line[c] = far;
    }
    begin = end;
  }
}

// Output rows begin .. end - 1, which lie between the same two source rows.
template <int kClasses, typename Loss>
void walk_rows_between(Loss& loss, const LogitsView& view, const LossPlan& plan,
                       const ColumnPositions& columns, const SourceRows& own,
                       const SourceRows& other_rows, int64_t image, int64_t begin, int64_t end,
                       float* gradient_tile, float* lines, LossTotal& total) {
  const int classes = kClasses == 0 ? static_cast<int>(plan.classes) : kClasses;
  float* turned = gradient_tile + plan.padded * plan.tile;
  for (int64_t x = 0; x < view.out_width; x += plan.tile) {
    const int64_t count = smaller_of(plan.tile, view.out_width - x);
    own.interpolate(plan, columns, view.width, x, count);
    if (Loss::kOtherLogits) other_rows.interpolate(plan, columns, view.width, x, count);
    if (lines != nullptr) {
      for (int64_t i = 0; i < plan.padded * plan.tile; i += kLanes) {
        store(gradient_tile + i, Float{});
      }
    }
    TileTotal sum = {};
    for (int64_t y = begin; y < end; ++y) {
      const LinePosition line =
          line_position<int64_t>(y, view.height, view.out_height, view.align_corners);
      const Float near = broadcast<Float>(line.near_weight);
      const Float far = broadcast<Float>(line.far_weight);
      loss.begin(image, y * view.out_width + x, count);
      for (int64_t i = 0; i < count; i += kLanes) {
        RegisterColumn<kClasses> column, other;
        const float* near_tile = own.near_tile + i;
        const float* far_tile = own.far_tile + i;
#pragma GCC unroll 32
        for (int k = 0; k < classes; ++k) {
          column.values[k] = interpolate(near, load<Float>(near_tile + k * plan.tile), far,
                                         load<Float>(far_tile + k * plan.tile));
        }
        if (Loss::kOtherLogits) {
#pragma GCC unroll 32
          for (int k = 0; k < classes; ++k) {
            other.values[k] =
                interpolate(near, load<Float>(other_rows.near_tile + i + k * plan.tile), far,
                            load<Float>(other_rows.far_tile + i + k * plan.tile));
          }
        }
        const PixelLoss<Float> pixels = loss.template solve<kClasses>(i, column, other, classes);
        sum.add(pixels);
        if (lines == nullptr) continue;
        float* near_sum = gradient_tile + i;
        float* far_sum = near_sum + classes * plan.tile;
#pragma GCC unroll 32
        for (int k = 0; k < classes; ++k) {
          const Float g = loss.template gradient<kClasses>(i, k, column, other, pixels);
          store(near_sum + k * plan.tile,
                multiply_add(near, g, load<Float>(near_sum + k * plan.tile)));
          store(far_sum + k * plan.tile,
                multiply_add(far, g, load<Float>(far_sum + k * plan.tile)));
        }
      }
    }
    sum.finish(total);
    if (lines != nullptr) {
      fold_columns(plan, columns, x, count, gradient_tile, turned, lines);
    }
  }
  if (lines != nullptr) {  // the line after the last one
    float* last = lines + (view.width - 1) * plan.padded;
    for (int64_t c = 0; c < plan.padded; ++c) last[c] += last[plan.padded + c];
  }
}

// One source row's gradient, from the tasks of both sides of it.
inline void gather_row(const LogitsView& view, const LossPlan& plan, const float* lines,
                       int64_t image, int64_t row, double scale, const LossResult& result) {
  const int64_t task_floats = (view.width + 1) * plan.padded;
  const float* below = lines + (image * view.height + row) * task_floats;
  const float* above = row > 0 ? below - task_floats + plan.classes : nullptr;
  const float* itself = row == view.height - 1 ? below + plan.classes : nullptr;
  const int64_t plane = view.height * view.width;
  float* to = result.gradient + image * view.classes * plane + row * view.width;
  if (result.gradient_channels_last) {
    to = result.gradient + (image * plane + row * view.width) * view.classes;
  }
  const int64_t class_step = result.gradient_channels_last ? 1 : plane;
  const int64_t column_step = result.gradient_channels_last ? view.classes : 1;
  const float factor = static_cast<float>(scale);
  for (int64_t x = 0; x < view.width; ++x) {
    const int64_t line = x * plan.padded;
    for (int64_t k = 0; k < plan.classes; ++k) {
      float g = below[line + k];
      if (above != nullptr) g += above[line + k];
      if (itself != nullptr) g += itself[line + k];
      to[k * class_step + x * column_step] = factor * g;
    }
  }
}

template <typename Element, int kClasses, typename Loss, typename Call>
void walk_loss_upsampled(const Call& call, const Loss& prototype, const LogitsView& other_view,
                         int threads) {
  const LogitsView& view = call.logits;
  const LossResult& result = call.result;
  const LossPlan plan(view);
  const int64_t tasks = view.batch * view.height;
  const int64_t workers = smaller_of(threads < 1 ? 1 : threads, tasks);
  const int64_t padded_width = round_up(view.out_width, 16);
  const int64_t task_floats = (view.width + 1) * plan.padded;

  const Scratch totals_memory(tasks * 4);
  LossTotal* totals = reinterpret_cast<LossTotal*>(totals_memory.data());
  const Scratch columns_memory(padded_width * 5);
  ColumnPositions columns;
  columns.first = reinterpret_cast<int64_t*>(columns_memory.data());
  columns.order = reinterpret_cast<Int*>(columns_memory.data() + padded_width * 2);
  columns.near_weight = columns_memory.data() + padded_width * 3;
  columns.far_weight = columns_memory.data() + padded_width * 4;
  prepare_columns(view, columns);
  const Scratch starts_memory((view.height + 1) * 2);  // first output row of each source row
  int64_t* starts = reinterpret_cast<int64_t*>(starts_memory.data());
  int64_t y = 0;
  for (int64_t row = 0; row < view.height; ++row) {
    starts[row] = y;
    while (y < view.out_height &&
           line_position<int64_t>(y, view.height, view.out_height, view.align_corners).first <=
               row) {
      ++y;
    }
  }
  starts[view.height] = view.out_height;
  const int64_t worker_floats = round_up(plan.worker_floats(), 16);
  const Scratch worker_memory(workers * worker_floats);
  const Scratch lines_memory(result.gradient != nullptr ? tasks * task_floats : 16);

  cscl::cpu::parallel_for(tasks, static_cast<int>(workers), [&](int64_t task, int worker) {
    const FlushTinyResults flush;
    const int64_t image = task / view.height, row = task % view.height;
    float* memory = worker_memory.data() + worker * worker_floats;
    SourceRows own(plan, memory);
    SourceRows other(plan, memory + 2 * (plan.source_row + plan.tile_floats));
    float* gradient_tile = memory + 4 * (plan.source_row + plan.tile_floats);
    float* lines = nullptr;
    if (result.gradient != nullptr) {
      lines = lines_memory.data() + task * task_floats;
      for (int64_t i = 0; i < task_floats; ++i) lines[i] = 0.0f;
    }
    totals[task] = {0.0, 0};
    if (starts[row] == starts[row + 1]) return;
    own.read<Element>(view, image, row);
    if (Loss::kOtherLogits) other.read<Element>(other_view, image, row);
    Loss loss = prototype;
    walk_rows_between<kClasses>(loss, view, plan, columns, own, other, image, starts[row],
                                starts[row + 1], gradient_tile, lines, totals[task]);
  });

  LossTotal all;
  finish_totals(totals, tasks, result, all);
  if (result.gradient == nullptr) return;
  const double scale = 1.0 / static_cast<double>(all.count > 0 ? all.count : 1);
  cscl::cpu::parallel_for(tasks, threads, [&](int64_t task, int) {
    gather_row(view, plan, lines_memory.data(), task / view.height, task % view.height, scale,
               result);
  });
}

CSCL_CORE_END
