// What a test says to the simulated device, and what it hears from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace cuda_on_cpu {

// Something that a kernel must not do. Thrown by the launch; the next launch works.
class __attribute__((visibility("default"))) Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The order of the blocks and of the threads follows from the seed, and from nothing else. Without
// a call, every launch reads the environment variable CSCL_FAST_CUDA_ON_CPU_SEED.
void set_seed(uint64_t seed);
void forget_seed();  // back to the environment variable

struct Checks {
  bool races = true;           // two threads at the same bytes of shared memory, without order
  bool initialisation = true;  // reading shared memory that nobody has written
  // More than CUDA's manual promises, which says so of __syncwarp alone. With
  // CSCL_FAST_CUDA_ON_CPU_STRICT=1 in the environment only that orders the lanes.
  bool shuffles_order_memory = true;
  // How often the threads of a block may give way at atomics while none of them gets to a meeting
  // or to its end: a kernel that waits in a loop for a later block would never end.
  uint64_t patience = 200'000'000;
};
Checks& checks();

// How many times one thread gave way to another, in all launches so far.
uint64_t switches();

// Memory that ends, or starts, at a page that nobody may touch: the first access beyond that edge
// becomes a Fault. Between the other edge and its page there is room, filled with a pattern.
class GuardedBuffer {
 public:
  enum class Edge { end, start };
  // With an alignment above 1 an edge at the end lies up to alignment - 1 bytes before the page.
  explicit GuardedBuffer(size_t bytes, Edge edge = Edge::end, size_t alignment = 1);
  ~GuardedBuffer();
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  template <typename T = void>
  T* data() const {
    return static_cast<T*>(static_cast<void*>(data_));
  }
  size_t size() const { return bytes_; }
  bool intact() const;  // nobody has written into the room around the data

 private:
  unsigned char* mapping_;
  size_t mapping_bytes_;
  unsigned char* data_;
  size_t bytes_;
};

}  // namespace cuda_on_cpu
