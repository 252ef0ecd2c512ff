// GOMP_parallel by std::thread.
//
// The kernels share their work through the OpenMP runtime that they find in the process, by the
// one function GOMP_parallel. This program has no OpenMP runtime; it offers the function itself.
// So the library's own partition of the work runs, unchanged, on threads that the thread sanitizer
// understands. (libgomp is not instrumented: with it, each of its barriers is reported as a race,
// and a list of suppressions would hide real ones.)
#include "threads.h"

#include <atomic>
#include <thread>
#include <vector>

namespace {
std::atomic<long> started{0};
}

long threads_started() { return started; }

extern "C" __attribute__((visibility("default"))) void GOMP_parallel(void (*function)(void*),
                                                                     void* data, unsigned threads,
                                                                     unsigned) {
  started += threads;
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(function, data);
  function(data);
  for (std::thread& other : others) other.join();
}
