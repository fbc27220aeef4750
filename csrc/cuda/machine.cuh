// What the threads of a device do together, instruction by instruction: all that team.h knows of
// one. tests/cuda_on_host.cpp says the same of fibres.
#pragma once

#include <cooperative_groups.h>

#include "bulk.h"
#include "call.h"

namespace lpl {

struct Machine {
  static constexpr int kWarp = 32, kMostWarps = 8, kMostBlocks = 8;
  static constexpr int kLeastPart = 4;  // pieces of a thread in a part of a bulk copy
  static constexpr int kLeastRows = 8;  // of a crew, before more of them share those of a class

  // Of the block, and of the grid.
  __device__ static int thread() { return int(threadIdx.x); }
  __device__ static int threads() { return int(blockDim.x); }
  __device__ static unsigned block() { return blockIdx.x; }

  // Behind these all threads of a warp, a block, a cluster see what the others have written.
  __device__ static void sync_warp() { __syncwarp(); }
  __device__ static void sync_block() { __syncthreads(); }
  __device__ static void sync_cluster() {
#if __CUDA_ARCH__ >= 900
    cooperative_groups::this_cluster().sync();
#endif
  }
  // The same place in the shared memory of a block of the cluster.
  template <typename V>
  __device__ static V* of_block(V* own, int block) {
#if __CUDA_ARCH__ >= 900
    return cooperative_groups::this_cluster().map_shared_rank(own, block);
#else
    return own;
#endif
  }

  // Whether so many have come here with this one, which is then 0 again. What they have written
  // before, behind a barrier of their blocks, the last one's block sees behind its next.
  __device__ static bool is_last(int32_t* arrived, int count) {
    __threadfence();
    const bool last = atomicAdd(arrived, 1) == count - 1;
    if (last) *arrived = 0;
    __threadfence();
    return last;
  }

  // The value of the lane whose number differs in these bits, and of the first one. Values go from
  // register to register: what was written to memory others see behind sync_warp() alone.
  template <typename V>
  __device__ static V across(const V& value, int bits) {
    return by_words(value, [&](int word) { return __shfl_xor_sync(0xffffffffu, word, bits); });
  }
  template <typename V>
  __device__ static V of_first_lane(const V& value) {
    return by_words(value, [](int word) { return __shfl_sync(0xffffffffu, word, 0); });
  }
  // Of the lane so many below, or its own where there is none.
  __device__ static int from_below(int value, int lanes) {
    return __shfl_up_sync(0xffffffffu, value, lanes);
  }

  // Bytes from the row to the stage; there once wait_for_copies() has returned.
  template <int kBytes>
  __device__ static void copy_line(void* to, const void* from) {
    const unsigned shared = unsigned(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(from), "n"(kBytes)
                 : "memory");
  }
  __device__ static void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

  // Bulk copies: see bulk.h.
  __device__ static bool begins_bulk(Arrivals* arrivals) {
#if __CUDA_ARCH__ >= 900
    begin_arrivals(arrivals);
    return true;
#else
    return false;
#endif
  }
  __device__ static void copy_bulk(Arrivals* arrivals, int part, void* to, const void* from,
                                   int bytes) {
#if __CUDA_ARCH__ >= 900
    ask_for(arrivals, part, to, from, bytes);
#endif
  }
  __device__ static void wait_bulk(Arrivals* arrivals, int part) {
#if __CUDA_ARCH__ >= 900
    wait_for(arrivals, part);
#endif
  }

 private:
  template <typename V, typename Move>
  __device__ static V by_words(const V& value, Move move) {
    V other;
    int words[sizeof(V) / 4];
    memcpy(words, &value, sizeof(V));
#pragma unroll
    for (int& word : words) word = move(word);
    memcpy(&other, words, sizeof(V));
    return other;
  }
};

}  // namespace lpl
