// What the tail of a class with several rows gains by its steps, and the class's δ: sums over rows
// for each column, and over columns for each row. The columns of a class are shared by teams at the
// places of its rows, so that every team has about as much to do; a crew has eight columns a thread
// of its part of them, and where a class has many rows its part of those (Share in groups.h).
#pragma once

#include "group_steps.h"
#include "groups.h"
#include "learned_gradient.h"
#include "rows.h"

namespace lpl {

// Columns of a thread at a time.
template <typename Acc, Set kSet>
constexpr int kColumnsAtOnce = sizeof(Acc) == 8 || (kSet & kRest) != 0 ? 2 : 8;

// Memory in which crews exchange sums over rows.
template <typename Acc>
struct Exchanged {
  static constexpr int kMostThreads = 256, kRoom = sizeof(Acc) == 8 ? 4 : 32;  // numbers of each
  Acc of[kRoom * kMostThreads];

  // A thread's sums become those of all crews that share the rows: the same bits in each of them.
  template <typename Team, int kCount, int kColumns>
  LPL_DEVICE void add(Team& team, const Share<Team, Acc>& share, Acc (&sums)[kCount][kColumns]) {
    if (share.split == 1) return;
    constexpr int kAtOnce = kRoom / kColumns;
    const int thread = share.part * share.width + share.lane, step = share.wide * share.width;
    const auto place = [&](int k, int v, int crew) -> Acc& {
      return of[(k * kColumns + v) * kMostThreads + crew * step + thread];
    };
#pragma unroll
    for (int first = 0; first < kCount; first += kAtOnce) {
#pragma unroll
      for (int k = 0; k < kAtOnce && first + k < kCount; ++k)
#pragma unroll
        for (int v = 0; v < kColumns; ++v)
          if (share.begin < share.split) place(k, v, share.begin) = sums[first + k][v];
      team.sync();
#pragma unroll 1
      for (int crew = 0; crew < share.split; ++crew) {
#pragma unroll
        for (int k = 0; k < kAtOnce && first + k < kCount; ++k)
#pragma unroll
          for (int v = 0; v < kColumns; ++v) {
            Acc& sum = sums[first + k][v];
            sum = crew == 0 ? place(k, v, 0) : sum + place(k, v, crew);
          }
      }
      team.sync();
    }
  }
};

// Whether a column is among the exact ones that a team has found, which are in order.
template <typename Acc>
LPL_DEVICE inline bool is_exact(const Group<Acc>& g, int team, int column) {
  const int32_t* columns = g.columns(team);
  int low = 0, high = g.found(team).exact;
  const int found = high;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (columns[middle] < column) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < found && columns[low] == column;
}

// At the nodes of the first steps, or of later ones.
template <typename Team, typename T, Set kSet, bool kFirst, bool kNormalize>
class TailGains {
 public:
  using Acc = typename AccumulateOf<T>::type;
  // as many numbers of columns as find room in registers
  static constexpr int kMoments = kFirst ? kFirstNodes : kNodes;
  static constexpr int kMost = kNormalize ? 1 : kFirst ? 8 : 4;
  static constexpr int kColumns =
      kMost < kColumnsAtOnce<Acc, kSet> ? kMost : kColumnsAtOnce<Acc, kSet>;

  LPL_DEVICE TailGains(Team& team, const Call& call, const Group<Acc>& group, int place)
      : team_(team),
        g_(group),
        place_(place),
        round_(kFirst ? 0 : call.scratch.round),
        nodes_(group.state->nodes[round_ & 1]),
        mean_(1 / Acc(group.count)),
        share_(team, group),
        rivals_(call, group) {}

