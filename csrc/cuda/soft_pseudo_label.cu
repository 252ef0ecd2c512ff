// Soft pseudo-labels of logits [B, K, h, w] at H x W: soft [B, K, H, W] in the logits' type and
// hard [B, H, W] int64, Eq. 8-10.
//
// Bytes that must move for a float32 pixel at the logits' own size: 4 K read, 4 K + 8 written; K =
// 19: 160. About 35 instructions for a class are a quarter of what the arithmetic units do while
// the memory moves these, so that the memory is the limit, and each logit is read exactly once: all
// K of a pixel stay in registers from the load to the store. At a larger size only the writing is
// left, and the arithmetic comes close. How the pixels are walked: pixel_walk.h and
// upsampled_walk.h.
#include "cuda/label_rule.h"
#include "cuda/upsampled_kernels.h"

namespace cscl::cuda {
namespace {

template <typename Rule>
struct LabelBody {
  struct Arguments {
    LabelRule rule;
    int64_t* hard;
  };
  static constexpr int kInputs = 1;
  static constexpr bool kPlanesOnly = false;
  static constexpr bool kStores = true, kScratch = true, kOtherColumn = false, kGradient = false;
  static constexpr size_t bytes(int classes) { return LabelPlan::bytes(classes); }

  LabelPlan plan;
  int64_t* hard;

  CSCL_D LabelBody(const Arguments& arguments, int classes, SharedMemory& memory)
      : plan(arguments.rule, classes, memory), hard(arguments.hard) {}

  template <typename Column, typename Classes>
  CSCL_D int solve(Column& column, Column& /*other*/, Classes classes, const TileColumn& scratch,
                   int64_t /*pixel*/) const {
    return solve_label<Rule>(column, classes, plan, scratch).hard;
  }
  template <int kCount>
  CSCL_D void results(const int (&found)[kCount], int64_t pixel) const {
    Pack<int64_t, kCount == 1 ? 1 : 2> pack;
#pragma unroll
    for (int i = 0; i < kCount; i += kCount == 1 ? 1 : 2) {
      pack.values[0] = found[i];
      if constexpr (kCount > 1) pack.values[1] = found[i + 1];
      *reinterpret_cast<decltype(pack)*>(hard + pixel + i) = pack;
    }
  }
  CSCL_D void finish() const {}
};

}  // namespace

void soft_pseudo_labels(const SoftPseudoLabelCall& call, const Context& context) {
  const DeviceScope scope(context);
  const LogitsView& view = call.logits;
  const PixelStore store{call.soft, view.type, call.soft_channels_last};
  with_rule_and_classes(call.gamma, view.classes, [&](auto tag, auto classes) {
    using Body = LabelBody<typename decltype(tag)::type>;
    using Classes = decltype(classes);
    const typename Body::Arguments arguments{label_rule(call.thresholds, call.gamma), call.hard};
    if (view.height == view.out_height && view.width == view.out_width) {
      const OwnSizeWalk walk = plan_walk<Classes, Body>(view, nullptr, store, context);
      walk_logits<Classes, Body>("soft_pseudo_labels", walk, view, nullptr, classes, arguments,
                                 store, context);
    } else {
      const Tiling tiling = plan_upsampled<Classes, Body>(view, context);
      walk_upsampled_logits<Classes, Body>("soft_pseudo_labels", tiling, view, nullptr, classes,
                                           arguments, store, nullptr, context);
    }
  });
}

}  // namespace cscl::cuda
