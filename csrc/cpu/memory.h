// Memory that a kernel is about to fill.
#pragma once

#include <cstddef>

namespace cscl::cpu {

// Asks the operating system for large pages under a large result that may be fresh memory. Without
// them, the first write to each of its thousands of small pages costs more than the kernel itself.
void prefer_large_pages(void* begin, size_t bytes);

}  // namespace cscl::cpu
