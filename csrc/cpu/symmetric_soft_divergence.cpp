// Category alignment L_div, Eq. 11: mean over the classes present on both sides of the symmetric
// divergence of their centroids' distributions over the channels; 0 without such a class.
//
// Bytes that must move: the features of both sides, read once (cpu/class_sums.h). What follows
// works on [K, C], in double, one class a task, and finds the gradient along with the loss: of the
// features nothing is read again, and the backward pass (centroid_gradient) only writes.
#include "core/symmetric_soft_divergence.h"

#include "core/soft_pseudo_label_plan.h"
#include "cpu/class_sums.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"
#include "cpu/tile.h"

namespace cscl::cpu::CSCL_ISA {
namespace {

// One side of one class: centroid, share and its logarithm, [C] each, up to a whole vector.
struct Distribution {
  double* centroid;
  double* value;
  double* logarithm;

  CSCL_HD Share<Double> share(int64_t c) const {
    return {load<Double>(value + c), load<Double>(logarithm + c)};
  }
};

CSCL_HD double sum_of(Double vector) {
  double total = 0.0;
  for (int lane = 0; lane < kDoubleLanes; ++lane) total += vector[lane];
  return total;
}

// All bits in the lanes that are channels, none in those that fill up the last vector.
CSCL_HD Long lanes_below(int64_t count) {
  Long lanes;
  for (int lane = 0; lane < kDoubleLanes; ++lane) lanes[lane] = lane < count ? -1 : 0;
  return lanes;
}

// Sums part(c) over the channels; what fills up the last vector does not count, whatever it is.
template <typename Part>
CSCL_HD double sum_channels(int64_t channels, const Part& part) {
  Double total = {};
  int64_t c = 0;
  for (; c + kDoubleLanes <= channels; c += kDoubleLanes) total = total + part(c);
  if (c < channels) total = total + select(lanes_below(channels - c), part(c), Double{});
  return sum_of(total);
}

void normalise_softmax(const Distribution& side, int64_t channels) {
  double largest = side.centroid[0];
  for (int64_t c = 1; c < channels; ++c) {
    largest = side.centroid[c] > largest ? side.centroid[c] : largest;
  }
  const double total = sum_channels(channels, [&](int64_t c) {
    const Double below = load<Double>(side.centroid + c) - largest;
    const Double e = exponential(below);
    store(side.logarithm + c, below);
    store(side.value + c, e);
    return e;
  });
  const double scale = 1.0 / total, log_total = logarithm(total);
  for (int64_t c = 0; c < channels; c += kDoubleLanes) {
    store(side.value + c, load<Double>(side.value + c) * scale);
    store(side.logarithm + c, load<Double>(side.logarithm + c) - log_total);
  }
}

void normalise_l1(const Distribution& side, int64_t channels, double eps) {
  const double total = sum_channels(channels, [&](int64_t c) {
    const Double q = positive_part(load<Double>(side.centroid + c), eps);
    store(side.value + c, q);
    return q;
  });
  // NaN once a centroid is NaN or infinite, which the logarithm does not see.
  const double disorder = total - total;
  const double scale = 1.0 / total, log_total = logarithm(total) + disorder;
  for (int64_t c = 0; c < channels; c += kDoubleLanes) {
    const Double q = load<Double>(side.value + c);
    store(side.value + c, q * scale);
    store(side.logarithm + c, logarithm(q) - log_total);
  }
}

// The gradient of `share` times the divergence of s and t by what one location of weight 1 adds to
// the centroid of s: 1 / mass of itself.
void write_slopes(const SymmetricSoftDivergenceCall& call, const Distribution& s,
                  const Distribution& t, int64_t channels, double share, float* to) {
  const double total = sum_channels(
      channels, [&](int64_t c) { return slope_by_logarithm<Double>(s.share(c), t.share(c)); });
  for (int64_t c = 0; c < channels; c += kDoubleLanes) {
    const Share<Double> of = s.share(c);
    Double slope = slope_by_logarithm<Double>(of, t.share(c));
    if (call.softmax) {
      slope = softmax_slope<Double>(slope, of.value, total);
    } else {
      slope = l1_slope<Double>(slope, of.value, total, load<Double>(s.centroid + c), call.eps);
    }
    const HalfFloat narrowed = __builtin_convertvector(slope * share, HalfFloat);
    if (c + kDoubleLanes <= channels) {
      store(to + c, narrowed);
    } else {
      for (int64_t i = 0; i < channels - c; ++i) to[c + i] = narrowed[i];
    }
  }
}

}  // namespace

void symmetric_soft_divergence(const SymmetricSoftDivergenceCall& call, int threads) {
  const int64_t classes = call.source.labels.classes, channels = call.source.features.classes;
  float* slopes[2] = {call.source_slope, call.target_slope};
  const SumPlan plans[2] = {plan_sums(call.source), plan_sums(call.target)};
  const int64_t row = plans[0].row;
  const int64_t workers = channels * classes < 4096 ? 1 : smaller_of(threads, classes);
  const Scratch scratch((plans[0].doubles + plans[1].doubles + workers * 6 * row) * 8);
  double* memory[3] = {scratch.doubles(), scratch.doubles() + plans[0].doubles,
                       scratch.doubles() + plans[0].doubles + plans[1].doubles};
  const ClassSums sums[2] = {sum_by_class(call.source, plans[0], memory[0], threads),
                             sum_by_class(call.target, plans[1], memory[1], threads)};

  int64_t present = 0;
  for (int64_t k = 0; k < classes; ++k) present += sums[0].mass[k] > 0 && sums[1].mass[k] > 0;

  double divergence[kMaximumClasses];
  parallel_for(classes, static_cast<int>(workers), [&](int64_t k, int worker) {
    divergence[k] = 0.0;
    if (!(sums[0].mass[k] > 0 && sums[1].mass[k] > 0)) {
      for (float* slope : slopes) {
        for (int64_t c = 0; c < channels; ++c) slope[k * channels + c] = 0.0f;
      }
      return;
    }
    Distribution side[2];
    for (int i = 0; i < 2; ++i) {
      double* rows = memory[2] + (worker * 6 + i * 3) * row;
      side[i] = {rows, rows + row, rows + 2 * row};
      for (int64_t c = 0; c < channels; c += kDoubleLanes) {
        store(side[i].centroid + c, centroid_of(sums[i], classes, k, c));
      }
      if (call.softmax) {
        normalise_softmax(side[i], channels);
      } else {
        normalise_l1(side[i], channels, call.eps);
      }
    }
    divergence[k] = 0.5 * sum_channels(channels, [&](int64_t c) {
                      return divergence_of<Double>(side[0].share(c), side[1].share(c));
                    });
    for (int i = 0; i < 2; ++i) {
      const double share = 1.0 / (sums[i].mass[k] * static_cast<double>(present));
      write_slopes(call, side[i], side[1 - i], channels, share, slopes[i] + k * channels);
    }
  });
  double total = 0.0;
  for (int64_t k = 0; k < classes; ++k) total += divergence[k];
  *call.loss = static_cast<float>(present > 0 ? total / static_cast<double>(present) : 0.0);
}

}  // namespace cscl::cpu::CSCL_ISA
