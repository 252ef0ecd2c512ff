// Runs the tests of the kernel library once for each instruction set that this processor has.
//
// The instruction set is chosen once a process, so the program starts itself again for each one,
// with CSCL_FAST_ISA set. With CSCL_FAST_ISA in the environment only that one is run.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <exception>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/threads.h"

namespace {

// The tests lean on their own conversions: there and back for every bit pattern, and halfway cases.
void test_conversions() {
  for (const DataType type : {DataType::float16, DataType::bfloat16}) {
    const std::string where = std::string("conversions ") + name_of(type);
    for (uint32_t bits = 0; bits < 0x7FFF; ++bits) {
      const uint32_t next = bits + 1;
      const double value = from_bits(type, &bits), above = from_bits(type, &next);
      if (std::isnan(value)) continue;
      uint32_t back = 0;
      to_bits(type, value, &back);
      check(back == bits, where, "does not come back: " + std::to_string(bits));
      if (!std::isfinite(above)) continue;
      to_bits(type, -(value + above) / 2, &back);
      check(back == (0x8000 | (bits % 2 == 0 ? bits : next)), where,
            "halfway is not rounded to even: " + std::to_string(bits));
    }
  }
}

int run_here() {
  check(cscl::cpu::adopt_openmp(nullptr), "threads", "GOMP_parallel of this program is not found");
  std::printf("instruction set %s\n", cscl::cpu::isa_name(cscl::cpu::active_isa()).c_str());
  test_conversions();
  test_threads();
  test_class_thresholds();
  test_soft_pseudo_labels();
  test_transfer_reward();
  test_class_centroids();
  test_symmetric_soft_divergence();
  test_upsampled_cross_entropy();
  test_pseudo_label_loss();
  if (failures > 0) std::printf("%ld checks failed\n", failures);
  return failures > 0 ? 1 : 0;
}

int run_with(const std::string& isa, char** arguments) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    setenv("CSCL_FAST_ISA", isa.c_str(), 1);
    execv("/proc/self/exe", arguments);
    std::perror("execv");
    _exit(127);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) return 1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

}  // namespace

int main(int, char** arguments) {
  try {
    const char* forced = std::getenv("CSCL_FAST_ISA");
    if (forced != nullptr && *forced != '\0') return run_here();
    std::string bad;
    for (const std::string& isa : cscl::cpu::supported_isas()) {
      if (run_with(isa, arguments) != 0) bad += " " + isa;
    }
    for (const std::string& isa : cscl::cpu::compiled_isas()) {
      bool runs = false;
      for (const std::string& supported : cscl::cpu::supported_isas()) runs |= supported == isa;
      if (!runs) std::printf("instruction set %s: not on this processor, skipped\n", isa.c_str());
    }
    std::printf(bad.empty() ? "all passed\n" : "FAILED with:%s\n", bad.c_str());
    return bad.empty() ? 0 : 1;
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
}