  LPL_DEVICE void run() {
    const Acc threshold = kFirst ? least_exact() : Acc(INFINITY);
    Sums sums{};
    int listed = 0, part = 0;
    bool begins = true;
    share_.template each_tile<kColumns>(
        g_, place_,
        [&](int mine) {
          part = mine;
          begins = true;
        },
        [&](int first, int end, bool whole) {
          Tile tile{};
          tile.first = first;
          tile.end = end;
          tile.whole = kColumns > 1 && whole && rivals_.in_line();
          if (tile.whole)
            add_rows<true>(tile);
          else
            add_rows<false>(tile);
          exchange(tile);
          const int count = choose(tile, threshold, sums);
          if (kFirst) list(tile, count, listed);
          gain(tile, sums);
          if (tile.whole)
            add_columns<true>(tile, part, begins);
          else
            add_columns<false>(tile, part, begins);
          begins = false;
        });
    sums = team_.reduce(sums, [](const Sums& a, const Sums& b) {
      Sums sum;
#pragma unroll
      for (int m = 0; m < kSlots; ++m) sum.squares[m] = a.squares[m] + b.squares[m];
      sum.most = a.most > b.most ? a.most : b.most;
      return sum;
    });
    if (team_.rank() != 0) return;
    if (place_ == 0) g_.state->parts = share_.parts();
    Found<Acc>& found = g_.found(place_);
#pragma unroll
    for (int m = 0; m < kSlots; ++m) found.lengths.of[m] = sums.squares[m];
    found.most = sums.most;
    if (kFirst) found.exact = listed;
  }

 private:
  static constexpr int kSums = kMoments + 1;    // of a row
  static constexpr double kLargestTail = 5e-3;  // B of an exact class is larger

  struct Tile {
    int first, end;
    bool whole;  // as Share says, in lines of memory
    // by node beyond the start B, at last what masses gain; from the start on the gradient
    Acc b[kMoments][kColumns], speed[kNormalize ? kSums : 1][kColumns];
    unsigned exact;  // who of them is

    LPL_DEVICE bool is_exact(int v) const { return exact >> v & 1; }
  };
  struct Sums {
    Acc squares[kSlots], most;
  };

  // B of all classes adds up to `all`, so that no more than `room` exceed their share of it.
  LPL_DEVICE Acc least_exact() const {
    if (g_.c <= g_.room) return -1;
    const Acc all = std::fabs(g_.step) * nodes_.at.of[nodes_.count];
    const Acc fair = Acc(1.001) * all / g_.room;
    return fair > Acc(kLargestTail) ? fair : Acc(kLargestTail);
  }

  LPL_DEVICE int column(const Tile& tile, int v) const { return tile.first + v; }

  // Sums over rows.
  template <bool kWhole>
  LPL_DEVICE void add_rows(Tile& tile) const {
    const int nodes = nodes_.count, count = g_.count;
#pragma unroll(kNormalize || !kWhole || sizeof(T) > 2 ? 1 : 2)
    for (int r = share_.begin; r < count; r += share_.split) {
      const auto member = rivals_.member(r);
      Acc e[kColumns];
      rivals_.template tile<kColumns, kWhole>(member, tile.first, tile.end, e);
      const AtNodes<Acc> ways = g_.ways(round_, r);
#pragma unroll
      for (int m = 0; m < kMoments; ++m) {
        const Acc way = m < nodes ? ways.of[m + 1] * member.inverse : Acc(0);
#pragma unroll
        for (int v = 0; v < kColumns; ++v) tile.b[m][v] += way * e[v];
      }
      if (!kNormalize) continue;
      const AtNodes<Acc>& inverses = g_.inverses(round_, r);
#pragma unroll
      for (int m = 0; m < kSums; ++m) {
        const Acc speed = m <= nodes ? inverses.of[m] * member.inverse : Acc(0);
#pragma unroll
        for (int v = 0; v < kColumns; ++v) tile.speed[m][v] += speed * e[v];
      }
    }
  }

  LPL_DEVICE void exchange(Tile& tile) const {
    auto& exchanged = team_.template shared<Exchanged<Acc>>(0);
    exchanged.add(team_, share_, tile.b);
    if (kNormalize) exchanged.add(team_, share_, tile.speed);
  }

