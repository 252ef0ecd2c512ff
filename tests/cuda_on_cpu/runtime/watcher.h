// Someone who watches global memory; nobody does unless global_races.cpp is linked.
#pragma once

namespace cuda_on_cpu {

struct Watcher {
  void (*start_launch)();
  void (*fence)();
  void (*atomic)(const void* address, int bytes);
  void (*settle)();  // before another thread goes on
};
inline const Watcher* watcher = nullptr;

}  // namespace cuda_on_cpu
