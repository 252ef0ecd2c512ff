// How a fault inside a kernel becomes an exception of its launch. Part of runtime.cpp.
#pragma once

#include <dlfcn.h>
#include <signal.h>

#include "machine.h"

namespace cuda_on_cpu {

// The message lies in a fixed array: the fiber is abandoned, and with it whatever it owns.
void Machine::fault(const char* format, ...) {
  char text[768];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  const uint3 block = thread_->builtins.block, thread = thread_->builtins.thread;
  std::snprintf(message_, sizeof message_, ", block (%u, %u, %u), thread (%u, %u, %u): %s", block.x,
                block.y, block.z, thread.x, thread.y, thread.z, text);
  leave();
}

void Machine::leave() {
  failed_ = true;
  thread_ = nullptr;
  static Fiber abandoned;
  abandoned.mapping = reinterpret_cast<unsigned char*>(1);  // not the host's
  start_switch(abandoned, host_);
  enter(host_);
}

void Machine::describe(char* text, size_t bytes, const Thread& thread) const {
  const uint3 index = thread.builtins.thread;
  char what[96] = "has exited";
  if (thread.state == Thread::State::at_barrier) {
    std::snprintf(what, sizeof what, "waits at the barrier %s:%d", base_name(thread.place.file),
                  thread.place.line);
  } else if (thread.state == Thread::State::at_warp_operation) {
    std::snprintf(what, sizeof what, "waits at the warp operation %s:%d with mask 0x%08x",
                  base_name(thread.place.file), thread.place.line, thread.mask);
  } else if (thread.state == Thread::State::ready) {
    std::snprintf(what, sizeof what, "is elsewhere");
  }
  std::snprintf(text, bytes, "thread (%u, %u, %u) %s", index.x, index.y, index.z, what);
}

// Nobody can go on. A lane that waits in vain for its warp is the closer reason.
void Machine::explain_deadlock() {
  const Thread *at_barrier = nullptr, *exited = nullptr;
  for (int i = 0; i < count_; ++i) {
    const Thread& thread = threads_[static_cast<size_t>(i)];
    if (thread.state == Thread::State::at_warp_operation) explain_warp(thread);
    if (thread.state == Thread::State::at_barrier) at_barrier = &thread;
    if (thread.state == Thread::State::exited) exited = &thread;
  }
  char text[256];
  describe(text, sizeof text, *exited);
  thread_ = const_cast<Thread*>(at_barrier);
  fault("divergent barrier: this thread waits at %s:%d, but %s", base_name(at_barrier->place.file),
        at_barrier->place.line, text);
}

void Machine::explain_warp(const Thread& waiting) {
  const int warp = waiting.number / kWarp;
  const Thread* missing = &waiting;
  Order::for_each(waiting.mask & lanes_of_warp(warp), [&](int lane) {
    const Thread& other = threads_[static_cast<size_t>(warp * kWarp + lane)];
    if (other.state != Thread::State::at_warp_operation || other.mask != waiting.mask ||
        other.place.line != waiting.place.line || other.operation != waiting.operation ||
        std::strcmp(other.place.file, waiting.place.file) != 0) {
      missing = &other;
    }
  });
  char text[256];
  describe(text, sizeof text, *missing);
  thread_ = const_cast<Thread*>(&waiting);
  fault("divergent warp operation: this thread waits at %s:%d with mask 0x%08x, but %s",
        base_name(waiting.place.file), waiting.place.line, waiting.mask, text);
}

// ---- memory that is not there ------------------------------------------------------------------

// The buffers that are alive, for the messages.
struct GuardedRange {
  const unsigned char *mapping, *data;
  size_t mapping_bytes, bytes;
};
inline std::vector<GuardedRange> guarded_ranges;

void Machine::fault_at_address(const void* address) {
  const auto* const byte = static_cast<const unsigned char*>(address);
  if (fibers_.is_guard(address)) fault("the thread's stack of 256 KiB overflows");
  const Place place = thread_->place;
  char last[96] = "before any barrier";
  if (place.file != nullptr) {
    std::snprintf(last, sizeof last, "after %s:%d", base_name(place.file), place.line);
  }
  for (const GuardedRange& range : guarded_ranges) {
    if (byte < range.mapping || byte >= range.mapping + range.mapping_bytes) continue;
    const bool beyond = byte >= range.data + range.bytes;
    fault("out-of-bounds access of global memory %s: byte %lld %s a buffer of %zu bytes", last,
          static_cast<long long>(beyond ? byte - range.data - range.bytes + 1 : range.data - byte),
          beyond ? "past the end of" : "before", range.bytes);
  }
  fault("out-of-bounds access of global memory %s: nothing is mapped at %p", last, address);
}

bool Machine::is_global(const void* address) const {
  const auto* const byte = static_cast<const unsigned char*>(address);
  const auto inside = [byte](const void* begin, size_t bytes) {
    return byte >= begin && byte < static_cast<const unsigned char*>(begin) + bytes;
  };
  return !inside(thread_->fiber->stack, thread_->fiber->stack_bytes) &&
         !inside(shared_memory_.get(), shared_bytes_) && !inside(&current, sizeof current);
}

void Machine::fault_global_race(const void* address, const void* code, bool writes,
                                const char* what, uint32_t block, int thread) {
  char where[96], at[256] = "";
  std::snprintf(where, sizeof where, "at %p", address);
  const auto* const byte = static_cast<const unsigned char*>(address);
  for (const GuardedRange& range : guarded_ranges) {
    if (byte < range.data || byte >= range.data + range.bytes) continue;
    std::snprintf(where, sizeof where, "byte %zu of a buffer of %zu bytes",
                  static_cast<size_t>(byte - range.data), range.bytes);
  }
  Dl_info info;
  if (code != nullptr && dladdr(code, &info) != 0) {  // one before: a return address comes after
    std::snprintf(at, sizeof at, " (addr2line -Cie %s 0x%zx)", base_name(info.dli_fname),
                  static_cast<size_t>(static_cast<const char*>(code) - 1 -
                                      static_cast<const char*>(info.dli_fbase)));
  }
  char whose[96] = "";
  const uint3 b = index_in(thread_->builtins.grid_size, block);
  if (thread >= 0) {
    const uint3 t = threads_[static_cast<size_t>(thread)].builtins.thread;
    std::snprintf(whose, sizeof whose, ", thread (%u, %u, %u)", t.x, t.y, t.z);
  }
  fault("race in global memory: %s %s%s, %s by block (%u, %u, %u)%s, with nothing that orders them",
        code == nullptr ? "atomically changes"
        : writes        ? "writes"
                        : "reads",
        where, at, what, b.x, b.y, b.z, whose);
}

// While a launch runs, a segmentation fault of a kernel is the kernel's fault. The handler has a
// stack of its own: the fiber's may be what overflowed.
class FaultHandler {
 public:
  FaultHandler() {
    static std::vector<unsigned char> room(size_t{64} << 10);
    stack_t stack{};
    stack.ss_sp = room.data();
    stack.ss_size = room.size();
    sigaltstack(&stack, &stack_before_);
    struct sigaction action{};
    action.sa_sigaction = handle;
    // NODEFER: the handler is left by a jump, which does not restore the signal mask.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before_);
    sigaction(SIGBUS, &action, &bus_before_);
    ours_ = pthread_self();
  }
  ~FaultHandler() {
    sigaction(SIGSEGV, &before_, nullptr);
    sigaction(SIGBUS, &bus_before_, nullptr);
    sigaltstack(&stack_before_, nullptr);
  }
  FaultHandler(const FaultHandler&) = delete;
  FaultHandler& operator=(const FaultHandler&) = delete;

 private:
  static void handle(int signal, siginfo_t* info, void*) {
    if (Machine::instance().running() && pthread_equal(ours_, pthread_self()) != 0) {
      Machine::instance().fault_at_address(info->si_addr);
    }
    // Someone else's: it happens again, under the handler from before.
    sigaction(signal, signal == SIGSEGV ? &before_ : &bus_before_, nullptr);
  }

  static inline struct sigaction before_, bus_before_;
  static inline pthread_t ours_;
  stack_t stack_before_;
};

}  // namespace cuda_on_cpu
