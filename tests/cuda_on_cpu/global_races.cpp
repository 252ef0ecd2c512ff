// Finds races in global memory. Optional: link this file too, and compile the kernels (only them)
// with -fsanitize=thread. GCC then calls a function at every access to memory. They are usually the
// thread sanitizer's; here they are these, because the threads are CUDA's. Link without the flag.
#include "runtime/global_shadow.h"
#include "runtime/machine.h"

namespace cuda_on_cpu {
namespace {

class GlobalRaces {
 public:
  static GlobalRaces& instance() {
    static GlobalRaces* const races = new GlobalRaces;
    return *races;
  }

  void start_launch() {
    shadow_.clear();
    published_.clear();
    suspicion_.bytes = 0;
    std::fill(fenced_.begin(), fenced_.end(), 0);
  }

  void touch(const void* address, int bytes, bool reads, bool writes, const void* code) {
    Machine& machine = Machine::instance();
    if (!machine.running() || !machine.is_global(address)) return;
    settle();
    if (!machine.checks.races) return;
    const Order& order = machine.order();
    if (order.epoch() != epoch_) {
      slots_.clear();
      epoch_ = order.epoch();
    }
    const Visitor self{machine.block_number(), machine.thread_number()};
    for (int i = 0; i < bytes; ++i) {
      GlobalByte& byte = shadow_.at(reinterpret_cast<uintptr_t>(address) + static_cast<size_t>(i));
      const auto unseen = [&](const GlobalVisits& visits, Visitor* who) {
        return visits.unseen(order, slots_, published_, self, who);
      };
      Visitor who{};
      if (writes && unseen(byte.reads, &who)) report(address, code, true, "read", who);
      if (!(reads && writes) && unseen(byte.atomics, &who)) {
        report(address, code, writes, "atomically changed", who);
      }
      if (unseen(byte.writes, &who)) {
        if (reads) report(address, code, writes, "written", who);
        suspect(address, bytes, code, who);
      }
      GlobalVisits& visits = !writes ? byte.reads : reads ? byte.atomics : byte.writes;
      visits.add(order, slots_, published_, self);
    }
  }

  void fence() { fenced_[thread()] = Machine::instance().block_number() + 1; }

  void atomic(const void* address, int bytes) {
    Machine& machine = Machine::instance();
    if (!machine.running()) return;
    const uint32_t block = machine.block_number();
    published_.look(address, block);
    touch(address, bytes, true, true, nullptr);
    // Even if the thread does more before the atomic: that is not told apart.
    if (fenced_[thread()] == block + 1) {
      published_.publish(address, {block, machine.thread_number()}, machine.order().epoch());
    }
  }

  // Two threads may write one place if they write the same value. The hook comes before the write;
  // so the value is looked at when the next thing happens.
  void settle() {
    if (suspicion_.bytes == 0) return;
    const Suspicion s = suspicion_;
    suspicion_.bytes = 0;
    if (std::memcmp(s.before, s.address, static_cast<size_t>(s.bytes)) == 0) return;
    report(s.address, s.code, true, "written (another value)", s.who);
  }

 private:
  struct Suspicion {
    const void* address;
    int bytes = 0;
    unsigned char before[16];
    const void* code;
    Visitor who;
  };

  static size_t thread() { return static_cast<size_t>(Machine::instance().thread_number()); }

  void suspect(const void* address, int bytes, const void* code, Visitor who) {
    suspicion_.address = address;
    suspicion_.bytes = std::min(bytes, 16);
    std::memcpy(suspicion_.before, address, static_cast<size_t>(suspicion_.bytes));
    suspicion_.code = code;
    suspicion_.who = who;
  }

  [[noreturn]] void report(const void* address, const void* code, bool writes, const char* what,
                           Visitor who) {
    Machine::instance().fault_global_race(address, code, writes, what, who.block, who.thread);
  }

