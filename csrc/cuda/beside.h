// Rows beside each other: a piece of a table that is read serves several of them. Read anew for
// every row, a table of floats costs more than bf16 logits do.
#pragma once

#include "gradient.h"

namespace lpl {

constexpr int kBeside = 4;

// Rows i·kBeside … of a batch, as far as there are any: where there is none, the last one again.
struct Beside {
  i64 first;
  int count;

  LPL_DEVICE Beside(i64 n, i64 i) : first(i * kBeside) {
    count = n - first < kBeside ? int(n - first) : kBeside;
  }
  LPL_DEVICE i64 row(int r) const { return first + (r < count ? r : count - 1); }

  static i64 groups(i64 n) { return (n + kBeside - 1) / kBeside; }
};

// Losses and Terms, without gradient, of kBeside rows.
template <typename T, Set kSet>
struct StatisticsBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    const Beside rows(call.p.n, i);
    using Here = Pieces<Team, T, 16, false>;
    using E = typename Algebra<T, kSet>::E;
    constexpr int kSize = Here::kSize;
    const Algebra<T, kSet> algebra(call);
    const Here pieces(team, algebra.logits(rows.first), algebra.c);
    Gather<E, kSize, Level::ahead> mass[kBeside];
    Row<Acc> row[kBeside];
#pragma unroll
    for (int r = 0; r < kBeside; ++r) row[r] = algebra.row(rows.row(r), nullptr);
    pieces.places([&](int first, auto kind) {
      Acc u[kBeside][kSize];
#pragma unroll
      for (int r = 0; r < kBeside; ++r) pieces.take(algebra.logits(rows.row(r)), first, kind, u[r]);
      const auto tables = algebra.template tables<kSize>(first, kind);
#pragma unroll
      for (int r = 0; r < kBeside; ++r) {
        Acc z[kSize], terms[kSize];
        algebra.template perturb<kSize>(first, u[r], row[r], tables, kind, z);
        algebra.template replace<kSize>(row[r].label - first, Acc(-INFINITY), z);
        mass[r].add(z, terms, [](Acc, Acc) {});
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
    const Beside rows(call.p.n, i);
    using Here = Pieces<Team, T, 16, false>;
    using E = typename Algebra<T, kSet>::E;
    constexpr int kSize = Here::kSize;
    const Algebra<T, kSet> algebra(call);
    const Here pieces(team, algebra.logits(rows.first), algebra.c);
    T* grad = static_cast<T*>(call.out.grad);
    Row<Acc> row[kBeside];
    Terms<Acc> terms[kBeside];
#pragma unroll
    for (int r = 0; r < kBeside; ++r) {
      const i64 k = rows.row(r);
      row[r] = algebra.row(k, nullptr);
      terms[r] = scaled(terms_of<Acc>(call, k), upstream_of<Acc>(call, k));
    }
    pieces.places([&](int first, auto kind) {
      Acc u[kBeside][kSize];
#pragma unroll
      for (int r = 0; r < kBeside; ++r) pieces.take(algebra.logits(rows.row(r)), first, kind, u[r]);
      const auto tables = algebra.template tables<kSize>(first, kind);
#pragma unroll
      for (int r = 0; r < kBeside; ++r) {
        if (r >= rows.count) continue;
        Acc z[kSize], dz[kSize] = {};
        LPL_USUALLY(row[r].live);
        if (row[r].live) {
          const auto e = E::near(terms[r].shift);
          algebra.template perturb<kSize>(first, u[r], row[r], tables, kind, z);
          algebra.template gradients<kSize, decltype(kind)>(first, z, e, e.unit(terms[r].shift),
                                                            row[r], terms[r], dz);
#pragma unroll
          for (int v = 0; v < kSize; ++v)
            dz[v] = algebra.to_input(algebra.to_offset(dz[v]), u[r][v], tables.scale[v], row[r]);
        }
        pieces.target(grad + rows.row(r) * call.p.c).write(first, dz, kind);
      }
    });
  }
};

}  // namespace lpl
