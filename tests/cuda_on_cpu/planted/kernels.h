// The kernels that the self-test runs: right ones, and ones with a fault planted in them. Each
// function launches one; it is what a caller of csrc/cuda sees.
#pragma once

#include <cuda_runtime.h>

namespace planted {

// ---- right -------------------------------------------------------------------------------------

// sums[b] = the sum of values[256 b ... 256 b + 255]; values beyond count are 0.
cudaError_t block_sums(const float* values, int count, float* sums);
// The same by shuffles, with only one value per warp in shared memory.
cudaError_t block_sums_by_warp(const float* values, int count, float* sums);
// out[x][y] = in[y][x]
cudaError_t transpose(const float* in, int height, int width, float* out);
// counts[c] += how many of bytes[0 ... count - 1] are c
cudaError_t histogram(const unsigned char* bytes, int count, unsigned* counts);
// Everything else that the shim offers; one word per check; those that fail become 0.
constexpr int kLanguageChecks = 41;
cudaError_t language(int* holds);
// 200 threads in 4 blocks update numbers[0 ... 5] and large[0].
cudaError_t atomics(int* numbers, unsigned long long* large);

// ---- wrong -------------------------------------------------------------------------------------

cudaError_t missing_barrier(const float* values, float* sums);          // a block_sums, 256 values
cudaError_t missing_warp_barrier(const float* values, float* sums);     // within one warp
cudaError_t relies_on_shuffle(const float* values, float* sums);        // where __syncwarp belongs
cudaError_t reads_too_far(const float* values, int count, float* out);  // values[count]
cudaError_t writes_before(float* out);                                  // out[-1]
cudaError_t shared_index(int index, float* out);                        // of an array of 32
cudaError_t misaligned_wide(float* out);
cudaError_t shared_too_small(float* out);
cudaError_t divergent_barrier(float* out);  // two branches, a barrier in each
cudaError_t exits_early(int stay, float* out);
cudaError_t missing_lane(float* out);      // a shuffle that lane 7 does not reach
cudaError_t own_lane_missing(float* out);  // a mask without the calling lane
cudaError_t shuffle_from_nowhere(float* out);
cudaError_t global_race(int* out);  // all threads write their number to one place
cudaError_t uninitialised(float* out);
cudaError_t spins(int* flag);           // waits for a block that comes later
cudaError_t overflows_stack(int* out);  // recurses until the depth out[0]

// ---- in global memory --------------------------------------------------------------------------

// Five blocks of 64; wrong without the fence.
cudaError_t last_block(const float* values, bool fence, float* sums, unsigned* finished,
                       float* total);
cudaError_t neighbours(bool barrier, int* numbers, int* of_neighbour);  // wrong without the barrier
cudaError_t lost_update(int* count);                                    // wrong
cudaError_t same_flag(int* flag);  // many threads write one value: allowed

// A launch of this shape, of a kernel that does nothing.
cudaError_t launch_shape(dim3 grid, dim3 block, size_t shared_bytes, int allowed_shared_bytes);

// ---- for the stopwatch -------------------------------------------------------------------------

cudaError_t many_barriers(int blocks, int barriers, int* out);
cudaError_t many_shuffles(int blocks, int shuffles, int* out);
cudaError_t many_threads(int blocks, int* out);
cudaError_t many_shared_accesses(int blocks, int accesses, float* out);

// ---- how they are launched ---------------------------------------------------------------------

template <typename... Params, typename... Args>
cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Params...),
                   Args... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace planted
