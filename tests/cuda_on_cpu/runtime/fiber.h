// Fibers: stacks of their own, between which one host thread changes over.
//
// A fiber is entered once by ucontext; every later change is _setjmp and _longjmp, which leave the
// signal mask alone and so need no system call.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_ON_CPU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_ON_CPU_ASAN 1
#endif
#endif
#if defined(CUDA_ON_CPU_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_cpu {

struct Fiber {
  jmp_buf position;
  ucontext_t entry;
  bool entered = true;         // position is where it stands; otherwise entry is where it starts
  void* fake_stack = nullptr;  // these three are AddressSanitizer's
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  unsigned char* mapping = nullptr;  // the guard page, then the stack; null for the host's own
};

inline Fiber* fiber_left = nullptr;  // by the last change

inline void start_switch([[maybe_unused]] Fiber& from, [[maybe_unused]] const Fiber& to) {
  fiber_left = &from;
#if defined(CUDA_ON_CPU_ASAN)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
}

inline void finish_switch([[maybe_unused]] Fiber& to) {
#if defined(CUDA_ON_CPU_ASAN)
  const void* stack = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(to.fake_stack, &stack, &bytes);
  if (fiber_left->mapping == nullptr) {  // the host's stack is whatever the launch came from
    fiber_left->stack = stack;
    fiber_left->stack_bytes = bytes;
  }
#endif
}

[[noreturn]] inline void enter(Fiber& to) {
  if (to.entered) _longjmp(to.position, 1);
  to.entered = true;
  setcontext(&to.entry);
  __builtin_unreachable();
}

__attribute__((noinline)) inline void switch_fiber(Fiber& from, Fiber& to) {
  start_switch(from, to);
  if (_setjmp(from.position) == 0) enter(to);
  finish_switch(from);
}

// The fibers of all launches. They are kept: a launch of many blocks would otherwise map and enter
// a stack for every thread.
class FiberPool {
 public:
  explicit FiberPool(void (*main)()) : main_(main) {}
  ~FiberPool() {
    for (const auto& fiber : all_) munmap(fiber->mapping, kStackBytes + page_);
  }

  Fiber& take() {
    if (free_.empty()) free_.push_back(&make());
    Fiber& fiber = *free_.back();
    free_.pop_back();
    return fiber;
  }
  void give_back(Fiber& fiber) { free_.push_back(&fiber); }

  // After a fault: whatever the fibers were doing is forgotten.
  void restart_all() {
    free_.clear();
    for (const auto& fiber : all_) {
      prepare(*fiber);
      free_.push_back(fiber.get());
    }
  }

  bool is_guard(const void* address) const {
    for (const auto& fiber : all_) {
      const auto* const byte = static_cast<const unsigned char*>(address);
      if (byte >= fiber->mapping && byte < fiber->mapping + page_) return true;
    }
    return false;
  }

 private:
  // Only pages that are used take memory. ASan's redzones need room.
  static constexpr size_t kStackBytes = size_t{256} << 10;

  Fiber& make() {
    auto fiber = std::make_unique<Fiber>();
    void* const mapping = mmap(nullptr, kStackBytes + page_, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED || mprotect(mapping, page_, PROT_NONE) != 0) {
      throw std::runtime_error("cuda_on_cpu: no memory for the stack of a thread");
    }
    fiber->mapping = static_cast<unsigned char*>(mapping);
    // Stacks that start at the same place in their pages would share a few lines of the caches.
    fiber->stack_bytes = kStackBytes - all_.size() % 61 * 64;
    fiber->stack = fiber->mapping + page_;
    prepare(*fiber);
    all_.push_back(std::move(fiber));
    return *all_.back();
  }

  void prepare(Fiber& fiber) {
#if defined(CUDA_ON_CPU_ASAN)
    __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);
    fiber.fake_stack = nullptr;
#endif
    getcontext(&fiber.entry);
    fiber.entry.uc_stack.ss_sp = const_cast<void*>(fiber.stack);
    fiber.entry.uc_stack.ss_size = fiber.stack_bytes;
    fiber.entry.uc_link = nullptr;
    makecontext(&fiber.entry, main_, 0);
    fiber.entered = false;
  }

  void (*main_)();
  const size_t page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::vector<std::unique_ptr<Fiber>> all_;
  std::vector<Fiber*> free_;
};

}  // namespace cuda_on_cpu
