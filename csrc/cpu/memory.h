// Memory that a kernel is about to fill.
#pragma once

#include <cstddef>

namespace cscl::cpu {

// Asks the operating system for large pages under a large result that may be fresh memory. Without
// them, the first write to each of its thousands of small pages costs more than the kernel itself.
void prefer_large_pages(void* begin, size_t bytes);

// Large results come from a few blocks that are kept when they are given back. Fresh memory is
// filled with zeros by the operating system, page by page, and for results that a kernel writes
// once from end to end this costs more than the kernel does.
struct Block {
  void* data;
  size_t bytes;
};

// A block of at least `bytes` (> 0), with whatever its last user left in it; data is null when
// there is no memory.
Block take_block(size_t bytes);
void give_back_block(Block block);

// Scratch of a kernel: small pieces from malloc, large ones from the same blocks. 64-byte aligned;
// data is null when there is no memory. Giving back an empty Block does nothing.
Block take_scratch(size_t bytes);
void give_back_scratch(Block block);

// How much memory may wait to be used again: CSCL_FAST_CACHE_MB, 512 MiB unless told.
size_t block_cache_limit();
size_t block_cache_size();   // bytes that wait now
void release_block_cache();  // back to the operating system

}  // namespace cscl::cpu
