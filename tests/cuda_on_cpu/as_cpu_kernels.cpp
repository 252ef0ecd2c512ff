// The CUDA kernels behind the interface of the CPU's, cpu/kernels.h, so that the same C++ tests
// (tests/cpp) hold them to the same contract: against double precision, on odd sizes, within
// guarded memory, and under the sanitizers. What those tests call threads is the seed of the order
// in which CUDA's threads run here: an answer that changes with it is a race.
#include <cuda_on_cpu/control.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "check.h"
#include "core/class_centroid.h"
#include "core/class_threshold.h"
#include "cpu/class_threshold_select.h"
#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "cuda/upsampled_kernels.h"
#include "threads.h"

namespace {

long launches = 0;

// Scratch that ends at a page that nobody may touch.
class GuardedScratch {
 public:
  explicit GuardedScratch(int seed) {
    ++launches;
    cuda_on_cpu::set_seed(static_cast<uint64_t>(seed));
  }
  cscl::cuda::Context context() {
    return {nullptr, 0, [this](size_t bytes) {
              pieces_.push_back(std::make_unique<cuda_on_cpu::GuardedBuffer>(
                  bytes, cuda_on_cpu::GuardedBuffer::Edge::end, 16));
              std::fill_n(pieces_.back()->data<unsigned char>(), bytes, 0xFF);
              return pieces_.back()->data();
            }};
  }

 private:
  std::vector<std::unique_ptr<cuda_on_cpu::GuardedBuffer>> pieces_;
};

bool upsampled(const cscl::LogitsView& view) {
  return view.height != view.out_height || view.width != view.out_width;
}

// What the CPU's kernels do in one call and the GPU's in up to three: the value, and at the logits'
// own size the gradient after it, of the mean or of the sum.
template <typename Call, typename Value, typename Gradient>
void run_loss(const cscl::cpu::LossResult& wanted, const Call& call, const Value& value,
              const Gradient& gradient, int seed) {
  GuardedScratch scratch(seed);
  const bool own_size = !upsampled(call.logits);
  float loss = 0;
  int64_t count = 0;
  if (wanted.gradient_of_mean) {
    value(call,
          {&loss, &count, own_size ? nullptr : wanted.gradient, wanted.gradient_channels_last},
          scratch.context());
  }
  if (wanted.loss != nullptr) *wanted.loss = loss;
  if (wanted.count != nullptr) *wanted.count = count;
  if (own_size && wanted.gradient != nullptr) {
    const float scale = wanted.gradient_of_mean
                            ? 1.0f / static_cast<float>(std::max<int64_t>(count, 1))
                            : wanted.gradient_scale;
    gradient(call,
             {&scale, wanted.gradient, cscl::DataType::float32, wanted.gradient_channels_last},
             scratch.context());
  }
}

}  // namespace

long threads_started() { return launches; }

namespace cscl::cuda {
namespace {

// What class_threshold.cu counts, kept for each pixel.
struct KeyBody {
  struct Arguments {
    int32_t* keys;
  };
  static constexpr int kInputs = 1;
  static constexpr bool kPlanesOnly = false;
  static constexpr bool kStores = false, kScratch = false, kOtherColumn = false, kGradient = false;
  static constexpr size_t bytes(int) { return 0; }
  int32_t* keys;
  KeyBody(const Arguments& arguments, int, SharedMemory&) : keys(arguments.keys) {}
  template <typename Column, typename Classes>
  int solve(Column& column, Column&, Classes classes, const TileColumn&, int64_t pixel) const {
    keys[pixel] = threshold_key<float>(pixel_confidence<float>(column, classes), classes);
    return 0;
  }
  template <int kCount>
  void results(const int (&)[kCount], int64_t) const {}
  void finish() const {}
};

}  // namespace
}  // namespace cscl::cuda

