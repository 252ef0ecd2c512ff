// Class centroids [K, C] and masses [K] of features, and the gradient by the features of whatever
// is computed from centroids.
//
//   features [B, C, h, w], row int32 and weight float32 [B, h, w], slope float32 [K, C]
//     -> centroids float32 [K, C], mass float32 [K]; gradient [B, C, h, w]
//
// Bytes that must move: forward, the features read once (class_sums.cu), after which the parts of a
// class are added, divided by its mass and written, [K, C] in all; backward, the gradient written
// once. What is read for it is small: a class and a weight for each location, and the slopes, which
// stay in the second-level cache.
//
// Backward a warp takes 32 locations. Channels-last: it writes one location after the other, 16
// bytes a lane, and keeps the class's slopes of its channels in registers until the class changes.
// Contiguous: a lane keeps its location and writes channel after channel, 32 neighbours a store; it
// reads the slopes of its class four channels at a time, most of the lanes the same ones.
#include "core/class_centroid.h"
#include "cuda/class_sums.h"
#include "cuda/locations.h"

namespace cscl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;

// ---- forward: the parts of a class, over its mass -----------------------------------------------

__global__ void __launch_bounds__(kThreads, 2)
    finish_centroids(const PartialSums sums, float* centroids, float* masses) {
  SharedMemory memory;
  const auto room = memory.array<float>(kFinishFloats * kThreads);
  const int tiles = (sums.channels + kFinishChannels - 1) / kFinishChannels;
  const int k = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const float mass = mass_of(sums, k);
  if (tile == 0 && threadIdx.x == 0) masses[k] = mass;
  const int first = tile * kFinishChannels, end = min(first + kFinishChannels, sums.channels);
  finish_class(sums, k, first, end, room, [&](int c, const float (&sum)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (c + i >= sums.channels) continue;
      centroids[static_cast<int64_t>(k) * sums.channels + c + i] =
          mass > 0.0f ? sum[i] / mass : 0.0f;
    }
  });
}

// ---- backward -----------------------------------------------------------------------------------

// What the slopes of the location's class are multiplied by.
CSCL_D float factor_of(const CentroidGradientCall& call, int row, float weight) {
  const float scale = call.scale != nullptr ? *call.scale : 1.0f;
  if (call.mass == nullptr) return weight * scale;
  const float mass = call.mass[row];
  return mass > 0.0f ? weight * (scale / mass) : 0.0f;
}

// One of the 32 locations of a warp, and what it is multiplied by.
struct Place {
  int row;  // K: no class
  float factor;

  CSCL_D Place(const CentroidGradientCall& call, int64_t n, int64_t locations)
      : row(static_cast<int>(call.classes)), factor(0.0f) {
    if (n >= locations) return;
    row = call.row[n];
    if (row < call.classes) factor = factor_of(call, row, call.weight[n]);
  }
};

// Slopes of kWidth channels.
template <int kWidth>
CSCL_D void read_slopes(const CentroidGradientCall& call, int row, int channel,
                        float (&to)[kWidth]) {
  constexpr int kPack = kWidth < 4 ? kWidth : 4;
  const float* from = call.slope + static_cast<int64_t>(row) * call.channels + channel;
#pragma unroll
  for (int i = 0; i < kWidth; i += kPack) {
    float some[kPack];
    read_pack(from + i, some);
#pragma unroll
    for (int j = 0; j < kPack; ++j) to[i + j] = some[j];
  }
}

template <typename Element, int kWidth>
__global__ void __launch_bounds__(kThreads)
    write_rows(const __grid_constant__ CentroidGradientCall call, int64_t tasks) {
  const int lane = threadIdx.x % kWarpLanes;
  const int64_t task = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpLanes;
  if (task >= tasks) return;
  const int channels = static_cast<int>(call.channels), classes = static_cast<int>(call.classes);
  const int chunks = (channels + kWarpLanes * kWidth - 1) / (kWarpLanes * kWidth);
  const int64_t group = quotient(task, chunks), begin = group * kWarpLanes;
  const int channel = (static_cast<int>(task - group * chunks) * kWarpLanes + lane) * kWidth;
  const bool inside = channel < channels;
  const int64_t locations = call.batch * call.plane;
  const Place place(call, begin + lane, locations);
  Element* to = static_cast<Element*>(call.gradient) + begin * channels + channel;
  float slope[kWidth] = {};
  int current = classes;
  const int count = static_cast<int>(min(locations - begin, int64_t{kWarpLanes}));
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    const int row = __shfl_sync(kWholeWarp, place.row, i);
    const float factor = __shfl_sync(kWholeWarp, place.factor, i);
    if (row != current && row < classes) {
      current = row;
      if (inside) read_slopes(call, row, channel, slope);
    }
    float values[kWidth];  // 0 * slope would not be 0 for a slope that is not finite
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = row < classes ? slope[j] * factor : 0.0f;
    if (inside) write_pack(to, values);
    to += channels;
  }
}

