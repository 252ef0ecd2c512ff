// What is known about the global memory that a launch has touched: for every byte, who has written,
// read and atomically changed it.
//
// Within a block accesses are ordered as in shared memory. Nothing orders two blocks but an atomic:
// when a thread executes __threadfence() and then an atomic, a block that comes to the same place
// with an atomic later has seen what that thread had done, and what its block had done before the
// barrier in front of it. That is how "the last block adds up" works.
#pragma once

#include <unordered_map>

#include "shadow.h"

namespace cuda_on_cpu {

// Who touches a byte now: a thread, of the block with this number.
struct Visitor {
  uint32_t block;
  int thread;
};

// What blocks have published at the places of atomics.
class Publications {
 public:
  void clear() {
    places_.clear();
    seen_.clear();
  }
  void publish(const void* place, Visitor by, uint32_t epoch) {
    Place& p = places_[place];
    p.blocks[by.block] = {p.next++, epoch, by.thread};
  }
  void look(const void* place, uint32_t block) {
    if (block != block_) seen_.clear();
    block_ = block;
    const auto found = places_.find(place);
    if (found != places_.end()) seen_[&found->second] = found->second.next;
  }
  // Has the block that looks now seen what this visitor did in this epoch?
  bool seen(Visitor visitor, uint32_t epoch, uint32_t by) const {
    if (by != block_) return false;
    for (const auto& [place, count] : seen_) {
      const auto found = place->blocks.find(visitor.block);
      if (found == place->blocks.end() || found->second.order >= count) continue;
      if (epoch < found->second.epoch ||
          (epoch == found->second.epoch && visitor.thread == found->second.thread)) {
        return true;
      }
    }
    return false;
  }

 private:
  struct Publication {
    uint32_t order, epoch;
    int thread;
  };
  struct Place {
    uint32_t next = 0;
    std::unordered_map<uint32_t, Publication> blocks;
  };
  std::unordered_map<const void*, Place> places_;
  std::unordered_map<const Place*, uint32_t> seen_;  // by the block that runs now
  uint32_t block_ = UINT32_MAX;
};

// Visits of one byte in one launch. Of several blocks that have not seen each other, the last two
// stand for all: whoever comes is not in both.
class GlobalVisits {
 public:
  void add(const Order& order, Visits::Slots& slots, const Publications& published, Visitor by) {
    here_.add(order, slots, by.thread, 0);
    if (last_.any && last_.by.block == by.block) {
      const bool same = last_.epoch != order.epoch() || last_.by.thread == by.thread;
      last_ = {true, {by.block, same ? by.thread : kSeveral}, order.epoch()};
      return;
    }
    if (last_.any && !published.seen(last_.by, last_.epoch, by.block)) before_ = last_;
    last_ = {true, by, order.epoch()};
  }

  bool unseen(const Order& order, const Visits::Slots& slots, const Publications& published,
              Visitor by, Visitor* who) const {
    const Visit here = here_.unseen(order, slots, by.thread);
    if (here.thread >= 0) {
      *who = {by.block, here.thread};
      return true;
    }
    for (const Trace& trace : {last_, before_}) {
      if (!trace.any || trace.by.block == by.block) continue;
      if (published.seen(trace.by, trace.epoch, by.block)) continue;
      *who = trace.by;
      return true;
    }
    return false;
  }

 private:
  static constexpr int kSeveral = -1;
  struct Trace {
    bool any = false;
    Visitor by{};
    uint32_t epoch = 0;
  };
  Visits here_;  // in the current epoch
  Trace last_, before_;
};

struct GlobalByte {
  GlobalVisits writes, reads, atomics;
};

class GlobalShadow {
 public:
  void clear() { lines_.clear(); }
  GlobalByte& at(uintptr_t address) { return lines_[address / kLine].bytes[address % kLine]; }

 private:
  static constexpr uintptr_t kLine = 64;
  struct Line {
    GlobalByte bytes[kLine];
  };
  std::unordered_map<uintptr_t, Line> lines_;
};

}  // namespace cuda_on_cpu
