// Starting a kernel, and the errors of doing so.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "cuda/kernels.h"

#define CSCL_D __device__ __forceinline__

namespace cscl::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not see it again
  throw CudaError(std::string(what) + ": " + cudaGetErrorName(status) + ", " +
                  cudaGetErrorString(status));
}

// Makes the context's device the current one while it lives.
class DeviceScope {
 public:
  explicit DeviceScope(const Context& context) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    changed_ = before_ != context.device;
    if (changed_) check(cudaSetDevice(context.device), "cudaSetDevice");
  }
  ~DeviceScope() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Blocks that the device can hold at once, if each multiprocessor takes `each`: how far a kernel
// that walks over its work in a loop is spread.
inline int64_t resident_blocks(const Context& context, int each) {
  int processors = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, context.device),
        "cudaDeviceGetAttribute");
  return static_cast<int64_t>(processors) * each;
}

// What every device that the kernels are built for gives a block without being asked.
constexpr size_t kPlainSharedBytes = 48 << 10;

// Puts kernel<<<blocks, threads, shared_bytes>>>(arguments...) on the stream. No blocks, no launch.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Context& context, int64_t blocks,
            int threads, size_t shared_bytes, Arguments&&... arguments) {
  if (blocks == 0) return;
  if (shared_bytes > kPlainSharedBytes) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          name);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks), 1, 1);
  config.blockDim = dim3(static_cast<unsigned>(threads), 1, 1);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(context.stream);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

}  // namespace cscl::cuda
