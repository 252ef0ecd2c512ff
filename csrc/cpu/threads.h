// Work shared among the threads of the OpenMP runtime that the process already has.
//
// The library is not linked against an OpenMP runtime: PyTorch brings its own copy, and a second
// one in the process means two pools of threads that fight for the cores. Instead the runtime is
// looked up by name among what is loaded (see adopt_openmp), so the pool is PyTorch's own.
#pragma once

#include <cstdint>

namespace cscl::cpu {

// Called once for every task, by any thread; workers are numbered from 0.
using TaskFunction = void (*)(int64_t task, int worker, void* context);

// Finds the OpenMP runtime: first in the process' global scope, then among the dependencies of
// `library`, a shared library that is loaded already. False: there is none, all work is serial.
bool adopt_openmp(const char* library);

// Where the runtime was found, or "" when all work is serial.
const char* openmp_runtime();

// Runs tasks 0 .. tasks-1 on at most `threads` threads. Which thread runs which task is left open,
// so a task must not let its result depend on its worker.
void run_tasks(int64_t tasks, int threads, TaskFunction function, void* context);

// The same for a callable body(task, worker).
template <typename Body>
void parallel_for(int64_t tasks, int threads, const Body& body) {
  run_tasks(
      tasks, threads,
      [](int64_t task, int worker, void* context) {
        (*static_cast<const Body*>(context))(task, worker);
      },
      const_cast<Body*>(&body));
}

}  // namespace cscl::cpu
