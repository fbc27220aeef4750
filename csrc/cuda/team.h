// The threads that share a row: a block, or from compute capability 9.0 on a cluster of blocks,
// each with a slice of the row in its shared memory. In terms of a Machine (machine.cuh), which has
// to be there before.
#pragma once

#include <cstring>
#include <type_traits>

#include "call.h"

namespace lpl {

constexpr int kWarp = Machine::kWarp, kMostWarps = Machine::kMostWarps;
constexpr int kMostBlocks = Machine::kMostBlocks;
constexpr int kWidest = 96;  // bytes of the widest value that is reduced

// Storage of reductions. Two of each, used in turn: who writes one has passed the barrier behind
// which all have read the other, so a reduction needs a single barrier. Those within a block and
// those of all blocks take turns of their own, as their barriers are not the same.
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
  static constexpr int kParts = kBulkParts, kLeastPart = Machine::kLeastPart;
  static constexpr int kLeastRows = Machine::kLeastRows;

  // `arrivals`: where the stage is filled by bulk copies, else null.
  LPL_DEVICE TeamOf(Exchange* exchange, void* shared, void* stage, Arrivals* arrivals, int blocks)
      : exchange_(exchange), shared_(shared), stage_(stage), arrivals_(arrivals), blocks_(blocks) {}

  LPL_DEVICE int place() const { return Machine::thread(); }  // within the block
  LPL_DEVICE int places() const { return Machine::threads(); }
  LPL_DEVICE int block() const { return int(Machine::block() % unsigned(blocks_)); }
  LPL_DEVICE int blocks() const { return blocks_; }
  LPL_DEVICE int rank() const { return block() * places() + place(); }
  LPL_DEVICE int size() const { return blocks_ * places(); }
  LPL_DEVICE void* stage() const { return stage_; }

  // The memory that a block of the team has for its Body::Shared.
  template <typename S>
  LPL_DEVICE S& shared(int block) const {
    return *of_block(static_cast<S*>(shared_), block);
  }

  // What one thread of the team has written, all see behind it.
  LPL_DEVICE void sync() const {
    LPL_USUALLY(blocks_ == 1);
    if (blocks_ == 1) return Machine::sync_block();
    Machine::sync_cluster();
  }

  // The same within the block.
  LPL_DEVICE static void sync_block() { Machine::sync_block(); }

  // Which thread of its block has piece k of those that are dealt in turn.
  LPL_DEVICE int place_of(int k) const { return k & (places() - 1); }

  // What the first warp of the block makes, in all its threads. A barrier of the block, too.
  template <typename V, typename Make>
  LPL_DEVICE V of_first_crew(Make make) {
    static_assert(sizeof(V) <= kWidest && sizeof(V) % 4 == 0, "room for it in Exchange");
    turn_ ^= 1;
    LPL_USUALLY(place() >= kWarp);
    if (place() < kWarp) {
      const V value = make();
      if (place() == 0) at<V>(exchange_->of_warps[turn_][0]) = value;
    }
    Machine::sync_block();
    return at<V>(exchange_->of_warps[turn_][0]);
  }

  // op over one value of each warp, which all its threads have; else as reduce.
  template <typename V, typename Op>
  LPL_DEVICE V reduce_crews(V value, Op op) {
    static_assert(sizeof(V) <= kWidest && sizeof(V) % 4 == 0, "room for it in Exchange");
    turn_ ^= 1;
    const int warps = places() / kWarp;
    if (warps == 1) {
      Machine::sync_warp();
    } else {
      if (place() % kWarp == 0) at<V>(exchange_->of_warps[turn_][place() / kWarp]) = value;
      Machine::sync_block();
      // lanes beyond the number of warps, a power of two, have what others have
      const int lanes = warps < kWarp ? warps : kWarp, first = place() & (lanes - 1);
      value = at<V>(exchange_->of_warps[turn_][first]);
      if constexpr (kWarps > kWarp)
        for (int k = first + kWarp; k < warps; k += kWarp)
          value = op(value, at<V>(exchange_->of_warps[turn_][k]));
      for (int lane = lanes / 2; lane > 0; lane /= 2)
        value = op(value, Machine::across(value, lane));
      value = Machine::of_first_lane(value);
    }
    return over_blocks(value, op);
  }

