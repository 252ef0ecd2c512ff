// The walk over the pixels of logits at another size: bilinear in [B, K, h, w], never stored.
//
// A block owns a tile of output pixels, a thread one column of it, and walks down the rows. Eight
// output rows lie between the same two source rows, say: these are interpolated along the columns
// once, and an output row is then one multiply-add of the two for each class. The source row that
// comes next is staged in shared memory by all threads, each location's largest logit taken off (no
// softmax sees it, and float32 then rounds differences between classes rather than a common
// offset).
//
// The gradient goes the same way back: each thread sums its column's gradient for the two source
// rows in registers, and when the walk passes a source row, the sums go to shared memory and are
// gathered along the columns, each source column by one thread. What a block knows of a source
// location goes to its own part of the scratch, and a second kernel (loss_total.h) adds the parts
// of the one to four blocks that share it, in one order. Nothing is scattered.
//
// A `Body` is as in pixel_walk.h; with kGradient solve leaves the gradient in `column`.
#pragma once

#include "core/bilinear.h"
#include "cuda/pixel_walk.h"

namespace cscl::cuda {

// How the output is cut into tiles; the same on both sides of the launch.
struct Tiling {
  int height, width, out_height, out_width;  // h, w, H, W
  bool align_corners;
  bool narrow;  // 2 * output * source fits 32 bits, whose division is four times faster
  float row_unit, column_unit;  // 2^-p, next below one over the denominator of the weights
  float scale;                  // what 2^-p lacks, both axes together: 1 or more, below 4
  int tile_width, band;         // output columns and rows of a block
  int tiles, bands;             // of an image
  int columns, rows;            // at most so many source columns and rows belong to a block
  int64_t blocks(int64_t batch) const { return batch * tiles * bands; }
  // Floats of a block's part of the gradient, [rows, K, columns].
  __host__ __device__ int64_t part(int classes) const {
    return static_cast<int64_t>(rows) * classes * columns;
  }
};

// Weights are the fractions' integers times a power of two, exact; what is left of their
// denominators is in Tiling::scale.
using SourceLine = LinePositionOf<int>;

CSCL_D SourceLine source_line(int i, int source, int output, float unit, const Tiling& tiling) {
  if (tiling.narrow) {
    const auto line = line_fraction<int>(i, source, output, tiling.align_corners);
    return {line.first, static_cast<float>(line.near) * unit, static_cast<float>(line.far) * unit};
  }
  const auto line = line_fraction<int64_t>(i, source, output, tiling.align_corners);
  return {static_cast<int>(line.first), static_cast<float>(line.near) * unit,
          static_cast<float>(line.far) * unit};
}
CSCL_D SourceLine source_row(const Tiling& tiling, int y) {
  return source_line(y, tiling.height, tiling.out_height, tiling.row_unit, tiling);
}
CSCL_D SourceLine source_column(const Tiling& tiling, int x) {
  return source_line(x, tiling.width, tiling.out_width, tiling.column_unit, tiling);
}
CSCL_D int first_output_from(int line, int source, int output, const Tiling& tiling) {
  if (tiling.narrow) return first_line_from<int>(line, source, output, tiling.align_corners);
  return static_cast<int>(first_line_from<int64_t>(line, source, output, tiling.align_corners));
}

// The line that the far weight belongs to. An axis that keeps its size has no far lines.
CSCL_D int line_after(int line, int source, int output) {
  return source == output || line + 1 == source ? line : line + 1;
}

// Source lines that `count` neighbouring output lines can touch.
inline int lines_touched(int count, int source, int output, bool align_corners) {
  const double step = align_corners ? static_cast<double>(source - 1) / std::max(output - 1, 1)
                                    : static_cast<double>(source) / output;
  return static_cast<int>(std::min<double>(source + 1, (count - 1) * step + 3.0));
}

// Tiles of up to `threads` columns whose source columns take no more than `budget` bytes of shared
// memory at `column_bytes` each, and bands that give the device enough blocks.
inline Tiling tiling_of(const LogitsView& view, int threads, size_t column_bytes, size_t budget,
                        const Context& context) {
  Tiling tiling = {};
  tiling.height = static_cast<int>(view.height);
  tiling.width = static_cast<int>(view.width);
  tiling.out_height = static_cast<int>(view.out_height);
  tiling.out_width = static_cast<int>(view.out_width);
  tiling.align_corners = view.align_corners;
  tiling.narrow =
      2 * view.out_height * view.height < INT32_MAX && 2 * view.out_width * view.width < INT32_MAX;
  tiling.row_unit = tiling.column_unit = tiling.scale = 1.0f;
  const auto take_unit = [&](int64_t output, float& unit) {
    const int64_t denominator = line_denominator(output, view.align_corners);
    const double rest = 1.0 / static_cast<double>(denominator);
    while (static_cast<double>(unit) > rest) unit *= 0.5f;
    tiling.scale = static_cast<float>(tiling.scale * (rest / static_cast<double>(unit)));
  };
  take_unit(view.out_height, tiling.row_unit);
  take_unit(view.out_width, tiling.column_unit);
  tiling.tile_width = threads;
  for (;; tiling.tile_width /= 2) {
    tiling.columns =
        lines_touched(tiling.tile_width, tiling.width, tiling.out_width, view.align_corners);
    if (tiling.tile_width == 1 || tiling.columns * column_bytes <= budget) break;
  }
  tiling.tiles = (tiling.out_width + tiling.tile_width - 1) / tiling.tile_width;
  // Longer bands share more source rows; shorter ones make more blocks.
  const int64_t wanted = resident_blocks(context, 6);
  tiling.band = 64;
  while (tiling.band > 8 &&
         view.batch * tiling.tiles * ((tiling.out_height + tiling.band - 1) / tiling.band) <
             wanted) {
    tiling.band /= 2;
  }
  tiling.bands = (tiling.out_height + tiling.band - 1) / tiling.band;
  tiling.rows = lines_touched(tiling.band, tiling.height, tiling.out_height, view.align_corners);
  return tiling;
}

// Which tile a block has.
struct TilePlace {
  int64_t image;
  int x, y;           // first output column and row
  int width, height;  // output columns and rows
  int column, row;    // first source column and row
  int columns;        // source columns

