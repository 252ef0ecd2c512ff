// Runs the tests of the kernel library (tests/cpp) on the CUDA kernels, on the CPU.
#include <cstdio>
#include <exception>

#include "check.h"

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  try {
    test_class_thresholds();
    test_soft_pseudo_labels();
    test_transfer_reward();
    test_class_centroids();
    test_symmetric_soft_divergence();
    test_upsampled_cross_entropy();
    test_pseudo_label_loss();
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
  if (failures > 0) std::printf("%ld checks failed\n", failures);
  std::printf(failures > 0 ? "" : "all passed\n");
  return failures > 0 ? 1 : 0;
}
