// Runs CUDA kernels on the CPU; README.md says what for. Link this one file.
//
// A thread runs until it meets others (at a barrier, a warp operation, an atomic); then a thread
// drawn at random goes on. All of this happens on the host thread that launches.
#undef _FORTIFY_SOURCE  // its longjmp refuses to change over to another stack

#include "runtime/machine.h"
//
#include "runtime/faults.h"
#include "runtime/host_api.h"
#include "runtime/symbols.h"

namespace cuda_on_cpu {

Builtins current;

Machine::Machine() : fibers_(fiber_main) { ready_.reserve(kMaxThreads); }

Machine& Machine::instance() {
  static Machine* const machine = new Machine;  // never destroyed: launches may come at exit
  return *machine;
}

// ---- a launch ----------------------------------------------------------------------------------

void Machine::run(SourceText source, const cudaLaunchConfig_t& config, const void* kernel,
                  void (*run_thread)(const void*), const void* context, uint64_t seed) {
  source_ = source;
  kernel_ = kernel;
  run_thread_ = run_thread;
  context_ = context;
  failed_ = false;
  random_.restart(seed);
  shuffles_order_memory_ =
      checks.shuffles_order_memory && std::getenv("CSCL_FAST_CUDA_ON_CPU_STRICT") == nullptr;
  if (order_.nearly_wrapped()) {
    order_.restart();
    shadow_.forget();
  }
  // Exactly as large as asked for, so that AddressSanitizer sees what the checks might not.
  shared_bytes_ = config.dynamicSmemBytes;
  shared_memory_.reset(new unsigned char[shared_bytes_]);

  const dim3 grid = config.gridDim, block = config.blockDim;
  count_ = static_cast<int>(block.x * block.y * block.z);
  for (int i = 0; i < count_; ++i) {
    Thread& thread = threads_[static_cast<size_t>(i)];
    thread.number = i;
    thread.builtins.thread = index_in(block, static_cast<uint64_t>(i));
    thread.builtins.block_size = block;
    thread.builtins.grid_size = grid;
    thread.builtins.lane = i % kWarp;
  }

  std::vector<uint64_t> blocks(uint64_t{grid.x} * grid.y * grid.z);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const size_t j = random_.below(i + 1);
    blocks[i] = blocks[j];
    blocks[j] = i;
  }
  if (watcher != nullptr) watcher->start_launch();
  FaultHandler handler;
  for (const uint64_t block_number : blocks) {
    run_block(block_number, grid);
    if (failed_) {
      fibers_.restart_all();
      throw Fault(kernel_name(kernel_, source_) + message_);
    }
  }
}

void Machine::run_block(uint64_t block, const dim3& grid) {
  const uint3 index = index_in(grid, block);
  block_ = static_cast<uint32_t>(block);
  order_.next_epoch();
  shadow_.start_block(order_, shared_bytes_);
  std::memset(shared_memory_.get(), 0xFF, shared_bytes_);  // NaN, and an index nobody has
  ready_.clear();
  idle_changes_ = 0;
  exited_ = at_barrier_ = 0;
  for (int i = 0; i < count_; ++i) {
    Thread& thread = threads_[static_cast<size_t>(i)];
    thread.builtins.block = index;
    thread.fiber = nullptr;
    thread.place = {};
    make_ready(thread);
  }
  continue_with(choose_ready());
  thread_ = nullptr;
}

// ---- changing over -----------------------------------------------------------------------------

void Machine::make_ready(Thread& thread) {
  thread.state = Thread::State::ready;
  ready_.push_back(&thread);
}

Thread& Machine::choose_ready() {
  const size_t i = random_.below(ready_.size());
  Thread& thread = *ready_[i];
  ready_[i] = ready_.back();
  ready_.pop_back();
  return thread;
}

// Leaves the running fiber (or the host) for the thread's own; returns when this one is chosen.
void Machine::continue_with(Thread& thread) {
  Thread* const self = thread_;
  if (&thread == self) return;
  ++switches;
  if (watcher != nullptr && self != nullptr) watcher->settle();
  Fiber& from = self == nullptr ? host_ : *self->fiber;
  if (thread.fiber == nullptr) thread.fiber = &fibers_.take();
  thread_ = &thread;
  current = thread.builtins;
  switch_fiber(from, *thread.fiber);
}

void Machine::fiber_main() {
  Machine& machine = instance();
  finish_switch(*machine.thread_->fiber);
  for (;;) machine.run_threads_on_this_fiber();
}

