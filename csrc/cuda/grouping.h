// Which rows of a batch share a class: a stable sort by label, the work of one block.
#pragma once

#include "call.h"

namespace lpl {

// order, begin and counts of the rows by class, those without one being a class of their own; slot
// where that is wanted. Digit by digit, from the lowest on; a thread has a run of places.
template <typename A>
struct GroupingBody {
  using Acc = A;  // the same for all

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
        return int(class_of(call, from[k]) >> (digit * kBits)) & (kValues - 1);
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
      return k == 0 || class_of(call, s.order[k]) != class_of(call, s.order[k - 1]);
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
      sharing |= s.counts[i] > 1 && class_of(call, i) != call.p.c;
    }
    sharing = team.reduce(sharing, [](int a, int b) { return a | b; });
    if (team.rank() == 0) *s.sharing = sharing;
  }

 private:
  static constexpr int kBits = 3, kValues = 1 << kBits;

  LPL_DEVICE static i64 class_of(const Call& call, i64 i) {
    const i64 label = call.p.target[i];
    return label < 0 || label >= call.p.c || label == call.p.ignore_index ? call.p.c : label;
  }
};

}  // namespace lpl
