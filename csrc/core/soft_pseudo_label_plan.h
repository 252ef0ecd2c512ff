// What the thresholds δ and γ are turned into, once per call, before any pixel is looked at.
#pragma once

#include "core/arithmetic.h"

namespace cscl {

constexpr int kMaximumClasses = 256;
constexpr int kRejected = 255;

// The three ways to solve a pixel in core/soft_pseudo_label.h, fastest first.
enum class SolveRule { power, exponential, careful };

struct SoftPseudoLabelPlan {
  SolveRule rule;
  int squarings;                    // power: 1/γ = 2^squarings
  float inverse_gamma;              // exponential: 1/γ
  float gamma;                      // exponential: γ
  double careful_gamma;             // careful: γ
  float scale[kMaximumClasses];     // power: 1/δ; exponential: δ^(-1/γ)
  double penalty[kMaximumClasses];  // careful: -log δ
};

// Chooses the fastest rule that keeps the contract's accuracy for these δ in (0, 1] and γ > 0.
SoftPseudoLabelPlan plan_soft_pseudo_labels(const float* thresholds, int classes, double gamma);

// 1/γ = 2^squarings, for up to three; kNotAPower: for none.
constexpr int kNotAPower = 4;
int squarings_of(double gamma);

}  // namespace cscl

CSCL_CORE_BEGIN

// A careful γ is at least this: 0 / γ must stay 0.
constexpr double kSmallestGamma = 1e-290;

// `highest_penalty` is the largest -log δ.
template <typename Scalar>
CSCL_HD SolveRule choose_solve_rule(Scalar highest_penalty, Scalar inverse_gamma, int squarings) {
  // How many nats below the largest logit a class can lie and still weigh something, beyond the
  // log(1/δ) that its threshold gives it.
  constexpr Scalar margin = 4;
  // A float32 difference of logits carries an error of 6e-8 of its size, and 1/γ multiplies it:
  // below 80 the sum Σ (p/δ)^(1/γ) stays within 5e-6 relative (the contract decides at 1e-5), and
  // δ^(-1/γ) below e^80 = 6e34, far from overflow. The exponential rule rounds a product more.
  constexpr Scalar power_limit = 80, exponential_limit = 40;
  // exp() stays at e^-86 for everything below it, which must not weigh after division by δ either.
  constexpr Scalar smallest_threshold = 60;  // as log(1/δ)

  const Scalar spread = (highest_penalty + margin) * inverse_gamma;
  if (squarings < kNotAPower && spread <= power_limit && highest_penalty <= smallest_threshold) {
    return SolveRule::power;
  }
  return spread <= exponential_limit ? SolveRule::exponential : SolveRule::careful;
}

CSCL_CORE_END
