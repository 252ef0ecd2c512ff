// The race detectors keep little of what has happened. Here they are held against ones that keep
// everything: on random sequences of accesses, barriers and meetings of lanes, both must call
// the same steps races.
#include <random>

#include "runtime/global_shadow.h"

using namespace cuda_on_cpu;

namespace {

struct Step {
  Visitor by;
  bool reads, writes;
  uint32_t epoch, clock;
};

// A block of two warps, three lanes in each.
constexpr int kThreads[] = {0, 1, 2, 32, 33, 34};

bool conflict(const Step& a, const Step& b) {
  const bool atomic = a.reads && a.writes && b.reads && b.writes;
  return (a.writes || b.writes) && !atomic;
}

bool check_sequence(uint32_t seed, long tally[2]) {
  std::mt19937 random(seed);
  const auto below = [&](uint32_t bound) { return random() % bound; };
  Order order;
  Shadow shared;
  GlobalShadow global;
  Publications published;
  Visits::Slots slots;
  std::vector<Step> past;
  uint32_t block = 0;
  shared.start_block(order, 1);
  const uint32_t mostly = 1 + below(8);  // how seldom a sequence writes
  for (int i = 0; i < 40; ++i) {
    const uint32_t dice = below(20);
    if (dice == 0) {
      order.next_epoch();
      shared.next_epoch();
      slots.clear();
      continue;
    }
    if (dice == 1 && below(3) == 0) {
      ++block;
      order.next_epoch();
      shared.start_block(order, 1);
      slots.clear();
      continue;
    }
    if (dice < 8) {
      order.meet(static_cast<int>(below(2)), below(8));
      continue;
    }
    const int thread = kThreads[below(6)];
    const uint32_t kind = below(mostly + 1);
    Step step{
        {block, thread}, kind != 1, kind <= 1 && below(2) == 0, order.epoch(), order.clock(thread)};
    if (!step.reads) step.writes = true;
    bool expected_shared = false, expected_global = false;
    for (const Step& other : past) {
      if (!conflict(step, other)) continue;
      const bool same_block = other.by.block == block;
      const bool seen = same_block && (other.epoch != step.epoch ||
                                       order.seen(other.by.thread, other.clock, thread));
      expected_global = expected_global || !seen;
      expected_shared = expected_shared || (same_block && !seen);
    }

    const char* what = nullptr;
    const bool found_shared =
        shared.race(order, 0, step.reads, step.writes, thread, &what).thread >= 0;
    GlobalByte& byte = global.at(64);
    Visitor who{};
    const auto unseen = [&](const GlobalVisits& visits) {
      return visits.unseen(order, slots, published, step.by, &who);
    };
    const bool atomic = step.reads && step.writes;
    const bool found_global = unseen(byte.writes) || (step.writes && unseen(byte.reads)) ||
                              (!atomic && unseen(byte.atomics));
    if (found_global != expected_global || found_shared != expected_shared) return false;
    ++tally[expected_global ? 1 : 0];
    if (expected_global) continue;  // is left out, and so the sequence goes on

    past.push_back(step);
    shared.remember(order, 0, step.reads, step.writes, thread, 1);
    GlobalVisits& visits = atomic ? byte.atomics : step.writes ? byte.writes : byte.reads;
    visits.add(order, slots, published, step.by);
  }
  return true;
}

}  // namespace

bool check_race_detectors() {
  long tally[2] = {0, 0};  // accesses without and with a race
  for (uint32_t seed = 0; seed < 50000; ++seed) {
    if (!check_sequence(seed, tally)) return false;
  }
  return tally[0] > 200000 && tally[1] > 200000;
}
