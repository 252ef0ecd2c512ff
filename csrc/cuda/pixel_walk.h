// The walk over the pixels of logits at their own size.
//
// What is done to a pixel is a `Body`:
//
//     struct Body {
//       struct Arguments { ... };            what the kernel gets from the host
//       static constexpr int kInputs;        1, or 2: logits of another network beside them
//       static constexpr bool kStores;       what solve leaves in `column` is stored
//       static size_t bytes(int classes);    of shared memory
//       Body(const Arguments&, int classes, SharedMemory&);   all threads of a block
//       static constexpr bool kScratch;      solve needs `scratch`, a place in shared memory
//       static constexpr bool kPlanesOnly;   other orders are walked with the classes in shared
//       memory,
//                                            for fewer kernels to compile
//       static constexpr bool kOtherColumn;  solve needs `other`, with one input as well
//       int solve(column, other, classes, scratch, pixel);  pixel counts through the batch
//       void results(const int (&)[n], pixel);                what solve returned for n pixels
//       void finish();                       all threads, after the last pixel
//     };
//
// Planes (contiguous logits) are read without shared memory: a thread takes kPack pixels that are
// neighbours, one 16-byte load for each class, all of them under way before the first is needed:
// 19 classes are 304 bytes in flight for each thread, more than the memory's latency asks for.
// Channels-last logits are one piece for a block's pixels: it is read in 16-byte loads, too, and
// turned in shared memory. Whatever lies in other strides, or at an odd address, is read one
// element at a time.
#pragma once

#include <type_traits>

#include "core/bilinear.h"
#include "cuda/columns.h"
#include "cuda/elements.h"

namespace cscl::cuda {

// How the pixels of an image follow each other.
enum class PixelOrder {
  flat,         // at one distance, across the ends of rows
  interleaved,  // flat, and the classes of a pixel are neighbours: channels-last
  strided,      // anything else
};

inline PixelOrder pixel_order(const LogitsView& view) {
  const bool one_column = view.width == 1, one_row = view.height == 1;
  const int64_t step = one_column ? view.stride_row : view.stride_column;
  const bool flat = one_row || one_column || view.stride_row == view.width * view.stride_column;
  if (!flat) return PixelOrder::strided;
  return view.stride_class == 1 && step == view.classes ? PixelOrder::interleaved
                                                        : PixelOrder::flat;
}

// Logits as the kernels get them.
struct PixelSource {
  const void* data;
  DataType type;
  PixelOrder order;
  int width, classes;
  int64_t stride_batch, stride_class, stride_row, stride_column;  // flat: of a pixel
};

inline PixelSource pixel_source(const LogitsView& view) {
  const PixelOrder order = pixel_order(view);
  const int64_t step =
      view.width == 1 && order != PixelOrder::strided ? view.stride_row : view.stride_column;
  return {view.data,
          view.type,
          order,
          static_cast<int>(view.width),
          static_cast<int>(view.classes),
          view.stride_batch,
          view.stride_class,
          view.stride_row,
          step};
}

// Where the columns go: [B, K, H, W] or, channels-last, [B, H, W, K].
struct PixelStore {
  void* data;
  DataType type;
  bool channels_last;
};

// The planes of both sides as packs of `count` pixels?
inline bool planes_fit(const LogitsView& view, int count) {
  const int64_t plane = view.height * view.width;
  return pixel_order(view) == PixelOrder::flat && pixel_source(view).stride_column == 1 &&
         plane % count == 0 && (view.classes == 1 || view.stride_class % count == 0) &&
         (view.batch == 1 || view.stride_batch % count == 0) &&
         packs_fit(view.data, view.type, count);
}

// ---- planes -------------------------------------------------------------------------------------

template <int kCount, int kPack, typename Classes>
CSCL_D void read_planes(const PixelSource& source, int64_t image, int64_t pixel, Classes classes,
                        float (&to)[kCount][kPack]) {
  with_element(source.type, [&](auto element) {
    using Element = decltype(element);
    const Element* from =
        static_cast<const Element*>(source.data) + image * source.stride_batch + pixel;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if (past_the_end(k, classes)) {
        for (int i = 0; i < kPack; ++i) to[k][i] = kPaddingLogit;
      } else {
        read_pack<kPack>(from, to[k]);
        from += source.stride_class;
      }
    }
  });
}

template <int kCount, int kPack, typename Classes>
CSCL_D void write_planes(const PixelStore& store, int64_t plane, int64_t image, int64_t pixel,
                         Classes classes, const float (&from)[kCount][kPack]) {
  with_element(store.type, [&](auto element) {
    using Element = decltype(element);
    Element* to = static_cast<Element*>(store.data) + image * classes * plane + pixel;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if (past_the_end(k, classes)) continue;
      write_pack<kPack>(to, from[k]);
      to += plane;
    }
  });
}

