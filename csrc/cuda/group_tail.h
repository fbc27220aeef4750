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

// f(first) for the columns of a part, `width` at a time; of those that a thread then has, first +
// v·size, none is at `end` or beyond.
template <typename Team, typename Acc, typename F>
LPL_DEVICE inline void each_tile(const Team& team, const Group<Acc>& g, int part, F f) {
  const i64 all = (g.c + g.parts - 1) / g.parts, begin = part * all;
  const i64 end = begin + all < g.c ? begin + all : g.c;
  for (i64 lo = begin; lo < end; lo += kColumnsAtOnce<Acc> * team.size()) f(lo + team.rank(), end);
}

// At the nodes of the last steps: the gains of the tail's mass in each row, and the squares of its
// part of the gradient. In round 0 also, which classes are exact.
template <typename A>
struct GroupTailBody {
  using Acc = A;
  using Shared = Nothing;
  static constexpr int kColumns = kColumnsAtOnce<Acc>;
  static constexpr int kRows = sizeof(Acc) == 8 ? 1 : 2;  // summed at a time
  // B of an exact class is larger.
  static constexpr double kLargestTail = 5e-3;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 place) {
    const Group<Acc> g(call, place);
    const int part = int(place - g.begin), round = call.scratch.round;
    if (!g.open || part >= g.parts) return;
    const Nodes<Acc>& nodes = g.state->nodes[round & 1];
    const bool normalize = call.p.normalize;
    const Acc share = 1 / Acc(g.count), each = std::fabs(g.step) * share;
    Acc threshold = INFINITY;
    if (round == 0) threshold = threshold_of(g, nodes);
    struct Sums {
      Acc squares[kSlots], most;
    } sums{};
    int listed = 0;
    each_tile(team, g, part, [&](i64 first, i64 end) {
      Acc b[kSlots][kColumns] = {}, last[kColumns] = {}, speed[kSlots][kColumns] = {};
      const auto read = [&](i64 r, Acc* q) {
        const Acc* from = g.q(r);
#pragma unroll
        for (int v = 0; v < kColumns; ++v) {
          const i64 j = first + v * team.size();
          q[v] = j < end ? from[j] : Acc(0);
        }
      };
      for (i64 r = 0; r < g.count; ++r) {
        const Member<Acc>& row = g.members[r];
        Acc q[kColumns];
        read(r, q);
#pragma unroll
        for (int m = 0; m < kSlots; ++m) {
          if (m > nodes.count) continue;
          const Acc way = row.ways[round & 1][m];
#pragma unroll
          for (int v = 0; v < kColumns; ++v) b[m][v] += way * q[v];
          if (!normalize) continue;
          const Acc inverse = row.inverses[round & 1][m];
#pragma unroll
          for (int v = 0; v < kColumns; ++v) speed[m][v] += inverse * q[v];
        }
#pragma unroll
        for (int v = 0; v < kColumns; ++v) last[v] += row.way * each * q[v];
      }

      // who is exact, by B of all steps
      bool exact[kColumns];
      int count = 0;
#pragma unroll
      for (int v = 0; v < kColumns; ++v) {
        const i64 j = first + v * team.size();
        exact[v] = j < end && j != g.label && last[v] > threshold;
        if (exact[v]) {
          ++count;
        } else if (last[v] > sums.most) {
          sums.most = last[v];
        }
      }
      if (round == 0) {
        int found, at = listed + team.before(count, found);
#pragma unroll
        for (int v = 0; v < kColumns; ++v)
          if (exact[v]) g.columns[part * g.room + at++] = int32_t(first + v * team.size());
        listed += found;
      }
#pragma unroll
      for (int m = 0; m < kSlots; ++m) {
        const bool there = m <= nodes.count;
        const Acc second = there ? nodes.second[m] : Acc(0),
                  third = there ? nodes.third[m] : Acc(0);
        const Acc faster = there && nodes.own[m] > 0 ? share / nodes.own[m] : Acc(0);
#pragma unroll
        for (int v = 0; v < kColumns; ++v) {
          const Acc t = exact[v] ? Acc(0) : b[m][v] * g.step * share;
          b[m][v] = t * (1 + t * (second + t * third));
          const Acc entry = exact[v] ? Acc(0) : speed[m][v] * faster * (1 + b[m][v]);
          sums.squares[m] += entry * entry;
        }
      }

      for (i64 r = 0; r < g.count; r += kRows) {
        Acc gained[kRows * kSlots] = {};
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
          Acc q[kColumns] = {};
          if (r + k < g.count) read(r + k, q);
#pragma unroll
          for (int v = 0; v < kColumns; ++v) {
            gained[k * kSlots] += exact[v] ? Acc(0) : q[v];
#pragma unroll
            for (int m = 1; m < kSlots; ++m) gained[k * kSlots + m] += q[v] * b[m][v];
          }
        }
        const bool begins = first - team.rank() == part * ((g.c + g.parts - 1) / g.parts);
        team.sum_each(gained, [&](int at, Acc sum) {
          if (r + at / kSlots >= g.count) return;
          Acc& to = g.sums(r + at / kSlots, part)[at % kSlots];
          to = begins ? sum : to + sum;
        });
      }
    });
    sums = team.reduce(sums, [](const Sums& a, const Sums& b) {
      Sums sum;
#pragma unroll
      for (int m = 0; m < kSlots; ++m) sum.squares[m] = a.squares[m] + b.squares[m];
      sum.most = a.most > b.most ? a.most : b.most;
      return sum;
    });
    if (team.rank() != 0) return;
    Member<Acc>& own = g.members[part];
#pragma unroll
    for (int m = 0; m < kSlots; ++m) own.lengths[m] = sums.squares[m];
    own.most = sums.most;
    own.exact = round == 0 ? listed : own.exact;
  }

 private:
  // B of all classes adds up to `all`, so that no more than `room` exceed the threshold.
  LPL_DEVICE static Acc threshold_of(const Group<Acc>& g, const Nodes<Acc>& nodes) {
    if (g.c <= g.room) return -1;
    const Acc all = std::fabs(g.step) * nodes.at[nodes.count], fair = Acc(1.001) * all / g.room;
    return fair > Acc(kLargestTail) ? fair : Acc(kLargestTail);
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
