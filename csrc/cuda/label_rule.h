// Soft pseudo-labels on the device: what δ and γ are turned into, and a pixel solved by it.
//
// γ is known on the host and chooses the kernel; δ lies on the device, and each block turns it into
// a plan in shared memory: reading it on the host would wait for the device. A plan that float32 is
// not enough for (a tiny δ or γ) sends every pixel of the call through label_carefully.
#pragma once

#include <algorithm>

#include "core/float_pair.h"
#include "core/soft_pseudo_label.h"
#include "cuda/columns.h"

namespace cscl::cuda {

// What the host knows.
struct LabelRule {
  const float* thresholds;  // [K]
  float gamma, inverse_gamma;
  float gamma_high, gamma_low;  // γ as a pair
  int squarings;                // 1/γ = 2^squarings, or kNotAPower
};

inline LabelRule label_rule(const float* thresholds, double gamma) {
  LabelRule rule;
  const double careful = std::max(gamma, 1e-30);  // what a float can divide by
  rule.thresholds = thresholds;
  rule.gamma = static_cast<float>(gamma);
  rule.inverse_gamma = static_cast<float>(1.0 / careful);
  rule.gamma_high = static_cast<float>(careful);
  rule.gamma_low = static_cast<float>(careful - static_cast<double>(rule.gamma_high));
  rule.squarings = squarings_of(gamma);
  return rule;
}

// -log δ of the careful rule.
struct Penalties {
  Shared<float> high, low;
  CSCL_D FloatPair operator[](int k) const { return {high[k], low[k]}; }
};

struct CarefulPlan {
  Penalties penalty;
  FloatPair careful_gamma;
};

// What a block knows; `scale`, `squarings`, `gamma` and `inverse_gamma` as the rules of core/ want
// them.
struct LabelPlan {
  Shared<float> scale;  // [K]
  CarefulPlan careful_plan;
  int squarings;
  float gamma, inverse_gamma;
  bool careful;

  // Room for classes that pad the last registers.
  __host__ __device__ static constexpr int padded(int classes) {
    return classes < 32 ? 32 : classes;
  }
  static constexpr size_t bytes(int classes) {
    return shared_bytes<float>(static_cast<size_t>(padded(classes))) +
           2 * shared_bytes<float>(static_cast<size_t>(classes));
  }

