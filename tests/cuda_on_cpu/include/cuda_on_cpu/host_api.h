// The host's side: errors, the device's attributes, launches.
#pragma once

#include <cuda_on_cpu/vectors.h>

#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorNotSupported = 801,
};

enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

typedef struct CUstream_st* cudaStream_t;

struct cudaLaunchAttribute;  // none is known here: a launch that brings one is refused

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream = nullptr);

template <typename... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute attribute,
                                 int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

namespace cuda_on_cpu {

// The arguments of a launch as they stand in the source, from which a message takes the kernel's
// name where the symbol table has none.
struct SourceText {
  const char* text;
};

cudaError_t launch(SourceText source, const cudaLaunchConfig_t& config, const void* kernel,
                   void (*run_thread)(const void*), const void* context);

}  // namespace cuda_on_cpu

// Runs the whole grid before it returns.
template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(cuda_on_cpu::SourceText source, const cudaLaunchConfig_t* config,
                               void (*kernel)(Params...), Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "one argument for every parameter");
  static_assert((std::is_trivially_copyable_v<Params> && ...), "CUDA copies arguments as bytes");
  static_assert((sizeof(Params) + ... + size_t{0}) <= 4096, "CUDA takes 4 KiB of arguments");
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> values;
  };
  const Call call{kernel, std::tuple<Params...>(std::forward<Args>(args)...)};
  const auto run_thread = [](const void* context) {
    const Call& call = *static_cast<const Call*>(context);
    std::apply(call.kernel, call.values);
  };
  return cuda_on_cpu::launch(source, *config, reinterpret_cast<const void*>(kernel), run_thread,
                             &call);
}

#define cudaLaunchKernelEx(...) \
  cudaLaunchKernelEx(::cuda_on_cpu::SourceText{#__VA_ARGS__}, __VA_ARGS__)
