// Category alignment L_div, Eq. 11: mean over the classes present on both sides of the symmetric
// divergence of their centroids' distributions over the channels; 0 without such a class.
//
//   features [B, C, h, w] and labels of two sides
//     -> loss float32; source_slope, target_slope float32 [K, C]: the gradient of the loss by a
//        location of weight 1, zeros for a class that is not on both sides
//
// Bytes that must move: the features of both sides, read once (class_sums.cu). What follows works
// on [K, C] and finds the gradient along with the loss: of the features nothing is read again, and
// the backward pass (centroid_gradient) only writes.
//
// Three launches: the classes of all locations; the sums; then a block for each class, which adds
// the parts of its two centroids, keeps them where the slopes will be, and goes over them three
// times: the largest, the sum that normalises, divergence and sums of the slopes; then it writes
// the slopes. The last block to finish adds the classes' divergences, in their order.
#include <cfloat>

#include "core/symmetric_soft_divergence.h"
#include "cuda/class_sums.h"

namespace cscl::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarpLanes;

struct Arguments {
  PartialSums sums[2];  // source, target
  float* slope[2];      // [K, C]
  float* loss;
  float* divergence;  // [K]
  unsigned* finished;
  float eps;
};

// Sums (or, with kLargest, maxima) of kCount numbers over the block, for all threads.
template <bool kLargest, int kCount>
CSCL_D void reduce(float (&values)[kCount], const Shared<float>& room) {
  const auto join = [](float a, float b) { return kLargest ? larger(a, b) : a + b; };
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
#pragma unroll
    for (int step = kWarpLanes / 2; step > 0; step /= 2) {
      values[i] = join(values[i], __shfl_xor_sync(kWholeWarp, values[i], step));
    }
  }
  const int warp = threadIdx.x / kWarpLanes;
  if (threadIdx.x % kWarpLanes == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) room.set(warp * kCount + i, values[i]);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = room[i];
    for (int other = 1; other < kWarps; ++other) {
      values[i] = join(values[i], room[other * kCount + i]);
    }
  }
  __syncthreads();
}

// How a centroid becomes a distribution.
template <bool kSoftmax>
struct Normaliser {
  float start;  // softmax: the largest entry; l1: eps
  float total, logarithm_of_total;

  // Before normalising.
  CSCL_D float portion(float centroid) const {
    return kSoftmax ? exponential(centroid - start) : positive_part(centroid, start);
  }
  CSCL_D void set_total(float sum) {
    total = sum;
    // NaN once a centroid is NaN or infinite, which the logarithm does not see.
    logarithm_of_total = logarithm(total) + (total - total);
  }
  CSCL_D Share<float> share(float centroid) const {
    const float value = portion(centroid);
    const float own = kSoftmax ? centroid - start : logarithm(value);
    return {value / total, own - logarithm_of_total};
  }
  CSCL_D float slope(float by_logarithm, float share, float all, float centroid) const {
    return kSoftmax ? softmax_slope(by_logarithm, share, all)
                    : l1_slope(by_logarithm, share, all, centroid, start);
  }
};

// How many classes are present on both sides.
CSCL_D float count_present(const Arguments& call, const Shared<float>& room) {
  float present[1] = {};
  for (int k = threadIdx.x / kWarpLanes; k < call.sums[0].classes; k += kWarps) {
    const bool source = has_mass(call.sums[0], k), target = has_mass(call.sums[1], k);
    if (source && target && threadIdx.x % kWarpLanes == 0) present[0] += 1.0f;
  }
  reduce<false>(present, room);
  return present[0];
}

