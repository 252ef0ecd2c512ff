#include "cpu/memory.h"

#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <list>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cscl::cpu {
namespace {

constexpr size_t kLargePage = size_t{2} << 20;
// What malloc keeps for itself when it is given back.
constexpr size_t kSmallScratch = size_t{64} << 10;

struct BlockCache {
  std::mutex mutex;
  std::list<Block> blocks;  // given back last: first
  size_t bytes = 0;
};

// Never destroyed: a tensor may outlive everything else in the process.
BlockCache& cache() {
  static BlockCache& instance = *new BlockCache;
  return instance;
}

void release(const Block& block) { std::free(block.data); }

}  // namespace

void prefer_large_pages(void* begin, size_t bytes) {
#if defined(__linux__)
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

size_t block_cache_limit() {
  static const size_t limit = [] {
    const char* text = std::getenv("CSCL_FAST_CACHE_MB");
    char* end = nullptr;
    const unsigned long long megabytes = text != nullptr ? std::strtoull(text, &end, 10) : 0;
    const bool given = text != nullptr && end != text && *end == '\0';
    return static_cast<size_t>(given ? megabytes : 512) << 20;
  }();
  return limit;
}

size_t block_cache_size() {
  const std::lock_guard<std::mutex> lock(cache().mutex);
  return cache().bytes;
}

Block take_block(size_t bytes) {
  bytes = (bytes + kLargePage - 1) / kLargePage * kLargePage;
  {
    const std::lock_guard<std::mutex> lock(cache().mutex);
    std::list<Block>& blocks = cache().blocks;
    for (auto block = blocks.begin(); block != blocks.end(); ++block) {
      if (block->bytes < bytes || block->bytes > bytes + bytes / 4) continue;
      const Block found = *block;
      cache().bytes -= found.bytes;
      blocks.erase(block);
      return found;
    }
  }
  void* data = std::aligned_alloc(kLargePage, bytes);
  if (data != nullptr) prefer_large_pages(data, bytes);
  return {data, bytes};
}

void give_back_block(Block block) {
  std::list<Block> leaving;
  {
    const std::lock_guard<std::mutex> lock(cache().mutex);
    cache().blocks.push_front(block);
    cache().bytes += block.bytes;
    while (cache().bytes > block_cache_limit()) {  // the one unused for longest leaves first
      cache().bytes -= cache().blocks.back().bytes;
      leaving.splice(leaving.begin(), cache().blocks, std::prev(cache().blocks.end()));
    }
  }
  for (const Block& old : leaving) release(old);
}

Block take_scratch(size_t bytes) {
  if (bytes > kSmallScratch) return take_block(bytes);
  bytes = (bytes + 63) / 64 * 64;
  return {std::aligned_alloc(64, bytes), bytes};
}

void give_back_scratch(Block block) {
  if (block.bytes > kSmallScratch) return give_back_block(block);
  std::free(block.data);
}

void release_block_cache() {
  std::list<Block> leaving;
  {
    const std::lock_guard<std::mutex> lock(cache().mutex);
    leaving.swap(cache().blocks);
    cache().bytes = 0;
  }
  for (const Block& block : leaving) release(block);
}

}  // namespace cscl::cpu
