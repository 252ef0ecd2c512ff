#include "core/soft_pseudo_label_plan.h"

#include <algorithm>
#include <cmath>

namespace cscl {
namespace {

// How many nats below the largest logit a class can lie and still weigh something, beyond the
// log(1/δ) that its threshold gives it.
constexpr double kMargin = 4.0;

// A float32 difference of logits carries an error of 6e-8 of its size, and 1/γ multiplies it: below
// 80 the sum Σ (p/δ)^(1/γ) stays within 5e-6 relative (the contract decides at 1e-5), and δ^(-1/γ)
// below e^80 = 6e34, far from overflow. The exponential rule rounds a product more.
constexpr double kPowerLimit = 80.0;
constexpr double kExponentialLimit = 40.0;

// exp() stays at e^-86 for everything below it, which must not weigh after division by δ either.
constexpr double kSmallestThreshold = 60.0;  // as log(1/δ)

}  // namespace

SoftPseudoLabelPlan plan_soft_pseudo_labels(const float* thresholds, int classes, double gamma) {
  SoftPseudoLabelPlan plan = {};
  const double inverse_gamma = 1.0 / gamma;
  plan.inverse_gamma = static_cast<float>(inverse_gamma);
  plan.gamma = static_cast<float>(gamma);
  plan.careful_gamma = std::max(gamma, 1e-290);  // 0 / γ must stay 0

  double highest_penalty = 0.0;
  for (int k = 0; k < classes; ++k) {
    plan.penalty[k] = -std::log(static_cast<double>(thresholds[k]));
    highest_penalty = std::max(highest_penalty, plan.penalty[k]);
  }
  const double spread = (highest_penalty + kMargin) * inverse_gamma;

  while (plan.squarings < 4 && inverse_gamma != std::ldexp(1.0, plan.squarings)) ++plan.squarings;
  if (plan.squarings < 4 && spread <= kPowerLimit && highest_penalty <= kSmallestThreshold) {
    plan.rule = SolveRule::power;
  } else if (spread <= kExponentialLimit) {
    plan.rule = SolveRule::exponential;
  } else {
    plan.rule = SolveRule::careful;
    return plan;
  }
  for (int k = 0; k < classes; ++k) {
    const double power = plan.rule == SolveRule::power ? 1.0 : inverse_gamma;
    plan.scale[k] = static_cast<float>(std::exp(power * plan.penalty[k]));
  }
  return plan;
}

}  // namespace cscl
