// The host's functions of the simulated device, and what tests say to it. Part of runtime.cpp.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <optional>

#include "faults.h"
#include "machine.h"

namespace cuda_on_cpu {

constexpr int kSharedBytes = 48 << 10, kSharedBytesOptIn = 99 << 10;

inline std::optional<uint64_t> chosen_seed;
inline std::map<const void*, int> shared_bytes_allowed;  // by kernel, where above the default
inline cudaError_t last_error = cudaSuccess;

inline cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

void set_seed(uint64_t seed) { chosen_seed = seed; }
void forget_seed() { chosen_seed.reset(); }
Checks& checks() { return Machine::instance().checks; }
uint64_t switches() { return Machine::instance().switches; }

inline uint64_t seed_of_launch() {
  if (chosen_seed) return *chosen_seed;
  const char* const text = std::getenv("CSCL_FAST_CUDA_ON_CPU_SEED");
  return text == nullptr ? 1 : std::strtoull(text, nullptr, 10);
}

inline cudaError_t judge(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.x > 1024 || block.y > 1024 || block.z > 64 ||
      grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7FFFFFFFu || grid.y > 65535 ||
      grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  const auto allowed = shared_bytes_allowed.find(kernel);
  const int limit = allowed == shared_bytes_allowed.end() ? kSharedBytes : allowed->second;
  if (config.dynamicSmemBytes > static_cast<size_t>(std::max(limit, kSharedBytes))) {
    return cudaErrorInvalidValue;
  }
  return config.numAttrs == 0 ? cudaSuccess : cudaErrorNotSupported;
}

cudaError_t launch(SourceText source, const cudaLaunchConfig_t& config, const void* kernel,
                   void (*run_thread)(const void*), const void* context) {
  Machine& machine = Machine::instance();
  const std::lock_guard<std::mutex> lock(machine.one_launch);
  const cudaError_t error = judge(config, kernel);
  if (error == cudaSuccess) {
    machine.run(source, config, kernel, run_thread, context, seed_of_launch());
  }
  return remember(error);
}

// ---- guarded memory ----------------------------------------------------------------------------

constexpr unsigned char kRoom = 0xA5;

GuardedBuffer::GuardedBuffer(size_t bytes, Edge edge, size_t alignment) : bytes_(bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t room = (bytes + alignment - 1) / page * page + page;
  mapping_bytes_ = room + 2 * page;
  void* const mapping =
      mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<unsigned char*>(mapping);
  std::memset(mapping_ + page, kRoom, room);
  mprotect(mapping_, page, PROT_NONE);
  mprotect(mapping_ + page + room, page, PROT_NONE);
  data_ = mapping_ + page;
  if (edge == Edge::end) data_ += (room - bytes) / alignment * alignment;
  guarded_ranges.push_back({mapping_, data_, mapping_bytes_, bytes_});
}

GuardedBuffer::~GuardedBuffer() {
  for (size_t i = 0; i < guarded_ranges.size(); ++i) {
    if (guarded_ranges[i].mapping != mapping_) continue;
    guarded_ranges.erase(guarded_ranges.begin() + static_cast<std::ptrdiff_t>(i));
    break;
  }
  munmap(mapping_, mapping_bytes_);
}

bool GuardedBuffer::intact() const {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (const unsigned char* at = mapping_ + page; at < mapping_ + mapping_bytes_ - page; ++at) {
    if ((at < data_ || at >= data_ + bytes_) && *at != kRoom) return false;
  }
  return true;
}

}  // namespace cuda_on_cpu

// ---- the CUDA runtime's functions --------------------------------------------------------------

cudaError_t cudaPeekAtLastError() { return cuda_on_cpu::last_error; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = cuda_on_cpu::last_error;
  cuda_on_cpu::last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorNotSupported:
      return "operation not supported";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return cuda_on_cpu::remember(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return cuda_on_cpu::remember(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = cuda_on_cpu::kMaxThreads;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = cuda_on_cpu::kSharedBytes;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = cuda_on_cpu::kWarp;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = 3;  // so few that a kernel which sizes its grid by it has to loop
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = cuda_on_cpu::kSharedBytesOptIn;
      return cudaSuccess;
  }
  return cuda_on_cpu::remember(cudaErrorInvalidValue);
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      value > cuda_on_cpu::kSharedBytesOptIn) {
    return cuda_on_cpu::remember(cudaErrorInvalidValue);
  }
  cuda_on_cpu::shared_bytes_allowed[kernel] = value;
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  if (bytes > 0) std::memset(memory, value, bytes);
  return cudaSuccess;
}
