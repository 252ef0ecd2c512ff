// The simulation's own test program; test_shim.py runs it.
//
//     selftest right          the right kernels, with many seeds
//     selftest NAME           a planted fault: prints the message of the Fault, or "no fault"
//     selftest recovery       launches after faults, many times
//     selftest detectors      the race detectors, against ones that keep everything
//     selftest stopwatch      what things cost
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_on_cpu/seeds.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>

#include "planted/kernels.h"

using cuda_on_cpu::assert_seed_independent;
using cuda_on_cpu::Fault;
using cuda_on_cpu::GuardedBuffer;

bool check_race_detectors();  // selftest_shadow.cpp

namespace {

int failures = 0;

void check(bool holds, const char* what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED %s\n", what);
}

void check_success(cudaError_t error) { check(error == cudaSuccess, cudaGetErrorName(error)); }

std::vector<float> numbers(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i * i % 1009) / 8;
  return values;
}

// ---- right kernels -----------------------------------------------------------------------------

constexpr uint64_t kSeeds = 25;

void check_sums(cudaError_t (*sum)(const float*, int, float*)) {
  const std::vector<float> values = numbers(1000);
  const auto sums = assert_seed_independent(
      [&] {
        GuardedBuffer in(4000), out(16);
        std::memcpy(in.data(), values.data(), 4000);
        check_success(sum(in.data<float>(), 1000, out.data<float>()));
        return std::vector<float>(out.data<float>(), out.data<float>() + 4);
      },
      kSeeds);
  for (size_t block = 0; block < 4; ++block) {  // multiples of 1/8: exact in any order
    const auto begin = values.begin() + static_cast<long>(block * 256);
    const auto end = block == 3 ? values.end() : begin + 256;
    check(sums[block] == std::accumulate(begin, end, 0.f), "a block's sum");
  }
}

void check_transpose(int height, int width) {
  const std::vector<float> in = numbers(static_cast<size_t>(height * width));
  const auto out = assert_seed_independent(
      [&] {
        std::vector<float> out(in.size());
        check_success(planted::transpose(in.data(), height, width, out.data()));
        return out;
      },
      kSeeds);
  bool same = true;
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      same = same &&
             out[static_cast<size_t>(x * height + y)] == in[static_cast<size_t>(y * width + x)];
    }
  }
  check(same, "the transpose");
}

void check_histogram() {
  std::vector<unsigned char> bytes(5000);
  std::vector<unsigned> expected(256);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<unsigned char>(i * i % 251);
    ++expected[bytes[i]];
  }
  const auto counts = assert_seed_independent(
      [&] {
        std::vector<unsigned> counts(256);
        check_success(planted::histogram(bytes.data(), 5000, counts.data()));
        return counts;
      },
      kSeeds);
  check(counts == expected, "the histogram");
}

void check_global_memory() {
  const std::vector<float> values = numbers(5 * 64);
  const auto total = assert_seed_independent(
      [&] {
        std::vector<float> sums(5), total(1);
        unsigned finished = 0;
        check_success(
            planted::last_block(values.data(), true, sums.data(), &finished, total.data()));
        return total;
      },
      kSeeds);
  check(total[0] == std::accumulate(values.begin(), values.end(), 0.f), "the last block's total");
  const auto shown = assert_seed_independent(
      [] {
        std::vector<int> numbers(3 * 64), shown(3 * 64);
        check_success(planted::neighbours(true, numbers.data(), shown.data()));
        return shown;
      },
      kSeeds);
  for (int i = 0; i < 3 * 64; ++i) check(shown[size_t(i)] == (i + 1) % 64, "a neighbour's number");
  int flag = 0;
  check_success(planted::same_flag(&flag));
  check(flag == 1, "the flag");
}

void check_language() {
  const auto holds = assert_seed_independent(
      [] {
        std::vector<int> holds(planted::kLanguageChecks, 1);
        check_success(planted::language(holds.data()));
        return holds;
      },
      kSeeds);
  for (size_t i = 0; i < holds.size(); ++i) {
    if (holds[i] == 0) std::printf("language check %zu fails\n", i);
    check(holds[i] == 1, "the language");
  }
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    cuda_on_cpu::set_seed(seed);
    int n[6] = {0, -1, 1, 0, 0, 0};
    unsigned long long large = 0;
    check_success(planted::atomics(n, &large));
    check(n[0] == 199 * 100 && n[1] == 199 && n[2] == -199, "atomicAdd, Max, Min");
    check(n[3] > 0 && n[3] == n[4], "atomicCAS, atomicExch");
    check(n[5] == -200 && large == 200ull << 40, "atomicAdd of unsigned numbers");
  }
}

