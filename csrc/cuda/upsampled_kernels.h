// The kernels that walk over upsampled pixels; what they do it with: upsampled_walk.h.
#pragma once

#include "cuda/gradient_tile.h"

namespace cscl::cuda {

// Registers hold two source rows, the pixel, and with a gradient two sums: of up to 32 classes, or
// of up to 20 where there are two networks. More classes lie in shared memory.
template <typename Body, typename Classes>
constexpr bool kUpsampledInRegisters =
    kRegistersOf<Classes> > 0 && kRegistersOf<Classes>* Body::kInputs <= 40;

template <typename Classes, typename Body>
size_t upsampled_bytes(const Tiling& tiling, int classes) {
  size_t bytes = Body::bytes(classes) + RowTable::bytes(tiling.band);
  const bool tile =
      Body::kScratch || Body::kStores || Body::kGradient || !kUpsampledInRegisters<Body, Classes>;
  const int pixels = kUpsampledInRegisters<Body, Classes> ? kThreadsOf<Classes> : 32;
  bytes += shared_bytes<float>(PixelTile::count(tile ? pixels : 0, classes));
  if (kUpsampledInRegisters<Body, Classes>) {
    bytes += StagedRow::bytes(classes, tiling.columns);
    bytes += static_cast<size_t>(Body::kInputs) * RowPair::bytes(pixels, classes);
  } else if (Body::kInputs == 2 || Body::kOtherColumn) {
    bytes += shared_bytes<float>(PixelTile::count(pixels, classes));
  }
  if (Body::kGradient) {
    bytes += GradientTile::bytes(tiling);
    if (!kUpsampledInRegisters<Body, Classes> && Body::kInputs == 1 && !Body::kOtherColumn) {
      bytes += shared_bytes<float>(PixelTile::count(pixels, classes));
    }
  }
  return bytes;
}

// How many blocks a multiprocessor shall hold: what keeps the compiler from taking registers for
// addresses that it could as well compute again.
template <typename Classes, typename Body>
constexpr int kUpsampledBlocks =
    kRegistersOf<Classes> > 20 ? (Body::kGradient ? 2 : 3) : (Body::kGradient ? 3 : 4);

template <typename Classes, typename Body>
__global__ void __launch_bounds__(kThreadsOf<Classes>, (kUpsampledBlocks<Classes, Body>))
    walk_upsampled(PixelSource source, PixelSource other_source, typename Body::Arguments arguments,
                   Classes classes, Tiling tiling, PixelStore store, float* gradient_parts) {
  constexpr int kCount = kRegistersOf<Classes>;
  constexpr bool kTwo = Body::kInputs == 2;
  SharedMemory memory;
  constexpr int kThreads = kThreadsOf<Classes>;
  constexpr bool kTile = Body::kScratch || Body::kStores || Body::kGradient;
  const PixelTile tile(memory, kTile ? kThreads : 0, classes);
  Body body(arguments, classes, memory);
  const TilePlace place(tiling);
  const ColumnPlace column_place(tiling, place);
  const RowTable rows(tiling, place, memory);
  const StagedRow staged(tiling, classes, memory);
  RowPair around(kThreads, classes, memory);
  RowPair other_around = kTwo ? RowPair(kThreads, classes, memory) : around;
  const TileColumn scratch = tile.column(static_cast<int>(threadIdx.x));

  float near_sum[kCount], far_sum[kCount];
#pragma unroll
  for (int k = 0; k < kCount; ++k) near_sum[k] = far_sum[k] = 0.0f;
  const GradientTile gradient = [&] {
    if constexpr (Body::kGradient) {
      return GradientTile(gradient_parts, tiling, place, column_place, classes, tile, memory);
    } else {
      return GradientTile();
    }
  }();

  const bool two_rows = tiling.height != tiling.out_height;  // 0 * NaN must not reach the next row
  int held = -1;
  for (int i = 0; i < place.height; ++i) {
    const int first = rows.first[i];
    if (first != held) {
      if constexpr (Body::kGradient) {
        if (held >= 0) {
          gradient.write_row(tiling, place, held - place.row, near_sum, classes);
          const bool next = first == held + 1;
          if (!next) gradient.write_row(tiling, place, held + 1 - place.row, far_sum, classes);
#pragma unroll
          for (int k = 0; k < kCount; ++k) {
            near_sum[k] = next ? far_sum[k] : 0.0f;
            far_sum[k] = 0.0f;
          }
        }
      }
      around.advance(staged, source, tiling, place, column_place, held, first, classes);
      if constexpr (kTwo) {
        other_around.advance(staged, other_source, tiling, place, column_place, held, first,
                             classes);
      }
      held = first;
    }
    const float near_weight = rows.near_weight[i], far_weight = rows.far_weight[i];
    RegisterColumn<kCount> column, other;
    around.interpolate_to(column.values, near_weight, far_weight, tiling.scale, classes);
    if constexpr (kTwo) {
      other_around.interpolate_to(other.values, near_weight, far_weight, tiling.scale, classes);
    }
    const int64_t row = static_cast<int64_t>(place.y + i) * tiling.out_width + place.x;
    const int64_t plane = static_cast<int64_t>(tiling.out_height) * tiling.out_width;
    if (column_place.inside) {
      const int64_t pixel = place.image * plane + row + threadIdx.x;
      const int results[1] = {body.solve(column, other, classes, scratch, pixel)};
      body.results(results, pixel);
      if constexpr (Body::kGradient) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          near_sum[k] = multiply_add(near_weight, column.values[k], near_sum[k]);
          if (two_rows) far_sum[k] = multiply_add(far_weight, column.values[k], far_sum[k]);
        }
      }
    }
    if constexpr (Body::kStores) {
      write_column(store, plane, place.image, row, place.width, tile, column, classes);
      if (store.channels_last) __syncthreads();  // the tile is free again
    }
  }
  if constexpr (Body::kGradient) {
    gradient.write_row(tiling, place, held - place.row, near_sum, classes);
    gradient.write_row(tiling, place, held + 1 - place.row, far_sum, classes);
  }
  body.finish();
}

