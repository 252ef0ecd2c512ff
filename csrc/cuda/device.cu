// Whether there is a device at all.
#include "cuda/launch.h"

namespace cscl::cuda {

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

std::string device_problem() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess) return count > 0 ? "" : "the driver knows no GPU";
  cudaGetLastError();
  return cudaGetErrorString(status);
}

}  // namespace cscl::cuda
