// The partition of work: every task runs exactly once, on no more workers than were asked for.
#include <atomic>

#include "check.h"
#include "cpu/threads.h"
#include "threads.h"

void test_threads() {
  long runs = 0;
  for (const int64_t tasks : {0, 1, 2, 6, 7, 8, 1000}) {
    for (const int threads : {1, 2, 7}) {
      const std::string where =
          "threads: " + std::to_string(tasks) + " tasks on " + std::to_string(threads);
      std::vector<std::atomic<int>> times(static_cast<size_t>(tasks));
      std::atomic<int> strangers{0};
      const long before = threads_started();
      cscl::cpu::parallel_for(tasks, threads, [&](int64_t task, int worker) {
        ++times[static_cast<size_t>(task)];
        if (worker < 0 || worker >= threads) ++strangers;
      });
      for (int64_t task = 0; task < tasks; ++task) {
        const int count = times[static_cast<size_t>(task)];
        check(count == 1, where,
              "task " + std::to_string(task) + " ran " + std::to_string(count) + " times");
      }
      check(strangers == 0, where, "a worker's number is out of range");
      check((threads_started() > before) == (threads > 1 && tasks > 1), where,
            "the work was not shared as it should be");
      ++runs;
    }
  }
  std::printf("  threads: %ld partitions, each task once\n", runs);
}
