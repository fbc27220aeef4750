// The gradient of a row once its upstream is known: from its Terms, or a finished one times a
// factor.
#pragma once

#include "rows.h"

namespace lpl {

// Whether row i counts nothing: the 0 that is its gradient must not become 0·inf.
LPL_DEVICE inline bool is_ignored(const Problem& p, i64 i) {
  return p.target && p.target[i] == p.ignore_index && (!p.other || p.other[i] == p.ignore_index);
}

// out.grad ← factor·out.grad, in place, where that rounds at most once; nothing to do where the
// factor is 1. Gradients of 16 bits are rounded already, so that other factors need them anew.
template <typename T>
struct ScaleBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    const Acc factor = factor_of<Acc>(call, i);
    if (factor == 1 || (sizeof(T) == 2 && !keeps_digits(factor))) return;
    if (!(std::fabs(factor) < INFINITY) && is_ignored(call.p, i)) return;
    scale_row(team, static_cast<T*>(call.out.grad) + i * call.p.c, int(call.p.c), factor);
  }
};

// What is wanted of the gradient of row i: from its Terms, times its upstream.
template <typename T, Set kSet>
struct GradientBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    if (call.scratch.factor && keeps_digits(factor_of<Acc>(call, i)))
      return ScaleBody<T>::run(team, call, i);
    const Algebra<T, kSet> algebra(call);
    Row<Acc> row = algebra.row(i, static_cast<const Acc*>(call.out.delta));
    TeamRow<Team, T, kSet, false> here(team, call, algebra, row);
    if (!row.live || !algebra.exists(row.label)) here.clear_margin();
    if (!row.live) return here.clear();
    const Terms<Acc> t =
        algebra.centre(row, scaled(terms_of<Acc>(call, i), upstream_of<Acc>(call, i)));
    here.use(t);
    here.write(t);
  }
};

}  // namespace lpl