constexpr int kPlaneChannels = 32;

template <typename Element, int kWidth>
__global__ void __launch_bounds__(kThreads)
    write_planes(const __grid_constant__ CentroidGradientCall call, int64_t tasks) {
  const int lane = threadIdx.x % kWarpLanes;
  const int64_t task = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpLanes;
  if (task >= tasks) return;
  const int64_t locations = call.batch * call.plane;
  const int64_t groups = (locations + kWarpLanes - 1) / kWarpLanes;
  const int64_t chunk = quotient(task, groups), n = (task - chunk * groups) * kWarpLanes + lane;
  if (n >= locations) return;
  const Place place(call, n, locations);
  const int first = static_cast<int>(chunk) * kPlaneChannels;
  const int end = static_cast<int>(min(call.channels, int64_t{first} + kPlaneChannels));
  const int64_t image = quotient(n, call.plane);
  Element* to = static_cast<Element*>(call.gradient) +
                (image * call.channels + first) * call.plane + (n - image * call.plane);
  for (int c = first; c < end; c += kWidth) {
    float slope[kWidth] = {};
    if (place.row < call.classes) {
      read_slopes(call, place.row, c, slope);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) slope[i] *= place.factor;
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      *to = narrow<Element>(slope[i]);
      to += call.plane;
    }
  }
}

template <typename Element>
void write_gradient(const CentroidGradientCall& call, const Context& context) {
  constexpr int kPack = 16 / sizeof(Element);
  const int64_t locations = call.batch * call.plane;
  if (locations == 0) return;
  const int64_t groups = (locations + kWarpLanes - 1) / kWarpLanes;
  const bool wide_slopes = call.channels % 4 == 0 && packs_fit(call.slope, DataType::float32, 4);
  const auto start = [&](void (*kernel)(CentroidGradientCall, int64_t), int64_t chunk) {
    const int64_t tasks = groups * ((call.channels + chunk - 1) / chunk);
    launch("centroid_gradient", kernel, context, (tasks + kWarps - 1) / kWarps, kThreads, 0, call,
           tasks);
  };
  if (!call.channels_last) {
    start(wide_slopes ? write_planes<Element, 4> : write_planes<Element, 1>, kPlaneChannels);
  } else if (wide_slopes && call.channels % kPack == 0 && call.channels >= 2 * kWarpLanes &&
             packs_fit(call.gradient, call.type, kPack)) {
    start(write_rows<Element, kPack>, kWarpLanes * kPack);
  } else {
    start(write_rows<Element, 1>, kWarpLanes);
  }
}

}  // namespace

void class_centroids(const ClassCentroidsCall& call, const Context& context) {
  const DeviceScope scope(context);
  const PartialSums sums = sum_by_class(&call.side, 1, context).side[0];
  const int64_t tiles = (sums.channels + kFinishChannels - 1) / kFinishChannels;
  launch("class_centroids", finish_centroids, context, sums.classes * tiles, kThreads,
         shared_bytes<float>(kFinishFloats * kThreads), sums, call.centroids, call.mass);
}

void centroid_gradient(const CentroidGradientCall& call, const Context& context) {
  const DeviceScope scope(context);
  switch (call.type) {
    case DataType::float32:
      return write_gradient<float>(call, context);
    case DataType::float16:
      return write_gradient<Float16>(call, context);
    case DataType::bfloat16:
      return write_gradient<BFloat16>(call, context);
  }
}

}  // namespace cscl::cuda
