// Self-training loss of logits [B, K, h, w] at H x W, the second term of Eq. 7: the mean over the
// kept pixels of their cross-entropy with soft pseudo-labels, which the same walk solves, and its
// gradient [B, K, h, w].
//
// Bytes that must move at another size: next to none, the logits are small and stay in the cache.
// Arithmetic is the limit: about 25 instructions for a class of a pixel, 8 more for the gradient;
// a second exponential and a second set of logits where another network gives the labels. At the
// logits' own size 4 K bytes a pixel and network are read, for the gradient once more, and 4 K
// written.
#include "cuda/pseudo_label_body.h"

namespace cscl::cuda {

void pseudo_label_loss(const PseudoLabelLossCall& call, const LossResult& result,
                       const Context& context) {
  if (call.label_logits.data != nullptr) return given_label_loss(call, result, context);
  run_self_training<OwnLabels>(call, nullptr, result, context);
}

void pseudo_label_loss_gradient(const PseudoLabelLossCall& call, const OwnSizeGradient& result,
                                const Context& context) {
  if (call.label_logits.data != nullptr) return given_label_loss_gradient(call, result, context);
  run_self_training_gradient<OwnLabels>(call, nullptr, result, context);
}

}  // namespace cscl::cuda
