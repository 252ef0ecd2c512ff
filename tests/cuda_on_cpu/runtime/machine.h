// The simulated device: one block at a time, each of its threads a fiber.
#pragma once

#include <cuda_on_cpu/shared_memory.h>
#include <cuda_runtime.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>

#include "fiber.h"
#include "order.h"
#include "shadow.h"
#include "watcher.h"

namespace cuda_on_cpu {

struct Place {
  const char* file = nullptr;
  int line = 0;
};

struct Thread {
  enum class State { ready, at_barrier, at_warp_operation, exited };
  Builtins builtins;
  int number = 0;  // within the block
  State state = State::ready;
  Fiber* fiber = nullptr;  // null until it first runs
  Place place;             // where it last met others
  // What it brings to the meeting, and what it takes along.
  Barrier barrier{};
  WarpOperation operation{};
  unsigned mask = 0;
  int source_lane = 0;
  uint64_t value = 0, result = 0;
};

// xorshift64*
class Random {
 public:
  void restart(uint64_t seed) { state_ = (seed + 1) * 0x9E3779B97F4A7C15ull | 1; }
  uint32_t below(size_t bound) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    const uint64_t draw = (state_ * 0x2545F4914F6CDD1Dull) >> 32;
    return static_cast<uint32_t>(draw * bound >> 32);
  }

 private:
  uint64_t state_ = 1;
};

class Machine {
 public:
  static Machine& instance();

  // ---- on the host --------------------------------------------------------------------------
  void run(SourceText source, const cudaLaunchConfig_t& config, const void* kernel,
           void (*run_thread)(const void*), const void* context, uint64_t seed);
  std::mutex one_launch;
  Checks checks;
  uint64_t switches = 0;

  // ---- in a kernel --------------------------------------------------------------------------
  bool running() const { return thread_ != nullptr; }
  int meet_block(Barrier kind, int predicate, Place place);
  uint64_t meet_warp(WarpOperation kind, unsigned mask, uint64_t value, int source, Place place);
  void give_way();
  void check_shared(Access access, const SharedPlace& place, const Index& index);
  unsigned char* shared_memory() { return shared_memory_.get(); }
  int shared_bytes() const { return static_cast<int>(shared_bytes_); }
  // Ends the launch with this message; never returns to the fiber.
  [[noreturn]] __attribute__((format(printf, 2, 3))) void fault(const char* format, ...);
  [[noreturn]] void fault_at_address(const void* address);  // from the signal handler

  // ---- for global_races.cpp -----------------------------------------------------------------
  const Order& order() const { return order_; }
  int thread_number() const { return thread_->number; }
  uint32_t block_number() const { return block_; }
  // Neither the thread's own stack, nor shared memory, nor what the simulation itself keeps there.
  bool is_global(const void* address) const;
  [[noreturn]] void fault_global_race(const void* address, const void* code, bool writes,
                                      const char* what, uint32_t block, int thread);

 private:
  Machine();
  static void fiber_main();
  void run_block(uint64_t block, const dim3& grid);
  void run_threads_on_this_fiber();
  Thread& choose_ready();
  void continue_with(Thread& thread);
  void wait();
  void make_ready(Thread& thread);
  void finish_barrier();
  void finish_warp_operation(Thread& last, unsigned lanes);
  unsigned lanes_of_warp(int warp) const;
  [[noreturn]] void explain_deadlock();
  [[noreturn]] void explain_warp(const Thread& waiting);
  [[noreturn]] void leave();
  void describe(char* text, size_t bytes, const Thread& thread) const;

  FiberPool fibers_;
  Fiber host_;
  std::vector<Thread> threads_ = std::vector<Thread>(kMaxThreads);
  std::vector<Thread*> ready_;
  Thread* thread_ = nullptr;  // the one that is running
  int count_ = 0;             // threads in the block
  uint32_t block_ = 0;        // its number within the grid
  int exited_ = 0, at_barrier_ = 0;
  uint64_t idle_changes_ = 0;  // since a thread last got anywhere
  Random random_;
  Order order_;
  bool shuffles_order_memory_ = true;

  const void* kernel_ = nullptr;
  SourceText source_{};
  void (*run_thread_)(const void*) = nullptr;
  const void* context_ = nullptr;

  std::unique_ptr<unsigned char[]> shared_memory_;
  size_t shared_bytes_ = 0;
  Shadow shadow_;

  bool failed_ = false;
  char message_[1024];
};

// The coordinates of the block or thread with this number; x runs fastest.
inline uint3 index_in(const dim3& sizes, uint64_t number) {
  return {static_cast<unsigned>(number % sizes.x),
          static_cast<unsigned>(number / sizes.x % sizes.y),
          static_cast<unsigned>(number / sizes.x / sizes.y)};
}

// The last part of a path.
inline const char* base_name(const char* file) {
  const char* last = file;
  for (const char* c = file; *c != 0; ++c) {
    if (*c == '/') last = c + 1;
  }
  return last;
}

}  // namespace cuda_on_cpu
