// The CUDA kernels as the outside sees them: plain device pointers, sizes, strides and a stream.
//
// Every function only puts kernels on the stream: nothing waits for the device, so all of them can
// be captured in a CUDA graph. Results do not depend on scheduling: sums over pixels are taken in
// parts, in scratch, and the parts are added in a fixed order; atomic additions are of integers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#include "core/logits_view.h"

namespace cscl::cuda {

// What the runtime refused; the message names the kernel.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where a call runs, and where its scratch comes from.
struct Context {
  void* stream;  // cudaStream_t
  int device;
  // Device memory of so many bytes, 16-byte aligned, of undefined content, that stays until the
  // kernels of this call are done: PyTorch's caching allocator, seen from here.
  std::function<void*(size_t)> scratch;
};

// What this build and this machine have; nothing here needs a GPU.
int device_count();            // 0 where there is no driver
std::string device_problem();  // why there is none; empty if there is one

struct SoftPseudoLabelCall {
  LogitsView logits;
  const float* thresholds;  // [K], in (0, 1]
  double gamma;             // > 0
  void* soft;               // [B, K, H, W], the logits' type
  bool soft_channels_last;  // memory order of soft: [B, H, W, K] or [B, K, H, W]
  int64_t* hard;            // [B, H, W]
};
void soft_pseudo_labels(const SoftPseudoLabelCall& call, const Context& context);

// What a loss gives: the mean over the pixels that count.
struct LossResult {
  float* loss;     // 0 where nothing counts
  int64_t* count;  // pixels that count
  float*
      gradient;  // of the mean, [B, K, h, w], with H x W other than h x w only; nullptr: not wanted
  bool gradient_channels_last;
};

// The gradient at the logits' own size, in a walk of its own: `scale` times that of the sum.
struct OwnSizeGradient {
  const float* scale;  // one number on the device
  void* gradient;      // [B, K, h, w]
  DataType type;       // of gradient
  bool channels_last;
};

struct CrossEntropyCall {
  LogitsView logits;
  const int64_t* labels;  // [B, H, W]; what is neither a class nor ignore_index is ignored
  int64_t ignore_index;
};
void upsampled_cross_entropy(const CrossEntropyCall& call, const LossResult& result,
                             const Context& context);
void upsampled_cross_entropy_gradient(const CrossEntropyCall& call, const OwnSizeGradient& result,
                                      const Context& context);

struct PseudoLabelLossCall {
  LogitsView logits;
  LogitsView label_logits;  // of the network that gives the labels; data nullptr: the logits
  const float* thresholds;  // [K], in (0, 1]
  double gamma;             // > 0
};
void pseudo_label_loss(const PseudoLabelLossCall& call, const LossResult& result,
                       const Context& context);
void pseudo_label_loss_gradient(const PseudoLabelLossCall& call, const OwnSizeGradient& result,
                                const Context& context);

struct TransferRewardCall {
  LogitsView gated, plain;  // of one shape and type, at their own size; strides may differ
  const int64_t* labels;    // [B, h, w], 255: ignored
  float* reward;            // [B, h, w], in {0, 1, 2}; 0 where not valid
  bool* valid;              // [B, h, w], the label is a class
};
void transfer_reward(const TransferRewardCall& call, const Context& context);

// Algorithm 1.
struct ClassThresholdUpdateCall {
  LogitsView logits;
  int64_t* histogram;  // [K, 65536], counted into
};
void class_threshold_update(const ClassThresholdUpdateCall& call, const Context& context);

struct ThresholdsOfHistogramCall {
  const int64_t* histogram;  // [K, 65536]
  const int64_t* other;      // added to it; nullptr: nothing
  int64_t classes;
  const double* portions;  // [P], on the host
  int64_t portion_count;
  float* thresholds;  // [P, K]
};
void thresholds_of_histogram(const ThresholdsOfHistogramCall& call, const Context& context);

struct ClassThresholdsCall {
  LogitsView logits;
  double portion;     // in (0, 1]
  float* thresholds;  // [K]
};
void class_thresholds(const ClassThresholdsCall& call, const Context& context);

// Features [B, C, h, w] (in a LogitsView, C in the place of its classes) and a label for each
// location, from which a row 0 .. K-1 of a class, or K for none, and a weight follow.
struct LabelledFeatures {
  LogitsView features;
  LogitsView labels;  // [B, K, h, w]; hard: int64 [B, h, w], the strides of the others as they are
  bool hard;
  int32_t* row;   // [B, h, w], result
  float* weight;  // [B, h, w], result; 0 where there is no class
};

struct ClassCentroidsCall {
  LabelledFeatures side;
  float* centroids;  // [K, C]
  float* mass;       // [K]
};
void class_centroids(const ClassCentroidsCall& call, const Context& context);

// The gradient by the features of anything whose gradient by the centroids is known: at a location
// of class k and weight w, w * slope[k] * scale / mass[k]; zeros where there is no class.
struct CentroidGradientCall {
  const float* slope;  // [K, C]
  const float* mass;   // [K]; null: 1
  const float* scale;  // one number; null: 1
  const int32_t* row;
  const float* weight;
  int64_t batch, classes, channels, plane;  // B, K, C, h * w
  void* gradient;                           // [B, C, h, w]
  DataType type;
  bool channels_last;  // memory order of gradient
};
void centroid_gradient(const CentroidGradientCall& call, const Context& context);

struct SymmetricSoftDivergenceCall {
  LabelledFeatures source, target;  // with one K and one C
  bool softmax;                     // else l1
  double eps;                       // of l1
  float* loss;                      // one number
  float* source_slope;              // [K, C]: gradient of the loss by a location of weight 1
  float* target_slope;
};
void symmetric_soft_divergence(const SymmetricSoftDivergenceCall& call, const Context& context);

}  // namespace cscl::cuda
