// Stands in for the CUDA toolkit's header of this name: with it g++ compiles csrc/cuda/*.cu as
// plain C++, and the kernels run on the CPU. Only what those sources use is here; what is missing
// does not compile, which is the point.
#pragma once

#define CSCL_CUDA_ON_CPU 1

#include <cuda_on_cpu/vectors.h>
//
#include <cuda_on_cpu/atomics.h>
#include <cuda_on_cpu/control.h>
#include <cuda_on_cpu/host_api.h>
#include <cuda_on_cpu/numbers.h>
#include <cuda_on_cpu/threads.h>
