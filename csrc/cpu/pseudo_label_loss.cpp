// Self-training loss of logits [B, K, h, w] at H x W, the second term of Eq. 7: the mean over the
// kept pixels of their cross-entropy with soft pseudo-labels, which the same walk solves, and its
// gradient [B, K, h, w].
//
// Bytes that must move: only the small logits and their gradient. Arithmetic is the limit: about 35
// vector instructions for a class of kLanes pixels; one exponential where the network labels itself
// and 1/γ is a power of two. How the pixels are walked: cpu/loss_walk.h.
#include "core/pseudo_label_loss.h"

#include "cpu/loss_walk.h"

namespace cscl::cpu::CSCL_ISA {
namespace {

// How many of the kLanes pixels from i on are among `count`, as a mask.
CSCL_HD Int pixels_inside(int64_t i, int64_t count) {
  Int lane;
  for (int j = 0; j < kLanes; ++j) lane[j] = j;
  return lane < static_cast<int32_t>(smaller_of(count - i, kLanes));
}

// The network labels itself, by a rule that works on one vector of pixels.
template <typename Rule>
class OwnLabels {
 public:
  static constexpr bool kOtherLogits = false;
  explicit OwnLabels(const Rule& rule) : rule_(rule), count_(0) {}
  void begin(int64_t, int64_t, int64_t count) { count_ = count; }

  // Leaves ŷ in `column` and the e_k in `other`.
  template <int kClasses>
  CSCL_HD PixelLoss<Float> solve(int64_t i, RegisterColumn<kClasses>& column,
                                 RegisterColumn<kClasses>& other, int classes) const {
    return solve_own_label_loss<Float>(column, other, classes, rule_, pixels_inside(i, count_));
  }
  template <int kClasses>
  CSCL_HD Float gradient(int64_t, int k, const RegisterColumn<kClasses>& column,
                         const RegisterColumn<kClasses>& other,
                         const PixelLoss<Float>& solved) const {
    return multiply_add(other.get(k), solved.scale, -column.get(k));
  }

 private:
  Rule rule_;
  int64_t count_;
};

// Another network's logits give the labels; `Solver` makes them.
template <typename Solver, bool kOther>
class GivenLabels {
 public:
  static constexpr bool kOtherLogits = kOther;
  explicit GivenLabels(const Solver& solver) : solver_(solver), count_(0) {}
  void begin(int64_t, int64_t, int64_t count) { count_ = count; }

  // Leaves the e_k in `column` and ŷ in `other`.
  template <int kClasses>
  CSCL_HD PixelLoss<Float> solve(int64_t i, RegisterColumn<kClasses>& column,
                                 RegisterColumn<kClasses>& other, int classes) const {
    if (!kOther) {
      for (int k = 0; k < classes; ++k) other.values[k] = column.values[k];
    }
    const Int kept = solver_(other, classes) & pixels_inside(i, count_);
    return solve_given_label_loss<Float>(column, other, classes, kept);
  }
  template <int kClasses>
  CSCL_HD Float gradient(int64_t, int k, const RegisterColumn<kClasses>& column,
                         const RegisterColumn<kClasses>& other,
                         const PixelLoss<Float>& solved) const {
    return multiply_add(column.get(k), solved.scale, -other.get(k));
  }

 private:
  Solver solver_;
  int64_t count_;
};

// Soft labels in place of the logits, by a rule; which pixels are kept.
template <typename Rule>
struct RuleSolver {
  Rule rule;
  template <int kClasses>
  CSCL_HD Int operator()(RegisterColumn<kClasses>& column, int classes) const {
    return solve_soft_pseudo_label<Float>(column, classes, rule).kept;
  }
};

// The same in double, half a vector at a time.
struct CarefulSolver {
  const SoftPseudoLabelPlan& plan;
  template <int kClasses>
  CSCL_HD Int operator()(RegisterColumn<kClasses>& column, int classes) const {
    alignas(64) int32_t hard[kLanes];
    solve_tile_carefully(classes, reinterpret_cast<float*>(column.values), kLanes, kLanes, plan,
                         hard);
    // The label of a kept pixel sums to 1 (class 255 of 256 is kRejected as a number).
    Float sum = {};
    for (int k = 0; k < classes; ++k) sum = sum + column.get(k);
    return sum > 0.5f;
  }
};

template <typename Element, typename Rule>
void walk(const PseudoLabelLossCall& call, const Rule& rule, int threads) {
  const RuleSolver<Rule> solver{rule};
  const bool other = call.label_logits.data != nullptr;
  if (other) {
    const GivenLabels<RuleSolver<Rule>, true> loss(solver);
    walk_loss<Element, 0>(call, loss, call.label_logits, threads);
  } else {
    walk_loss<Element, 0>(call, OwnLabels<Rule>(rule), call.logits, threads);
  }
}

template <typename Element, int kClasses>
void walk_fixed(const PseudoLabelLossCall& call, const SoftPseudoLabelPlan& plan, int threads) {
  using Rule = PowerRule<Float, 2>;
  const Rule rule{plan};
  if (call.label_logits.data != nullptr) {
    const GivenLabels<RuleSolver<Rule>, true> loss(RuleSolver<Rule>{rule});
    walk_loss<Element, kClasses>(call, loss, call.label_logits, threads);
  } else {
    walk_loss<Element, kClasses>(call, OwnLabels<Rule>(rule), call.logits, threads);
  }
}

template <typename Element>
void walk(const PseudoLabelLossCall& call, const SoftPseudoLabelPlan& plan, int threads) {
  if (plan.rule == SolveRule::power && plan.squarings == 2) {
    switch (call.logits.classes) {
      case 13:
        return walk_fixed<Element, 13>(call, plan, threads);
      case 16:
        return walk_fixed<Element, 16>(call, plan, threads);
      case 19:
        return walk_fixed<Element, 19>(call, plan, threads);
    }
  }
  if (plan.rule == SolveRule::power) {
    return walk<Element>(call, PowerRule<Float, -1>{plan}, threads);
  }
  if (plan.rule == SolveRule::exponential) {
    return walk<Element>(call, ExponentialRule<Float>{plan}, threads);
  }
  const CarefulSolver solver{plan};
  if (call.label_logits.data != nullptr) {
    const GivenLabels<CarefulSolver, true> loss(solver);
    walk_loss<Element, 0>(call, loss, call.label_logits, threads);
  } else {
    const GivenLabels<CarefulSolver, false> loss(solver);
    walk_loss<Element, 0>(call, loss, call.logits, threads);
  }
}

}  // namespace

void pseudo_label_loss(const PseudoLabelLossCall& call, int threads) {
  const SoftPseudoLabelPlan plan =
      plan_soft_pseudo_labels(call.thresholds, static_cast<int>(call.logits.classes), call.gamma);
  switch (call.logits.type) {
    case DataType::float32:
      return walk<float>(call, plan, threads);
    case DataType::float16:
      return walk<Float16>(call, plan, threads);
    case DataType::bfloat16:
      return walk<BFloat16>(call, plan, threads);
  }
}

}  // namespace cscl::cpu::CSCL_ISA
