// The CPU kernels as the outside sees them: plain pointers, sizes, strides and a thread count.
// dispatch.cpp sends each call to the walk compiled for the instruction set in use.
#pragma once

#include <cstdint>

#include "core/logits_view.h"

namespace cscl::cpu {

using cscl::DataType;
using cscl::LogitsView;

// Thrown by a kernel that has no room for its scratch. (Not std::bad_alloc: the standard library's
// inline functions must stay out of code compiled for one instruction set.)
struct OutOfMemory {};

struct SoftPseudoLabelCall {
  LogitsView logits;
  const float* thresholds;  // [K], in (0, 1]
  double gamma;             // > 0
  void* soft;               // [B, K, H, W], the logits' type
  bool soft_channels_last;  // memory order of soft: [B, H, W, K] or [B, K, H, W]
  int64_t* hard;            // [B, H, W]
};

// Throws OutOfMemory when there is no room for scratch (with H x W other than h x w: a few rows).
void soft_pseudo_labels(const SoftPseudoLabelCall& call, int threads);

// What a loss gives: the mean over the pixels that count, and its gradient.
struct LossResult {
  float* loss;     // 0 where nothing counts; nullptr: not wanted
  int64_t* count;  // pixels that count; nullptr: not wanted
  // [B, K, h, w] contiguous or channels-last, or nullptr: found in the same walk.
  float* gradient;
  bool gradient_channels_last;
  // True: the gradient of the mean. False, at the logits' own size only: that of the sum, times
  // gradient_scale. A walk does not know yet how many pixels count, and a large gradient is better
  // written in a second walk than gone over twice.
  bool gradient_of_mean;
  float gradient_scale;
};

struct CrossEntropyCall {
  LogitsView logits;
  const int64_t* labels;  // [B, H, W]
  int64_t ignore_index;
  bool* labels_in_range;  // whether each was a class or ignore_index; others count as ignored
  LossResult result;
};

struct PseudoLabelLossCall {
  LogitsView logits;
  LogitsView label_logits;  // of the network that gives the labels; data nullptr: the logits
  const float* thresholds;  // [K], in (0, 1]
  double gamma;             // > 0
  LossResult result;
};

// Both throw OutOfMemory when there is no room for scratch.
void upsampled_cross_entropy(const CrossEntropyCall& call, int threads);
void pseudo_label_loss(const PseudoLabelLossCall& call, int threads);

struct TransferRewardCall {
  LogitsView gated, plain;  // of one shape and type, at their own size; strides may differ
  const int64_t* labels;    // [B, h, w], 255: ignored
  float* reward;            // [B, h, w], in {0, 1, 2}; 0 where not valid
  bool* valid;              // [B, h, w], the label is a class
  bool* labels_in_range;    // set to false if a label is neither a class nor 255; it is ignored
};

void transfer_reward(const TransferRewardCall& call, int threads);

// Algorithm 1, in csrc/cpu/class_threshold.cpp. A key is class << 16 | bin of the confidence among
// 65536 equal ones, or K << 16 for a pixel with a logit that is not finite.
struct ClassThresholdKeysCall {
  LogitsView logits;
  int32_t* keys;  // [B, H, W]
};
void class_threshold_keys(const ClassThresholdKeysCall& call, int threads);

struct ClassThresholdUpdateCall {
  LogitsView logits;
  int64_t* histogram;  // [K, 65536], counted into
};
void class_threshold_update(const ClassThresholdUpdateCall& call, int threads);

struct ClassThresholdsCall {
  LogitsView logits;
  double portion;     // in (0, 1]
  float* thresholds;  // [K]
};
void class_thresholds(const ClassThresholdsCall& call, int threads);

// Features [B, C, h, w] (in a LogitsView, C in the place of its classes) and a label for each
// location, from which a row 0 .. K-1 of a class, or K for none, and a weight follow.
struct LabelledFeatures {
  LogitsView features;
  LogitsView labels;  // [B, K, h, w]; hard: int64 [B, h, w], the strides of the others as they are
  bool hard;
  int32_t* row;    // [B, h, w], result
  float* weight;   // [B, h, w], result; 0 where there is no class
  bool* in_range;  // result: every label was; what was not has no class or any weight
};

struct ClassCentroidsCall {
  LabelledFeatures side;
  float* centroids;  // [K, C]
  float* mass;       // [K]
};

// Throws OutOfMemory.
void class_centroids(const ClassCentroidsCall& call, int threads);

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

void centroid_gradient(const CentroidGradientCall& call, int threads);

struct SymmetricSoftDivergenceCall {
  LabelledFeatures source, target;  // with one K and one C
  bool softmax;                     // else l1
  double eps;                       // of l1
  float* loss;                      // one number
  float* source_slope;              // [K, C]: gradient of the loss by a location of weight 1
  float* target_slope;
};

// Throws OutOfMemory.
void symmetric_soft_divergence(const SymmetricSoftDivergenceCall& call, int threads);

}  // namespace cscl::cpu