  // Says who is exact, and how many of this thread's columns are: of crews that share rows the
  // first one's.
  LPL_DEVICE int choose(Tile& tile, Acc threshold, Sums& sums) const {
    const Acc each = std::fabs(g_.step) * mean_;
    int count = 0;
#pragma unroll
    for (int v = 0; v < kColumns; ++v) {
      Acc last = 0;
#pragma unroll
      for (int m = 0; m < kMoments; ++m)
        if (m + 1 == nodes_.count) last = tile.b[m][v];
      const Acc b = last * each;
      const int j = column(tile, v);
      const bool exact =
          j < tile.end && j != g_.label && (kFirst ? b > threshold : is_exact(g_, place_, j));
      tile.exact |= unsigned(exact) << v;
      count += exact;
      if (!exact && b > sums.most) sums.most = b;
    }
    return share_.begin == 0 ? count : 0;
  }

  LPL_DEVICE void list(const Tile& tile, int count, int& listed) {
    int found, at = listed + team_.before(count, found);
#pragma unroll
    for (int v = 0; v < kColumns; ++v)
      if (count > 0 && tile.is_exact(v)) g_.columns(place_)[at++] = int32_t(column(tile, v));
    listed += found;
    team_.sync();
  }

  // B becomes x − 1.
  LPL_DEVICE void gain(Tile& tile, Sums& sums) const {
    const Acc counts = share_.begin == 0 ? 1 : 0;
#pragma unroll
    for (int m = 0; m < kSums; ++m) {
      if (m > nodes_.count) continue;
      const Acc second = nodes_.second.of[m], third = nodes_.third.of[m];
      const Acc faster = nodes_.own.of[m] > 0 ? mean_ / nodes_.own.of[m] : Acc(0);
#pragma unroll
      for (int v = 0; v < kColumns; ++v) {
        Acc gained = 0;
        if (m > 0) {
          const Acc t = tile.is_exact(v) ? Acc(0) : tile.b[m - 1][v] * (g_.step * mean_);
          gained = tile.b[m - 1][v] = t * (1 + t * (second + t * third));
        }
        if (!kNormalize) continue;
        const Acc entry = tile.speed[m][v] * faster * (1 + gained);
        if (!tile.is_exact(v)) sums.squares[m] += entry * entry * counts;
      }
    }
  }

  // Sums over columns.
  template <bool kWhole>
  LPL_DEVICE void add_columns(const Tile& tile, int part, bool begins) {
    const int count = g_.count;
    for (int r = share_.begin; r < count; r += share_.split) {
      Acc sums[kSums] = {}, e[kColumns];
      rivals_.template tile<kColumns, kWhole>(rivals_.member(r), tile.first, tile.end, e);
#pragma unroll
      for (int v = 0; v < kColumns; ++v) {
        sums[0] += tile.is_exact(v) ? Acc(0) : e[v];
#pragma unroll
        for (int m = 1; m < kSums; ++m) sums[m] += e[v] * tile.b[m - 1][v];
      }
      team_.crew_sum_each(sums, [&](int m, Acc sum) {
        Acc& to = g_.sums(r, part).of[m];
        sum *= g_.source(r).inverse;
        to = begins ? sum : to + sum;
      });
    }
  }

  Team& team_;
  const Group<Acc>& g_;
  const int place_, round_;
  const Nodes<Acc>& nodes_;
  const Acc mean_;
  const Share<Team, Acc> share_;
  const GroupRivals<T, kSet, true> rivals_;
};

// At the nodes of the last steps: the gains of the tail's mass in each row, and the squares of its
// part of the gradient. In round 0 also, which classes are exact; in later ones the next steps.
template <typename T, Set kSet, bool kFirst, bool kNormalize>
struct TailBody : OfOpen {
  using Acc = typename AccumulateOf<T>::type;
  union Shared {
    Exchanged<Acc> exchanged;
    typename std::conditional<kFirst, Nothing, WalkShared<Acc>>::type walk;
  };

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 place) {
    const Group<Acc> group(call, place);
    const int at = int(place) - group.begin;
    if (!group.open || at >= group.teams) return;
    TailGains<Team, T, kSet, kFirst, kNormalize>(team, call, group, at).run();
    if constexpr (!kFirst) step_again<Team, Acc>(team, call, place, false, call.scratch.round + 1);
  }
};
template <typename T, Set kSet>
struct FirstTailBody : TailBody<T, kSet, true, false> {};
template <typename T, Set kSet>
struct FirstNormalizedTailBody : TailBody<T, kSet, true, true> {};
template <typename T, Set kSet>
struct GroupTailBody : TailBody<T, kSet, false, false> {};
template <typename T, Set kSet>
struct NormalizedTailBody : TailBody<T, kSet, false, true> {};

