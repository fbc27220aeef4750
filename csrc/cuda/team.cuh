// The threads that share a row on the device: a block, or from compute capability 9.0 on a cluster
// of blocks, each with a slice of the row in its shared memory.
#pragma once

#include <cooperative_groups.h>

#include "bulk.h"
#include "call.h"

namespace lpl {

constexpr int kWarp = 32, kMostWarps = 8, kMostBlocks = 8;
constexpr int kWidest = 96;  // bytes of the widest value that is reduced

// Storage of reductions. Two of each, used in turn: who writes one has passed the barrier behind
// which all have read the other, so a reduction needs a single barrier.
template <int kWarps>
struct ExchangeOf {
  alignas(16) char of_warps[2][kWarps][kWidest];
  alignas(16) char of_block[2][kWidest];
  int counts[kMostBlocks * kWarps];
};
using Exchange = ExchangeOf<kMostWarps>;

template <int kWarps>
class TeamOf {
 public:
  using Exchange = ExchangeOf<kWarps>;
  static constexpr int kParts = kBulkParts, kLeastPart = 4;
  static constexpr int kLeastRows = 8;  // of a crew, before more of them share those of a class

  // `arrivals`: where the stage is filled by bulk copies, else null.
  __device__ TeamOf(Exchange* exchange, void* shared, void* stage, Arrivals* arrivals, int blocks)
      : exchange_(exchange), shared_(shared), stage_(stage), arrivals_(arrivals), blocks_(blocks) {}

  __device__ int place() const { return int(threadIdx.x); }  // within the block
  __device__ int places() const { return int(blockDim.x); }
  __device__ int block() const { return int(blockIdx.x % unsigned(blocks_)); }  // within the team
  __device__ int blocks() const { return blocks_; }
  __device__ int rank() const { return block() * places() + place(); }
  __device__ int size() const { return blocks_ * places(); }
  __device__ void* stage() const { return stage_; }

  // The memory that a block of the team has for its Body::Shared.
  template <typename S>
  __device__ S& shared(int block) const {
    return *of_block(static_cast<S*>(shared_), block);
  }

  // What one thread of the team has written, all see behind it.
  __device__ void sync() const {
    if (blocks_ == 1) return __syncthreads();
#if __CUDA_ARCH__ >= 900
    cooperative_groups::this_cluster().sync();
#endif
  }

  // The same within the block.
  __device__ static void sync_block() { __syncthreads(); }

  // Which thread of its block has piece k of those that are dealt in turn.
  __device__ int place_of(int k) const { return k & (places() - 1); }

  // What the first warp of the block makes, in all its threads. A barrier, too.
  template <typename V, typename Make>
  __device__ V of_first_crew(Make make) {
    static_assert(sizeof(V) <= kWidest && sizeof(V) % 4 == 0, "room for it in Exchange");
    turn_ ^= 1;
    if (place() < kWarp) {
      const V value = make();
      if (place() == 0) at<V>(exchange_->of_warps[turn_][0]) = value;
    }
    __syncthreads();
    return at<V>(exchange_->of_warps[turn_][0]);
  }

  // op over one value of each warp, which all its threads have; else as reduce.
  template <typename V, typename Op>
  __device__ V reduce_crews(V value, Op op) {
    static_assert(sizeof(V) <= kWidest && sizeof(V) % 4 == 0, "room for it in Exchange");
    turn_ ^= 1;
    const int warps = places() / kWarp;
    if (warps > 1) {
      if (place() % kWarp == 0) at<V>(exchange_->of_warps[turn_][place() / kWarp]) = value;
      __syncthreads();
      // lanes beyond the number of warps, a power of two, have what others have
      value = at<V>(exchange_->of_warps[turn_][place() & (warps - 1)]);
      for (int lane = warps / 2; lane > 0; lane /= 2) value = op(value, shuffled(value, lane));
      value = of_first_lane(value);
    }
    return over_blocks(value, op);
  }

  // op over the values of all threads, in an order that depends on the team's shape alone: the
  // same bits in all of them, in every run. op commutes. A barrier, too.
  template <typename V, typename Op>
  __device__ V reduce(V value, Op op) {
    static_assert(sizeof(V) <= kWidest && sizeof(V) % 4 == 0, "room for it in Exchange");
#pragma unroll
    for (int lane = kWarp / 2; lane > 0; lane /= 2) value = op(value, shuffled(value, lane));
    turn_ ^= 1;
    const int warps = places() / kWarp;
    if (warps == 1) {
      __syncwarp();
      value = of_first_lane(value);  // op(a, b) and op(b, a) may be rounded differently
    } else {
      if (place() % kWarp == 0) at<V>(exchange_->of_warps[turn_][place() / kWarp]) = value;
      __syncthreads();
      value = at<V>(exchange_->of_warps[turn_][0]);
      for (int k = 1; k < warps; ++k) value = op(value, at<V>(exchange_->of_warps[turn_][k]));
    }
    return over_blocks(value, op);
  }

  // Σ count over the threads of lower rank; `total` over all. Between two of these another barrier.
  __device__ int before(int count, int& total) {
    const int lane = place() % kWarp, warps = places() / kWarp;
    const int own = block() * warps + place() / kWarp;
    int sum = count;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += other;
    }
    if (lane == kWarp - 1)
      for (int k = 0; k < blocks_; ++k) of_block(exchange_->counts, k)[own] = sum;
    sync();
    int lower = 0;
    total = 0;
    for (int k = 0; k < blocks_ * warps; ++k) {
      if (k == own) lower = total;
      total += exchange_->counts[k];
    }
    return lower + sum - count;
  }

