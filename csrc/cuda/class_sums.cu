// The sums Σ weight * feature and Σ weight over the locations of each class.
//
//   features [B, C, h, w] float32 | float16 | bfloat16, any strides; row, weight [B, h, w]
//     -> sums float32 [parts, K, row], mass [K, parts]
//
// Bytes that must move: the features once, at the locations that have a class, whatever the number
// of classes; 2048 x 65 x 129 floats are 69 MB, 20 us of an H100's memory.
//
// A block takes some of the locations and some of the channels, as many blocks as the device holds
// at once. Within it every warp has its own locations, and its own sums [K, channels] in shared
// memory, of which a lane touches only its own channels: no atomics and no barriers while features
// are read. The labels of neighbours are mostly the same, so the sum of the current class stays in
// registers; all lanes are at the same location, thus of the same class. At the end the warps' sums
// are added in their order, and the block writes one part.
//
// Two walks. Where the channels of a location are neighbours (channels-last), a lane reads four of
// them at once, 512 bytes of floats a warp, and eight locations are asked for before the first is
// added. Otherwise lanes read 32 neighbouring locations of 32 channels, which pass through shared
// memory to turn: row 33 floats long, so that neither way two lanes meet in a bank.
//
// At most kFloatLocations locations of a warp are added in plain floats; what a block sums beyond
// that is carried on in pairs of floats, in its part.
#include "cuda/class_sums.h"
#include "cuda/class_walk.h"

