// csrc/cuda/shared.h on the CPU: the same classes, with every access checked.
#pragma once

#include <cuda_on_cpu/threads.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace cuda_on_cpu {

enum class Access { read, write, atomic };

unsigned char* shared_memory();                                       // of the running block
int place_shared_array(int begin, int64_t count, int element_bytes);  // the end, or a Fault
// An index that knows where in the source it was written.
struct Index {
  Index(int64_t value, const char* file = __builtin_FILE(), int line = __builtin_LINE())
      : value(value), file(file), line(line) {}
  int64_t value;
  const char* file;
  int line;
};

// Where an access lands: its bytes, and the array that holds them, for messages.
struct SharedPlace {
  int begin, bytes;
  int array_begin, array_count, element_bytes;
};
// A Fault if the running thread must not touch these bytes now; otherwise remembers that it did.
void check_shared(Access access, const SharedPlace& place, const Index& index);
[[noreturn]] void fault_shared_index(const SharedPlace& place, const Index& index);
[[noreturn]] void fault_shared_alignment(const SharedPlace& place, const Index& index);

}  // namespace cuda_on_cpu

namespace cscl::cuda {

template <typename T>
class Shared {
  static_assert(std::is_trivially_copyable_v<T>, "shared memory holds plain bytes");

 public:
  Shared() = default;

  T operator[](cuda_on_cpu::Index i) const { return load<T>(i); }
  void set(cuda_on_cpu::Index i, T value) const { store(i, value); }
  void add(cuda_on_cpu::Index i, T value) const { store(i, static_cast<T>(load<T>(i) + value)); }
  T atomic_add(cuda_on_cpu::Index i, T value) const {
    static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned> ||
                      std::is_same_v<T, unsigned long long>,
                  "atomic_add needs int, unsigned or unsigned long long");
    cuda_on_cpu::give_way();
    unsigned char* const place = touch<T>(cuda_on_cpu::Access::atomic, i);
    T before;
    std::memcpy(&before, place, sizeof(T));
    const T after = before + static_cast<std::make_unsigned_t<T>>(value);
    std::memcpy(place, &after, sizeof(T));
    return before;
  }

  template <typename V>
  V read_wide(cuda_on_cpu::Index i) const {
    return load<V>(i);
  }
  template <typename V>
  void set_wide(cuda_on_cpu::Index i, V value) const {
    store(i, value);
  }

  Shared at(cuda_on_cpu::Index offset) const {
    if (offset.value < 0 || offset.value > count_) {
      cuda_on_cpu::fault_shared_index(place(0, 0), offset);
    }
    const int by = static_cast<int>(offset.value);
    return Shared(begin_ + by * static_cast<int>(sizeof(T)), count_ - by);
  }
  int size() const { return count_; }

 private:
  friend class SharedMemory;
  Shared(int begin, int count) : begin_(begin), count_(count) {}

  cuda_on_cpu::SharedPlace place(int64_t i, int bytes) const {
    constexpr int kElement = sizeof(T);
    return {begin_ + static_cast<int>(i) * kElement, bytes, begin_, count_, kElement};
  }

  // V is T, or what read_wide and set_wide take for several of them.
  template <typename V>
  unsigned char* touch(cuda_on_cpu::Access access, const cuda_on_cpu::Index& i) const {
    static_assert(sizeof(V) % sizeof(T) == 0, "a wide access covers whole elements");
    static_assert(sizeof(V) <= 16 || std::is_same_v<V, T>, "at most 16 bytes at once");
    constexpr int kBytes = sizeof(V), kElements = sizeof(V) / sizeof(T);
    if (i.value < 0 || i.value > count_ - kElements) {
      cuda_on_cpu::fault_shared_index(place(0, kBytes), i);
    }
    const cuda_on_cpu::SharedPlace at = place(i.value, kBytes);
    if (kElements > 1 && at.begin % kBytes != 0) cuda_on_cpu::fault_shared_alignment(at, i);
    cuda_on_cpu::check_shared(access, at, i);
    return cuda_on_cpu::shared_memory() + at.begin;
  }
  template <typename V>
  V load(cuda_on_cpu::Index i) const {
    V value;
    std::memcpy(&value, touch<V>(cuda_on_cpu::Access::read, i), sizeof(V));
    return value;
  }
  template <typename V>
  void store(cuda_on_cpu::Index i, V value) const {
    std::memcpy(touch<V>(cuda_on_cpu::Access::write, i), &value, sizeof(V));
  }

  int begin_ = 0, count_ = 0;  // the first byte; elements
};

class SharedMemory {
 public:
  template <typename T>
  Shared<T> array(int count) {
    const int begin = end_;
    end_ = cuda_on_cpu::place_shared_array(begin, count, sizeof(T));
    return Shared<T>(begin, count);
  }

 private:
  int end_ = 0;
};

}  // namespace cscl::cuda
