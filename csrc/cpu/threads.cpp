#include "cpu/threads.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <string>

namespace cscl::cpu {
namespace {

// The entry point behind `#pragma omp parallel` in libgomp, which LLVM's and Intel's runtimes on
// Linux offer too: runs function(data) on `threads` threads and waits for them.
using ParallelRegion = void (*)(void (*function)(void*), void* data, unsigned threads,
                                unsigned flags);

ParallelRegion parallel_region = nullptr;
std::string runtime_path;

struct Region {
  int64_t tasks;
  TaskFunction function;
  void* context;
  std::atomic<int64_t> next_task{0};
  std::atomic<int> next_worker{0};
};

// Threads take the next task as they become free: on a machine with other work, a fixed share
// would wait for the slowest core.
void work(void* data) {
  Region& region = *static_cast<Region*>(data);
  const int worker = region.next_worker.fetch_add(1, std::memory_order_relaxed);
  for (;;) {
    const int64_t task = region.next_task.fetch_add(1, std::memory_order_relaxed);
    if (task >= region.tasks) return;
    region.function(task, worker, region.context);
  }
}

}  // namespace

bool adopt_openmp(const char* library) {
  void* symbol = dlsym(RTLD_DEFAULT, "GOMP_parallel");
  if (symbol == nullptr && library != nullptr && *library != '\0') {
    // RTLD_NOLOAD: a handle to what is there already; nothing new is ever loaded.
    if (void* handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD)) {
      symbol = dlsym(handle, "GOMP_parallel");
      dlclose(handle);
    }
  }
  parallel_region = reinterpret_cast<ParallelRegion>(symbol);
  Dl_info info;
  runtime_path = symbol != nullptr && dladdr(symbol, &info) != 0 ? info.dli_fname : "";
  return symbol != nullptr;
}

const char* openmp_runtime() { return runtime_path.c_str(); }

void run_tasks(int64_t tasks, int threads, TaskFunction function, void* context) {
  const int64_t useful = std::min<int64_t>(threads, tasks);
  if (useful <= 1 || parallel_region == nullptr) {
    for (int64_t task = 0; task < tasks; ++task) function(task, 0, context);
    return;
  }
  Region region{tasks, function, context};
  parallel_region(work, &region, static_cast<unsigned>(useful), 0);
}

}  // namespace cscl::cpu
