// Class and weight of every location from its label, Eq. 13.
//
//   labels int64 [B, h, w], or [B, K, h, w] float32 | float16 | bfloat16, any strides
//     -> row int32 [B, h, w], K where there is no class; weight float32 [B, h, w]
//
// Bytes that must move: the labels once, 8 written for a location; of features with 2048 channels
// that is a hundredth. A thread takes a location and all its K entries, which for contiguous labels
// lie side by side with those of its neighbours; where a location's entries are neighbours, the
// lines that a warp asks for stay in the first-level cache until it has used them up. Both sides of
// a divergence go in one launch: each alone would leave half of a large GPU idle.
//
// A label out of range, a NaN and whatever is not a probability give no class: finding out whether
// there are any would mean waiting for the device.
#include "core/class_centroid.h"
#include "cuda/class_sums.h"
#include "cuda/locations.h"

namespace cscl::cuda {
namespace {

constexpr int kThreads = 128;

struct Side {
  const void* labels;
  DataType type;
  bool hard;
  int classes;
  int64_t stride_class, count;
  Locations place;
  int32_t* row;
  float* weight;
};

struct Sides {
  Side side[2];
  int64_t first_blocks;  // of side[0]
  unsigned* counter;
};

template <typename Element>
struct SoftColumn {
  const Element* entries;
  int64_t stride;
  CSCL_D float get(int k) const { return widen(entries[k * stride]); }
};

__global__ void __launch_bounds__(kThreads) assign(const __grid_constant__ Sides sides) {
  if (blockIdx.x == 0 && threadIdx.x == 0) *sides.counter = 0;
  const bool second = blockIdx.x >= sides.first_blocks;
  const Side& side = sides.side[second];
  const int64_t block = blockIdx.x - (second ? sides.first_blocks : 0);
  const int64_t n = block * kThreads + threadIdx.x;
  if (n >= side.count) return;
  const int64_t offset = Cursor(side.place, n).offset();
  int32_t row = side.classes;
  float weight = 0.0f;
  if (side.hard) {
    row = row_of_label(static_cast<const int64_t*>(side.labels)[offset], side.classes);
    weight = row < side.classes ? 1.0f : 0.0f;
  } else {
    with_element(side.type, [&](auto element) {
      using Element = decltype(element);
      const Element* entries = static_cast<const Element*>(side.labels) + offset;
      const Assignment<float> found =
          assign_soft_label<float>(SoftColumn<Element>{entries, side.stride_class}, side.classes);
      if (found.in_range) {
        row = found.row;
        weight = found.weight;
      }
    });
  }
  side.row[n] = row;
  side.weight[n] = weight;
}

}  // namespace

void assign_classes(const LabelledFeatures* sides, int count, unsigned* counter,
                    const Context& context) {
  Sides all = {};
  all.counter = counter;
  int64_t blocks = 0;
  for (int i = 0; i < count; ++i) {
    const LogitsView& labels = sides[i].labels;
    Side& side = all.side[i];
    side.labels = labels.data;
    side.type = labels.type;
    side.hard = sides[i].hard;
    side.classes = static_cast<int>(labels.classes);
    side.stride_class = labels.stride_class;
    side.count = labels.batch * labels.height * labels.width;
    side.place = locations_of(labels);
    side.row = sides[i].row;
    side.weight = sides[i].weight;
    blocks += (side.count + kThreads - 1) / kThreads;
    if (i == 0) all.first_blocks = blocks;
  }
  if (blocks == 0) blocks = all.first_blocks = 1;  // for the counter
  launch("class_assignment", assign, context, blocks, kThreads, 0, all);
}

}  // namespace cscl::cuda
