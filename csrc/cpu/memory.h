// Memory for results as large as the logits, and what is near enough to be read again.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdint>

namespace lpl {

// Asks for huge pages under a result that is about to be written. The C library maps what exceeds
// 32 MiB anew at every call, and a fault for each of its small pages takes longer than the loss
// (measured: 50 of 68 ms at 512×32000). Costs a system call where the memory is there already.
inline void prefer_huge_pages(void* result, int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kWorthwhile = 8 << 20;
  constexpr uintptr_t kPage = 4096;
  if (!result || bytes < kWorthwhile) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(result) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(result) + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish: may fail
#endif
}

namespace {  // every object has its own, made for its instruction set

// Bytes that a core may keep to itself: half of its second cache, as far as that is known.
inline int64_t near_bytes() {
  constexpr int64_t kLeast = 256 << 10, kMost = 512 << 10;
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t half = sysconf(_SC_LEVEL2_CACHE_SIZE) / 2;
  return std::max(kLeast, std::min(kMost, half));
#else
  return kLeast;
#endif
}

}  // namespace
}  // namespace lpl