// ---- any order ----------------------------------------------------------------------------------

// Pixels begin .. begin + count - 1 of an image between a channels-last tensor and the tile, by all
// threads. `packed`: four at a time.
template <typename Element>
CSCL_D void read_interleaved(const Element* from, int elements, bool packed,
                             const PixelTile& tile) {
  const int threads = static_cast<int>(blockDim.x);
  const int whole = packed ? elements / 4 * 4 : 0;
  for (int i = 4 * static_cast<int>(threadIdx.x); i < whole; i += 4 * threads) {
    float four[4];
    read_pack<4>(from + i, four);
#pragma unroll
    for (int j = 0; j < 4; ++j) tile.set(i + j, four[j]);
  }
  for (int i = whole + static_cast<int>(threadIdx.x); i < elements; i += threads) {
    tile.set(i, widen(from[i]));
  }
}

template <typename Element>
CSCL_D void write_interleaved(Element* to, int elements, bool packed, const PixelTile& tile) {
  const int threads = static_cast<int>(blockDim.x);
  const int whole = packed ? elements / 4 * 4 : 0;
  for (int i = 4 * static_cast<int>(threadIdx.x); i < whole; i += 4 * threads) {
    float four[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) four[j] = tile.get(i + j);
    write_pack<4>(to + i, four);
  }
  for (int i = whole + static_cast<int>(threadIdx.x); i < elements; i += threads) {
    to[i] = narrow<Element>(tile.get(i));
  }
}

template <typename Element>
CSCL_D bool packs_of_four(const Element* data) {
  return reinterpret_cast<uintptr_t>(data) % (4 * sizeof(Element)) == 0;
}

// A column in registers, or where the tile has it.
template <typename Classes, int kCount = kRegistersOf<Classes>>
struct ColumnOf {
  using type = RegisterColumn<kCount>;
  CSCL_D static type make(const PixelTile&) { return {}; }
};
template <typename Classes>
struct ColumnOf<Classes, 0> {
  using type = TileColumn;
  CSCL_D static type make(const PixelTile& tile) {
    return tile.column(static_cast<int>(threadIdx.x));
  }
};

template <int kCount, typename Classes>
CSCL_D void take_from_tile(const PixelTile& tile, RegisterColumn<kCount>& column, Classes classes) {
  copy_column(tile.column(static_cast<int>(threadIdx.x)), column, classes, kPaddingLogit);
}
CSCL_D void take_from_tile(const PixelTile&, TileColumn&, Rolled) {}
template <int kCount, typename Classes>
CSCL_D void put_in_tile(const PixelTile& tile, const RegisterColumn<kCount>& column,
                        Classes classes) {
  copy_column(column, tile.column(static_cast<int>(threadIdx.x)), classes);
}
CSCL_D void put_in_tile(const PixelTile&, const TileColumn&, Rolled) {}

// This thread's pixel, begin + threadIdx.x, to its column.
template <typename Column, typename Classes>
CSCL_D void read_column(const PixelSource& source, int64_t image, int64_t begin, int count,
                        const PixelTile& tile, Column& column, Classes classes) {
  const int thread = static_cast<int>(threadIdx.x);
  with_element(source.type, [&](auto element) {
    using Element = decltype(element);
    const Element* from = static_cast<const Element*>(source.data) + image * source.stride_batch;
    if (source.order == PixelOrder::interleaved) {
      from += begin * source.classes;
      read_interleaved(from, count * source.classes, packs_of_four(from), tile);
      return;
    }
    if (thread >= count) return;
    const int64_t pixel = begin + thread;
    if (source.order == PixelOrder::flat) {
      from += pixel * source.stride_column;
    } else {
      const int64_t row = quotient(pixel, static_cast<int64_t>(source.width));
      from += row * source.stride_row + (pixel - row * source.width) * source.stride_column;
    }
    CSCL_UNROLL(32)
    for (int k = 0; k < loop_end(classes); ++k) {
      if (past_the_end(k, classes)) {
        column.set(k, kPaddingLogit);
      } else {
        column.set(k, widen(*from));
        from += source.stride_class;
      }
    }
  });
  if (source.order == PixelOrder::interleaved) {
    __syncthreads();
    if (thread < count) take_from_tile(tile, column, classes);
  }
}