// ---- more classes -------------------------------------------------------------------------------

// The logits of one output pixel, from the four locations around it.
CSCL_D void interpolate_pixel(const PixelSource& source, const Tiling& tiling,
                              const TilePlace& place, const ColumnPlace& column, int row,
                              float near_weight, float far_weight, const TileColumn& to,
                              int classes) {
  const int next = line_after(row, tiling.height, tiling.out_height);
  with_element(source.type, [&](auto element) {
    using Element = decltype(element);
    const Element* image =
        static_cast<const Element*>(source.data) + place.image * source.stride_batch;
    const int64_t near_column = (place.column + column.near) * source.stride_column;
    const int64_t far_column = (place.column + column.far) * source.stride_column;
    const Element* corners[4] = {image + row * source.stride_row + near_column,
                                 image + row * source.stride_row + far_column,
                                 image + next * source.stride_row + near_column,
                                 image + next * source.stride_row + far_column};
    float largest[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) largest[i] = widen(*corners[i]);
    for (int k = 1; k < classes; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        largest[i] = larger(widen(corners[i][k * source.stride_class]), largest[i]);
      }
    }
    for (int k = 0; k < classes; ++k) {
      float value[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        value[i] = widen(corners[i][k * source.stride_class]) - largest[i];
      }
      const float near = interpolate(column.near_weight, value[0], column.far_weight, value[1]);
      const float far = interpolate(column.near_weight, value[2], column.far_weight, value[3]);
      to.set(k, tiling.scale * interpolate(near_weight, near, far_weight, far));
    }
  });
}