  // op over the values of all threads, in an order that depends on the team's shape alone: the
  // same bits in all of them, in every run. op commutes. A barrier, too.
  template <typename V, typename Op>
  LPL_DEVICE V reduce(V value, Op op) {
    static_assert(sizeof(V) <= kWidest && sizeof(V) % 4 == 0, "room for it in Exchange");
#pragma unroll
    for (int lane = kWarp / 2; lane > 0; lane /= 2) value = op(value, Machine::across(value, lane));
    turn_ ^= 1;
    const int warps = places() / kWarp;
    if (warps == 1) {
      Machine::sync_warp();
      // op(a, b) and op(b, a) may be rounded differently
      value = Machine::of_first_lane(value);
    } else {
      if (place() % kWarp == 0) at<V>(exchange_->of_warps[turn_][place() / kWarp]) = value;
      Machine::sync_block();
      value = at<V>(exchange_->of_warps[turn_][0]);
      for (int k = 1; k < warps; ++k) value = op(value, at<V>(exchange_->of_warps[turn_][k]));
    }
    return over_blocks(value, op);
  }

  // Σ count over the threads of lower rank; `total` over all. Between two of these another barrier.
  LPL_DEVICE int before(int count, int& total) {
    const int lane = place() % kWarp, warps = places() / kWarp;
    const int own = block() * warps + place() / kWarp;
    int sum = count;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int other = Machine::from_below(sum, step);
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

  // Whether this team, a block or a cluster, is the last of so many to come here: it sees what all
  // of them have written. None of them waits for another. `arrived` is 0 before and behind it.
  LPL_DEVICE bool last_of(int32_t* arrived, int count) {
    sync();
    const int last = rank() == 0 && Machine::is_last(arrived, count);
    return reduce(last, [](int a, int b) { return a | b; }) != 0;
  }

  // A warp of the team.
  LPL_DEVICE static int crew() { return kWarp; }
  template <typename Acc>
  LPL_DEVICE static Acc crew_sum(Acc value) {
#pragma unroll
    for (int lane = kWarp / 2; lane > 0; lane /= 2) value += Machine::across(value, lane);
    return value;
  }
  template <typename Acc>
  LPL_DEVICE static Acc crew_max(Acc value) {
#pragma unroll
    for (int lane = kWarp / 2; lane > 0; lane /= 2) {
      const Acc other = Machine::across(value, lane);
      value = other > value ? other : value;
    }
    return value;
  }

  // op over the values of so many lanes beside each other, a power of two; all of a crew ask for
  // it.
  template <typename V, typename Op>
  LPL_DEVICE static V reduce_lanes(V value, int lanes, Op op) {
    for (int lane = lanes / 2; lane > 0; lane /= 2) value = op(value, Machine::across(value, lane));
    return value;
  }

  // store(k, Σ values[k] over the crew) for each k, by the same thread for the same k.
  template <typename Acc, int kCount, typename Store>
  LPL_DEVICE static void crew_sum_each(Acc (&values)[kCount], Store store) {
    static_assert(kWarp % kCount == 0 || kCount % kWarp == 0, "as many for each lane");
    // half of a lane's values go to its partner, for half of the partner's, until a lane has one,
    // or has exchanged with all others
    constexpr int kOwn = kCount > kWarp ? kCount / kWarp : 1;    // sums of a lane
    constexpr int kLanes = kCount < kWarp ? kWarp / kCount : 1;  // that have the same
    const int lane = Machine::thread() % kWarp;
#pragma unroll
    for (int half = kCount / 2; half >= kOwn; half /= 2) {
      const int partner = half / kOwn * kLanes;
      const bool upper = lane & partner;
#pragma unroll
      for (int k = 0; k < kCount / 2; ++k) {
        if (k >= half) continue;  // a bound that is a constant keeps values in registers
        const Acc sent = upper ? values[k] : values[k + half];
        const Acc kept = upper ? values[k + half] : values[k];
        values[k] = kept + Machine::across(sent, partner);
      }
    }
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) values[0] += Machine::across(values[0], step);
    if (lane % kLanes != 0) return;
#pragma unroll
    for (int k = 0; k < kOwn; ++k) store(lane / kLanes * kOwn + k, values[k]);
  }

  template <int kBytes>
  LPL_DEVICE static void copy_line(void* to, const void* from) {
    Machine::template copy_line<kBytes>(to, from);
  }
  LPL_DEVICE static void wait_for_copies() { Machine::wait_for_copies(); }