  CSCL_D explicit TilePlace(const Tiling& tiling) {
    const unsigned strip = blockIdx.x / static_cast<unsigned>(tiling.tiles);
    x = static_cast<int>(blockIdx.x - strip * tiling.tiles) * tiling.tile_width;
    image = strip / static_cast<unsigned>(tiling.bands);
    y = static_cast<int>(strip - image * tiling.bands) * tiling.band;
    width = min(tiling.tile_width, tiling.out_width - x);
    height = min(tiling.band, tiling.out_height - y);
    column = source_column(tiling, x).first;
    row = source_row(tiling, y).first;
    const int last = source_column(tiling, x + width - 1).first;
    columns = line_after(last, tiling.width, tiling.out_width) - column + 1;
  }
};

// Where every output row of a band lies.
struct RowTable {
  Shared<int> first;
  Shared<float> near_weight, far_weight;

  static constexpr size_t bytes(int band) {
    return shared_bytes<int>(static_cast<size_t>(band)) +
           2 * shared_bytes<float>(static_cast<size_t>(band));
  }
  CSCL_D RowTable(const Tiling& tiling, const TilePlace& place, SharedMemory& memory)
      : first(memory.array<int>(tiling.band)),
        near_weight(memory.array<float>(tiling.band)),
        far_weight(memory.array<float>(tiling.band)) {
    for (int i = static_cast<int>(threadIdx.x); i < place.height;
         i += static_cast<int>(blockDim.x)) {
      const SourceLine position = source_row(tiling, place.y + i);
      first.set(i, position.first);
      near_weight.set(i, position.near_weight);
      far_weight.set(i, position.far_weight);
    }
    __syncthreads();
  }
};

// This thread's output column.
struct ColumnPlace {
  bool inside;
  int near, far;  // source columns, counted from the tile's first
  float near_weight, far_weight;

  CSCL_D ColumnPlace(const Tiling& tiling, const TilePlace& place) {
    const int thread = static_cast<int>(threadIdx.x);
    inside = thread < place.width;
    const SourceLine position = source_column(tiling, place.x + (inside ? thread : 0));
    const int first = position.first;
    near = first - place.column;
    far = line_after(first, tiling.width, tiling.out_width) - place.column;
    near_weight = position.near_weight;
    far_weight = position.far_weight;
  }
};

// A source row's part of the tile, staged: [K, columns], and the largest logit of each location.
struct StagedRow {
  Shared<float> lines, largest;
  int columns;

