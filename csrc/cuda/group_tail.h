// What the tail of a class with several rows gains by its steps, and the class's δ: sums over rows
// for each column, and over columns for each row. The columns of a class are shared by as many
// teams as it has rows, so that every team has about as much to do.
#pragma once

#include "groups.h"
#include "learned_gradient.h"
#include "rows.h"

namespace lpl {

// Columns of a thread at a time.
template <typename Acc, Set kSet>
constexpr int kColumnsAtOnce = sizeof(Acc) == 8 || (kSet & kRest) != 0 ? 2 : 4;

// f(first, end) for the columns of a part, some at a time: a thread has those of first + v, v <
// kColumns, that come before `end`.
template <int kColumns, typename Team, typename Acc, typename F>
LPL_DEVICE inline void each_tile(const Team& team, const Group<Acc>& g, int part, F f) {
  const int c = int(g.c), all = (c + g.parts - 1) / g.parts, begin = part * all;
  const int end = begin + all < c ? begin + all : c, each = kColumns;
  for (int lo = begin; lo < end; lo += each * team.size()) f(lo + each * team.rank(), end);
}

// Whether a column is among the exact ones of its part, which are in order.
template <typename Acc>
LPL_DEVICE inline bool is_exact(const Group<Acc>& g, int part, int column) {
  const int32_t* columns = g.columns(part);
  int low = 0, high = g.members[part].exact;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (columns[middle] < column) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < g.members[part].exact && columns[low] == column;
}

template <typename Team, typename T, Set kSet>
class TailGains {
 public:
  using Acc = typename AccumulateOf<T>::type;

  LPL_DEVICE TailGains(Team& team, const Call& call, const Group<Acc>& group, int part)
      : team_(team),
        g_(group),
        part_(part),
        round_(call.scratch.round),
        normalize_(call.p.normalize),
        nodes_(group.state->nodes[round_ & 1]),
        share_(1 / Acc(group.count)),
        rivals_(call, group) {}