  // Whether the stage is filled in bulk: once, because the barriers are used once.
  LPL_DEVICE bool begins_bulk() {
    if (!arrivals_ || begun_) return false;
    begun_ = true;
    return Machine::begins_bulk(arrivals_);
  }
  // Asks for a part of the row, in one thread of the block; there once wait_bulk(part) has
  // returned.
  LPL_DEVICE void copy_bulk(void* to, const void* from, int bytes, int part) const {
    Machine::copy_bulk(arrivals_, part, to, from, bytes);
  }
  LPL_DEVICE void wait_bulk(int part) const { Machine::wait_bulk(arrivals_, part); }

 private:
  template <typename V, typename Op>
  LPL_DEVICE V over_blocks(V value, Op op) {
    LPL_USUALLY(blocks_ == 1);
    if (blocks_ == 1) return value;
    block_turn_ ^= 1;
    V* own = &at<V>(exchange_->of_block[block_turn_]);
    if (place() == 0) *own = value;
    sync();
    value = *of_block(own, 0);
    for (int k = 1; k < blocks_; ++k) value = op(value, *of_block(own, k));
    return value;
  }

  template <typename V>
  LPL_DEVICE static V& at(char* place) {
    return *reinterpret_cast<V*>(place);
  }

  // The same place in the shared memory of a block of the team.
  template <typename V>
  LPL_DEVICE V* of_block(V* own, int block) const {
    return blocks_ > 1 ? Machine::of_block(own, block) : own;
  }

  Exchange* exchange_;
  void *shared_, *stage_;
  Arrivals* arrivals_;
  int blocks_, turn_ = 0, block_turn_ = 0;
  bool begun_ = false;
};
using Team = TeamOf<kMostWarps>;

// Row i with all that a body needs of the blocks of its team.
template <typename Body, typename Call>
LPL_DEVICE inline void run_row(Team& team, const Call& call, i64 i) {
  // no block may write into another that has not begun, or be read from when it has ended
  const bool cluster = team.blocks() > 1;
  if (cluster && !std::is_same<typename Body::Shared, Nothing>::value) team.sync();
  Body::run(team, call, i);
  if (cluster) team.sync();
}

// Some of a block's threads that have a row, or a part of one, to themselves: for bodies whose
// threads need no more of each other than a barrier. That is the whole block's, so that all of its
// squads have to come there.
class Squad : public Team {
 public:
  // The squads of `places` threads are numbered through all blocks, and so are rows, of `blocks`
  // squads each. Threads of a block and of a squad are powers of two.
  LPL_DEVICE Squad(unsigned block, int places, int blocks)
      : Team(nullptr, nullptr, nullptr, nullptr, 1), places_(places), blocks_(blocks) {
    const unsigned each = unsigned(Machine::threads()) / unsigned(places);
    number_ = block * each + unsigned(Machine::thread()) / unsigned(places);
  }

  LPL_DEVICE i64 row() const { return number_ / unsigned(blocks_); }
  LPL_DEVICE int place() const { return Machine::thread() & (places_ - 1); }
  LPL_DEVICE int places() const { return places_; }
  LPL_DEVICE int place_of(int k) const { return k & (places_ - 1); }
  LPL_DEVICE int block() const { return int(number_ % unsigned(blocks_)); }
  LPL_DEVICE int blocks() const { return blocks_; }

 private:
  const int places_, blocks_;
  unsigned number_;
};

// A warp that has a row to itself, as a team that knows no more than its own threads.
class Crew {
 public:
  static constexpr int kWidth = kWarp;

  LPL_DEVICE explicit Crew(void* shared) : shared_(shared) {}

  LPL_DEVICE int place() const { return Machine::thread() % kWarp; }
  // What one thread has written, all see behind it.
  LPL_DEVICE static void sync() { Machine::sync_warp(); }
  template <typename S>
  LPL_DEVICE S& shared(int) const {
    return *static_cast<S*>(shared_);
  }
  template <typename Acc>
  LPL_DEVICE static Acc crew_sum(Acc value) {
    return Team::crew_sum(value);
  }
  template <typename Acc>
  LPL_DEVICE static Acc crew_max(Acc value) {
    return Team::crew_max(value);
  }

 private:
  void* shared_;
};

}  // namespace lpl