// The fiber that a thread leaves behind goes on with one that has not begun, without a change of
// stacks. Returns when the fiber, after a rest in the pool, is given to another thread.
void Machine::run_threads_on_this_fiber() {
  Fiber& fiber = *thread_->fiber;
  for (;;) {
    run_thread_(context_);
    if (watcher != nullptr) watcher->settle();
    thread_->state = Thread::State::exited;
    ++exited_;
    idle_changes_ = 0;
    if (ready_.empty()) {
      if (exited_ < count_) explain_deadlock();
      fibers_.give_back(fiber);
      switch_fiber(fiber, host_);
      return;
    }
    Thread& next = choose_ready();
    if (next.fiber != nullptr) {
      fibers_.give_back(fiber);
      continue_with(next);
      return;
    }
    ++switches;
    next.fiber = &fiber;
    thread_ = &next;
    current = next.builtins;
  }
}

void Machine::wait() {
  if (ready_.empty()) explain_deadlock();
  continue_with(choose_ready());
}

void Machine::give_way() {
  if (!running()) return;
  // Every other thread of the block waits or also only gives way.
  if (++idle_changes_ > checks.patience) fault("no thread gets anywhere: do they wait in a loop?");
  make_ready(*thread_);
  continue_with(choose_ready());
}

// ---- barriers of the block ---------------------------------------------------------------------

int Machine::meet_block(Barrier kind, int predicate, Place place) {
  Thread& self = *thread_;
  self.place = place;
  self.state = Thread::State::at_barrier;
  self.barrier = kind;
  self.value = predicate != 0;
  idle_changes_ = 0;
  for (int i = 0; i < count_ && at_barrier_ > 0; ++i) {
    const Thread& other = threads_[static_cast<size_t>(i)];
    if (&other == &self || other.state != Thread::State::at_barrier) continue;
    if (other.place.line == place.line && other.barrier == kind &&
        std::strcmp(other.place.file, place.file) == 0) {
      break;  // and so do all that wait
    }
    char text[256];
    describe(text, sizeof text, other);
    fault("divergent barrier: this thread is at %s:%d, but %s", base_name(place.file), place.line,
          text);
  }
  if (++at_barrier_ == count_) {
    finish_barrier();
    make_ready(self);
  }
  wait();
  return static_cast<int>(self.result);
}

void Machine::finish_barrier() {
  uint64_t holds = 0;
  for (int i = 0; i < count_; ++i) holds += threads_[static_cast<size_t>(i)].value;
  for (int i = 0; i < count_; ++i) {
    Thread& thread = threads_[static_cast<size_t>(i)];
    thread.result = thread.barrier == Barrier::any   ? holds != 0
                    : thread.barrier == Barrier::all ? holds == static_cast<uint64_t>(count_)
                                                     : holds;
    if (&thread != thread_) make_ready(thread);
  }
  at_barrier_ = 0;
  order_.next_epoch();
  shadow_.next_epoch();
}

// ---- within a warp -----------------------------------------------------------------------------

unsigned Machine::lanes_of_warp(int warp) const {
  const int lanes = std::min(kWarp, count_ - warp * kWarp);
  return lanes == kWarp ? 0xFFFFFFFFu : (1u << lanes) - 1;
}

uint64_t Machine::meet_warp(WarpOperation kind, unsigned mask, uint64_t value, int source,
                            Place place) {
  Thread& self = *thread_;
  self.place = place;
  self.operation = kind;
  self.mask = mask;
  self.value = value;
  self.source_lane = source;
  idle_changes_ = 0;
  const int lane = self.number % kWarp, warp = self.number / kWarp;
  if ((mask >> lane & 1) == 0) {
    fault("divergent warp operation: at %s:%d the mask 0x%08x lacks this thread's own lane %d",
          base_name(place.file), place.line, mask, lane);
  }
  self.state = Thread::State::at_warp_operation;
  // A block that is not a multiple of 32 threads: nobody waits for lanes that do not exist.
  const unsigned lanes = mask & lanes_of_warp(warp);
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    const Thread& other = threads_[static_cast<size_t>(warp * kWarp + __builtin_ctz(rest))];
    if (other.state != Thread::State::at_warp_operation || other.mask != mask ||
        other.operation != kind || other.place.line != place.line ||
        std::strcmp(other.place.file, place.file) != 0) {
      wait();
      return self.result;
    }
  }
  finish_warp_operation(self, lanes);
  make_ready(self);
  wait();
  return self.result;
}