// Every half, and every bfloat16; each value between two neighbours goes to the right one.
template <typename Widen, typename Round>
void check_sixteen_bits(const Widen& widen, const Round& round, int infinity, const char* what) {
  for (int bits = 0; bits < infinity; ++bits) {
    const double below = widen(static_cast<unsigned short>(bits));
    double above = widen(static_cast<unsigned short>(bits + 1));
    if (bits + 1 == infinity) above = 2 * below - widen(static_cast<unsigned short>(bits - 1));
    const float middle = static_cast<float>((below + above) / 2);
    const float tiny = std::nextafter(middle, INFINITY), less = std::nextafter(middle, 0.f);
    const bool good = above > below && round(static_cast<float>(below)) == bits &&
                      round(middle) == bits + bits % 2 && round(tiny) == bits + 1 &&
                      round(less) == bits && round(-less) == (bits | 0x8000);
    check(good, what);
    if (!good) return;
  }
  check(std::isinf(widen(static_cast<unsigned short>(infinity))), what);
  check(round(INFINITY) == infinity && round(-INFINITY) == (infinity | 0x8000), what);
  check(round(NAN) == 0x7FFF && std::isnan(widen(0x7FFF)), what);
  check(std::isnan(widen(static_cast<unsigned short>(infinity + 1))), what);
  check(round(-0.f) == 0x8000 && std::signbit(widen(0x8000)), what);
}

void check_launches() {
  using planted::launch_shape;
  constexpr int kDefault = 48 << 10, kOptIn = 99 << 10;
  check(launch_shape(1, 1024, kDefault, 0) == cudaSuccess, "the largest ordinary launch");
  check(launch_shape(dim3(1, 65535), 1, 0, 0) == cudaSuccess, "the largest grid.y");
  check(cudaGetLastError() == cudaSuccess, "no error so far");
  for (const dim3 block : {dim3(1025), dim3(32, 33), dim3(0), dim3(1, 1, 65), dim3(1, 0)}) {
    check(launch_shape(1, block, 0, 0) == cudaErrorInvalidConfiguration, "a bad block");
  }
  for (const dim3 grid : {dim3(0), dim3(1, 65536), dim3(1, 1, 65536), dim3(1, 0)}) {
    check(launch_shape(grid, 32, 0, 0) == cudaErrorInvalidConfiguration, "a bad grid");
  }
  check(cudaPeekAtLastError() == cudaErrorInvalidConfiguration, "an error is kept");
  check(cudaGetLastError() == cudaErrorInvalidConfiguration, "an error is told once");
  check(cudaGetLastError() == cudaSuccess, "an error is told once");
  check(launch_shape(1, 32, kDefault + 16, 0) == cudaErrorInvalidValue, "needs the attribute");
  check(launch_shape(1, 32, 0, kOptIn + 1) == cudaErrorInvalidValue, "above the limit");
  check(launch_shape(1, 32, kOptIn, kOptIn) == cudaSuccess, "up to the limit");
  check(launch_shape(1, 32, kOptIn + 16, 0) == cudaErrorInvalidValue, "above the limit");
  int value = 0;
  check(cudaGetDeviceCount(&value) == cudaSuccess && value == 1, "one device");
  check(cudaSetDevice(1) == cudaErrorInvalidDevice, "one device only");
  check(std::strcmp(cudaGetErrorString(cudaGetLastError()), "invalid device ordinal") == 0, "text");
}

void right() {
  check_sums(planted::block_sums);
  check_sums(planted::block_sums_by_warp);
  check_transpose(37, 53);
  check_transpose(1, 1);
  check_histogram();
  check_global_memory();
  check_language();
  check_launches();
  check_sixteen_bits([](unsigned short b) { return __half2float(__ushort_as_half(b)); },
                     [](float v) { return __half_as_ushort(__float2half_rn(v)); }, 0x7C00, "half");
  check_sixteen_bits([](unsigned short b) { return __bfloat162float(__ushort_as_bfloat16(b)); },
                     [](float v) { return __bfloat16_as_ushort(__float2bfloat16_rn(v)); }, 0x7F80,
                     "bfloat16");
}

// ---- planted faults ----------------------------------------------------------------------------

float room[320];
int whole[400];
const std::vector<float> values = numbers(320);

// With the check turned off, the fault shows in the answers.
std::vector<float> unchecked(cudaError_t (*kernel)(const float*, float*)) {
  cuda_on_cpu::checks().races = false;
  kernel(values.data(), room);
  return std::vector<float>(room, room + 32);
}

