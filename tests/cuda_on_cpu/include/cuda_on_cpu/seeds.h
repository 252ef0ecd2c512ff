// One answer, whatever the order of the threads. For tests.
#pragma once

#include <cuda_on_cpu/control.h>

#include <cstring>
#include <string>
#include <vector>

namespace cuda_on_cpu {

// Calls `run`, which returns a std::vector of plain numbers in fresh memory, once per seed. Throws
// unless all answers are the same, byte for byte. Returns that answer.
template <typename Run>
auto assert_seed_independent(const Run& run, uint64_t seeds = 8) {
  set_seed(0);
  const auto first = run();
  for (uint64_t seed = 1; seed < seeds; ++seed) {
    set_seed(seed);
    const auto other = run();
    for (size_t i = 0; i < first.size() && i < other.size(); ++i) {
      if (std::memcmp(&first[i], &other[i], sizeof(first[i])) == 0) continue;
      forget_seed();
      throw Fault("the answer depends on the order of the threads: seeds 0 and " +
                  std::to_string(seed) + " differ in element " + std::to_string(i));
    }
  }
  forget_seed();
  return first;
}

}  // namespace cuda_on_cpu