// One warp for a tile of up to 32 columns; the gradient is summed in the scratch, each number by
// one thread.
template <typename Body>
__global__ void __launch_bounds__(32)
    walk_upsampled_rolled(PixelSource source, PixelSource other_source,
                          typename Body::Arguments arguments, Rolled classes, Tiling tiling,
                          PixelStore store, float* gradient_parts) {
  constexpr bool kTwo = Body::kInputs == 2;
  SharedMemory memory;
  const PixelTile tile(memory, 32, classes);
  constexpr bool kApart = kTwo || Body::kOtherColumn;
  const PixelTile other_tile = kApart ? PixelTile(memory, 32, classes) : tile;
  Body body(arguments, classes, memory);
  const TilePlace place(tiling);
  const ColumnPlace column_place(tiling, place);
  const RowTable rows(tiling, place, memory);
  const int thread = static_cast<int>(threadIdx.x);
  TileColumn column = tile.column(thread), other = other_tile.column(thread);
  const GradientTile gradient = [&] {
    if constexpr (Body::kGradient) {
      // What was in the other tile is used up when the sums go there.
      return GradientTile(gradient_parts, tiling, place, column_place, classes,
                          kApart ? other_tile : PixelTile(memory, 32, classes), memory);
    } else {
      return GradientTile();
    }
  }();
  if constexpr (Body::kGradient) {
    for (int row = 0; row < tiling.rows; ++row) {
      gradient.for_each(place, classes, [&](int k, int c) {
        gradient.part[gradient.at(row, classes, k, c)] = 0.0f;
      });
    }
  }

  const int64_t plane = static_cast<int64_t>(tiling.out_height) * tiling.out_width;
  for (int i = 0; i < place.height; ++i) {
    const int first = rows.first[i];
    const float near_weight = rows.near_weight[i], far_weight = rows.far_weight[i];
    const int64_t row = static_cast<int64_t>(place.y + i) * tiling.out_width + place.x;
    if (column_place.inside) {
      interpolate_pixel(source, tiling, place, column_place, first, near_weight, far_weight, column,
                        classes);
      if constexpr (kTwo) {
        interpolate_pixel(other_source, tiling, place, column_place, first, near_weight, far_weight,
                          other, classes);
      }
      const int64_t pixel = place.image * plane + row + thread;
      const int results[1] = {body.solve(column, other, classes, column, pixel)};
      body.results(results, pixel);
    }
    if constexpr (Body::kGradient) {
      __syncthreads();
      if (column_place.inside) {
        for (int k = 0; k < classes; ++k) {
          gradient.sums.set(k * gradient.tile_width + thread, column.get(k));
        }
      }
      __syncthreads();
      gradient.for_each(place, classes, [&](int k, int c) {
        const float sum = gradient.gather(tiling, place, k, c);
        float* near = gradient.part + gradient.at(first - place.row, classes, k, c);
        float* far = gradient.part + gradient.at(first + 1 - place.row, classes, k, c);
        *near = multiply_add(near_weight, sum, *near);
        if (tiling.height != tiling.out_height) *far = multiply_add(far_weight, sum, *far);
      });
      __syncthreads();
    }
    if constexpr (Body::kStores) {
      write_column(store, plane, place.image, row, place.width, tile, column, classes);
      __syncthreads();
    }
  }
  body.finish();
}

template <typename Classes, typename Body>
Tiling plan_upsampled(const LogitsView& view, const Context& context) {
  const int classes = static_cast<int>(view.classes);
  // Room for the staged rows and for where the gradient's columns begin; the rest is of one size.
  const bool registers = kUpsampledInRegisters<Body, Classes>;
  const size_t column_bytes =
      (registers ? sizeof(float) * static_cast<size_t>(classes + 1) : 0) + sizeof(int);
  return tiling_of(view, registers ? kThreadsOf<Classes> : 32, column_bytes, 16 << 10, context);
}

template <typename Classes, typename Body>
void walk_upsampled_logits(const char* name, const Tiling& tiling, const LogitsView& view,
                           const LogitsView* other, Classes classes,
                           const typename Body::Arguments& arguments, const PixelStore& store,
                           float* gradient_parts, const Context& context) {
  PixelSource source = pixel_source(view);
  PixelSource other_source = other == nullptr ? source : pixel_source(*other);
  source.stride_column = view.stride_column;  // rows and columns are looked at apart here
  if (other != nullptr) other_source.stride_column = other->stride_column;
  const size_t bytes = upsampled_bytes<Classes, Body>(tiling, classes);
  if constexpr (kUpsampledInRegisters<Body, Classes>) {
    launch(name, walk_upsampled<Classes, Body>, context, tiling.blocks(view.batch),
           kThreadsOf<Classes>, bytes, source, other_source, arguments, classes, tiling, store,
           gradient_parts);
  } else {
    launch(name, walk_upsampled_rolled<Body>, context, tiling.blocks(view.batch), 32, bytes, source,
           other_source, arguments, Rolled{static_cast<int>(classes)}, tiling, store,
           gradient_parts);
  }
}

}  // namespace cscl::cuda
