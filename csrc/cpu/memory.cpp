#include "cpu/memory.h"

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cscl::cpu {

void prefer_large_pages(void* begin, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kLargePage = uintptr_t{2} << 20;
  constexpr uintptr_t kSmallPage = 4096;  // madvise refuses other boundaries; then nothing is lost
  if (bytes < 2 * kLargePage) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = (address + kSmallPage - 1) / kSmallPage * kSmallPage;
  const uintptr_t last = (address + bytes) / kSmallPage * kSmallPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)begin;
  (void)bytes;
#endif
}

}  // namespace cscl::cpu