namespace cscl::cuda {
namespace {

constexpr int kMostWarps = 8;
constexpr size_t kMostSharedBytes = 96 << 10;

struct Sides {
  SummedSide side[2];
  int64_t first_blocks;  // of side[0]
};

// ---- the sums of one block ----------------------------------------------------------------------

// Adds the sums of the warps to the block's part.
template <int kWidth>
CSCL_D void add_warps(const PartialSums& to, int part, int first, bool first_round,
                      const Shared<float>& sums, const Shared<float>& mass) {
  constexpr int kChannels = kWarpLanes * kWidth;
  const int warps = blockDim.x / kWarpLanes, count = to.classes * kChannels;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const int k = i / kChannels, c = first + i % kChannels;
    if (c >= to.row) continue;
    float total = sums[i];
    for (int warp = 1; warp < warps; ++warp) total += sums[warp * count + i];
    const int64_t at = (static_cast<int64_t>(part) * to.classes + k) * to.row + c;
    FloatPair sum = total;
    if (!first_round) sum = add_to({to.high[at], to.low[at]}, total);
    to.high[at] = sum.high;
    if (to.low != nullptr) to.low[at] = sum.low;
  }
  if (first != 0) return;
  for (int k = threadIdx.x; k < to.classes; k += blockDim.x) {
    FloatPair* const place = to.mass + static_cast<int64_t>(k) * to.parts + part;
    FloatPair total;
    if (!first_round) total = *place;
    for (int warp = 0; warp < warps; ++warp) {
      const int at = 2 * (warp * to.classes + k);
      total = total + FloatPair(mass[at], mass[at + 1]);
    }
    *place = total;
  }
}

template <typename Walk>
__global__ void __launch_bounds__(kMostWarps* kWarpLanes, 2)
    sum_classes(const __grid_constant__ Sides sides) {
  const bool second = blockIdx.x >= sides.first_blocks;
  const SummedSide& side = sides.side[second];
  const int block = static_cast<int>(blockIdx.x - (second ? sides.first_blocks : 0));
  // Blocks side by side read channels side by side.
  const int part = block / side.chunks;
  const int first = block % side.chunks * (kWarpLanes * Walk::width);
  const int warp = threadIdx.x / kWarpLanes, warps = blockDim.x / kWarpLanes;
  const int classes = side.sums.classes;
  const int warp_floats = classes * kWarpLanes * Walk::width;

  SharedMemory memory;
  const auto sums = memory.array<float>(warps * warp_floats);
  const auto mass = memory.array<float>(warps * classes * 2);
  const auto scratch = memory.array<float>(warps * Walk::scratch_floats);
  const WarpSums<Walk::width> own = {sums.at(warp * warp_floats), mass.at(warp * classes * 2),
                                     static_cast<int>(threadIdx.x % kWarpLanes)};

  const int64_t start = part * side.length;
  const int64_t end = min(start + side.length, side.locations);
  const int64_t step = static_cast<int64_t>(warps) * kFloatLocations;
  for (int64_t begin = start; begin < end; begin += step) {
    own.clear(classes);
    const int count = static_cast<int>(min(end - begin, step));
    const int share = (count + warps - 1) / warps;
    Walk::walk(side, begin + warp * share, min(share, count - warp * share), first, own,
               scratch.at(warp * Walk::scratch_floats));
    __syncthreads();
    add_warps<Walk::width>(side.sums, part, first, begin == start, sums, mass);
    __syncthreads();
  }
}

// ---- how the work is cut ------------------------------------------------------------------------

struct Plan {
  bool rows;
  int width, warps;
  size_t shared;
};

Plan plan_side(const LabelledFeatures& from) {
  const LogitsView& view = from.features;
  const int classes = static_cast<int>(from.labels.classes);
  Plan plan;
  plan.rows = view.stride_class == 1 && view.classes > 1;
  const int64_t strides[3] = {view.stride_batch, view.stride_row, view.stride_column};
  const int64_t sizes[3] = {view.batch, view.height, view.width};
  bool wide =
      view.classes % 4 == 0 && view.classes >= 2 * kWarpLanes && packs_fit(view.data, view.type, 4);
  for (int i = 0; i < 3; ++i) wide = wide && (sizes[i] == 1 || strides[i] % 4 == 0);
  // With four channels a lane at least four warps have to find room.
  wide = wide && classes <= 47;
  plan.width = plan.rows && wide ? 4 : 1;
  const auto bytes = [&](int warps) {
    const size_t count = static_cast<size_t>(warps);
    return shared_bytes<float>(count * classes * kWarpLanes * plan.width) +
           shared_bytes<float>(count * classes * 2) +
           shared_bytes<float>(count * (plan.rows ? 0 : Tiles<float>::scratch_floats));
  };
  plan.warps = kMostWarps;
  while (plan.warps > 1 && bytes(plan.warps) > kMostSharedBytes) --plan.warps;
  plan.shared = bytes(plan.warps);
  return plan;
}

template <typename Walk>
void start(const Sides& sides, int64_t blocks, const Plan& plan, const Context& context) {
  launch("class_sums", sum_classes<Walk>, context, blocks, plan.warps * kWarpLanes, plan.shared,
         sides);
}

template <typename Element>
void start_walk(const Sides& sides, int64_t blocks, const Plan& plan, const Context& context) {
  if (!plan.rows) return start<Tiles<Element>>(sides, blocks, plan, context);
  if (plan.width == 4) return start<Rows<Element, 4>>(sides, blocks, plan, context);
  return start<Rows<Element, 1>>(sides, blocks, plan, context);
}

void start_sides(const Sides& sides, int64_t blocks, const Plan& plan, const Context& context) {
  switch (sides.side[0].type) {
    case DataType::float32:
      return start_walk<float>(sides, blocks, plan, context);
    case DataType::float16:
      return start_walk<Float16>(sides, blocks, plan, context);
    case DataType::bfloat16:
      return start_walk<BFloat16>(sides, blocks, plan, context);
  }
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

ClassSums sum_by_class(const LabelledFeatures* from, int count, const Context& context) {
  Plan plan[2];
  Sides sides = {};
  int64_t all_locations = 0, blocks[2] = {};
  bool alike = true;  // the sides go in one launch
  for (int i = 0; i < count; ++i) {
    const LogitsView& view = from[i].features;
    plan[i] = plan_side(from[i]);
    alike = alike && view.type == from[0].features.type && plan[i].rows == plan[0].rows &&
            plan[i].width == plan[0].width;
    sides.side[i].locations = view.batch * view.height * view.width;
    all_locations += sides.side[i].locations;
  }
  size_t bytes = 16, sums_bytes[2] = {}, mass_bytes[2] = {};
  bool carries[2] = {};
  for (int i = 0; i < count; ++i) {
    const LogitsView& view = from[i].features;
    SummedSide& side = sides.side[i];
    side.features = view.data;
    side.type = view.type;
    side.place = locations_of(view);
    side.stride_channel = view.stride_class;
    side.row = from[i].row;
    side.weight = from[i].weight;
    PartialSums& sums = side.sums;
    sums.classes = static_cast<int>(from[i].labels.classes);
    sums.channels = static_cast<int>(view.classes);
    sums.row = static_cast<int>(divide_up(view.classes, 4) * 4);
    side.chunks = static_cast<int>(divide_up(view.classes, kWarpLanes * plan[i].width));
    // Blocks for all multiprocessors, with locations for every warp: the registers of 16 warps,
    // and the shared memory of an H100. A device with less takes its blocks in two turns.
    const int by_registers = 16 / plan[i].warps;
    const int by_memory = static_cast<int>((226 << 10) / (plan[i].shared + 1024));
    const int64_t resident = resident_blocks(context, max(min(by_registers, by_memory), 1));
    const int64_t of_side = resident * side.locations / max(all_locations, int64_t{1});
    const int64_t most = divide_up(side.locations, plan[i].warps * kWarpLanes);
    const int64_t parts = min(max(of_side / side.chunks, int64_t{1}), most);
    side.length = divide_up(side.locations, max(parts, int64_t{1}));
    sums.parts = static_cast<int>(divide_up(side.locations, max(side.length, int64_t{1})));
    blocks[i] = static_cast<int64_t>(sums.parts) * side.chunks;
    carries[i] = side.length > plan[i].warps * kFloatLocations;
    sums_bytes[i] = static_cast<size_t>(sums.parts) * sums.classes * sums.row * sizeof(float);
    mass_bytes[i] = divide_up(static_cast<int64_t>(sums.classes) * sums.parts, 2) * 16;
    bytes += sums_bytes[i] * (carries[i] ? 2 : 1) + mass_bytes[i];
  }
  unsigned char* memory = static_cast<unsigned char*>(context.scratch(bytes));
  ClassSums result = {};
  result.counter = reinterpret_cast<unsigned*>(memory);
  memory += 16;
  for (int i = 0; i < count; ++i) {
    PartialSums& sums = sides.side[i].sums;
    sums.high = reinterpret_cast<float*>(memory);
    memory += sums_bytes[i];
    sums.low = carries[i] ? reinterpret_cast<float*>(memory) : nullptr;
    if (carries[i]) memory += sums_bytes[i];
    sums.mass = reinterpret_cast<FloatPair*>(memory);
    memory += mass_bytes[i];
    result.side[i] = sums;
  }
  assign_classes(from, count, result.counter, context);
  if (alike) {
    sides.first_blocks = blocks[0];
    start_sides(sides, blocks[0] + blocks[1], plan[0], context);
  } else {
    for (int i = 0; i < count; ++i) {
      const Sides one = {{sides.side[i], {}}, blocks[i]};
      start_sides(one, blocks[i], plan[i], context);
    }
  }
  return result;
}

}  // namespace cscl::cuda
