// What the tail of a class with several rows gains by its steps, and the class's δ: sums over rows
// for each column, and over columns for each row. The columns of a class are shared by as many
// teams as it has rows, so that every team has about as much to do.
#pragma once

#include "groups.h"
#include "rows.h"

namespace lpl {

// Columns of a thread at a time.
template <typename Acc>
constexpr int kColumnsAtOnce = sizeof(Acc) == 8 ? 2 : 4;

// f(first, end) for the columns of a part, some at a time: a thread has those of first + v·size, v
// < kColumnsAtOnce, that come before `end`.
template <typename Team, typename Acc, typename F>
LPL_DEVICE inline void each_tile(const Team& team, const Group<Acc>& g, int part, F f) {
  const i64 all = (g.c + g.parts - 1) / g.parts, begin = part * all;
  const i64 end = begin + all < g.c ? begin + all : g.c;
  for (i64 lo = begin; lo < end; lo += kColumnsAtOnce<Acc> * team.size()) f(lo + team.rank(), end);
}

template <typename Team, typename Acc>
class TailGains {
 public:
  LPL_DEVICE TailGains(Team& team, const Call& call, const Group<Acc>& group, int part)
      : team_(team),
        g_(group),
        part_(part),
        round_(call.scratch.round),
        normalize_(call.p.normalize),
        nodes_(group.state->nodes[round_ & 1]),
        share_(1 / Acc(group.count)) {}

  LPL_DEVICE void run() {
    const Acc threshold = round_ == 0 ? least_exact() : Acc(INFINITY);
    Sums sums{};
    int listed = 0;
    bool begins = true;
    each_tile(team_, g_, part_, [&](i64 first, i64 end) {
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
  static constexpr int kColumns = kColumnsAtOnce<Acc>;
  static constexpr int kRows = sizeof(Acc) == 8 ? 1 : 2;  // summed at a time
  static constexpr double kLargestTail = 5e-3;            // B of an exact class is larger

  struct Tile {
    i64 first, end;
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

  LPL_DEVICE i64 column(const Tile& tile, int v) const { return tile.first + v * team_.size(); }

  LPL_DEVICE void read(const Tile& tile, i64 r, Acc* q) const {
    const Acc* from = g_.q(r);
#pragma unroll
    for (int v = 0; v < kColumns; ++v)
      q[v] = column(tile, v) < tile.end ? from[column(tile, v)] : Acc(0);
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
      tile.exact[v] = b > threshold && column(tile, v) < tile.end && column(tile, v) != g_.label;
      count += tile.exact[v];
      if (!tile.exact[v] && b > sums.most) sums.most = b;
    }
    return count;
  }

  LPL_DEVICE void list(const Tile& tile, int count, int& listed) {
    int found, at = listed + team_.before(count, found);
#pragma unroll
    for (int v = 0; v < kColumns; ++v)
      if (tile.exact[v]) g_.columns[part_ * g_.room + at++] = int32_t(column(tile, v));
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
};

// At the nodes of the last steps: the gains of the tail's mass in each row, and the squares of its
// part of the gradient. In round 0 also, which classes are exact.
template <typename A>
struct GroupTailBody {
  using Acc = A;
  using Shared = Nothing;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 place) {
    const Group<Acc> group(call, place);
    const int part = int(place - group.begin);
    if (group.open && part < group.parts) TailGains<Team, Acc>(team, call, group, part).run();
  }
};

// δ of a class that is solved.
template <typename A>
struct GroupDeltaBody {
  using Acc = A;
  using Shared = Nothing;
  static constexpr int kColumns = kColumnsAtOnce<Acc>;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 place) {
    const Group<Acc> g(call, place);
    const int part = int(place - g.begin);
    if (!g.done || part >= g.parts) return;
    const Acc each = g.step / Acc(g.count);
    const Acc second = g.state->log_second, third = g.state->log_third;
    each_tile(team, g, part, [&](i64 first, i64 end) {
      Acc b[kColumns] = {};
      for (i64 r = 0; r < g.count; ++r) {
        const Acc way = g.members[r].way * each;
        const Acc* q = g.q(r);
#pragma unroll
        for (int v = 0; v < kColumns; ++v)
          if (first + v * team.size() < end) b[v] += way * q[first + v * team.size()];
      }
#pragma unroll
      for (int v = 0; v < kColumns; ++v) {
        const i64 j = first + v * team.size();
        const Acc change = b[v] * (1 + b[v] * (second + b[v] * third));
        if (j < end) g.delta[j] = j == g.label ? g.state->own_change : change;
      }
    });
    team.sync();
    int before = 0;
    for (int other = 0; other < part; ++other) before += g.members[other].exact;
    g.exact_of(part, before, team.rank(), team.size(),
               [&](i64 column, int at) { g.delta[column] = g.exact[at]; });
  }
};

}  // namespace lpl
