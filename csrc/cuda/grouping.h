// Which rows of a batch share a class.
#pragma once

#include "batch.h"
#include "steps.h"

namespace lpl {

LPL_DEVICE inline i64 class_of(const Call& call, i64 label) {
  return label < 0 || label >= call.p.c || label == call.p.ignore_index ? call.p.c : label;
}

// What is settled before all else of a call with steps: the normaliser, if it is wanted; nothing is
// flagged yet.
template <typename Acc, typename Team>
LPL_DEVICE inline void begin_steps(Team& team, const Call& call) {
  for (int flag = team.rank(); flag < kFlags; flag += team.size()) call.scratch.flags[flag] = 0;
  if (call.out.norm && !call.p.normalizer) NormBody<Acc>::run(team, call, 0);
}

// order, begin and counts of the rows by class, those without one being a class of their own; slot
// where that is wanted. By comparing a row with all others, kAtOnce of them at a time: of few rows
// many warps make less work than one block makes of a sort. One more team settles what comes before
// all else, and teams beyond have nothing to do.
template <typename A, int kAtOnce>
struct RanksBody {
  using Acc = A;
  struct Shared {
    int32_t classes[kAtOnce];
  };

  // So many for n rows, of so many threads in crews of so many.
  static i64 teams(i64 n, int size, int crew) {
    const int rows = rows_of(size, crew);
    return (n + rows - 1) / rows + 1;
  }

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 t) {
    const int rows = rows_of(team.size(), team.crew()), n = int(call.p.n);
    const int width = team.size() / rows;
    const i64 first_row = t * rows;
    if (first_row >= n) {
      if (first_row - rows < n) begin_steps<Acc>(team, call);
      return;
    }
    Shared& all = team.template shared<Shared>(0);
    const int row = int(first_row) + team.rank() / width, lane = team.rank() % width;
    const int32_t mine = row < n ? int32_t(class_of(call, call.p.target[row])) : -1;
    Place place{0, 0, 0, n};
    for (int begin = 0; begin < n; begin += kAtOnce) {
      const int count = n - begin < kAtOnce ? n - begin : kAtOnce;
      team.sync();  // nobody looks at those of before any more
      each_of(team, call.p.target + begin, count,
              [&](i64 k, i64 label) { all.classes[k] = int32_t(class_of(call, label)); });
      team.sync();
      if (row < n) place.look(all.classes, begin, count, lane, width, row, mine);
    }
    place = team.reduce_lanes(place, width, [](const Place& a, const Place& b) {
      const int first = a.first < b.first ? a.first : b.first;
      return Place{a.less + b.less, a.equal + b.equal, a.before + b.before, first};
    });
    if (row >= n || lane != 0) return;
    const Scratch& s = call.scratch;
    s.order[place.less + place.before] = row;
    s.begin[row] = place.less;
    s.counts[row] = place.equal;
    if (call.out.slot) call.out.slot[row] = place.first;
  }

 private:
  // Rows of a team: each has a crew at most, and a few of its lanes at least, so that a team of few
  // threads does not read all labels for two rows.
  LPL_HOST_DEVICE static int rows_of(int size, int crew) {
    const int least = crew < 8 ? crew / 2 : 4, most = size / least;
    return size / crew > 32 ? size / crew : most < 32 ? most : 32;
  }

  // What a lane has found: rows of lower classes, of the same, of these those before and the first.
  struct Place {
    int less, equal, before, first;

    LPL_DEVICE void look(const int32_t* classes, int begin, int count, int lane, int width, int row,
                         int32_t mine) {
      constexpr int kBatch = 8;
      const auto same = [&](int at) {
        ++equal;
        before += at < row;
        first = at < first ? at : first;
      };
      int k = lane;
      for (; k + (kBatch - 1) * width < count; k += kBatch * width) {
        int32_t other[kBatch];
        bool any = false;
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          other[b] = classes[k + b * width];
          less += other[b] < mine;
          any |= other[b] == mine;
        }
        if (!any) continue;
#pragma unroll
        for (int b = 0; b < kBatch; ++b)
          if (other[b] == mine) same(begin + k + b * width);
      }
      for (; k < count; k += width) {
        less += classes[k] < mine;
        if (classes[k] == mine) same(begin + k);
      }
    }
  };
};

// The same of many rows, the work of one block: a stable sort, digit by digit, from the lowest on;
// a thread has a run of places.
template <typename A>
struct SortBody {
  using Acc = A;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64) {
    begin_steps<Acc>(team, call);
    team.sync();  // its memory is used again
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
    for (i64 k = first; k < last; ++k) {
      number += begins(k);
      const i64 begin = s.outcome[number - 1], i = s.order[k];
      s.begin[i] = begin;
      s.counts[i] = (number < classes ? i64(s.outcome[number]) : n) - begin;
      if (call.out.slot) call.out.slot[i] = s.order[begin];
    }
  }

 private:
  static constexpr int kBits = 3, kValues = 1 << kBits;

  LPL_DEVICE static i64 of(const Call& call, i64 i) { return class_of(call, call.p.target[i]); }
};

}  // namespace lpl