// Divergence of class k, and its slopes; `present` classes share the mean.
template <bool kSoftmax>
CSCL_D float compare_class(const Arguments& call, int k, const float (&mass)[2], float present,
                           const Shared<float>& parts, const Shared<float>& room) {
  const int channels = call.sums[0].channels;
  float* slope[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    slope[i] = call.slope[i] + static_cast<int64_t>(k) * channels;
    finish_class(call.sums[i], k, 0, channels, parts, [&](int c, const float (&sum)[4]) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (c + j < channels) slope[i][c + j] = sum[j] / mass[i];
      }
    });
  }
  __syncthreads();  // what a thread wrote another reads

  Normaliser<kSoftmax> by[2] = {};
  by[0].start = by[1].start = call.eps;
  if (kSoftmax) {
    float largest[2] = {-INFINITY, -INFINITY};
    for (int c = threadIdx.x; c < channels; c += kThreads) {
      largest[0] = larger(slope[0][c], largest[0]);
      largest[1] = larger(slope[1][c], largest[1]);
    }
    reduce<true>(largest, room);
    by[0].start = largest[0];
    by[1].start = largest[1];
  }
  float total[2] = {};
  for (int c = threadIdx.x; c < channels; c += kThreads) {
    total[0] += by[0].portion(slope[0][c]);
    total[1] += by[1].portion(slope[1][c]);
  }
  reduce<false>(total, room);
  by[0].set_total(total[0]);
  by[1].set_total(total[1]);

  float found[3] = {};  // twice the divergence, sums of the two slopes by the logarithms
  for (int c = threadIdx.x; c < channels; c += kThreads) {
    const Share<float> s = by[0].share(slope[0][c]), t = by[1].share(slope[1][c]);
    found[0] += divergence_of(s, t);
    found[1] += slope_by_logarithm(s, t);
    found[2] += slope_by_logarithm(t, s);
  }
  reduce<false>(found, room);

  const float factor[2] = {1.0f / (mass[0] * present), 1.0f / (mass[1] * present)};
  for (int c = threadIdx.x; c < channels; c += kThreads) {
    const float x[2] = {slope[0][c], slope[1][c]};
    const Share<float> s = by[0].share(x[0]), t = by[1].share(x[1]);
    slope[0][c] = by[0].slope(slope_by_logarithm(s, t), s.value, found[1], x[0]) * factor[0];
    slope[1][c] = by[1].slope(slope_by_logarithm(t, s), t.value, found[2], x[1]) * factor[1];
  }
  return 0.5f * found[0];
}

// The mean of the divergences, by one warp.
CSCL_D void write_loss(const Arguments& call, float present) {
  const volatile float* divergence = call.divergence;  // written by other blocks
  FloatPair total;
  for (int k = threadIdx.x; k < call.sums[0].classes; k += kWarpLanes) {
    total = add_to(total, divergence[k]);
  }
  float sum = rounded(total);
#pragma unroll
  for (int step = kWarpLanes / 2; step > 0; step /= 2) {
    sum += __shfl_xor_sync(kWholeWarp, sum, step);
  }
  if (threadIdx.x == 0) *call.loss = present > 0.0f ? sum / present : 0.0f;
}

template <bool kSoftmax>
__global__ void __launch_bounds__(kThreads, 1)
    compare_classes(const __grid_constant__ Arguments call) {
  SharedMemory memory;
  const auto parts = memory.array<float>(kFinishFloats * kThreads);
  const auto room = memory.array<float>(3 * kWarps);
  const auto is_last = memory.array<int>(1);
  const int k = blockIdx.x;
  const float present = count_present(call, room);
  const float mass[2] = {mass_of(call.sums[0], k), mass_of(call.sums[1], k)};
  float divergence = 0.0f;
  if (mass[0] > 0.0f && mass[1] > 0.0f) {
    divergence = compare_class<kSoftmax>(call, k, mass, present, parts, room);
  } else {
    const int64_t channels = call.sums[0].channels;
    for (int c = threadIdx.x; c < channels; c += kThreads) {
      call.slope[0][k * channels + c] = 0.0f;
      call.slope[1][k * channels + c] = 0.0f;
    }
  }
  if (threadIdx.x == 0) {
    call.divergence[k] = divergence;
    __threadfence();  // the divergence is there before the count
    is_last.set(0, atomicAdd(call.finished, 1u) + 1 == gridDim.x);
  }
  __syncthreads();
  if (is_last[0] == 0) return;
  __threadfence();
  if (threadIdx.x < kWarpLanes) write_loss(call, present);
}

}  // namespace

void symmetric_soft_divergence(const SymmetricSoftDivergenceCall& call, const Context& context) {
  const DeviceScope scope(context);
  const LabelledFeatures sides[2] = {call.source, call.target};
  const ClassSums sums = sum_by_class(sides, 2, context);
  const int64_t classes = call.source.labels.classes;
  Arguments arguments;
  arguments.sums[0] = sums.side[0];
  arguments.sums[1] = sums.side[1];
  arguments.slope[0] = call.source_slope;
  arguments.slope[1] = call.target_slope;
  arguments.loss = call.loss;
  arguments.divergence =
      static_cast<float*>(context.scratch(static_cast<size_t>(classes) * sizeof(float)));
  arguments.finished = sums.counter;
  // An eps that is not a normal float has no logarithm.
  arguments.eps = static_cast<float>(call.eps < FLT_MIN ? FLT_MIN : call.eps);
  launch("symmetric_soft_divergence", call.softmax ? compare_classes<true> : compare_classes<false>,
         context, classes, kThreads,
         shared_bytes<float>(kFinishFloats * kThreads) + shared_bytes<float>(3 * kWarps) +
             shared_bytes<int>(1),
         arguments);
}

}  // namespace cscl::cuda
