// The self-training loss with labels from another network's logits: pseudo_label_loss.cu's other
// half, apart so that the two are compiled side by side.
#include "cuda/pseudo_label_body.h"

namespace cscl::cuda {

void given_label_loss(const PseudoLabelLossCall& call, const LossResult& result,
                      const Context& context) {
  run_self_training<GivenLabels>(call, &call.label_logits, result, context);
}

void given_label_loss_gradient(const PseudoLabelLossCall& call, const OwnSizeGradient& result,
                               const Context& context) {
  run_self_training_gradient<GivenLabels>(call, &call.label_logits, result, context);
}

}  // namespace cscl::cuda