const std::map<std::string, std::function<void()>> planted_faults = {
    {"missing_barrier", [] { planted::missing_barrier(values.data(), room); }},
    {"missing_barrier_unchecked",
     [] { assert_seed_independent([] { return unchecked(planted::missing_barrier); }); }},
    {"missing_warp_barrier", [] { planted::missing_warp_barrier(values.data(), room); }},
    {"missing_warp_barrier_unchecked",
     [] { assert_seed_independent([] { return unchecked(planted::missing_warp_barrier); }); }},
    {"relies_on_shuffle", [] { planted::relies_on_shuffle(values.data(), room); }},
    {"reads_too_far",
     [] {
       GuardedBuffer in(100 * 4);
       planted::reads_too_far(in.data<float>(), 100, room);
     }},
    {"writes_before",
     [] {
       GuardedBuffer out(32 * 4, GuardedBuffer::Edge::start);
       planted::writes_before(out.data<float>());
     }},
    {"null_pointer", [] { planted::reads_too_far(nullptr, 100, room); }},
    {"shared_index", [] { planted::shared_index(32, room); }},
    {"shared_index_negative", [] { planted::shared_index(-1, room); }},
    {"misaligned_wide", [] { planted::misaligned_wide(room); }},
    {"shared_too_small", [] { planted::shared_too_small(room); }},
    {"divergent_barrier", [] { planted::divergent_barrier(room); }},
    {"exits_early", [] { planted::exits_early(63, room); }},
    {"missing_lane", [] { planted::missing_lane(room); }},
    {"own_lane_missing", [] { planted::own_lane_missing(room); }},
    {"shuffle_from_nowhere", [] { planted::shuffle_from_nowhere(room); }},
    {"uninitialised", [] { planted::uninitialised(room); }},
    {"spins",
     [] {
       cuda_on_cpu::checks().patience = 10000;
       whole[0] = 0;
       planted::spins(whole);
     }},
    {"overflows_stack",
     [] {
       whole[0] = -1;
       planted::overflows_stack(whole);
     }},
    {"global_race",
     [] {
       assert_seed_independent([] {
         std::vector<int> out(1);
         planted::global_race(out.data());
         return out;
       });
     }},
};

bool raises(const std::function<void()>& run, std::string* message = nullptr) {
  try {
    run();
  } catch (const Fault& fault) {
    if (message != nullptr) *message = fault.what();
    return true;
  }
  return false;
}

// Seen with global_races.cpp alone.
const std::map<std::string, std::function<void()>> global_faults = {
    {"last_block",
     [] {
       GuardedBuffer sums(5 * 4);
       unsigned finished = 0;
       planted::last_block(values.data(), false, sums.data<float>(), &finished, room);
     }},
    {"neighbours", [] { planted::neighbours(false, whole, whole + 192); }},
    {"lost_update", [] { planted::lost_update(whole); }},
    {"global_write", [] { planted::global_race(whole); }},
};

// What a fault leaves behind does not disturb the launches that follow.
void recovery() {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    for (const auto& [name, run] : planted_faults) {
      cuda_on_cpu::set_seed(seed);
      check(raises(run) || name == "relies_on_shuffle", name.c_str());
      cuda_on_cpu::checks() = {};
    }
    check_sums(planted::block_sums_by_warp);
  }
}

// ---- what it costs -----------------------------------------------------------------------------

void stopwatch() {
  const auto time = [](const char* what, double times, const std::function<void()>& run) {
    run();
    double best = 1e9;
    for (int i = 0; i < 5; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      run();
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
      best = std::min(best, took.count());
    }
    std::printf("%s %.1f ns\n", what, best * 1e9 / times);
  };
  time("a thread at a barrier:", 20 * 256 * 100, [] { planted::many_barriers(20, 100, whole); });
  time("a thread at a shuffle:", 20 * 256 * 100, [] { planted::many_shuffles(20, 100, whole); });
  time("a thread's start and end:", 400 * 256, [] { planted::many_threads(400, whole); });
  time("a read and a write of shared memory:", 20 * 256 * 100,
       [] { planted::many_shared_accesses(20, 100, room); });
  time("a launch:", 1, [] { planted::launch_shape(1, 1, 0, 0); });
}

}  // namespace

int main(int count, char** arguments) {
  const std::string name = count > 1 ? arguments[1] : "";
  std::string message;
  if (name == "right") {
    right();
  } else if (name == "recovery") {
    recovery();
  } else if (name == "detectors") {
    check(check_race_detectors(), "the race detectors");
  } else if (name == "stopwatch") {
    stopwatch();
  } else {
    const bool global = global_faults.count(name) > 0;
    const std::function<void()>& run = (global ? global_faults : planted_faults).at(name);
    std::printf("%s\n", raises(run, &message) ? message.c_str() : "no fault");
  }
  return failures == 0 ? 0 : 1;
}