namespace cscl::cpu {

void soft_pseudo_labels(const SoftPseudoLabelCall& call, int seed) {
  GuardedScratch scratch(seed);
  if (call.logits.batch == 0) return;
  cuda::soft_pseudo_labels(
      {call.logits, call.thresholds, call.gamma, call.soft, call.soft_channels_last, call.hard},
      scratch.context());
}

void upsampled_cross_entropy(const CrossEntropyCall& call, int seed) {
  const LogitsView& view = call.logits;
  for (int64_t i = 0; i < view.batch * view.out_height * view.out_width; ++i) {
    const int64_t label = call.labels[i];
    const bool fits = label == call.ignore_index || (label >= 0 && label < view.classes);
    if (!fits) *call.labels_in_range = false;
  }
  run_loss(call.result, cuda::CrossEntropyCall{view, call.labels, call.ignore_index},
           cuda::upsampled_cross_entropy, cuda::upsampled_cross_entropy_gradient, seed);
}

void pseudo_label_loss(const PseudoLabelLossCall& call, int seed) {
  run_loss(call.result,
           cuda::PseudoLabelLossCall{call.logits, call.label_logits, call.thresholds, call.gamma},
           cuda::pseudo_label_loss, cuda::pseudo_label_loss_gradient, seed);
}

void transfer_reward(const TransferRewardCall& call, int seed) {
  GuardedScratch scratch(seed);
  const LogitsView& view = call.gated;
  const int64_t locations = view.batch * view.height * view.width;
  for (int64_t i = 0; i < locations; ++i) {
    if (!cscl::label_in_range(call.labels[i], view.classes)) *call.labels_in_range = false;
  }
  if (locations == 0) return;
  cuda::transfer_reward({call.gated, call.plain, call.labels, call.reward, call.valid},
                        scratch.context());
}

void class_threshold_keys(const ClassThresholdKeysCall& call, int seed) {
  using cuda::KeyBody;
  GuardedScratch scratch(seed);
  const LogitsView& view = call.logits;
  if (view.batch == 0) return;
  cuda::with_classes(view.classes, [&](auto classes) {
    using Classes = decltype(classes);
    const cuda::Context context = scratch.context();
    if (upsampled(view)) {
      const cuda::Tiling tiling = cuda::plan_upsampled<Classes, KeyBody>(view, context);
      cuda::walk_upsampled_logits<Classes, KeyBody>("keys", tiling, view, nullptr, classes,
                                                    {call.keys}, {}, nullptr, context);
    } else {
      const auto walk = cuda::plan_walk<Classes, KeyBody>(view, nullptr, {}, context);
      cuda::walk_logits<Classes, KeyBody>("keys", walk, view, nullptr, classes, {call.keys}, {},
                                          context);
    }
  });
}

void class_threshold_update(const ClassThresholdUpdateCall& call, int seed) {
  GuardedScratch scratch(seed);
  if (call.logits.batch == 0) return;
  cuda::class_threshold_update({call.logits, call.histogram}, scratch.context());
}

void class_thresholds(const ClassThresholdsCall& call, int seed) {
  GuardedScratch scratch(seed);
  cuda::class_thresholds({call.logits, call.portion, call.thresholds}, scratch.context());
}

void thresholds_of_histogram(const HistogramScan& scan, int seed) {
  GuardedScratch scratch(seed);
  cuda::thresholds_of_histogram({scan.histogram, scan.other, scan.classes, scan.portions,
                                 scan.portion_count, scan.thresholds},
                                scratch.context());
}

namespace {

// The CPU's kernels look at the labels' range while they read them; these do not.
bool label_in_range(const LabelledFeatures& side, int64_t at) {
  const LogitsView& labels = side.labels;
  const auto* bytes = static_cast<const unsigned char*>(labels.data);
  if (side.hard) {
    return cscl::label_in_range(static_cast<const int64_t*>(labels.data)[at], labels.classes);
  }
  bool fits = true;
  for (int64_t k = 0; k < labels.classes; ++k) {
    const size_t place = static_cast<size_t>(at + k * labels.stride_class) * ::size_of(labels.type);
    const double entry = ::from_bits(labels.type, bytes + place);
    fits = fits && entry >= 0 && entry <= kLargestSoftLabel;
  }
  return fits;
}

cuda::LabelledFeatures side_of(const LabelledFeatures& side) {
  const LogitsView& labels = side.labels;
  *side.in_range = true;
  for (int64_t b = 0; b < labels.batch; ++b) {
    for (int64_t y = 0; y < labels.height; ++y) {
      for (int64_t x = 0; x < labels.width; ++x) {
        const int64_t at =
            b * labels.stride_batch + y * labels.stride_row + x * labels.stride_column;
        if (!label_in_range(side, at)) *side.in_range = false;
      }
    }
  }
  return {side.features, side.labels, side.hard, side.row, side.weight};
}

}  // namespace

void class_centroids(const ClassCentroidsCall& call, int seed) {
  GuardedScratch scratch(seed);
  cuda::class_centroids({side_of(call.side), call.centroids, call.mass}, scratch.context());
}

void centroid_gradient(const CentroidGradientCall& call, int seed) {
  GuardedScratch scratch(seed);
  if (call.batch * call.plane == 0) return;
  cuda::centroid_gradient(
      {call.slope, call.mass, call.scale, call.row, call.weight, call.batch, call.classes,
       call.channels, call.plane, call.gradient, call.type, call.channels_last},
      scratch.context());
}

void symmetric_soft_divergence(const SymmetricSoftDivergenceCall& call, int seed) {
  GuardedScratch scratch(seed);
  cuda::symmetric_soft_divergence({side_of(call.source), side_of(call.target), call.softmax,
                                   call.eps, call.loss, call.source_slope, call.target_slope},
                                  scratch.context());
}

}  // namespace cscl::cpu