// B of all steps in columns that lie beside each other.
template <typename Team, typename T, Set kSet>
class LastOf {
 public:
  using Acc = typename AccumulateOf<T>::type;
  static constexpr int kColumns = kColumnsAtOnce<Acc, kSet>;
  using Shared = Exchanged<Acc>;

  LPL_DEVICE LastOf(Team& team, const Call& call, const Group<Acc>& group)
      : rivals(call, group), share(team, group), team_(team), g_(group) {}

  // `whole` as Share says.
  LPL_DEVICE void find(int first, int end, bool whole, Acc (&b)[kColumns]) const {
    Acc sums[1][kColumns] = {};
    if (whole && rivals.in_line())
      add<true>(first, end, sums[0]);
    else
      add<false>(first, end, sums[0]);
    team_.template shared<Shared>(0).add(team_, share, sums);
#pragma unroll
    for (int v = 0; v < kColumns; ++v) b[v] = sums[0][v];
  }

  const GroupRivals<T, kSet, false> rivals;
  const Share<Team, Acc> share;

 private:
  template <bool kWhole>
  LPL_DEVICE void add(int first, int end, Acc (&sums)[kColumns]) const {
    const Acc each = g_.step / Acc(g_.count);
#pragma unroll 2
    for (int r = share.begin; r < g_.count; r += share.split) {
      const auto member = rivals.member(r);
      const Acc way = g_.walked(r).way * each * member.inverse;
      Acc e[kColumns];
      rivals.template tile<kColumns, kWhole>(member, first, end, e);
#pragma unroll
      for (int v = 0; v < kColumns; ++v) sums[v] += way * e[v];
    }
  }

  Team& team_;
  const Group<Acc>& g_;
};

// δ of a class that is solved.
template <typename T, Set kSet>
struct GroupDeltaBody : OfSharing {
  using Acc = typename AccumulateOf<T>::type;
  static constexpr int kColumns = kColumnsAtOnce<Acc, kSet>;
  using Shared = Exchanged<Acc>;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 place) {
    const Group<Acc> g(call, place);
    const int at = int(place) - g.begin;
    if (!g.done || at >= g.teams) return;
    const LastOf<Team, T, kSet> last(team, call, g);
    const Acc second = g.state->log_second, third = g.state->log_third;
    last.share.template each_tile<kColumns>(
        g, at, [](int) {},
        [&](int first, int end, bool whole) {
          Acc b[kColumns];
          last.find(first, end, whole, b);
          if (last.share.begin != 0) return;
#pragma unroll
          for (int v = 0; v < kColumns; ++v) {
            const int j = first + v;
            const Acc change = b[v] * (1 + b[v] * (second + b[v] * third));
            if (j < end) g.delta[j] = j == g.label ? g.state->own_change : change;
          }
        });
    team.sync();
    int before = 0;
    for (int other = 0; other < at; ++other) before += g.found(other).exact;
    g.exact_of(at, before, team.rank(), team.size(),
               [&](i64 column, int k) { g.delta[column] = g.exact(0)[k]; });
  }
};

