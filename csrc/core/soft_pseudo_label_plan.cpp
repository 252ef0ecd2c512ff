#include "core/soft_pseudo_label_plan.h"

#include <algorithm>
#include <cmath>

namespace cscl {

int squarings_of(double gamma) {
  int squarings = 0;
  while (squarings < kNotAPower && 1.0 / gamma != std::ldexp(1.0, squarings)) ++squarings;
  return squarings;
}

SoftPseudoLabelPlan plan_soft_pseudo_labels(const float* thresholds, int classes, double gamma) {
  SoftPseudoLabelPlan plan = {};
  const double inverse_gamma = 1.0 / gamma;
  plan.inverse_gamma = static_cast<float>(inverse_gamma);
  plan.gamma = static_cast<float>(gamma);
  plan.careful_gamma = std::max(gamma, kSmallestGamma);
  plan.squarings = squarings_of(gamma);

  double highest_penalty = 0.0;
  for (int k = 0; k < classes; ++k) {
    plan.penalty[k] = -std::log(static_cast<double>(thresholds[k]));
    highest_penalty = std::max(highest_penalty, plan.penalty[k]);
  }
  plan.rule = choose_solve_rule(highest_penalty, inverse_gamma, plan.squarings);
  if (plan.rule == SolveRule::careful) return plan;
  for (int k = 0; k < classes; ++k) {
    const double power = plan.rule == SolveRule::power ? 1.0 : inverse_gamma;
    plan.scale[k] = static_cast<float>(std::exp(power * plan.penalty[k]));
  }
  return plan;
}

}  // namespace cscl
