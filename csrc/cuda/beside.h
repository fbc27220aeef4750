// Rows beside each other: a piece of a table that is read serves several of them. Read anew for
// every row, a table of floats costs more than bf16 logits do.
#pragma once

#include "gradient.h"

namespace lpl {

constexpr int kBeside = 4;

// Rows i·kBeside … of a batch, as far as there are any: where there is none, the last one again.
// All of them, and the tables, lie alike in lines of memory (shares_tables in calls.h).
template <typename Team, typename T, Set kSet>
class Beside {
 public:
  using Here = Pieces<Team, T, 16, false>;
  using Acc = typename Here::Acc;
  static constexpr int kSize = Here::kSize;
  static_assert((kSet & ~kTables) == 0, "a column has nothing but tables");

  LPL_DEVICE Beside(Team& team, const Call& call, i64 i)
      : algebra(call),
        first_row(i * kBeside),
        count(call.p.n - first_row < kBeside ? int(call.p.n - first_row) : kBeside),
        pieces(team, algebra.logits(first_row), algebra.c) {}

  const Algebra<T, kSet> algebra;
  const i64 first_row;
  const int count;
  const Here pieces;

  LPL_DEVICE i64 row(int r) const { return first_row + (r < count ? r : count - 1); }

  // What every column of a piece is multiplied by, and what is added.
  struct Tables {
    Acc scale[kSize], offset[kSize];

    // y = scale·u + offset; z without the temperature
    LPL_DEVICE void perturb(const Acc* u, Acc* y) const {
#pragma unroll
      for (int v = 0; v < kSize; ++v) y[v] = std::fma(u[v], scale[v], offset[v]);
    }
  };

  // f(first, u, tables, kind) for every piece of this thread, u[r] being row r's.
  template <typename F>
  LPL_DEVICE void visit(F f) const {
    Tables tables;  // what is no table changes nothing, and is written once
    const T* from[kBeside];
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      tables.scale[v] = 1;
      tables.offset[v] = 0;
    }
#pragma unroll
    for (int r = 0; r < kBeside; ++r) keep(from[r] = algebra.logits(row(r)));
    const Acc* scale = algebra.table(algebra.p.scale);
    const Acc* offset = algebra.table(algebra.p.offset);
    pieces.places([&](int first, auto kind) {
      Acc u[kBeside][kSize];
#pragma unroll
      for (int r = 0; r < kBeside; ++r) pieces.take(from[r], first, kind, u[r]);
      if (scale) take(scale, first, kind, tables.scale);
      if (offset) take(offset, first, kind, tables.offset);
      f(first, u, tables, kind);
    });
  }

 private:
  LPL_DEVICE static void take(const Acc* table, int first, Whole, Acc* to) {
    expect(reinterpret_cast<uintptr_t>(table + first) % 16 == 0);
    take_line<kSize>(table + first, to);
  }
  LPL_DEVICE void take(const Acc* table, int first, Short, Acc* to) const {
#pragma unroll
    for (int v = 0; v < kSize; ++v)
      if (algebra.exists(first + v)) to[v] = table[first + v];
  }
};

inline i64 groups_beside(i64 n) {
  return (n + kBeside - 1) / kBeside;
}

// Losses and Terms, without gradient, of kBeside rows.
template <typename T, Set kSet>
struct StatisticsBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    using Rows = Beside<Team, T, kSet>;
    using E = typename Algebra<T, kSet>::E;
    constexpr int kSize = Rows::kSize;
    const Rows rows(team, call, i);
    const auto& algebra = rows.algebra;
    const FactorExponential unscaled(algebra.to_offset(Acc(1)));
    Gather<FactorExponential, kSize, Level::ahead> mass[kBeside];
    int label[kBeside];
#pragma unroll
    for (int r = 0; r < kBeside; ++r) {
      mass[r] = Gather<FactorExponential, kSize, Level::ahead>(unscaled);
      label[r] = algebra.row(rows.row(r), nullptr).label;
    }
    rows.visit([&](int first, const auto& u, const auto& tables, auto kind) {
#pragma unroll
      for (int r = 0; r < kBeside; ++r) {
        Acc y[kSize], terms[kSize];
        tables.perturb(u[r], y);
        if constexpr (!decltype(kind)::value) {
#pragma unroll
          for (int v = 0; v < kSize; ++v)
            if (!algebra.exists(first + v)) y[v] = -INFINITY;
        }
        mass[r].add_without(label[r] - first, y, terms, [](Acc, Acc) {});
      }
    });
    struct All {
      Gathered<E, false> of[kBeside];
    } all;