template <typename Column, typename Classes>
CSCL_D void write_column(const PixelStore& store, int64_t plane, int64_t image, int64_t begin,
                         int count, const PixelTile& tile, const Column& column, Classes classes) {
  const int thread = static_cast<int>(threadIdx.x);
  if (store.channels_last) {
    if (thread < count) put_in_tile(tile, column, classes);
    __syncthreads();
  }
  with_element(store.type, [&](auto element) {
    using Element = decltype(element);
    Element* to = static_cast<Element*>(store.data) + image * classes * plane;
    if (store.channels_last) {
      to += begin * classes;
      write_interleaved(to, count * classes, packs_of_four(to), tile);
      return;
    }
    if (thread >= count) return;
    to += begin + thread;
    CSCL_UNROLL(32)
    for (int k = 0; k < loop_end(classes); ++k) {
      if (past_the_end(k, classes)) continue;
      *to = narrow<Element>(column.get(k));
      to += plane;
    }
  });
}

// A pixel for each thread at a time: the block's share of an image's tiles, every
// blocks_per_image-th from `first` on.
template <typename Classes, typename Body>
CSCL_D void walk_one_by_one(Body& body, const PixelSource& source, const PixelSource& other_source,
                            Classes classes, int64_t plane, int64_t image, int64_t first,
                            int blocks_per_image, const PixelTile& tile,
                            const PixelTile& other_tile, const PixelStore& store) {
  constexpr int kThreads = kThreadsOf<Classes>;
  const int64_t stride = static_cast<int64_t>(blocks_per_image) * kThreads;
  const TileColumn scratch = tile.column(static_cast<int>(threadIdx.x));
  for (int64_t begin = first * kThreads; begin < plane; begin += stride) {
    const int count = static_cast<int>(plane - begin < kThreads ? plane - begin : kThreads);
    auto column = ColumnOf<Classes>::make(tile);
    auto other = ColumnOf<Classes>::make(other_tile);
    read_column(source, image, begin, count, tile, column, classes);
    if (Body::kInputs == 2) {
      __syncthreads();
      read_column(other_source, image, begin, count, other_tile, other, classes);
    }
    if (static_cast<int>(threadIdx.x) < count) {
      const int64_t pixel = image * plane + begin + threadIdx.x;
      const int results[1] = {body.solve(column, other, classes, scratch, pixel)};
      body.results(results, pixel);
    }
    if (Body::kStores) {
      write_column(store, plane, image, begin, count, tile, column, classes);
    }
    __syncthreads();  // the tile is free again
  }
}

template <typename Classes, typename Body>
__global__ void __launch_bounds__(kThreadsOf<Classes>, 4)
    walk_pixels(PixelSource source, PixelSource other_source, typename Body::Arguments arguments,
                Classes classes, int64_t plane, int blocks_per_image, PixelStore store) {
  SharedMemory memory;
  const PixelTile tile(memory, kThreadsOf<Classes>, classes);
  const bool apart = kRegistersOf<Classes> == 0 && (Body::kInputs == 2 || Body::kOtherColumn);
  const PixelTile other_tile = apart ? PixelTile(memory, kThreadsOf<Classes>, classes) : tile;
  Body body(arguments, classes, memory);
  const int64_t image = blockIdx.x / static_cast<unsigned>(blocks_per_image);
  const int64_t first = blockIdx.x % static_cast<unsigned>(blocks_per_image);
  walk_one_by_one(body, source, other_source, classes, plane, image, first, blocks_per_image, tile,
                  other_tile, store);
  body.finish();
}

// ---- planes, several pixels at once
// --------------------------------------------------------------

// Blocks to a multiprocessor: told nothing, the compiler saves registers for more, by spilling.
template <typename Classes>
constexpr int kPlanesBlocks = kRegistersOf<Classes> > 20 ? 2 : 3;

template <int kPack, typename Classes, typename Body>
__global__ void __launch_bounds__(kThreadsOf<Classes>, kPlanesBlocks<Classes>)
    walk_planes(PixelSource source, PixelSource other_source, typename Body::Arguments arguments,
                Classes classes, int64_t plane, int blocks_per_image, PixelStore store) {
  constexpr int kCount = kRegistersOf<Classes>;
  constexpr int kThreads = kThreadsOf<Classes>;
  SharedMemory memory;
  const PixelTile tile(memory, Body::kScratch ? kThreads : 0, classes);
  Body body(arguments, classes, memory);
  const TileColumn scratch = tile.column(static_cast<int>(threadIdx.x));
  const int64_t image = blockIdx.x / static_cast<unsigned>(blocks_per_image);
  const int64_t begin = blockIdx.x % static_cast<unsigned>(blocks_per_image);
  const int64_t stride = static_cast<int64_t>(blocks_per_image) * kThreads * kPack;

  for (int64_t pixel = (begin * kThreads + threadIdx.x) * kPack; pixel < plane; pixel += stride) {
    float values[kCount][kPack], others[kCount][kPack];
    read_planes(source, image, pixel, classes, values);
    if (Body::kInputs == 2) read_planes(other_source, image, pixel, classes, others);
    int results[kPack];
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      RegisterColumn<kCount> column, other;
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        column.values[k] = values[k][i];
        if (Body::kInputs == 2) other.values[k] = others[k][i];
      }
      results[i] = body.solve(column, other, classes, scratch, image * plane + pixel + i);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        if (Body::kStores) values[k][i] = column.values[k];
      }
    }
    if (Body::kStores) write_planes(store, plane, image, pixel, classes, values);
    body.results(results, image * plane + pixel);
  }
  body.finish();
}

