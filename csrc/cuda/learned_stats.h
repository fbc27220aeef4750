// Statistics of a row under a learned perturbation of its own, from what its steps have left: one
// read of its logits. Its entropy wants to know what its steps make of every rival, of which its
// statistics know the mass alone; a sum beside each of their powers would cost them as much.
#pragma once

#include "learned_row.h"
#include "rows.h"

namespace lpl {

template <typename T, Set kSet>
struct StatsStepsBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    const LearnedRow<Acc>& from = learned_row<Acc>(call, i);
    LPL_USUALLY(from.standing == Standing::settled && from.order == kShortOrder<Acc>);
    if (!stats_by_steps<Acc>(call, i)) return;
    const Algebra<T, kSet> algebra(call);
    Row<Acc> row = algebra.row(i, nullptr);
    Here<Team> here(team, call, algebra, row);
    if (!row.live) return here.leave(0, 0, false);
    if (from.order == kShortOrder<Acc>)
      gather<kShortOrder<Acc>>(team, call, algebra, row, from, here);
    else
      gather<kLongOrder<Acc>>(team, call, algebra, row, from, here);
  }

 private:
  template <typename Team>
  using Here = TeamRow<Team, T, kSet, false>;

  // Masses in units of e^(terms.shift).
  struct Sums {
    Acc total, heat, beaten;

    // e = e^x
    LPL_DEVICE void add(Acc e, Acc x) {
      total += e;
      heat += heat_of(e, x);
    }
  };

  template <int kOrder, typename Team>
  LPL_DEVICE static void gather(Team& team, const Call& call, const Algebra<T, kSet>& algebra,
                                const Row<Acc>& row, const LearnedRow<Acc>& from,
                                Here<Team>& here) {
    constexpr int kSize = Here<Team>::kSize;
    Sums sums{};
    // heads are larger than all that the series stands for
    Acc least = INFINITY;
    const int32_t* columns = head_columns_of(call, row.index);
    const Acc* masses = head_numbers_of<Acc>(call, row.index);
    for (int k = team.rank(); k < from.heads; k += team.size()) {
      const Acc z = algebra.logit(columns[k], row);
      least = z < least ? z : least;
      sums.add(masses[k], log_of(masses[k]) * Scale<Acc>::kUnit);
    }
    least = team.reduce(least, [](Acc a, Acc b) { return a < b ? a : b; });
    Acc series[kOrder];
#pragma unroll
    for (int r = 0; r < kOrder; ++r) series[r] = from.series[r];
    RowStatistics<Acc> statistics = here.statistics();
    Sums of_tail{};  // its heat in exponents
    here.pieces().visit([&](int first, const Acc* u, auto kind) {
      Acc z[kSize], heat = 0, total = 0;
      algebra.template perturb<kSize>(first, u, row, kind, z);
      algebra.template replace<kSize>(row.label - first, Acc(-INFINITY), z);
#pragma unroll
      for (int v = 0; v < kSize; ++v) {
        const Acc x = Scale<Acc>::exponent(z[v], from.level);
        const Acc e = z[v] >= least ? Acc(0) : Scale<Acc>::exp(x);
        Acc mass = series[kOrder - 1];
#pragma unroll
        for (int r = kOrder - 2; r >= 0; --r) mass = std::fma(mass, e, series[r]);
        mass *= e;
        total += mass;
        heat = std::fma(mass, log_of(mass), heat);
      }
      of_tail.total += total;
      of_tail.heat += heat;
      statistics.template compare<kSize>(first, u, kind, algebra.c);
    });
    sums.total += of_tail.total;
    sums.heat += of_tail.heat * Scale<Acc>::kUnit;
    sums.beaten = statistics.beaten();
    sums = team.reduce(sums, [](const Sums& a, const Sums& b) {
      return Sums{a.total + b.total, a.heat + b.heat, a.beaten + b.beaten};
    });
    const Acc own = from.own * Scale<Acc>::kUnit;
    sums.add(std::exp(own), own);
    here.leave(from.terms.shift, sums.total, sums.heat, sums.beaten == 0);
  }

  // The exponent of a mass; of what is 0, or nearly, a number.
  LPL_DEVICE static float log_of(float mass) {
    const float normal = larger(mass, 1e-37f);
#if defined(__CUDA_ARCH__)
    float value;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(normal));
    return value;
#else
    return std::log2(normal);
#endif
  }
  LPL_DEVICE static double log_of(double mass) { return std::log(larger(mass, 1e-300)); }
};

}  // namespace lpl