#pragma unroll
    for (int r = 0; r < kBeside; ++r) {
      const Acc level = team.crew_max(mass[r].level());
      const Acc factor = factor_to<E>(level, mass[r].level());
      all.of[r] = {level, team.crew_sum(mass[r].rest() * factor)};
    }
    all = team.reduce_crews(all, [](const All& a, const All& b) {
      All both;
#pragma unroll
      for (int r = 0; r < kBeside; ++r) both.of[r] = joined<E, false>(a.of[r], b.of[r]);
      return both;
    });
    for (int r = team.rank(); r < rows.count; r += team.size()) {
      Gathered<E, false> mine{};
#pragma unroll
      for (int k = 0; k < kBeside; ++k)
        if (k == r) mine = all.of[k];
      const Row<Acc> here = algebra.row(rows.row(r), nullptr);
      Terms<Acc> t{};
      if (!here.live) {
        say_of(call, rows.row(r), Acc(0), t);
        continue;
      }
      t.factor = 1;
      const Acc own = algebra.logit(here.label, here);
      if (mine.level > -INFINITY) mine.rest *= unscaled.made_up(mine.level);
      const RowSums<Acc> s = sums_of<E, false>(mine, own);
      const Acc shift = finite_shift(s.top);
      const Acc loss = algebra.of_label(here, own - shift, s.rest, shift, t);
      say_of(call, rows.row(r), loss, t);
    }
  }
};

// The gradients of kBeside rows from their Terms.
template <typename T, Set kSet>
struct GradientsBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    using Rows = Beside<Team, T, kSet>;
    constexpr int kSize = Rows::kSize;
    const Rows rows(team, call, i);
    const auto& algebra = rows.algebra;
    const Acc factor = algebra.to_offset(Acc(1));
    FactorExponential e[kBeside] = {FactorExponential(factor), FactorExponential(factor),
                                    FactorExponential(factor), FactorExponential(factor)};
    Acc strength[kBeside], part[kBeside];
    int label[kBeside];
    T* to[kBeside];
    unsigned live = 0;
    constexpr unsigned kAllOf = (1u << kBeside) - 1;
#pragma unroll
    for (int r = 0; r < kBeside; ++r) {
      const i64 k = rows.row(r);
      const Row<Acc> row = algebra.row(k, nullptr);
      const Terms<Acc> t = scaled(terms_of<Acc>(call, k), upstream_of<Acc>(call, k));
      e[r] = FactorExponential(factor, t.shift);
      strength[r] = algebra.to_offset(t.strength) * e[r].unit(t.shift);
      part[r] = algebra.to_offset(t.part);
      label[r] = row.label;
      live |= unsigned(row.live && r < rows.count) << r;
      keep(to[r] = static_cast<T*>(call.out.grad) + k * call.p.c);
    }
    rows.visit([&](int first, const auto& u, const auto& tables, auto kind) {
#pragma unroll
      for (int r = 0; r < kBeside; ++r) {
        if (!(live >> r & 1)) continue;
        Acc y[kSize], du[kSize];
        tables.perturb(u[r], y);
#pragma unroll
        for (int v = 0; v < kSize; ++v) du[v] = e[r].of(y[v]) * strength[r] * tables.scale[v];
        rows.pieces.put(to[r], first, du, kind);
      }
    });
    // what the sweep does not ask for: the thread that has a label puts its own after what stands
    // there, and rows that count nothing have zeros
#pragma unroll
    for (int r = 0; r < kBeside; ++r)
      if (live >> r & 1 && rows.pieces.owns(label[r]))
        store(to[r][label[r]], part[r] * algebra.scale_of(label[r]));
    LPL_USUALLY(live == kAllOf);
    if (live == kAllOf) return;
#pragma unroll 1
    for (int r = 0; r < rows.count; ++r) {
      if (live >> r & 1) continue;
      T* row = static_cast<T*>(call.out.grad) + rows.row(r) * call.p.c;
      const Acc zero[kSize] = {};
      rows.pieces.places([&](int first, auto kind) { rows.pieces.put(row, first, zero, kind); });
    }
  }
};

}  // namespace lpl