// The gradients of the rows of a class that is solved.
template <typename T, Set kSet>
struct GroupGradientBody : OfSharing {
  using Acc = typename AccumulateOf<T>::type;
  static constexpr int kColumns = kColumnsAtOnce<Acc, kSet>;
  using Shared = Exchanged<Acc>;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 place) {
    const Group<Acc> g(call, place);
    const int at = int(place) - g.begin;
    if (!g.done || at >= g.teams) return;
    const LastOf<Team, T, kSet> last(team, call, g);
    const auto& rivals = last.rivals;
    const Acc second = g.state->second, third = g.state->third;
    const Upstream<Acc> upstream(call);
    const auto strength_of = [&](i64 r) { return g.masses(r).strength * upstream.of(g.row(r)); };
    const auto row_of = [&](i64 r) { return static_cast<T*>(call.out.grad) + g.row(r) * g.c; };
    const bool in_line = rivals.in_line() && reinterpret_cast<uintptr_t>(call.out.grad) % 16 == 0 &&
                         g.c * i64(sizeof(T)) % 16 == 0;
    last.share.template each_tile<kColumns>(
        g, at, [](int) {},
        [&](int first, int end, bool whole) {
          Acc x[kColumns];
          last.find(first, end, whole, x);
#pragma unroll
          for (int v = 0; v < kColumns; ++v) x[v] = 1 + x[v] * (1 + x[v] * (second + x[v] * third));
          const auto write = [&](auto wholly) {
            constexpr bool kWhole = decltype(wholly)::value;
#pragma unroll 2
            for (int r = last.share.begin; r < g.count; r += last.share.split) {
              const auto member = rivals.member(r);
              const Acc strength = strength_of(r) * member.inverse;
              Acc dz[kColumns];
              rivals.template tile<kColumns, kWhole>(member, first, end, dz);
#pragma unroll
              for (int v = 0; v < kColumns; ++v) dz[v] *= x[v] * strength;
              if (kSet != kBare) {
#pragma unroll
                for (int v = 0; v < kColumns; ++v)
                  if (kWhole || first + v < end)
                    through(call, rivals, g.row(r), upstream, member, first + v, dz[v]);
              }
              if (kWhole)
                put_line<kColumns>(row_of(r) + first, dz);
              else
                put_beside<kColumns>(row_of(r) + first, end - first, dz);
            }
          };
          if (whole && in_line)
            write(Whole());
          else if (first < end)
            write(Short());
        });
    team.sync();
    // who is exact, and the label, in the place of what the tail has made of them
    int before = 0;
    for (int other = 0; other < at; ++other) before += g.found(other).exact;
    const int columns = last.share.each * last.share.wide;
    const bool labelled = g.label / columns % g.teams == at;
    const int crews = team.size() / last.share.width, crew = team.rank() / last.share.width;
    for (int r = crew; r < g.count; r += crews) {
      const auto member = rivals.member(r);
      const Acc strength = strength_of(r);
      T* to = row_of(r);
      const auto put = [&](i64 j, Acc dz) {
        if (kSet != kBare) through(call, rivals, g.row(r), upstream, member, j, dz);
        store(to[j], dz);
      };
      g.exact_of(at, before, last.share.lane, last.share.width, [&](i64 column, int k) {
        put(column, rivals.q(member, column) * std::exp(g.exact(0)[k]) * strength);
      });
      if (labelled && last.share.lane == 0) {
        const i64 i = g.row(r);
        put(g.label, learned_row<Acc>(call, i).terms.part * upstream.of(i));
      }
    }
  }

 private:
  // dL/dz of a column of a member, row i, becomes dL/du.
  template <typename Rivals>
  LPL_DEVICE static void through(const Call& call, const Rivals& rivals, i64 i,
                                 const Upstream<Acc>& upstream,
                                 const typename Rivals::Member& member, i64 j, Acc& dz) {
    const Terms<Acc> terms = scaled(learned_row<Acc>(call, i).terms, upstream.of(i));
    const Acc u = load(member.logits[j]);
    Through<T, kSet>(rivals.algebra(), member.row, terms)
        .template piece<1>(Everywhere(), int(j), &u, Whole(), &dz);
  }

  struct Everywhere {
    LPL_DEVICE bool inside(int) const { return true; }
  };
};

}  // namespace lpl