  LPL_DEVICE void run() {
    const Acc threshold = round_ == 0 ? least_exact() : Acc(INFINITY);
    Sums sums{};
    int listed = 0;
    bool begins = true;
    each_tile<kColumns>(team_, g_, part_, [&](int first, int end) {
      Tile tile{};
      tile.first = first;
      tile.end = end;
      add_rows(tile);
      const int count = choose(tile, threshold, sums);
      if (round_ == 0) list(tile, count, listed);
      gain(tile, sums);
      add_columns(tile, begins);
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
    Member<Acc>& own = g_.members[part_];
#pragma unroll
    for (int m = 0; m < kSlots; ++m) own.lengths[m] = sums.squares[m];
    own.most = sums.most;
    if (round_ == 0) own.exact = listed;
  }

 private:
  static constexpr int kColumns = kColumnsAtOnce<Acc, kSet>;
  static constexpr int kRows = sizeof(Acc) == 8 ? 1 : 2;  // summed at a time
  static constexpr double kLargestTail = 5e-3;            // B of an exact class is larger

  struct Tile {
    int first, end;
    // by node B, at last what masses gain, and the gradient; B of all steps
    Acc b[kSlots][kColumns], speed[kSlots][kColumns], last[kColumns];
    bool exact[kColumns];
  };
  struct Sums {
    Acc squares[kSlots], most;
  };

  // B of all classes adds up to `all`, so that no more than `room` exceed their share of it.
  LPL_DEVICE Acc least_exact() const {
    if (g_.c <= g_.room) return -1;
    const Acc all = std::fabs(g_.step) * nodes_.at[nodes_.count], fair = Acc(1.001) * all / g_.room;
    return fair > Acc(kLargestTail) ? fair : Acc(kLargestTail);
  }

  LPL_DEVICE int column(const Tile& tile, int v) const { return tile.first + v; }

  LPL_DEVICE void read(const Tile& tile, i64 r, Acc* q) const {
    rivals_.template tile<kColumns>(rivals_.member(r), tile.first, tile.end, q);
#pragma unroll
    for (int v = 0; v < kColumns; ++v)
      if (column(tile, v) == g_.label) q[v] = 0;
  }

  // Sums over rows.
  LPL_DEVICE void add_rows(Tile& tile) const {
    for (i64 r = 0; r < g_.count; ++r) {
      const Member<Acc>& row = g_.members[r];
      Acc q[kColumns];
      read(tile, r, q);
#pragma unroll
      for (int m = 0; m < kSlots; ++m) {
        if (m > nodes_.count) continue;
        const Acc way = row.ways[round_ & 1][m];
#pragma unroll
        for (int v = 0; v < kColumns; ++v) tile.b[m][v] += way * q[v];
        if (!normalize_) continue;
        const Acc inverse = row.inverses[round_ & 1][m];
#pragma unroll
        for (int v = 0; v < kColumns; ++v) tile.speed[m][v] += inverse * q[v];
      }
#pragma unroll
      for (int v = 0; v < kColumns; ++v) tile.last[v] += row.way * q[v];
    }
  }

  // Says who is exact, and how many of this thread's columns are.
  LPL_DEVICE int choose(Tile& tile, Acc threshold, Sums& sums) const {
    const Acc each = std::fabs(g_.step) * share_;
    int count = 0;
#pragma unroll
    for (int v = 0; v < kColumns; ++v) {
      const Acc b = tile.last[v] * each;
      const int j = column(tile, v);
      tile.exact[v] =
          j < tile.end && j != g_.label && (round_ == 0 ? b > threshold : is_exact(g_, part_, j));
      count += tile.exact[v];
      if (!tile.exact[v] && b > sums.most) sums.most = b;
    }
    return count;
  }

  LPL_DEVICE void list(const Tile& tile, int count, int& listed) {
    int found, at = listed + team_.before(count, found);
#pragma unroll
    for (int v = 0; v < kColumns; ++v)
      if (tile.exact[v]) g_.columns(part_)[at++] = int32_t(column(tile, v));
    listed += found;
  }

  // B becomes x − 1.
  LPL_DEVICE void gain(Tile& tile, Sums& sums) const {
#pragma unroll
    for (int m = 0; m < kSlots; ++m) {
      if (m > nodes_.count) continue;
      const Acc second = nodes_.second[m], third = nodes_.third[m];
      const Acc faster = nodes_.own[m] > 0 ? share_ / nodes_.own[m] : Acc(0);
#pragma unroll
      for (int v = 0; v < kColumns; ++v) {
        const Acc t = tile.exact[v] ? Acc(0) : tile.b[m][v] * g_.step * share_;
        tile.b[m][v] = t * (1 + t * (second + t * third));
        const Acc entry = tile.speed[m][v] * faster * (1 + tile.b[m][v]);
        sums.squares[m] += tile.exact[v] ? Acc(0) : entry * entry;
      }
    }
  }

  // Sums over columns.
  LPL_DEVICE void add_columns(const Tile& tile, bool begins) {
    for (i64 r = 0; r < g_.count; r += kRows) {
      Acc sums[kRows * kSlots] = {};
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        Acc q[kColumns] = {};
        if (r + k < g_.count) read(tile, r + k, q);
#pragma unroll
        for (int v = 0; v < kColumns; ++v) {
          sums[k * kSlots] += tile.exact[v] ? Acc(0) : q[v];
#pragma unroll
          for (int m = 1; m < kSlots; ++m) sums[k * kSlots + m] += q[v] * tile.b[m][v];
        }
      }
      team_.sum_each(sums, [&](int at, Acc sum) {
        if (r + at / kSlots >= g_.count) return;
        Acc& to = g_.sums(r + at / kSlots, part_)[at % kSlots];
        to = begins ? sum : to + sum;
      });
    }
  }

  Team& team_;
  const Group<Acc>& g_;
  const int part_, round_;
  const bool normalize_;
  const Nodes<Acc>& nodes_;
  const Acc share_;
  const GroupRivals<T, kSet> rivals_;
};

// At the nodes of the last steps: the gains of the tail's mass in each row, and the squares of its
// part of the gradient. In round 0 also, which classes are exact.
template <typename T, Set kSet>
struct GroupTailBody {
  using Acc = typename AccumulateOf<T>::type;
  using Shared = Nothing;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 place) {
    const Group<Acc> group(call, place);
    const int part = int(place - group.begin);
    if (group.open && part < group.parts) TailGains<Team, T, kSet>(team, call, group, part).run();
  }
};

// B of all steps in the columns of a tile.
template <int kColumns, typename Rivals, typename Acc>
LPL_DEVICE inline void last_of(const Rivals& rivals, const Group<Acc>& g, int first, int end,
                               Acc* b) {
  const Acc each = g.step / Acc(g.count);
#pragma unroll
  for (int v = 0; v < kColumns; ++v) b[v] = 0;
  for (i64 r = 0; r < g.count; ++r) {
    const Acc way = g.members[r].way * each;
    Acc q[kColumns];
    rivals.template tile<kColumns>(rivals.member(r), first, end, q);
#pragma unroll
    for (int v = 0; v < kColumns; ++v) b[v] += way * q[v];
  }
}

// δ of a class that is solved.
template <typename T, Set kSet>
struct GroupDeltaBody {
  using Acc = typename AccumulateOf<T>::type;
  using Shared = Nothing;
  static constexpr int kColumns = kColumnsAtOnce<Acc, kSet>;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 place) {
    const Group<Acc> g(call, place);
    const int part = int(place - g.begin);
    if (!g.done || part >= g.parts) return;
    const GroupRivals<T, kSet> rivals(call, g);
    const Acc second = g.state->log_second, third = g.state->log_third;
    each_tile<kColumns>(team, g, part, [&](int first, int end) {
      Acc b[kColumns];
      last_of<kColumns>(rivals, g, first, end, b);
#pragma unroll
      for (int v = 0; v < kColumns; ++v) {
        const int j = first + v;
        const Acc change = b[v] * (1 + b[v] * (second + b[v] * third));
        if (j < end) g.delta[j] = j == g.label ? g.state->own_change : change;
      }
    });
    team.sync();
    int before = 0;
    for (int other = 0; other < part; ++other) before += g.members[other].exact;
    g.exact_of(part, before, team.rank(), team.size(),
               [&](i64 column, int at) { g.delta[column] = g.exact(0)[at]; });
  }
};

