// From what the blocks of a loss know to the mean, and to the gradient of the mean.
#pragma once

#include "cuda/block_sum.h"
#include "cuda/gradient_tile.h"

namespace cscl::cuda {

// One number of each for every block, in scratch.
struct LossParts {
  float* loss;
  int* count;
};

inline LossParts loss_parts(int64_t blocks, const Context& context) {
  const size_t bytes = static_cast<size_t>(blocks) * sizeof(float);
  char* memory = static_cast<char*>(context.scratch(2 * bytes));
  return {reinterpret_cast<float*>(memory), reinterpret_cast<int*>(memory + bytes)};
}

// What the pixels of a thread add up to.
struct LossSum {
  float loss = 0.0f;
  int count = 0;

  static constexpr size_t bytes() { return BlockSum<float>::bytes() + BlockSum<int>::bytes(); }

  CSCL_D void add(float pixel_loss, bool counted) {
    if (counted) {
      loss += pixel_loss;
      ++count;
    }
  }
  // By all threads of a block: its part.
  CSCL_D void write(const LossParts& parts, const BlockSum<float>& losses,
                    const BlockSum<int>& counts) const {
    const float block_loss = losses(loss);
    const int block_count = counts(count);
    if (threadIdx.x == 0) {
      parts.loss[blockIdx.x] = block_loss;
      parts.count[blockIdx.x] = block_count;
    }
  }
};

constexpr int kFinishThreads = 128;

// By all threads of a block; the pixels that count.
CSCL_D int64_t total_count(const LossParts& parts, int64_t blocks, const BlockSum<int64_t>& sum) {
  int64_t count = 0;
  for (int64_t i = threadIdx.x; i < blocks; i += blockDim.x) count += parts.count[i];
  return sum(count);
}

// By all threads of one block: loss and count of the whole.
CSCL_D void write_mean(const LossParts& parts, int64_t blocks, int64_t count,
                       const BlockSum<FloatPair>& sum, float* loss, int64_t* count_to) {
  FloatPair total = 0.0f;
  for (int64_t i = threadIdx.x; i < blocks; i += blockDim.x) {
    total = total + FloatPair(parts.loss[i]);
  }
  total = sum(total);
  if (threadIdx.x == 0) {
    *loss = count > 0 ? (total.high + total.low) / static_cast<float>(count) : 0.0f;
    *count_to = count;
  }
}

static __global__ void __launch_bounds__(kFinishThreads)
    finish_loss(LossParts parts, int64_t blocks, float* loss, int64_t* count) {
  SharedMemory memory;
  const BlockSum<int64_t> counts(memory);
  const BlockSum<FloatPair> losses(memory);
  write_mean(parts, blocks, total_count(parts, blocks, counts), losses, loss, count);
}

constexpr size_t kFinishBytes = BlockSum<int64_t>::bytes() + BlockSum<FloatPair>::bytes();

// Output lines begin .. end - 1 have `line` as their near or their far line.
struct TouchingLines {
  int begin, end;
};
CSCL_D TouchingLines lines_touching(int line, int source, int output, const Tiling& tiling) {
  const int before = source == output ? line : line - 1;
  return {first_output_from(before, source, output, tiling),
          first_output_from(line + 1, source, output, tiling)};
}

// Classes that a thread sums at once.
constexpr int kGatheredClasses = 4;

// The gradient of the mean by some classes of a row of source locations, a thread for each column:
// the parts of the tiles that touch it, bands first, then tiles along the band.
CSCL_D void gather_gradient_row(const float* parts, const Tiling& tiling, int classes,
                                int64_t image, int row, int first_class, float scale,
                                float* gradient, bool channels_last) {
  const TouchingLines rows = lines_touching(row, tiling.height, tiling.out_height, tiling);
  const int64_t part = tiling.part(classes);
  const bool last_row = row == tiling.height - 1 && tiling.height != tiling.out_height;
  for (int c = static_cast<int>(threadIdx.x); c < tiling.width; c += static_cast<int>(blockDim.x)) {
    const TouchingLines columns = lines_touching(c, tiling.width, tiling.out_width, tiling);
    float total[kGatheredClasses];
#pragma unroll
    for (int j = 0; j < kGatheredClasses; ++j) total[j] = 0.0f;
    const auto add = [&](const float* from) {
#pragma unroll
      for (int j = 0; j < kGatheredClasses; ++j) {
        if (first_class + j < classes) total[j] += from[j * tiling.columns];
      }
    };
    for (int y = rows.begin; y < rows.end;) {
      const int band = y / tiling.band, next = (band + 1) * tiling.band;
      const int slot = row - source_row(tiling, band * tiling.band).first;
      // The row after the last one stands for the last.
      const bool row_after =
          last_row && source_row(tiling, min(next, tiling.out_height) - 1).first == row;
      for (int x = columns.begin; x < columns.end;) {
        const int tile = x / tiling.tile_width;
        const int column = c - source_column(tiling, tile * tiling.tile_width).first;
        const float* from = parts + ((image * tiling.bands + band) * tiling.tiles + tile) * part +
                            (static_cast<int64_t>(slot) * classes + first_class) * tiling.columns +
                            column;
        add(from);
        if (row_after) add(from + static_cast<int64_t>(classes) * tiling.columns);
        x = (tile + 1) * tiling.tile_width;
      }
      y = next;
    }
#pragma unroll
    for (int j = 0; j < kGatheredClasses; ++j) {
      const int k = first_class + j;
      if (k >= classes) continue;
      const int64_t at = channels_last
                             ? ((image * tiling.height + row) * tiling.width + c) * classes + k
                             : ((image * classes + k) * tiling.height + row) * tiling.width + c;
      gradient[at] = total[j] * scale;
    }
  }
}

static __global__ void __launch_bounds__(kFinishThreads, 4)
    finish_gradient(LossParts loss, int64_t blocks, float* loss_to, int64_t* count_to,
                    const float* gradient_parts, Tiling tiling, int classes, float* gradient,
                    bool channels_last) {
  SharedMemory memory;
  const BlockSum<int64_t> counts(memory);
  const BlockSum<FloatPair> losses(memory);
  const int64_t count = total_count(loss, blocks, counts);
  if (blockIdx.x == 0) write_mean(loss, blocks, count, losses, loss_to, count_to);
  const unsigned chunks = static_cast<unsigned>(classes + kGatheredClasses - 1) / kGatheredClasses;
  const unsigned line = blockIdx.x / chunks;
  const int64_t image = line / static_cast<unsigned>(tiling.height);
  const int row = static_cast<int>(line - image * tiling.height);
  gather_gradient_row(gradient_parts, tiling, classes, image, row,
                      static_cast<int>(blockIdx.x - line * chunks) * kGatheredClasses,
                      count > 0 ? tiling.scale / static_cast<float>(count) : 0.0f, gradient,
                      channels_last);
}

inline void finish_with_gradient(const LossParts& parts, int64_t batch, int classes,
                                 const float* gradient_parts, const Tiling& tiling,
                                 const LossResult& result, const Context& context) {
  const int64_t chunks = (classes + kGatheredClasses - 1) / kGatheredClasses;
  launch("finish_gradient", finish_gradient, context, batch * tiling.height * chunks,
         kFinishThreads, kFinishBytes, parts, tiling.blocks(batch), result.loss, result.count,
         gradient_parts, tiling, classes, result.gradient, result.gradient_channels_last);
}

inline void finish(const LossParts& parts, int64_t blocks, float* loss, int64_t* count,
                   const Context& context) {
  launch("finish_loss", finish_loss, context, 1, kFinishThreads, kFinishBytes, parts, blocks, loss,
         count);
}

}  // namespace cscl::cuda