  CSCL_D LabelPlan(const LabelRule& rule, int classes, SharedMemory& memory) {
    scale = memory.array<float>(padded(classes));
    careful_plan.penalty.high = memory.array<float>(classes);
    careful_plan.penalty.low = memory.array<float>(classes);
    careful_plan.careful_gamma = FloatPair(rule.gamma_high, rule.gamma_low);
    squarings = rule.squarings;
    gamma = rule.gamma;
    inverse_gamma = rule.inverse_gamma;
    const int thread = static_cast<int>(threadIdx.x);
    if (classes + thread < padded(classes)) scale.set(classes + thread, 0.0f);
    for (int k = thread; k < classes; k += static_cast<int>(blockDim.x)) {
      const float threshold = rule.thresholds[k];
      const FloatPair penalty = -logarithm(FloatPair(threshold));
      careful_plan.penalty.high.set(k, penalty.high);
      careful_plan.penalty.low.set(k, penalty.low);
      // Not used where it overflows: the rule is the careful one then.
      const FloatPair exponent = penalty * FloatPair(inverse_gamma);
      scale.set(k, squarings < kNotAPower
                       ? 1.0f / threshold
                       : 1.0f / exponential(FloatPair(-exponent.high, -exponent.low)).high);
    }
    __syncthreads();
    float highest = 0.0f;
    for (int k = 0; k < classes; ++k) highest = larger(careful_plan.penalty.high[k], highest);
    careful = choose_solve_rule(highest, inverse_gamma, squarings) == SolveRule::careful ||
              (squarings < kNotAPower) !=
                  (choose_solve_rule(highest, inverse_gamma, squarings) == SolveRule::power);
  }
};

// A pixel of a tile, seen in pairs.
struct PairColumn {
  TileColumn column;
  CSCL_D FloatPair get(int k) const { return FloatPair(column.get(k)); }
  CSCL_D void set(int k, FloatPair value) const { column.set(k, value.high); }
};

// Replaces the logits of the column by its soft label; the class of the largest entry, or -1 where
// the pixel is rejected. A function of its own, called by all pixels or by none: it must not cost
// the registers that hold everybody else's logits.
static __device__ __noinline__ int label_carefully(TileColumn column, int classes,
                                                   Shared<float> penalty_high,
                                                   Shared<float> penalty_low, float gamma_high,
                                                   float gamma_low) {
  PairColumn pairs{column};
  const CarefulPlan plan{{penalty_high, penalty_low}, FloatPair(gamma_high, gamma_low)};
  const auto pixel = cscl::solve_carefully<FloatPair>(pairs, classes, plan);
  for (int k = 0; k < classes; ++k) {
    pairs.set(k, careful_label(pixel, pairs.get(k), k, plan));
  }
  return pixel.kept ? pixel.hard : -1;
}

CSCL_D int label_carefully(const TileColumn& column, int classes, const LabelPlan& plan) {
  const CarefulPlan& careful = plan.careful_plan;
  return label_carefully(column, classes, careful.penalty.high, careful.penalty.low,
                         careful.careful_gamma.high, careful.careful_gamma.low);
}

// The rules that the kernels are compiled for: 1/γ a power of two up to eight, and any other.
using DevicePowerRule = PowerRule<float, -1, LabelPlan>;
using DeviceExponentialRule = ExponentialRule<float, LabelPlan>;

// Calls action(RuleTag<Rule>, classes). A sharpness that is no power of ½ is rare: its kernels are
// compiled for 32 classes in registers, or for any number, and for nothing between.
template <typename Rule>
struct RuleTag {
  using type = Rule;
};
template <typename Action>
void with_rule_and_classes(double gamma, int64_t classes, const Action& action) {
  if (squarings_of(gamma) < kNotAPower) {
    with_classes(classes, [&](auto count) { action(RuleTag<DevicePowerRule>{}, count); });
  } else if (classes <= 32) {
    action(RuleTag<DeviceExponentialRule>{}, UpTo<32>{static_cast<int>(classes)});
  } else {
    action(RuleTag<DeviceExponentialRule>{}, Rolled{static_cast<int>(classes)});
  }
}

struct SolvedLabel {
  int hard;
  bool kept;
};

// Replaces the logits of a column by its soft label. `scratch` is the thread's own place in shared
// memory, which may be where the column is.
template <typename Rule, typename Classes>
CSCL_D SolvedLabel solve_label(RegisterColumn<kRegistersOf<Classes>>& column, Classes classes,
                               const LabelPlan& plan, const TileColumn& scratch) {
  if (plan.careful) {
    copy_column(column, scratch, classes);
    const int hard = label_carefully(scratch, classes, plan);
    copy_column(scratch, column, classes, 0.0f);
    return {hard < 0 ? kRejected : hard, hard >= 0};
  }
  const auto solved = solve_soft_pseudo_label<float>(column, classes, Rule{plan});
  return {solved.hard, solved.kept};
}
template <typename Rule>
CSCL_D SolvedLabel solve_label(TileColumn& column, Rolled classes, const LabelPlan& plan,
                               const TileColumn& /*scratch*/) {
  if (plan.careful) {
    const int hard = label_carefully(column, classes, plan);
    return {hard < 0 ? kRejected : hard, hard >= 0};
  }
  const auto solved = solve_soft_pseudo_label<float>(column, classes, Rule{plan});
  return {solved.hard, solved.kept};
}

}  // namespace cscl::cuda