// The loss of the row at a place in the order of classes, if its class is solved; and what its
// gradient is made of.
template <typename A>
struct GroupLossBody {
  using Acc = A;
  using Shared = Nothing;

  template <typename Crew>
  LPL_DEVICE static void run(Crew& crew, const Call& call, i64 place) {
    if (crew.place() != 0) return;
    const i64 i = call.scratch.order[place];
    if (learned_row<Acc>(call, i).standing != Standing::grouped) return;
    const Group<Acc> g(call, place);
    if (!g.done) return;
    LearnedRow<Acc>& from = learned_row<Acc>(call, i);
    Member<Acc>& member = g.members[place - g.begin];
    const Algebra<Acc, kAll> algebra(call);
    const Row<Acc> row = algebra.row(i, nullptr);
    Terms<Acc> terms = from.terms;
    const Acc lift = member.lift + g.state->own_change;
    // where there are no rivals all is the label's
    const bool rivals = Group<Acc>::has_rivals(from);
    const Acc rest = rivals ? member.rest : Acc(0);
    const Acc log_rest = rivals ? std::log(from.series[0]) : from.own * Scale<Acc>::kUnit;
    const Acc unit = lift > 0 ? lift : Acc(0), fold = std::exp(-unit);
    const Acc shift = from.level * Scale<Acc>::kUnit + log_rest + unit;
    const Acc loss = algebra.of_label(row, lift - unit, rest * fold, shift, terms);
    member.strength = terms.strength * fold;
    from.terms = terms;
    if (call.scratch.losses) static_cast<Acc*>(call.scratch.losses)[i] = loss + from.penalty;
  }
};

// The gradients of the rows of a class that is solved.
template <typename T, Set kSet>
struct GroupGradientBody {
  using Acc = typename AccumulateOf<T>::type;
  using Shared = Nothing;
  static constexpr int kColumns = kColumnsAtOnce<Acc, kSet>;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 place) {
    const Group<Acc> g(call, place);
    const int part = int(place - g.begin);
    if (!g.done || part >= g.parts) return;
    const GroupRivals<T, kSet> rivals(call, g);
    const Acc second = g.state->second, third = g.state->third;
    each_tile<kColumns>(team, g, part, [&](int first, int end) {
      Acc x[kColumns];
      last_of<kColumns>(rivals, g, first, end, x);
#pragma unroll
      for (int v = 0; v < kColumns; ++v) x[v] = 1 + x[v] * (1 + x[v] * (second + x[v] * third));
      for (i64 r = 0; r < g.count; ++r) {
        const auto member = rivals.member(r);
        const Acc strength = g.members[r].strength * upstream_of<Acc>(call, g.row(r));
        Acc dz[kColumns];
        rivals.template tile<kColumns>(member, first, end, dz);
#pragma unroll
        for (int v = 0; v < kColumns; ++v) dz[v] *= x[v] * strength;
        if (kSet != kBare) {
#pragma unroll
          for (int v = 0; v < kColumns; ++v)
            if (first + v < end) through(call, rivals, g, member, r, first + v, dz[v]);
        }
        T* to = static_cast<T*>(call.out.grad) + g.row(r) * g.c + first;
        put_beside<kColumns>(to, end - first, dz);
      }
    });
    team.sync_block();
    int before = 0;
    for (int other = 0; other < part; ++other) before += g.members[other].exact;
    const i64 all = (g.c + g.parts - 1) / g.parts;
    for (i64 r = 0; r < g.count; ++r) {
      const auto member = rivals.member(r);
      const Acc upstream = upstream_of<Acc>(call, g.row(r));
      const Acc strength = g.members[r].strength * upstream;
      T* to = static_cast<T*>(call.out.grad) + g.row(r) * g.c;
      const auto put = [&](i64 j, Acc dz) {
        if (kSet != kBare) through(call, rivals, g, member, r, j, dz);
        store(to[j], dz);
      };
      g.exact_of(part, before, team.rank(), team.size(), [&](i64 column, int at) {
        put(column, rivals.q(member, column) * std::exp(g.exact(0)[at]) * strength);
      });
      if (g.label / all == part && team.rank() == 0)
        put(g.label, learned_row<Acc>(call, g.row(r)).terms.part * upstream);
    }
  }

 private:
  // dL/dz of a column of member r becomes dL/du.
  template <typename Rivals>
  LPL_DEVICE static void through(const Call& call, const Rivals& rivals, const Group<Acc>& g,
                                 const typename Rivals::Member& member, i64 r, i64 j, Acc& dz) {
    const i64 i = g.row(r);
    const Terms<Acc> terms = scaled(learned_row<Acc>(call, i).terms, upstream_of<Acc>(call, i));
    const Acc u = load(member.logits[j]);
    Through<T, kSet>(rivals.algebra(), member.row, terms)
        .template piece<1>(Everywhere(), int(j), &u, Whole(), &dz);
  }

  struct Everywhere {
    LPL_DEVICE bool inside(int) const { return true; }
  };
};

}  // namespace lpl