  GlobalShadow shadow_;
  Publications published_;
  Visits::Slots slots_;
  uint32_t epoch_ = 0;
  Suspicion suspicion_;
  std::vector<uint32_t> fenced_ = std::vector<uint32_t>(kMaxThreads);  // the block + 1
};

const Watcher kWatcher = {
    [] { GlobalRaces::instance().start_launch(); },
    [] { GlobalRaces::instance().fence(); },
    [](const void* address, int bytes) { GlobalRaces::instance().atomic(address, bytes); },
    [] { GlobalRaces::instance().settle(); },
};
[[maybe_unused]] const bool registered = (watcher = &kWatcher, true);

}  // namespace
}  // namespace cuda_on_cpu

// ---- what GCC and Clang call -------------------------------------------------------------------

#define CUDA_ON_CPU_TOUCH(name, bytes, writes)                                    \
  extern "C" void name(void* address) {                                           \
    cuda_on_cpu::GlobalRaces::instance().touch(address, bytes, !(writes), writes, \
                                               __builtin_return_address(0));      \
  }
#define CUDA_ON_CPU_HOOKS(bytes)                                \
  CUDA_ON_CPU_TOUCH(__tsan_read##bytes, bytes, false)           \
  CUDA_ON_CPU_TOUCH(__tsan_write##bytes, bytes, true)           \
  CUDA_ON_CPU_TOUCH(__tsan_unaligned_read##bytes, bytes, false) \
  CUDA_ON_CPU_TOUCH(__tsan_unaligned_write##bytes, bytes, true) \
  CUDA_ON_CPU_TOUCH(__tsan_volatile_read##bytes, bytes, false)  \
  CUDA_ON_CPU_TOUCH(__tsan_volatile_write##bytes, bytes, true)

CUDA_ON_CPU_HOOKS(1)
CUDA_ON_CPU_HOOKS(2)
CUDA_ON_CPU_HOOKS(4)
CUDA_ON_CPU_HOOKS(8)
CUDA_ON_CPU_HOOKS(16)

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* address, unsigned long bytes) {
  cuda_on_cpu::GlobalRaces::instance().touch(address, static_cast<int>(bytes), true, false,
                                             __builtin_return_address(0));
}
void __tsan_write_range(void* address, unsigned long bytes) {
  cuda_on_cpu::GlobalRaces::instance().touch(address, static_cast<int>(bytes), false, true,
                                             __builtin_return_address(0));
}
}

// Atomics of C++, in the host's code: the guard of a static variable, std::atomic. Nothing to see.
#define CUDA_ON_CPU_HOST_ATOMICS(bits, T)                                                        \
  extern "C" T __tsan_atomic##bits##_load(const volatile T* address, int) {                      \
    return __atomic_load_n(address, __ATOMIC_SEQ_CST);                                           \
  }                                                                                              \
  extern "C" void __tsan_atomic##bits##_store(volatile T* address, T value, int) {               \
    __atomic_store_n(address, value, __ATOMIC_SEQ_CST);                                          \
  }                                                                                              \
  extern "C" T __tsan_atomic##bits##_exchange(volatile T* address, T value, int) {               \
    return __atomic_exchange_n(address, value, __ATOMIC_SEQ_CST);                                \
  }                                                                                              \
  extern "C" T __tsan_atomic##bits##_fetch_add(volatile T* address, T value, int) {              \
    return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);                                 \
  }                                                                                              \
  extern "C" int __tsan_atomic##bits##_compare_exchange_strong(volatile T* address, T* expected, \
                                                               T value, int, int) {              \
    return __atomic_compare_exchange_n(address, expected, value, false, __ATOMIC_SEQ_CST,        \
                                       __ATOMIC_SEQ_CST);                                        \
  }

CUDA_ON_CPU_HOST_ATOMICS(8, unsigned char)
CUDA_ON_CPU_HOST_ATOMICS(32, unsigned)
CUDA_ON_CPU_HOST_ATOMICS(64, unsigned long)