  static constexpr size_t bytes(int classes, int columns) {
    return shared_bytes<float>(static_cast<size_t>(classes) * columns) +
           shared_bytes<float>(static_cast<size_t>(columns));
  }
  CSCL_D StagedRow(const Tiling& tiling, int classes, SharedMemory& memory)
      : lines(memory.array<float>(classes * tiling.columns)),
        largest(memory.array<float>(tiling.columns)),
        columns(tiling.columns) {}

  CSCL_D void load(const PixelSource& source, const TilePlace& place, int row) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int warps = static_cast<int>(blockDim.x) / 32;
    __syncthreads();  // whoever read the row before has done so
    with_element(source.type, [&](auto element) {
      using Element = decltype(element);
      const Element* from = static_cast<const Element*>(source.data) +
                            place.image * source.stride_batch + row * source.stride_row +
                            place.column * source.stride_column;
      if (source.stride_class == 1) {  // a warp reads the classes of a location
        for (int c = warp; c < place.columns; c += warps) {
          for (int k = lane; k < source.classes; k += 32) {
            lines.set(k * columns + c, widen(from[c * source.stride_column + k]));
          }
        }
      } else {  // a warp reads the locations of a class
        for (int k = warp; k < source.classes; k += warps) {
          for (int c = lane; c < place.columns; c += 32) {
            lines.set(k * columns + c,
                      widen(from[k * source.stride_class + c * source.stride_column]));
          }
        }
      }
    });
    __syncthreads();
    for (int c = static_cast<int>(threadIdx.x); c < place.columns;
         c += static_cast<int>(blockDim.x)) {
      float found = lines[c];
      for (int k = 1; k < source.classes; ++k) found = larger(lines[k * columns + c], found);
      largest.set(c, found);
    }
    __syncthreads();
  }

  // The row at this thread's output column.
  CSCL_D void interpolate_to(const Shared<float>& to, int threads, const ColumnPlace& column,
                             int classes) const {
    const float near_largest = largest[column.near], far_largest = largest[column.far];
    for (int k = 0; k < classes; ++k) {
      to.set(k * threads + static_cast<int>(threadIdx.x),
             interpolate(column.near_weight, lines[k * columns + column.near] - near_largest,
                         column.far_weight, lines[k * columns + column.far] - far_largest));
    }
  }
};

// The two source rows around an output row, at the threads' columns: [K, threads] each, in shared
// memory. A thread looks at its own column only, two loads for a class of a pixel, which costs less
// than the registers would: with them go the warps that hide each other's waiting.
struct RowPair {
  Shared<float> rows[2];
  int threads;
  int near;  // which of the two; the other is the far one

  static constexpr size_t bytes(int threads, int classes) {
    return 2 * shared_bytes<float>(static_cast<size_t>(threads) * classes);
  }
  CSCL_D RowPair(int thread_count, int classes, SharedMemory& memory)
      : threads(thread_count), near(0) {
    rows[0] = memory.array<float>(thread_count * classes);
    rows[1] = memory.array<float>(thread_count * classes);
  }

  // From the rows `held` and after it to the rows `first` and after it; by all threads.
  template <typename Classes>
  CSCL_D void advance(const StagedRow& staged, const PixelSource& source, const Tiling& tiling,
                      const TilePlace& place, const ColumnPlace& column, int held, int first,
                      Classes classes) {
    const bool step = held >= 0 && first == held + 1;
    if (step && line_after(held, tiling.height, tiling.out_height) == first) {
      near = 1 - near;
    } else {
      staged.load(source, place, first);
      staged.interpolate_to(row(near), threads, column, classes);
    }
    const int second = line_after(first, tiling.height, tiling.out_height);
    if (second != first) {
      staged.load(source, place, second);
      staged.interpolate_to(row(1 - near), threads, column, classes);
    } else {  // the last row stands for the one after it
      const Shared<float> from = row(near), to = row(1 - near);
      for (int i = static_cast<int>(threadIdx.x); i < classes * threads; i += threads) {
        to.set(i, from[i]);
      }
    }
  }

  CSCL_D Shared<float> row(int which) const { return which == 0 ? rows[0] : rows[1]; }

  // The logits of an output row at this thread's column.
  template <int kCount, typename Classes>
  CSCL_D void interpolate_to(float (&to)[kCount], float near_weight, float far_weight, float scale,
                             Classes classes) const {
    const Shared<float> near_row = row(near), far_row = row(1 - near);
    int i = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      to[k] = past_the_end(k, classes)
                  ? kPaddingLogit
                  : scale * interpolate(near_weight, near_row[i], far_weight, far_row[i]);
      i += threads;
    }
  }
};

}  // namespace cscl::cuda
