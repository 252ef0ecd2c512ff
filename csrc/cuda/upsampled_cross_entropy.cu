// Cross-entropy of logits [B, K, h, w] at H x W with labels [B, H, W] int64: the mean over the
// labelled pixels, and its gradient [B, K, h, w].
//
// Bytes that must move at another size: 8 a pixel, the label; the logits are small and stay in the
// cache. Arithmetic is the limit: per class and pixel about 17 instructions for the value and 8
// more for the gradient, for which nothing is stored but h x w sums. At the logits' own size the
// value reads 4 K + 8 bytes a pixel; the gradient, which has to know how many pixels count before
// it can be written once, reads them again and writes as many.
#include "core/upsampled_cross_entropy.h"
#include "cuda/loss_body.h"

namespace cscl::cuda {
namespace {

struct LabelArguments {
  const int64_t* labels;
  int64_t ignore_index;
  LossArguments loss;
};

template <LossKind kKind>
struct CrossEntropyBody {
  using Arguments = LabelArguments;
  static constexpr int kInputs = 1;
  static constexpr bool kPlanesOnly = false;
  static constexpr bool kStores = kKind == LossKind::gradient, kScratch = false,
                        kOtherColumn = false, kGradient = kKind == LossKind::value_and_gradient;
  static constexpr size_t bytes(int /*classes*/) { return LossState<kKind>::bytes(); }

  const int64_t* labels;
  int64_t ignore_index;
  LossState<kKind> state;

  CSCL_D CrossEntropyBody(const Arguments& arguments, int /*classes*/, SharedMemory& memory)
      : labels(arguments.labels),
        ignore_index(arguments.ignore_index),
        state(arguments.loss, memory) {}

  template <typename Column, typename Classes>
  CSCL_D int solve(Column& column, Column& /*other*/, Classes classes,
                   const TileColumn& /*scratch*/, int64_t pixel) {
    const int64_t found = labels[pixel];
    const bool counted = found >= 0 && found < static_cast<int>(classes) && found != ignore_index;
    const int label = counted ? static_cast<int>(found) : kUnlabelled;
    const PixelLoss<float> loss = solve_cross_entropy<float>(column, classes, label);
    state.add(loss);
    if (kKind != LossKind::value) {
      const float scale = loss.scale * state.scale;
      const int end = loop_end(classes);
      CSCL_UNROLL(32)
      for (int k = 0; k < end; ++k) {
        const float target = k == label ? state.scale : 0.0f;
        // Not by a scale of 0: the logits of an ignored pixel may be NaN.
        column.set(k, counted ? column.get(k) * scale - target : 0.0f);
      }
    }
    return 0;
  }
  template <int kCount>
  CSCL_D void results(const int (&)[kCount], int64_t) const {}
  CSCL_D void finish() const { state.finish(); }
};

auto arguments_of(const CrossEntropyCall& call) {
  return [&call](const LossArguments& loss) {
    return LabelArguments{call.labels, call.ignore_index, loss};
  };
}

}  // namespace

void upsampled_cross_entropy(const CrossEntropyCall& call, const LossResult& result,
                             const Context& context) {
  const DeviceScope scope(context);
  with_classes(call.logits.classes, [&](auto classes) {
    run_loss<decltype(classes), CrossEntropyBody>("upsampled_cross_entropy", call.logits, nullptr,
                                                  classes, result, arguments_of(call), context);
  });
}

void upsampled_cross_entropy_gradient(const CrossEntropyCall& call, const OwnSizeGradient& result,
                                      const Context& context) {
  const DeviceScope scope(context);
  with_classes(call.logits.classes, [&](auto classes) {
    run_gradient<decltype(classes), CrossEntropyBody>("upsampled_cross_entropy_gradient",
                                                      call.logits, nullptr, classes, result,
                                                      arguments_of(call), context);
  });
}

}  // namespace cscl::cuda
