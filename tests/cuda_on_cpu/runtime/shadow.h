// What is known about every byte of the block's shared memory: who wrote it last, and who has read
// it or changed it atomically since the last barrier.
#pragma once

#include <vector>

#include "order.h"

namespace cuda_on_cpu {

struct Visit {
  int thread = -1;  // -1: nobody
  int line = 0;
};

// Visits of one byte in one epoch, none of which needs to be ordered with the others.
//
// As long as each visitor has seen the one before, the last one stands for all. Visitors from two
// warps can only be ordered by a barrier, so two of them stand for all. What is left are unordered
// lanes of one warp: they get a slot with a clock for each lane.
class Visits {
 public:
  using Slots = std::vector<std::array<uint32_t, kWarp>>;

  void add(const Order& order, Slots& slots, int thread, int line) {
    if (epoch_ != order.epoch()) {
      *this = Visits();
      epoch_ = order.epoch();
    } else if (other_thread_ >= 0) {
      return;
    } else if (thread_ / kWarp != thread / kWarp) {
      other_thread_ = static_cast<int16_t>(thread);
      other_line_ = static_cast<uint16_t>(line);
      return;
    } else if (slot_ >= 0) {
      slots[static_cast<size_t>(slot_)][lane(thread)] = order.clock(thread);
      return;
    } else if (!order.seen(thread_, clock_, thread)) {
      slot_ = static_cast<int32_t>(slots.size());
      slots.emplace_back();
      slots.back().fill(0);
      slots.back()[lane(thread_)] = clock_;
      slots.back()[lane(thread)] = order.clock(thread);
      return;
    }
    thread_ = static_cast<int16_t>(thread);
    line_ = static_cast<uint16_t>(line);
    clock_ = order.clock(thread);
  }

  // A visit that `by` has not seen.
  Visit unseen(const Order& order, const Slots& slots, int by) const {
    if (epoch_ != order.epoch()) return {};
    if (thread_ / kWarp != by / kWarp) return {thread_, line_};
    if (other_thread_ >= 0) return {other_thread_, other_line_};
    if (slot_ < 0) return order.seen(thread_, clock_, by) ? Visit{} : Visit{thread_, line_};
    for (int i = 0; i < kWarp; ++i) {
      const int thread = by / kWarp * kWarp + i;
      const uint32_t clock = slots[static_cast<size_t>(slot_)][static_cast<size_t>(i)];
      if (clock != 0 && !order.seen(thread, clock, by)) return {thread, line_};
    }
    return {};
  }

  bool since(uint32_t epoch) const { return epoch_ >= epoch; }

 private:
  static size_t lane(int thread) { return static_cast<size_t>(thread % kWarp); }

  uint32_t epoch_ = 0, clock_ = 0;
  int32_t slot_ = -1;
  int16_t thread_ = -1, other_thread_ = -1;
  uint16_t line_ = 0, other_line_ = 0;
};

class Shadow {
 public:
  void start_block(const Order& order, size_t bytes) {
    if (bytes_.size() < bytes) bytes_.resize(bytes);
    first_epoch_ = order.epoch();
    slots_.clear();
  }
  void forget() { bytes_.clear(); }
  void next_epoch() { slots_.clear(); }  // slots belong to visits of the epoch that has passed

  bool initialised(int byte) const { return at(byte).write.since(first_epoch_); }

  // An access that races with this one; -1 if there is none. `is_write` says what that one was.
  Visit race(const Order& order, int byte, bool reads, bool writes, int thread,
             const char** kind) const {
    const Byte& b = at(byte);
    Visit visit = b.write.unseen(order, slots_, thread);
    *kind = "written";
    if (visit.thread < 0 && writes) {
      visit = b.reads.unseen(order, slots_, thread);
      *kind = "read";
    }
    if (visit.thread < 0 && !(reads && writes)) {
      visit = b.atomics.unseen(order, slots_, thread);
      *kind = "changed atomically";
    }
    return visit;
  }

  void remember(const Order& order, int byte, bool reads, bool writes, int thread, int line) {
    Byte& b = at(byte);
    Visits& visits = !writes ? b.reads : reads ? b.atomics : b.write;
    visits.add(order, slots_, thread, line);
  }

 private:
  struct Byte {
    Visits write, reads, atomics;
  };
  const Byte& at(int byte) const { return bytes_[static_cast<size_t>(byte)]; }
  Byte& at(int byte) { return bytes_[static_cast<size_t>(byte)]; }

  std::vector<Byte> bytes_;
  Visits::Slots slots_;
  uint32_t first_epoch_ = 0;
};

}  // namespace cuda_on_cpu
