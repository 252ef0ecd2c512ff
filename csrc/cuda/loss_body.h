// What the bodies of both losses share.
#pragma once

#include "cuda/loss_total.h"
#include "cuda/upsampled_kernels.h"

namespace cscl::cuda {

// What is asked of a walk.
enum class LossKind {
  value,               // the mean only
  value_and_gradient,  // and, upsampled, the gradient of the sum by the source locations
  gradient,            // at the logits' own size: the gradient, times a known scale
};

struct LossArguments {
  LossParts parts;     // value
  const float* scale;  // gradient
};

// Totals or scale, whichever the kind has.
template <LossKind kKind>
struct LossState {
  static constexpr bool kTotals = kKind != LossKind::gradient;
  static constexpr size_t bytes() { return kTotals ? LossSum::bytes() : 0; }

  LossParts parts;
  float scale;
  LossSum sum;
  BlockSum<float> losses;
  BlockSum<int> counts;

  CSCL_D LossState(const LossArguments& arguments, SharedMemory& memory)
      : parts(arguments.parts),
        scale(kTotals ? 1.0f : *arguments.scale),
        losses(kTotals ? BlockSum<float>(memory) : BlockSum<float>()),
        counts(kTotals ? BlockSum<int>(memory) : BlockSum<int>()) {}

  CSCL_D void add(const PixelLoss<float>& pixel) {
    if (kTotals) sum.add(pixel.loss, pixel.counted);
  }
  CSCL_D void finish() const {
    if (kTotals) sum.write(parts, losses, counts);
  }
};

// Runs a body over the logits and finishes the loss: one walk and one small kernel after it.
template <typename Classes, template <LossKind> class BodyOf, typename MakeArguments>
void run_loss(const char* name, const LogitsView& view, const LogitsView* other, Classes classes,
              const LossResult& result, const MakeArguments& arguments, const Context& context) {
  const PixelStore nowhere = {};
  if (view.height == view.out_height && view.width == view.out_width) {
    using Body = BodyOf<LossKind::value>;
    const OwnSizeWalk walk = plan_walk<Classes, Body>(view, other, nowhere, context);
    const LossParts parts = loss_parts(walk.blocks, context);
    walk_logits<Classes, Body>(name, walk, view, other, classes, arguments({parts, nullptr}),
                               nowhere, context);
    finish(parts, walk.blocks, result.loss, result.count, context);
    return;
  }
  if (result.gradient == nullptr) {
    using Body = BodyOf<LossKind::value>;
    const Tiling tiling = plan_upsampled<Classes, Body>(view, context);
    const LossParts parts = loss_parts(tiling.blocks(view.batch), context);
    walk_upsampled_logits<Classes, Body>(name, tiling, view, other, classes,
                                         arguments({parts, nullptr}), nowhere, nullptr, context);
    finish(parts, tiling.blocks(view.batch), result.loss, result.count, context);
    return;
  }
  using Body = BodyOf<LossKind::value_and_gradient>;
  const Tiling tiling = plan_upsampled<Classes, Body>(view, context);
  const int64_t blocks = tiling.blocks(view.batch);
  const LossParts parts = loss_parts(blocks, context);
  float* gradient_parts = static_cast<float*>(
      context.scratch(static_cast<size_t>(blocks * tiling.part(classes)) * sizeof(float)));
  walk_upsampled_logits<Classes, Body>(name, tiling, view, other, classes,
                                       arguments({parts, nullptr}), nowhere, gradient_parts,
                                       context);
  finish_with_gradient(parts, view.batch, classes, gradient_parts, tiling, result, context);
}

// The gradient at the logits' own size, in one walk.
template <typename Classes, template <LossKind> class BodyOf, typename MakeArguments>
void run_gradient(const char* name, const LogitsView& view, const LogitsView* other,
                  Classes classes, const OwnSizeGradient& result, const MakeArguments& arguments,
                  const Context& context) {
  using Body = BodyOf<LossKind::gradient>;
  const PixelStore store{result.gradient, result.type, result.channels_last};
  const OwnSizeWalk walk = plan_walk<Classes, Body>(view, other, store, context);
  walk_logits<Classes, Body>(name, walk, view, other, classes, arguments({{}, result.scale}), store,
                             context);
}

}  // namespace cscl::cuda
