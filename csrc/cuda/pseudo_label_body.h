// What the self-training loss does with a pixel; the file that is compiled is pseudo_label_loss.cu,
// and pseudo_label_loss_given.cu for labels that another network gives.
#pragma once

#include "core/pseudo_label_loss.h"
#include "cuda/label_rule.h"
#include "cuda/loss_body.h"

namespace cscl::cuda {

struct SelfTrainingArguments {
  LabelRule rule;
  LossArguments loss;
};

// A function of its own, as label_carefully is: the loss of a pixel that labels itself, negative
// where it is rejected; the gradient in place of the logits.
static __device__ __noinline__ float own_label_loss_carefully(TileColumn column, int classes,
                                                              Shared<float> penalty_high,
                                                              Shared<float> penalty_low,
                                                              float gamma_high, float gamma_low,
                                                              bool want_gradient, float scale) {
  PairColumn pairs{column};
  const CarefulPlan plan{{penalty_high, penalty_low}, FloatPair(gamma_high, gamma_low)};
  return solve_own_label_loss_carefully<FloatPair>(pairs, classes, plan, want_gradient, scale);
}
CSCL_D float own_label_loss_carefully(const TileColumn& column, int classes, const LabelPlan& plan,
                                      bool want_gradient, float scale) {
  const CarefulPlan& careful = plan.careful_plan;
  return own_label_loss_carefully(column, classes, careful.penalty.high, careful.penalty.low,
                                  careful.careful_gamma.high, careful.careful_gamma.low,
                                  want_gradient, scale);
}

// Takes the e_k that nobody will look at.
struct Nothing {
  CSCL_D void set(int, float) const {}
};

template <typename Rule, bool kOther, LossKind kKind>
struct SelfTrainingBody {
  using Arguments = SelfTrainingArguments;
  static constexpr int kInputs = kOther ? 2 : 1;
  static constexpr bool kPlanesOnly = true;
  static constexpr bool kStores = kKind == LossKind::gradient, kScratch = true,
                        kOtherColumn = kKind != LossKind::value,
                        kGradient = kKind == LossKind::value_and_gradient;
  static constexpr size_t bytes(int classes) {
    return LabelPlan::bytes(classes) + LossState<kKind>::bytes();
  }

  LabelPlan plan;
  LossState<kKind> state;

  CSCL_D SelfTrainingBody(const Arguments& arguments, int classes, SharedMemory& memory)
      : plan(arguments.rule, classes, memory), state(arguments.loss, memory) {}

  template <typename Column, typename Classes>
  CSCL_D int solve(Column& column, Column& other, Classes classes, const TileColumn& scratch,
                   int64_t /*pixel*/) {
    if constexpr (kOther) {  // ŷ in `other`, the e_k in `column`
      const bool kept = solve_label<Rule>(other, classes, plan, scratch_of(other, scratch)).kept;
      const PixelLoss<float> loss = solve_given_label_loss<float>(column, other, classes, kept);
      state.add(loss);
      leave_gradient(column, column, other, loss, classes);
    } else if (plan.careful) {
      const TileColumn place = placed(column, scratch, classes);
      const float loss =
          own_label_loss_carefully(place, classes, plan, kKind != LossKind::value, state.scale);
      state.add({loss, 1.0f, loss >= 0.0f});
      if (kKind != LossKind::value) take_back(place, column, classes);
    } else {  // ŷ in `column`, the e_k in `other`
      if constexpr (kKind == LossKind::value) {
        Nothing nothing;
        state.add(solve_own_label_loss<float>(column, nothing, classes, Rule{plan}, true));
      } else if constexpr (kRegistersOf<Classes> > 20) {  // no registers for both
        PaddedTileColumn<Classes> shares{scratch, classes};
        const auto loss = solve_own_label_loss<float>(column, shares, classes, Rule{plan}, true);
        state.add(loss);
        leave_gradient(column, shares, column, loss, classes);
      } else {
        const auto loss = solve_own_label_loss<float>(column, other, classes, Rule{plan}, true);
        state.add(loss);
        leave_gradient(column, other, column, loss, classes);
      }
    }
    return 0;
  }
  template <int kCount>
  CSCL_D void results(const int (&)[kCount], int64_t) const {}
  CSCL_D void finish() const { state.finish(); }

 private:
  // Where a label may be solved carefully: a column in shared memory is its own place.
  CSCL_D static TileColumn scratch_of(const TileColumn& column, const TileColumn&) {
    return column;
  }
  template <int kCount>
  CSCL_D static TileColumn scratch_of(const RegisterColumn<kCount>&, const TileColumn& scratch) {
    return scratch;
  }

  CSCL_D static TileColumn placed(const TileColumn& column, const TileColumn&, Rolled) {
    return column;
  }
  template <int kCount, typename Classes>
  CSCL_D static TileColumn placed(const RegisterColumn<kCount>& column, const TileColumn& scratch,
                                  Classes classes) {
    copy_column(column, scratch, classes);
    return scratch;
  }
  CSCL_D static void take_back(const TileColumn&, const TileColumn&, Rolled) {}
  template <int kCount, typename Classes>
  CSCL_D static void take_back(const TileColumn& place, RegisterColumn<kCount>& column,
                               Classes classes) {
    copy_column(place, column, classes, 0.0f);
  }

  template <typename Column, typename Shares, typename Classes>
  CSCL_D void leave_gradient(Column& to, const Shares& shares, const Column& soft,
                             const PixelLoss<float>& loss, Classes classes) const {
    if (kKind == LossKind::value) return;
    const float scale = loss.scale * state.scale;
    const int end = loop_end(classes);
    CSCL_UNROLL(32)
    for (int k = 0; k < end; ++k) {
      to.set(k, loss.counted ? shares.get(k) * scale - soft.get(k) * state.scale : 0.0f);
    }
  }
};

inline auto arguments_of(const PseudoLabelLossCall& call) {
  return [&call](const LossArguments& loss) {
    return SelfTrainingArguments{label_rule(call.thresholds, call.gamma), loss};
  };
}

template <typename Rule>
struct OwnLabels {
  template <LossKind kKind>
  using Body = SelfTrainingBody<Rule, false, kKind>;
};
template <typename Rule>
struct GivenLabels {
  template <LossKind kKind>
  using Body = SelfTrainingBody<Rule, true, kKind>;
};

// The two halves, each compiled in a file of its own.
template <template <typename> class Labels>
void run_self_training(const PseudoLabelLossCall& call, const LogitsView* other,
                       const LossResult& result, const Context& context) {
  const DeviceScope scope(context);
  with_rule_and_classes(call.gamma, call.logits.classes, [&](auto tag, auto classes) {
    run_loss<decltype(classes), Labels<typename decltype(tag)::type>::template Body>(
        "pseudo_label_loss", call.logits, other, classes, result, arguments_of(call), context);
  });
}
template <template <typename> class Labels>
void run_self_training_gradient(const PseudoLabelLossCall& call, const LogitsView* other,
                                const OwnSizeGradient& result, const Context& context) {
  const DeviceScope scope(context);
  with_rule_and_classes(call.gamma, call.logits.classes, [&](auto tag, auto classes) {
    run_gradient<decltype(classes), Labels<typename decltype(tag)::type>::template Body>(
        "pseudo_label_loss_gradient", call.logits, other, classes, result, arguments_of(call),
        context);
  });
}

void given_label_loss(const PseudoLabelLossCall& call, const LossResult& result,
                      const Context& context);
void given_label_loss_gradient(const PseudoLabelLossCall& call, const OwnSizeGradient& result,
                               const Context& context);

}  // namespace cscl::cuda