  // A warp of the team.
  __device__ static int crew() { return kWarp; }
  template <typename Acc>
  __device__ static Acc crew_sum(Acc value) {
#pragma unroll
    for (int lane = kWarp / 2; lane > 0; lane /= 2) value += shuffled(value, lane);
    return value;
  }
  template <typename Acc>
  __device__ static Acc crew_max(Acc value) {
#pragma unroll
    for (int lane = kWarp / 2; lane > 0; lane /= 2) {
      const Acc other = shuffled(value, lane);
      value = other > value ? other : value;
    }
    return value;
  }

  // store(k, Σ values[k] over the crew) for each k, by the same thread for the same k.
  template <typename Acc, int kCount, typename Store>
  __device__ static void crew_sum_each(Acc (&values)[kCount], Store store) {
    static_assert(kWarp % kCount == 0, "a lane for each");
    // half of a lane's values go to its partner, for half of the partner's: in the end a lane has
    // the sum of one
    constexpr int kLanes = kWarp / kCount;  // that have the same
    const int lane = int(threadIdx.x) % kWarp;
#pragma unroll
    for (int half = kCount / 2; half > 0; half /= 2) {
      const bool upper = lane & (half * kLanes);
#pragma unroll
      for (int k = 0; k < kCount / 2; ++k) {
        if (k >= half) continue;  // a bound that is a constant keeps values in registers
        const Acc sent = upper ? values[k] : values[k + half];
        const Acc kept = upper ? values[k + half] : values[k];
        values[k] = kept + shuffled(sent, half * kLanes);
      }
    }
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) values[0] += shuffled(values[0], step);
    if (lane % kLanes == 0) store(lane / kLanes, values[0]);
  }

  // Bytes from the row to the stage; there once wait_for_copies() has returned.
  template <int kBytes>
  __device__ static void copy_line(void* to, const void* from) {
    const unsigned shared = unsigned(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(from), "n"(kBytes)
                 : "memory");
  }
  __device__ static void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

  // Whether the stage is filled in bulk: once, because the barriers are used once.
  __device__ bool begins_bulk() {
#if __CUDA_ARCH__ >= 900
    if (!arrivals_ || begun_) return false;
    begun_ = true;
    begin_arrivals(arrivals_);
    return true;
#else
    return false;
#endif
  }
  // Asks for a part of the row, in one thread of the block; there once wait_bulk(part) has
  // returned.
  __device__ void copy_bulk(void* to, const void* from, int bytes, int part) const {
#if __CUDA_ARCH__ >= 900
    ask_for(arrivals_, part, to, from, bytes);
#endif
  }
  __device__ void wait_bulk(int part) const {
#if __CUDA_ARCH__ >= 900
    wait_for(arrivals_, part);
#endif
  }

 private:
  template <typename V, typename Op>
  __device__ V over_blocks(V value, Op op) {
    if (blocks_ == 1) return value;
    V* own = &at<V>(exchange_->of_block[turn_]);
    if (place() == 0) *own = value;
    sync();
    value = *of_block(own, 0);
    for (int k = 1; k < blocks_; ++k) value = op(value, *of_block(own, k));
    return value;
  }

  template <typename V>
  __device__ static V& at(char* place) {
    return *reinterpret_cast<V*>(place);
  }

  // The same place in the shared memory of a block of the team.
  template <typename V>
  __device__ V* of_block(V* own, int block) const {
#if __CUDA_ARCH__ >= 900
    if (blocks_ > 1) return cooperative_groups::this_cluster().map_shared_rank(own, block);
#endif
    return own;
  }

  template <typename V>
  __device__ static V shuffled(const V& value, int lane) {
    V other;
    int words[sizeof(V) / 4];
    memcpy(words, &value, sizeof(V));
#pragma unroll
    for (int& word : words) word = __shfl_xor_sync(0xffffffffu, word, lane);
    memcpy(&other, words, sizeof(V));
    return other;
  }

  template <typename V>
  __device__ static V of_first_lane(const V& value) {
    V first;
    int words[sizeof(V) / 4];
    memcpy(words, &value, sizeof(V));
#pragma unroll
    for (int& word : words) word = __shfl_sync(0xffffffffu, word, 0);
    memcpy(&first, words, sizeof(V));
    return first;
  }

  Exchange* exchange_;
  void *shared_, *stage_;
  Arrivals* arrivals_;
  int blocks_, turn_ = 0;
  bool begun_ = false;
};
using Team = TeamOf<kMostWarps>;

// A warp that has a row to itself, as a team that knows no more than its own threads.
class Crew {
 public:
  static constexpr int kWidth = kWarp;

  __device__ explicit Crew(void* shared) : shared_(shared) {}

  __device__ int place() const { return int(threadIdx.x % kWarp); }
  template <typename S>
  __device__ S& shared(int) const {
    return *static_cast<S*>(shared_);
  }
  template <typename Acc>
  __device__ static Acc crew_sum(Acc value) {
    return Team::crew_sum(value);
  }
  template <typename Acc>
  __device__ static Acc crew_max(Acc value) {
    return Team::crew_max(value);
  }

 private:
  void* shared_;
};

}  // namespace lpl
