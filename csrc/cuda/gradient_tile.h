// A block's part of the gradient by the source locations of its tile, in scratch: [rows, K,
// columns], the rows counted from the tile's first; the row after the last one stands for the last.
#pragma once

#include "cuda/upsampled_walk.h"

namespace cscl::cuda {

struct GradientTile {
  float* part;         // of the scratch
  Shared<float> sums;  // [K, tile width], what the threads know of one source row; in the tile
  Shared<float> near_weight, far_weight;  // [tile width]
  Shared<int> begin;  // [columns + 1], the first output column of each source column
  int tile_width, columns;

  static constexpr size_t bytes(const Tiling& tiling) {
    return 2 * shared_bytes<float>(static_cast<size_t>(tiling.tile_width)) +
           shared_bytes<int>(static_cast<size_t>(tiling.columns) + 1);
  }

  GradientTile() = default;
  CSCL_D GradientTile(float* parts, const Tiling& tiling, const TilePlace& place,
                      const ColumnPlace& column, int classes, const PixelTile& tile,
                      SharedMemory& memory)
      : part(parts + blockIdx.x * tiling.part(classes)),
        sums(tile.words),
        near_weight(memory.array<float>(tiling.tile_width)),
        far_weight(memory.array<float>(tiling.tile_width)),
        begin(memory.array<int>(tiling.columns + 1)),
        tile_width(tiling.tile_width),
        columns(tiling.columns) {
    const int thread = static_cast<int>(threadIdx.x);
    if (column.inside) {
      near_weight.set(thread, column.near_weight);
      // An axis that keeps its size has no far lines; 0 * NaN would make some.
      far_weight.set(thread, column.far_weight);
    }
    // Source column c has the output columns begin[c] .. begin[c + 1] - 1 at its right side.
    for (int c = thread; c <= place.columns; c += static_cast<int>(blockDim.x)) {
      const int x =
          first_output_from(place.column + c, tiling.width, tiling.out_width, tiling) - place.x;
      begin.set(c, max(0, min(x, place.width)));
    }
    __syncthreads();
  }

  // The gradient of source column c of one class, from the sums at output columns: those for which
  // it is the near column, then those for which it is the far one.
  CSCL_D float gather(const Tiling& tiling, const TilePlace& place, int k, int c) const {
    const int middle = begin[c], end = begin[c + 1];
    float total = 0.0f;
    for (int x = middle; x < end; ++x) {
      total = multiply_add(near_weight[x], sums[k * tile_width + x], total);
    }
    if (tiling.width == tiling.out_width) return total;
    const int source = place.column + c;
    for (int x = c == 0 ? middle : begin[c - 1]; x < middle; ++x) {
      total = multiply_add(far_weight[x], sums[k * tile_width + x], total);
    }
    if (source == tiling.width - 1) {  // stands for the one after it
      for (int x = middle; x < end; ++x) {
        total = multiply_add(far_weight[x], sums[k * tile_width + x], total);
      }
    }
    return total;
  }

  // Calls action(k, c) for all of them, each by one thread; the columns of a class lie together.
  template <typename Action>
  CSCL_D void for_each(const TilePlace& place, int classes, const Action& action) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int warps = static_cast<int>(blockDim.x) / 32;
    for (int k = warp; k < classes; k += warps) {
      for (int c = lane; c < place.columns; c += 32) action(k, c);
    }
  }

  CSCL_D int64_t at(int row, int classes, int k, int c) const {
    return (static_cast<int64_t>(row) * classes + k) * columns + c;
  }

  // All threads: source row `row` of the tile is complete with what this thread has in `column`.
  template <int kCount, typename Classes>
  CSCL_D void write_row(const Tiling& tiling, const TilePlace& place, int row,
                        const float (&column)[kCount], Classes classes) const {
    const int thread = static_cast<int>(threadIdx.x);
    __syncthreads();  // nobody needs the tile as it was
    if (thread < place.width) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        if (!past_the_end(k, classes)) sums.set(k * tile_width + thread, column[k]);
      }
    }
    __syncthreads();
    for_each(place, classes,
             [&](int k, int c) { part[at(row, classes, k, c)] = gather(tiling, place, k, c); });
    __syncthreads();
  }
};

}  // namespace cscl::cuda
