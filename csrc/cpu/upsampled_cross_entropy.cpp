// Cross-entropy of logits [B, K, h, w] with labels [B, H, W] at H x W: the mean over the labelled
// pixels, and its gradient [B, K, h, w] in the same walk.
//
// Bytes that must move for a pixel: its label, 8; the small logits are read and their gradient is
// written once. Arithmetic is the limit: about 25 vector instructions for a class of kLanes pixels.
// How the pixels are walked: cpu/loss_walk.h.
#include "core/upsampled_cross_entropy.h"

#include "cpu/loss_walk.h"

namespace cscl::cpu::CSCL_ISA {
namespace {

class CrossEntropy {
 public:
  static constexpr bool kOtherLogits = false;

  CrossEntropy(const CrossEntropyCall& call, int* bad)
      : call_(call), plane_(call.logits.out_height * call.logits.out_width), bad_(bad) {}

  // Classes stay, everything else becomes kUnlabelled.
  void begin(int64_t image, int64_t pixel, int64_t count) {
    const int64_t* from = call_.labels + image * plane_ + pixel;
    const int64_t classes = call_.logits.classes;
    bool bad = false;
    for (int64_t i = 0; i < count; ++i) {
      const bool is_class = static_cast<uint64_t>(from[i]) < static_cast<uint64_t>(classes);
      const bool ignored = from[i] == call_.ignore_index;
      bad |= !is_class & !ignored;
      labels_[i] = is_class & !ignored ? static_cast<int32_t>(from[i]) : kUnlabelled;
    }
    for (int64_t i = count; i < round_up(count, kLanes); ++i) labels_[i] = kUnlabelled;
    if (bad) __atomic_store_n(bad_, 1, __ATOMIC_RELAXED);
  }

  template <int kClasses>
  CSCL_HD PixelLoss<Float> solve(int64_t i, RegisterColumn<kClasses>& column,
                                 RegisterColumn<kClasses>&, int classes) const {
    return solve_cross_entropy<Float>(column, classes, load<Int>(labels_ + i));
  }

  template <int kClasses>
  CSCL_HD Float gradient(int64_t i, int k, const RegisterColumn<kClasses>& column,
                         const RegisterColumn<kClasses>&, const PixelLoss<Float>& solved) const {
    const Float target =
        select(load<Int>(labels_ + i) == k, broadcast<Float>(1.0f), broadcast<Float>(0.0f));
    // Where the pixel does not count, e_k may be NaN.
    return select(solved.counted, multiply_add(column.get(k), solved.scale, -target), Float{});
  }

 private:
  const CrossEntropyCall& call_;
  int64_t plane_;
  int* bad_;
  alignas(64) int32_t labels_[kMaximumTilePixels];
};

template <typename Element>
void walk(const CrossEntropyCall& call, const CrossEntropy& loss, int threads) {
  switch (call.logits.classes) {
    case 13:
      return walk_loss<Element, 13>(call, loss, call.logits, threads);
    case 16:
      return walk_loss<Element, 16>(call, loss, call.logits, threads);
    case 19:
      return walk_loss<Element, 19>(call, loss, call.logits, threads);
    default:
      return walk_loss<Element, 0>(call, loss, call.logits, threads);
  }
}

}  // namespace

void upsampled_cross_entropy(const CrossEntropyCall& call, int threads) {
  int bad = 0;
  const CrossEntropy loss(call, &bad);
  switch (call.logits.type) {
    case DataType::float32:
      walk<float>(call, loss, threads);
      break;
    case DataType::float16:
      walk<Float16>(call, loss, threads);
      break;
    case DataType::bfloat16:
      walk<BFloat16>(call, loss, threads);
      break;
  }
  *call.labels_in_range = bad == 0;
}

}  // namespace cscl::cpu::CSCL_ISA
