// The learned perturbation of a class by plain steps, each one softmax of its rows: for classes
// with several rows, and for what the solver leaves.
#pragma once

#include "rows.h"

namespace lpl {

// The columns of a row that one thread has, whatever their row: every so-many-th.
template <typename Team, typename T>
class Strided {
 public:
  using Acc = typename AccumulateOf<T>::type;
  static constexpr int kSize = 1;

  LPL_DEVICE Strided(const Team& team, const T* row, int c)
      : first_(team.rank()), step_(team.size()), c_(c), row_(row) {}

  template <typename F>
  LPL_DEVICE void visit(F f) const {
    for (int j = first_; j < c_; j += step_) {
      const Acc u = load(row_[j]);
      f(j, &u, Whole());
    }
  }
  template <typename F>
  LPL_DEVICE void visit_arriving(F f) const {
    visit(f);
  }
  LPL_DEVICE static bool inside(int) { return true; }

 private:
  const int first_, step_, c_;
  const T* row_;
};

// δ ← δ + sign(steps[c])·step_size·g, |steps[c]| times, of the class whose first row is i. A column
// is the work of one thread, in every row of the class.
template <typename T>
struct StepsBody {
  using Acc = typename AccumulateOf<T>::type;
  using Shared = Nothing;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    const Scratch& s = call.scratch;
    if (s.counts[i] < 2 || s.outcome[i] < kGroup || call.out.slot[i] != i) return;
    const Algebra<T, kAll> algebra(call);
    const int label = int(call.p.target[i]), steps = call.p.steps[label], c = algebra.c;
    const i64 *members = s.order + s.begin[i], count = s.counts[i];
    const Acc direction = Acc(steps > 0 ? call.p.step_size : -call.p.step_size);
    const Acc each = 1 / Acc(count);
    Acc* delta = static_cast<Acc*>(call.out.delta) + i * c;
    Acc* g = s.direction ? static_cast<Acc*>(s.direction) + i * c : nullptr;
    Acc own_delta = 0;
    for (int j = team.rank(); j < c; j += team.size()) delta[j] = 0;
    for (int k = 0; k < (steps > 0 ? steps : -steps); ++k) {
      Acc rivals = 0;
      for (i64 r = 0; r < count; ++r)
        rivals += each * weigh(team, call, algebra, members[r], delta, label, own_delta);
      team.sync();
      Acc squares = 0;
      for (int j = team.rank(); j < c; j += team.size()) {
        if (j == label) continue;
        Acc mean = 0;
        for (i64 r = 0; r < count; ++r) {
          const Acc* of_row = static_cast<const Acc*>(s.rowwise) + 3 * members[r];
          Row<Acc> row = moved(algebra, members[r], delta);
          row.factor = of_row[2];
          mean += std::exp(algebra.logit(j, row) - of_row[0]) * of_row[1];
        }
        mean *= each;
        squares += mean * mean;
        if (g) {
          g[j] = mean;
        } else {
          delta[j] += direction * mean;
        }
      }
      Acc factor = direction;
      if (g) {
        squares = team.reduce(squares, [](Acc a, Acc b) { return a + b; });
        // the target's entry is minus the rivals' sum: p_y − 1 without cancellation
        const Acc norm = std::sqrt(squares + rivals * rivals);
        factor = norm < Acc(kNormFloor) ? Acc(0) : direction / norm;
        for (int j = team.rank(); j < c; j += team.size())
          if (j != label) delta[j] += factor * g[j];
      }
      own_delta -= factor * rivals;
    }
    team.sync();
    if (team.rank() == 0) delta[label] = own_delta;
  }

 private:
  static LPL_DEVICE Row<Acc> moved(const Algebra<T, kAll>& algebra, i64 i, const Acc* delta) {
    Row<Acc> row = algebra.row(i, nullptr);
    row.delta = delta;
    return row;
  }

  // The rivals' probability in row i, of which scratch.rowwise is told.
  template <typename Team>
  static LPL_DEVICE Acc weigh(Team& team, const Call& call, const Algebra<T, kAll>& algebra, i64 i,
                              const Acc* delta, int label, Acc own_delta) {
    Row<Acc> row = moved(algebra, i, delta);
    const Strided<Team, T> columns(team, algebra.logits(i), algebra.c);
    if (algebra.normed()) measure(team, algebra, columns, row);
    RowSums<Acc> sums = no_columns<Acc>();
    columns.visit([&](int j, const Acc* u, Whole) {
      if (j == label) return;
      const Acc z = algebra.perturbed(*u, j, row);
      if (z > sums.top) {
        sums.rest *= std::exp(sums.top - z);
        sums.top = z;
      }
      sums.rest += std::exp(z - finite_shift(sums.top));
    });
    sums = team.reduce(sums,
                       [](const RowSums<Acc>& a, const RowSums<Acc>& b) { return joined(a, b); });
    row.delta = nullptr;
    const Acc z_own = algebra.logit(label, row) + own_delta;
    Acc shift = finite_shift(sums.top > z_own ? sums.top : z_own);
    if (row.outside) shift = NAN;
    const Acc rest = sums.rest * std::exp(sums.top - shift);
    const Acc share = 1 / (rest + std::exp(z_own - shift));
    if (team.rank() == 0) {
      Acc* to = static_cast<Acc*>(call.scratch.rowwise) + 3 * i;
      to[0] = shift;
      to[1] = share;
      to[2] = row.factor;
    }
    return rest * share;
  }
};

}  // namespace lpl
