// What the thresholds δ and γ are turned into, once per call, before any pixel is looked at.
#pragma once

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

}  // namespace cscl
