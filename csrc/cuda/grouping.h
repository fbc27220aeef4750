// Which rows of a batch share a class: a stable sort by label.
#pragma once

#include "batch.h"
#include "steps.h"

namespace lpl {

LPL_DEVICE inline i64 class_of(const Call& call, i64 label) {
  return label < 0 || label >= call.p.c || label == call.p.ignore_index ? call.p.c : label;
}

// Before all else of a call with steps: the normaliser, if it is wanted; nothing is flagged yet;
// the class of every row, for RanksBody, where outcomes will be. Rows without one are in class C.
template <typename A>
struct ClassesBody {
  using Acc = A;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64) {
    if (call.out.norm && !call.p.normalizer) NormBody<Acc>::run(team, call, 0);
    for (int flag = team.rank(); flag < kFlags; flag += team.size()) call.scratch.flags[flag] = 0;
    each_of(team, call.p.target, call.p.n,
            [&](i64 i, i64 label) { call.scratch.outcome[i] = int32_t(class_of(call, label)); });
  }
};

// order, begin and counts of the rows by class, those without one being a class of their own; slot
// where that is wanted. Row i, by comparing it with all others: of few rows many warps make less
// work than one block makes of a sort.
template <typename A>
struct RanksBody {
  using Acc = A;  // the same for all
  using Shared = Nothing;

  template <typename Crew>
  LPL_DEVICE static void run(Crew& crew, const Call& call, i64 i) {
    constexpr int kAtOnce = 8;
    const Scratch& s = call.scratch;
    const int n = int(call.p.n), row = int(i), width = crew.kWidth;
    const int32_t mine = s.outcome[row];
    int less = 0, equal = 0, before = 0, first = n;
    const auto same = [&](int at) {
      ++equal;
      before += at < row;
      first = at < first ? at : first;
    };
    int at = crew.place();
    for (; at + (kAtOnce - 1) * width < n; at += kAtOnce * width) {
      int32_t other[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) other[k] = s.outcome[at + k * width];
      bool any = false;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        less += other[k] < mine;
        any |= other[k] == mine;
      }
      if (!any) continue;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        if (other[k] == mine) same(at + k * width);
    }
    for (; at < n; at += width) {
      const int32_t other = s.outcome[at];
      less += other < mine;
      if (other == mine) same(at);
    }
    less = crew.crew_sum(less);
    equal = crew.crew_sum(equal);
    before = crew.crew_sum(before);
    first = -crew.crew_max(-first);
    if (crew.place() != 0) return;
    s.order[less + before] = i;
    s.begin[i] = less;
    s.counts[i] = equal;
    if (call.out.slot) call.out.slot[i] = first;
    if (equal > 1 && mine != call.p.c) s.flags[kSharing] = 1;
  }
};

// The same for all rows, the work of one block: digit by digit, from the lowest on; a thread has a
// run of places.
template <typename A>
struct SortBody {
  using Acc = A;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64) {
    const Scratch& s = call.scratch;
    const i64 n = call.p.n, each = (n + team.size() - 1) / team.size();
    const i64 first = team.rank() * each < n ? team.rank() * each : n;
    const i64 last = first + each < n ? first + each : n;
    int digits = 0;
    while (call.p.c >> (digits * kBits)) ++digits;

    // by turns between two places, so that the last leaves them in `order`
    i64 *from = digits % 2 ? s.begin : s.order, *to = digits % 2 ? s.order : s.begin;
    for (i64 k = first; k < last; ++k) from[k] = k;
    for (int digit = 0; digit < digits; ++digit) {
      team.sync();
      const auto value = [&](i64 k) {
        return int(of(call, from[k]) >> (digit * kBits)) & (kValues - 1);
      };
      int counts[kValues] = {};
      for (i64 k = first; k < last; ++k) {
        const int mine = value(k);
#pragma unroll
        for (int v = 0; v < kValues; ++v) counts[v] += v == mine;
      }
      i64 lower = 0, next[kValues];
#pragma unroll
      for (int v = 0; v < kValues; ++v) {
        int total;
        next[v] = lower + team.before(counts[v], total);
        lower += total;
        team.sync();
      }
      for (i64 k = first; k < last; ++k) {
        const int mine = value(k);
        i64 place = 0;
#pragma unroll
        for (int v = 0; v < kValues; ++v)
          if (v == mine) place = next[v]++;
        to[place] = from[k];
      }
      i64* const other = from;
      from = to;
      to = other;
    }
    team.sync();

    // classes are numbered by their first places, which stand where the rows' outcomes will
    const auto begins = [&](i64 k) {
      return k == 0 || of(call, s.order[k]) != of(call, s.order[k - 1]);
    };
    int here = 0, classes;
    for (i64 k = first; k < last; ++k) here += begins(k);
    int number = team.before(here, classes);
    for (i64 k = first, at = number; k < last; ++k)
      if (begins(k)) s.outcome[at++] = int32_t(k);
    team.sync();
    int sharing = 0;
    for (i64 k = first; k < last; ++k) {
      number += begins(k);
      const i64 begin = s.outcome[number - 1], i = s.order[k];
      s.begin[i] = begin;
      s.counts[i] = (number < classes ? i64(s.outcome[number]) : n) - begin;
      if (call.out.slot) call.out.slot[i] = s.order[begin];
      sharing |= s.counts[i] > 1 && of(call, i) != call.p.c;
    }
    sharing = team.reduce(sharing, [](int a, int b) { return a | b; });
    if (team.rank() == 0) s.flags[kSharing] = sharing;
  }

 private:
  static constexpr int kBits = 3, kValues = 1 << kBits;

  LPL_DEVICE static i64 of(const Call& call, i64 i) { return class_of(call, call.p.target[i]); }
};

}  // namespace lpl
