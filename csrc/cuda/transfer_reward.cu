// Rewards of two tensors of logits [B, K, h, w] and labels [B, h, w] int64: reward float32 and
// valid bool, both [B, 1, h, w], Eq. 4-6.
//
// Bytes that must move for a float32 location: 8 K + 8 read, 5 written. Both logits are read once,
// into registers (pixel_walk.h). The few locations that float32 leaves undecided are decided once
// more, by pairs of floats, from a copy in shared memory.
#include "core/class_centroid.h"
#include "core/float_pair.h"
#include "core/transfer_reward.h"
#include "cuda/label_rule.h"
#include "cuda/pixel_walk.h"

namespace cscl::cuda {
namespace {

// log p of the label's class, as a pair. A function of its own: it must not cost the registers that
// hold everybody's logits.
__device__ __noinline__ float2 log_probability(TileColumn column, int classes, int label) {
  const PairColumn pairs{column};
  const auto location = locate_label<FloatPair>(pairs, Rolled{classes}, label);
  return make_float2(location.log_probability.high, location.log_probability.low);
}

constexpr int kValid = 4;  // beside a reward of 0, 1 or 2

struct RewardBody {
  struct Arguments {
    const int64_t* labels;
    float* reward;
    bool* valid;
  };
  static constexpr int kInputs = 2;
  static constexpr bool kPlanesOnly = false;
  static constexpr bool kStores = false, kScratch = true, kOtherColumn = true, kGradient = false;
  static constexpr size_t bytes(int /*classes*/) { return 0; }

  Arguments results_at;
  CSCL_D RewardBody(const Arguments& arguments, int /*classes*/, SharedMemory&)
      : results_at(arguments) {}

  template <typename Column, typename Classes>
  CSCL_D int solve(Column& gated, Column& plain, Classes classes, const TileColumn& scratch,
                   int64_t pixel) const {
    const int label = row_of_label(results_at.labels[pixel], static_cast<int>(classes));
    if (label == static_cast<int>(classes)) return 0;
    const auto with = locate_label<float>(gated, classes, label);
    const auto without = locate_label<float>(plain, classes, label);
    int found = kValid;
    if (with.disorder != 0.0f) return found;
    if (with.winner == label) ++found;
    if (without.disorder != 0.0f) return found;
    const auto gain = gain_of(with, without);
    bool likelier = gain.positive;
    if (!gain.decided) {
      likelier = false;
      if (differ(gated, plain, classes)) {  // equal logits are no gain, and common at first
        const float2 p = log_probability(place(gated, scratch, classes), classes, label);
        const float2 q = log_probability(place(plain, scratch, classes), classes, label);
        likelier = FloatPair(p.x, p.y) > FloatPair(q.x, q.y);
      }
    }
    return likelier ? found + 1 : found;
  }

  template <int kCount>
  CSCL_D void results(const int (&found)[kCount], int64_t pixel) const {
    Pack<float, kCount> reward;
    Pack<bool, kCount> valid;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      reward.values[i] = static_cast<float>(found[i] & (kValid - 1));
      valid.values[i] = (found[i] & kValid) != 0;
    }
    *reinterpret_cast<Pack<float, kCount>*>(results_at.reward + pixel) = reward;
    *reinterpret_cast<Pack<bool, kCount>*>(results_at.valid + pixel) = valid;
  }
  CSCL_D void finish() const {}

 private:
  template <typename Column, typename Classes>
  CSCL_D static bool differ(const Column& a, const Column& b, Classes classes) {
    bool differ = false;
    const int end = loop_end(classes);
    CSCL_UNROLL(32)
    for (int k = 0; k < end; ++k) differ |= bits_of(a.get(k)) != bits_of(b.get(k));
    return differ;
  }
  CSCL_D static TileColumn place(const TileColumn& column, const TileColumn&, Rolled) {
    return column;
  }
  template <int kCount, typename Classes>
  CSCL_D static TileColumn place(const RegisterColumn<kCount>& column, const TileColumn& scratch,
                                 Classes classes) {
    copy_column(column, scratch, classes);
    return scratch;
  }
};

}  // namespace

void transfer_reward(const TransferRewardCall& call, const Context& context) {
  const DeviceScope scope(context);
  const PixelStore nowhere = {};
  const RewardBody::Arguments arguments{call.labels, call.reward, call.valid};
  with_classes(call.gated.classes, [&](auto classes) {
    using Classes = decltype(classes);
    const OwnSizeWalk walk =
        plan_walk<Classes, RewardBody>(call.gated, &call.plain, nowhere, context);
    walk_logits<Classes, RewardBody>("transfer_reward", walk, call.gated, &call.plain, classes,
                                     arguments, nowhere, context);
  });
}

}  // namespace cscl::cuda
