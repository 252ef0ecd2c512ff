// Who has seen whose work. Two accesses of the same bytes are ordered when a barrier of the block
// lies between them, or a chain of warp operations from the one lane to the other.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace cuda_on_cpu {

inline constexpr int kWarp = 32;
inline constexpr int kMaxThreads = 1024;

class Order {
 public:
  // The number of barriers so far, over all blocks and launches: what an older epoch did is seen.
  uint32_t epoch() const { return epoch_; }
  void next_epoch() { ++epoch_; }

  uint32_t clock(int thread) const { return clocks_[index(thread)][index(thread % kWarp)]; }

  // Has `by` seen what `thread` did in this epoch at this time of its clock?
  bool seen(int thread, uint32_t clock, int by) const {
    return thread == by ||
           (thread / kWarp == by / kWarp && clocks_[index(by)][index(thread % kWarp)] >= clock);
  }

  // These lanes of a warp tell each other all they have seen.
  void meet(int warp, uint32_t lanes) {
    Clocks latest{};
    for_each(lanes, [&](int lane) {
      const Clocks& own = clocks_[index(warp * kWarp + lane)];
      for (size_t i = 0; i < latest.size(); ++i) latest[i] = std::max(latest[i], own[i]);
    });
    for_each(lanes, [&](int lane) {
      Clocks& own = clocks_[index(warp * kWarp + lane)];
      own = latest;
      ++own[index(lane)];
    });
  }

  // Clocks only grow, and what is left of an earlier block lies in an older epoch; a long series
  // of launches starts over before they wrap.
  bool nearly_wrapped() const {
    if (epoch_ > kLimit) return true;
    for (int thread = 0; thread < kMaxThreads; ++thread) {
      if (clock(thread) > kLimit) return true;
    }
    return false;
  }
  void restart() {
    epoch_ = 1;
    for (int thread = 0; thread < kMaxThreads; ++thread) {
      clocks_[index(thread)].fill(0);
      clocks_[index(thread)][index(thread % kWarp)] = 1;
    }
  }
  Order() { restart(); }

  template <typename Body>
  static void for_each(uint32_t lanes, const Body& body) {
    for (; lanes != 0; lanes &= lanes - 1) body(__builtin_ctz(lanes));
  }

 private:
  using Clocks = std::array<uint32_t, kWarp>;
  static constexpr uint32_t kLimit = uint32_t{1} << 31;
  static size_t index(int i) { return static_cast<size_t>(i); }

  uint32_t epoch_ = 1;
  std::vector<Clocks> clocks_ = std::vector<Clocks>(kMaxThreads);
};

}  // namespace cuda_on_cpu
