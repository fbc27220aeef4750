// Memory for results as large as the logits.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

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

}  // namespace lpl
