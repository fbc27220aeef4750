// What a row's rivals add up to that are nobody's heads; and the part that a row of a class with
// several rows has in what its kernels share.
#pragma once

#include "groups.h"
#include "learned_row.h"
#include "rows.h"

namespace lpl {

// Σ q^r of the tail, and its largest q.
template <typename Acc>
struct Tail {
  Acc power[kLongOrder<Acc>], largest;
};

// The tail of a row with q = e^(z − shift)·inverse; of this thread's rivals `heads` exceed `bound`.
template <typename Team, typename Here, typename Acc>
LPL_DEVICE Tail<Acc> tail_of(Team& team, const Here& here, int label, Acc shift, Acc inverse,
                             Acc bound, int& heads) {
  constexpr int kOrder = kLongOrder<Acc>;
  Tail<Acc> tail{};
  heads = 0;
  here.each([&](int j, Acc z) {
    if (j == label) return;
    const Acc q = std::exp(z - shift) * inverse;
    if (q > bound) {
      ++heads;
      return;
    }
    if (q > tail.largest) tail.largest = q;
    Acc power = 1;
#pragma unroll
    for (int r = 0; r < kOrder; ++r) tail.power[r] += power *= q;
  });
  return team.reduce(tail, [](const Tail<Acc>& a, const Tail<Acc>& b) {
    Tail<Acc> sum;
#pragma unroll
    for (int r = 0; r < kOrder; ++r) sum.power[r] = a.power[r] + b.power[r];
    sum.largest = a.largest > b.largest ? a.largest : b.largest;
    return sum;
  });
}

// The rivals of row i, if its class has several rows and is solved, where its δ would stand.
template <typename T, Set kSet>
struct JoinBody {
  using Acc = typename AccumulateOf<T>::type;
  using Shared = Nothing;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    if (learned_row<Acc>(call, i).standing != Standing::grouped) return;
    const Algebra<T, kSet> algebra(call);
    Row<Acc> row = algebra.row(i, nullptr);
    const int steps = call.p.steps[call.p.target[i]];
    Outcome outcome = kGroup;
    if (Group<Acc>::pays(call, steps, call.scratch.counts[i]))
      outcome = Group<Acc>::bounded(call, steps) ? join(team, call, algebra, row) : kFellBack;
    if (team.rank() == 0) call.scratch.outcome[i] = outcome;
  }

 private:
  template <typename Team>
  LPL_DEVICE static Outcome join(Team& team, const Call& call, const Algebra<T, kSet>& algebra,
                                 Row<Acc>& row) {
    TeamRow<Team, T, kSet> here(team, call, algebra, row);
    here.measure_all();
    const Acc own = algebra.logit(row.label, row);
    // rivals that are nothing beside the label are none
    const RowSums<Acc> sums = here.sums(row.label, false, own);
    const Acc shift = finite_shift(sums.top), inverse = sums.rest > 0 ? 1 / sums.rest : Acc(0);
    here.fill(static_cast<Acc*>(call.out.delta), [&](int j, Acc z) {
      return j == row.label ? Acc(0) : std::exp(z - shift) * inverse;
    });
    if (team.rank() == 0) {
      Acc lift = own - shift;
      // where there are no rivals it does not matter
      lift = inverse > 0 ? lift - std::log(sums.rest) : lift - lift;
      if (!(sums.rest < INFINITY) || row.outside) lift = NAN;
      static_cast<Acc*>(call.scratch.rowwise)[3 * row.index] = lift;
    }
    return kRelaxed;
  }
};

// Loss and gradient, as far as wanted, of a row under the δ of its class.
template <typename T, Set kSet>
struct GroupedRowBody {
  using Acc = typename AccumulateOf<T>::type;
  using Shared = Nothing;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    if (learned_row<Acc>(call, i).standing == Standing::grouped)
      RowBody<T, kSet>::run(team, call, i);
  }
};

}  // namespace lpl
