// The logits of one pixel, as the formulas of core/ take them: get(k) and set(k, value).
//
// Up to 32 classes lie in registers, and the kernel is compiled for their number: every loop over
// them is unrolled. More lie in shared memory.
#pragma once

#include "core/arithmetic.h"
#include "cuda/launch.h"
#include "cuda/shared.h"

namespace cscl::cuda {

// Registers for the classes; 0: they lie in shared memory.
template <typename Classes>
struct RegisterCount;
template <int kCount>
struct RegisterCount<Exactly<kCount>> {
  static constexpr int value = kCount;
};
template <int kMaximum>
struct RegisterCount<UpTo<kMaximum>> {
  static constexpr int value = kMaximum;
};
template <>
struct RegisterCount<Rolled> {
  static constexpr int value = 0;
};
template <typename Classes>
constexpr int kRegistersOf = RegisterCount<Classes>::value;

// Threads of a block; one pixel or several for each.
template <typename Classes>
constexpr int kThreadsOf = kRegistersOf<Classes> == 0 ? 32 : 128;

template <int kCount>
struct RegisterColumn {
  float values[kCount > 0 ? kCount : 1];
  CSCL_D float get(int k) const { return values[k]; }
  CSCL_D void set(int k, float value) { values[k] = value; }
  CSCL_D void weighed(int, float, float, float) {}
};

// A pixel of a PixelTile.
struct TileColumn {
  Shared<float> tile;
  int begin;
  CSCL_D static int skewed(int i) { return i + (i >> 5); }
  CSCL_D float get(int k) const { return tile[skewed(begin + k)]; }
  CSCL_D void set(int k, float value) const { tile.set(skewed(begin + k), value); }
  CSCL_D void weighed(int, float, float, float) const {}
};

// A pixel for each thread, one after the other with all their classes: as channels-last tensors
// have them, so that a tile is read and written in one piece. One word is left out after every 32:
// threads that look at the same class of their pixels then meet different banks, for any K.
struct PixelTile {
  Shared<float> words;
  int classes;

  __host__ __device__ static constexpr size_t count(int pixels, int classes) {
    return static_cast<size_t>(pixels) * classes + static_cast<size_t>(pixels) * classes / 32 + 1;
  }
  CSCL_D PixelTile(SharedMemory& memory, int pixels, int class_count)
      : words(memory.array<float>(static_cast<int>(count(pixels, class_count)))),
        classes(class_count) {}
  CSCL_D TileColumn column(int pixel) const { return {words, pixel * classes}; }
  CSCL_D float get(int i) const { return words[TileColumn::skewed(i)]; }
  CSCL_D void set(int i, float value) const { words.set(TileColumn::skewed(i), value); }
};

// A pixel of a tile, as a column with the classes that pad the last registers.
template <typename Classes>
struct PaddedTileColumn {
  TileColumn column;
  Classes classes;
  CSCL_D float get(int k) const { return past_the_end(k, classes) ? 0.0f : column.get(k); }
  CSCL_D void set(int k, float value) const {
    if (!past_the_end(k, classes)) column.set(k, value);
  }
};

template <typename Classes>
CSCL_D void copy_column(const RegisterColumn<kRegistersOf<Classes>>& from, const TileColumn& to,
                        Classes classes) {
#pragma unroll
  for (int k = 0; k < kRegistersOf<Classes>; ++k) {
    if (!past_the_end(k, classes)) to.set(k, from.values[k]);
  }
}
template <typename Classes>
CSCL_D void copy_column(const TileColumn& from, RegisterColumn<kRegistersOf<Classes>>& to,
                        Classes classes, float padding) {
#pragma unroll
  for (int k = 0; k < kRegistersOf<Classes>; ++k) {
    to.values[k] = past_the_end(k, classes) ? padding : from.get(k);
  }
}

// Calls action(classes) with the type of class count that the kernels are compiled for.
template <typename Action>
void with_classes(int64_t classes, const Action& action) {
  const int count = static_cast<int>(classes);
  if (count == 19) {
    action(Exactly<19>{});
  } else if (count <= 16) {
    action(UpTo<16>{count});
  } else if (count <= 32) {
    action(UpTo<32>{count});
  } else {
    action(Rolled{count});
  }
}

}  // namespace cscl::cuda
