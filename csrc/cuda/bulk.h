// Bulk copies into shared memory, which a thread asks for and all wait for (compute
// capability 9.0).
//
// Why each step is safe. The barriers are initialised by one thread, fenced, and seen by all of the
// block behind __syncthreads; only then the same thread announces the bytes of a part and asks for
// them, so that no barrier can complete before its bytes are announced. Every part is copied once
// in a kernel and waited for in phase 0: nothing is filled again, so that no read of the stage has
// to be ordered before a later copy (which would need a proxy fence). All parts are waited for
// before the block ends.
#pragma once

#include <cstdint>

namespace lpl {

constexpr int kBulkParts = 4;

struct Arrivals {
  uint64_t barrier[kBulkParts];
};

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ unsigned in_shared(const void* place) {
  return unsigned(__cvta_generic_to_shared(place));
}

__device__ __forceinline__ void begin_arrivals(Arrivals* arrivals) {
  if (threadIdx.x == 0) {
    for (uint64_t& barrier : arrivals->barrier)
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(in_shared(&barrier)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
}

// `to`, `from` and `bytes` are multiples of 16.
__device__ __forceinline__ void ask_for(Arrivals* arrivals, int part, void* to, const void* from,
                                        int bytes) {
  const unsigned barrier = in_shared(&arrivals->barrier[part]);
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(in_shared(to)),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void wait_for(Arrivals* arrivals, int part) {
  asm volatile(
      "{\n"
      ".reg .pred arrived;\n"
      "AGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 arrived, [%0], 0;\n"
      "@arrived bra DONE;\n"
      "bra AGAIN;\n"
      "DONE:\n"
      "}" ::"r"(in_shared(&arrivals->barrier[part]))
      : "memory");
}
#endif

}  // namespace lpl