// ---- choosing -----------------------------------------------------------------------------------

// How many blocks walk over `pixels` pixels of each image, `each` taking so many at a time.
inline int blocks_per_image(const Context& context, int64_t batch, int64_t pixels, int64_t each,
                            int residents) {
  const int64_t needed = (pixels + each - 1) / each;
  const int64_t images = std::max<int64_t>(1, batch);  // none: any answer, nothing is launched
  const int64_t share = (resident_blocks(context, residents) + images - 1) / images;
  return static_cast<int>(std::max<int64_t>(1, std::min(needed, share)));
}

// Threads' blocks that a multiprocessor holds, about: enough to walk in few rounds.
constexpr int kResidentBlocks = 8;

// The number of blocks that walk_logits starts: a body with totals has one part for each.
struct OwnSizeWalk {
  int pack;  // pixels of a thread; 1: walk_pixels
  int blocks_per_image;
  int64_t blocks;
};

// Pixels of a thread such that the logits, of both inputs, stay in registers.
constexpr int pack_of(int registers) { return registers <= 20 ? 4 : registers <= 40 ? 2 : 1; }

// How walk_pixels counts the classes.
template <typename Classes, typename Body>
using PixelClasses = std::conditional_t<Body::kPlanesOnly, Rolled, Classes>;

template <typename Classes, typename Body>
OwnSizeWalk plan_walk(const LogitsView& view, const LogitsView* other, const PixelStore& store,
                      const Context& context) {
  constexpr int kPack =
      kRegistersOf<Classes> == 0 ? 1 : pack_of(kRegistersOf<Classes> * Body::kInputs);
  const int64_t plane = view.height * view.width;
  OwnSizeWalk walk = {1, 0, 0};
  if (kPack > 1 && planes_fit(view, kPack) && (other == nullptr || planes_fit(*other, kPack)) &&
      (!Body::kStores || (!store.channels_last && packs_fit(store.data, store.type, kPack)))) {
    walk.pack = kPack;
  }
  const int threads = walk.pack > 1 ? kThreadsOf<Classes> : kThreadsOf<PixelClasses<Classes, Body>>;
  walk.blocks_per_image =
      blocks_per_image(context, view.batch, plane, threads * walk.pack, kResidentBlocks);
  walk.blocks = view.batch * walk.blocks_per_image;
  return walk;
}

template <typename Classes, typename Body>
void walk_logits(const char* name, const OwnSizeWalk& walk, const LogitsView& view,
                 const LogitsView* other, Classes classes,
                 const typename Body::Arguments& arguments, const PixelStore& store,
                 const Context& context) {
  constexpr int kThreads = kThreadsOf<Classes>;
  constexpr int kPack =
      kRegistersOf<Classes> == 0 ? 1 : pack_of(kRegistersOf<Classes> * Body::kInputs);
  const int64_t plane = view.height * view.width;
  const PixelSource source = pixel_source(view);
  const PixelSource other_source = other == nullptr ? source : pixel_source(*other);
  if constexpr (kPack > 1) {
    if (walk.pack == kPack) {
      const size_t bytes =
          shared_bytes<float>(PixelTile::count(Body::kScratch ? kThreads : 0, classes)) +
          Body::bytes(classes);
      return launch(name, walk_planes<kPack, Classes, Body>, context, walk.blocks, kThreads, bytes,
                    source, other_source, arguments, classes, plane, walk.blocks_per_image, store);
    }
  }
  using Pixels = PixelClasses<Classes, Body>;
  const Pixels pixel_classes = [&] {
    if constexpr (Body::kPlanesOnly) {
      return Rolled{static_cast<int>(classes)};
    } else {
      return classes;
    }
  }();
  const bool apart = kRegistersOf<Pixels> == 0 && (Body::kInputs == 2 || Body::kOtherColumn);
  const size_t tile = shared_bytes<float>(PixelTile::count(kThreadsOf<Pixels>, classes));
  launch(name, walk_pixels<Pixels, Body>, context, walk.blocks, kThreadsOf<Pixels>,
         tile * (apart ? 2 : 1) + Body::bytes(classes), source, other_source, arguments,
         pixel_classes, plane, walk.blocks_per_image, store);
}

}  // namespace cscl::cuda
