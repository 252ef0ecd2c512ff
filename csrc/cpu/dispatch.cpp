// Sends every kernel of cpu/kernels.h to the walk compiled for the active instruction set.
//
// A new kernel needs one line in CSCL_FOR_EACH_KERNEL and its file in CMakeLists.txt's
// CSCL_CPU_WALKS; a walk is a function of that name in namespace cscl::cpu::CSCL_ISA.
#include "cpu/isa.h"
#include "cpu/kernels.h"

#define CSCL_FOR_EACH_KERNEL(X, isa)                             \
  X(isa, soft_pseudo_labels, SoftPseudoLabelCall)                \
  X(isa, upsampled_cross_entropy, CrossEntropyCall)              \
  X(isa, pseudo_label_loss, PseudoLabelLossCall)                 \
  X(isa, class_threshold_keys, ClassThresholdKeysCall)           \
  X(isa, class_threshold_update, ClassThresholdUpdateCall)       \
  X(isa, class_thresholds, ClassThresholdsCall)                  \
  X(isa, class_centroids, ClassCentroidsCall)                    \
  X(isa, centroid_gradient, CentroidGradientCall)                \
  X(isa, symmetric_soft_divergence, SymmetricSoftDivergenceCall) \
  X(isa, transfer_reward, TransferRewardCall)

namespace cscl::cpu {

// The walks, one set in the namespace of each instruction set.
#define CSCL_DECLARE_WALK(isa, kernel, Call) void kernel(const Call& call, int threads);
#define CSCL_DECLARE_WALKS(isa)                \
  namespace isa {                              \
  CSCL_FOR_EACH_KERNEL(CSCL_DECLARE_WALK, isa) \
  }
CSCL_FOR_EACH_ISA(CSCL_DECLARE_WALKS)

namespace {

#define CSCL_MEMBER(isa, kernel, Call) void (*kernel)(const Call& call, int threads);
struct Walks {
  CSCL_FOR_EACH_KERNEL(CSCL_MEMBER, unused)
};

#define CSCL_WALK(isa, kernel, Call) &isa::kernel,
#define CSCL_WALKS(isa) {CSCL_FOR_EACH_KERNEL(CSCL_WALK, isa)},
constexpr Walks kWalks[] = {CSCL_FOR_EACH_ISA(CSCL_WALKS)};

}  // namespace

#define CSCL_DEFINE(isa, kernel, Call)                            \
  void kernel(const Call& call, int threads) {                    \
    kWalks[static_cast<int>(active_isa())].kernel(call, threads); \
  }
CSCL_FOR_EACH_KERNEL(CSCL_DEFINE, unused)

}  // namespace cscl::cpu