void Machine::finish_warp_operation(Thread& last, unsigned lanes) {
  const int warp = last.number / kWarp;
  Thread* const first = &threads_[static_cast<size_t>(warp * kWarp)];
  unsigned ballot = 0;
  Order::for_each(lanes, [&](int lane) {
    if (first[lane].value != 0) ballot |= 1u << lane;
  });
  Order::for_each(lanes, [&](int lane) {
    Thread& thread = first[lane];
    switch (thread.operation) {
      case WarpOperation::shuffle:
        if ((lanes >> thread.source_lane & 1) == 0) {
          thread_ = &thread;  // for the message
          fault("divergent warp operation: the shuffle at %s:%d reads lane %d, which %s",
                base_name(thread.place.file), thread.place.line, thread.source_lane,
                last.mask >> thread.source_lane & 1 ? "does not exist in this block"
                                                    : "is not in the mask");
        }
        thread.result = first[thread.source_lane].value;
        break;
      case WarpOperation::any:
        thread.result = ballot != 0;
        break;
      case WarpOperation::all:
        thread.result = ballot == lanes;
        break;
      case WarpOperation::sync:
      case WarpOperation::ballot:
        thread.result = ballot;
        break;
    }
    if (&thread != &last) make_ready(thread);
  });
  if (last.operation == WarpOperation::sync || shuffles_order_memory_) {
    order_.meet(warp, lanes);
  }
}

// ---- shared memory -----------------------------------------------------------------------------

void Machine::check_shared(Access access, const SharedPlace& place, const Index& index) {
  const bool reads = access != Access::write, writes = access != Access::read;
  const int self = thread_->number;
  for (int byte = place.begin; byte < place.begin + place.bytes; ++byte) {
    if (reads && checks.initialisation && !shadow_.initialised(byte)) {
      fault(
          "uninitialised shared memory: %s:%d reads element %lld of the array at byte %d, which "
          "nobody in this block has written",
          base_name(index.file), index.line, static_cast<long long>(index.value),
          place.array_begin);
    }
    if (checks.races) {
      const char* kind = nullptr;
      const Visit other = shadow_.race(order_, byte, reads, writes, self, &kind);
      if (other.thread >= 0) {
        const uint3 at = threads_[static_cast<size_t>(other.thread)].builtins.thread;
        fault(
            "race in shared memory: %s:%d %s element %lld of the array at byte %d, %s by thread "
            "(%u, %u, %u) at line %d, with no barrier in between",
            base_name(index.file), index.line,
            !writes ? "reads"
            : reads ? "atomically changes"
                    : "writes",
            static_cast<long long>(index.value), place.array_begin, kind, at.x, at.y, at.z,
            other.line);
      }
    }
    shadow_.remember(order_, byte, reads, writes, self, index.line);
  }
}

// ---- what a kernel calls -----------------------------------------------------------------------

namespace {
Machine& machine_of_kernel() {
  Machine& machine = Machine::instance();
  if (!machine.running()) throw std::logic_error("cuda_on_cpu: device code called on the host");
  return machine;
}
}  // namespace

int meet_block(Barrier kind, int predicate, const char* file, int line) {
  return machine_of_kernel().meet_block(kind, predicate, {file, line});
}
uint64_t meet_warp(WarpOperation kind, unsigned mask, uint64_t value, int source_lane,
                   const char* file, int line) {
  return machine_of_kernel().meet_warp(kind, mask, value, source_lane, {file, line});
}
void give_way() { Machine::instance().give_way(); }
void note_atomic(const void* address, int bytes) {
  if (watcher != nullptr) watcher->atomic(address, bytes);
}
void note_fence() {
  if (watcher != nullptr && Machine::instance().running()) watcher->fence();
}

unsigned char* shared_memory() { return machine_of_kernel().shared_memory(); }
void check_shared(Access access, const SharedPlace& place, const Index& index) {
  machine_of_kernel().check_shared(access, place, index);
}
int place_shared_array(int begin, int64_t count, int element_bytes) {
  Machine& machine = machine_of_kernel();
  if (count < 0) machine.fault("a shared array of %lld elements", static_cast<long long>(count));
  const int64_t end = begin + (count * element_bytes + 15) / 16 * 16;
  if (end > machine.shared_bytes()) {
    machine.fault(
        "shared memory is too small: the arrays so far take %lld bytes, the launch gave %d",
        static_cast<long long>(end), machine.shared_bytes());
  }
  return static_cast<int>(end);
}
void fault_shared_index(const SharedPlace& place, const Index& index) {
  machine_of_kernel().fault(
      "out-of-bounds shared index: %s:%d uses element %lld of the array at byte %d, which has %d "
      "elements of %d bytes",
      base_name(index.file), index.line, static_cast<long long>(index.value), place.array_begin,
      place.array_count, place.element_bytes);
}
void fault_shared_alignment(const SharedPlace& place, const Index& index) {
  machine_of_kernel().fault(
      "misaligned shared memory: %s:%d takes %d bytes at once from element %lld of the array at "
      "byte %d",
      base_name(index.file), index.line, place.bytes, static_cast<long long>(index.value),
      place.array_begin);
}

}  // namespace cuda_on_cpu
