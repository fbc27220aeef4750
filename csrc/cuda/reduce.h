// What a row's columns, perhaps some of all, add up to: the parts of lpl_fused/algebra/parts.py.
#pragma once

#include "solver.h"

namespace lpl {

// The numbers of row i, written by the first thread.
template <template <typename> class Part, typename Team>
LPL_DEVICE inline void store_part(const Team& team, const Call& call, i64 i,
                                  const Part<double>& part) {
  if (team.rank() == 0) static_cast<Part<double>*>(call.scratch.part)[i] = part;
}

template <typename T>
struct SizeBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    const Algebra<T, kAll> algebra(call);
    Row<Acc> row = algebra.row(i, nullptr);
    TeamRow<Team, T, kAll> here(team, call, algebra, row);
    Size<double> size{};
    size.top = -INFINITY;
    if (row.live && algebra.normed()) {
      const Length<Acc> length = length_of<Algebra<T, kAll>>(team, call.p.norm_p, here.pieces());
      size.peak = double(length.peak);
      size.total = double(length.total);
    }
    if (row.live && algebra.penalised()) {
      const Acc top = top_of<Team, T>(team, here.pieces());
      size.top = double(top);
      size.ties = double(ties_of(team, here.pieces(), top));
    }
    store_part(team, call, i, size);
  }
};

template <typename T, Set kSet>
struct MassBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    const Algebra<T, kSet> algebra(call);
    Row<Acc> row = algebra.row(i, static_cast<const Acc*>(call.out.delta));
    TeamRow<Team, T, kSet> here(team, call, algebra, row);
    Mass<double> mass{};
    mass.shift = mass.own = mass.other = -INFINITY;
    if (!row.live) return store_part(team, call, i, mass);
    here.use(algebra.centre(row, terms_of<Acc>(call, i)));
    const bool by_log = call.p.phi == Phi::log;
    const RowSums<Acc> sums = here.sums(algebra.spread ? -1 : row.label, algebra.spread);
    mass.shift = double(sums.top) + double(row.base);
    mass.rest = double(sums.rest);
    mass.mass = double(sums.mass);
    if (by_log) mass.pull = double(sums.pull);
    if (call.p.target) at_label(algebra, row, row.label, mass.own, mass.along_own);
    if (call.p.other) at_label(algebra, row, row.other, mass.other, mass.along_other);
    if (algebra.normed()) {
      mass.along = double(sums.along);
      if (by_log && algebra.spread) mass.along_spread = along_spread(team, algebra, here, row);
    }
    store_part(team, call, i, mass);
  }

 private:
  LPL_DEVICE static void at_label(const Algebra<T, kSet>& algebra, const Row<Acc>& row, int label,
                                  double& z, double& along) {
    if (!algebra.exists(label)) return;
    const Acc u = load(algebra.logits(row.index)[label]);
    z = double(algebra.perturbed(u, label, row)) + double(row.base);
    if (algebra.normed()) along = double(unit_along(algebra, u, label, row));
  }

  // Σ w_j·x_j
  template <typename Team>
  LPL_DEVICE static double along_spread(Team& team, const Algebra<T, kSet>& algebra,
                                        const TeamRow<Team, T, kSet>& here, const Row<Acc>& row) {
    double sum = 0;
    here.pieces().visit([&](int first, const Acc* u, auto kind) {
      here.columns(first, u, kind, [&](int j, Acc, int v) {
        sum += double(algebra.weight(j, row) * unit_along(algebra, u[v], j, row));
      });
    });
    return team.reduce(sum, [](double a, double b) { return a + b; });
  }
};

template <typename T>
struct DetailBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    const Algebra<T, kAll> algebra(call);
    Row<Acc> row = algebra.row(i, static_cast<const Acc*>(call.out.delta));
    TeamRow<Team, T, kAll> here(team, call, algebra, row);
    Detail<double> detail{};
    if (!row.live) return store_part(team, call, i, detail);
    const Terms<Acc> t = algebra.centre(row, terms_of<Acc>(call, i));
    here.use(t);
    if (algebra.spread && call.p.phi != Phi::log) {
      const OfPhi<Acc> sum = here.sum_phi(t.shift, t.log_total);
      detail.value = double(sum.value);
      detail.slope = double(sum.slope);
      detail.along = sum.along;
    }
    if (algebra.penalised()) {
      const Penalties sum = penalties_of(team, call.p, t.top, here.pieces());
      detail.penalty = sum.value;
      detail.push = sum.slope;
    }
    store_part(team, call, i, detail);
  }
};

template <typename Acc>
struct HeadList {
  int column[kMostHeads];
  Acc logit[kMostHeads];
};

template <typename T>
struct RivalsBody {
  using Acc = typename AccumulateOf<T>::type;
  using Shared = HeadList<Acc>;
  static constexpr int kOrder = kLongOrder<Acc>;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    const Algebra<T, kAll> algebra(call);
    Row<Acc> row = algebra.row(i, nullptr);
    TeamRow<Team, T, kAll> here(team, call, algebra, row);
    Rivals<double> rivals{};
    rivals.shift = rivals.own = -INFINITY;
    Tail<Acc> tail{};
    int heads = 0;
    if (row.live) {
      here.use(terms_of<Acc>(call, i));
      const RowSums<Acc> sums = here.sums(row.label, false);
      const Acc shift = finite_shift(sums.top);
      const Acc threshold = static_cast<const Acc*>(call.scratch.threshold)[i];
      // without a threshold rivals of no mass are heads, too
      const Acc bound = threshold < 0 ? Acc(-1) : threshold * sums.rest;
      int count = 0;
      tail = tail_of(team, here, row.label, shift, Acc(1), bound, count);
      const int begin = team.before(count, heads);
      if (count > 0) list(team, here, row.label, shift, bound, begin);
      rivals.shift = double(sums.top);
      rivals.rest = double(sums.rest);
      if (algebra.exists(row.label)) rivals.own = double(algebra.logit(row.label, row));
    }
    rivals.largest = double(tail.largest);
    rivals.listed = double(heads);
    store_part(team, call, i, rivals);
    if (team.rank() == 0)
      for (int r = 0; r < kOrder; ++r)
        static_cast<double*>(call.scratch.powers)[i * kOrder + r] = double(tail.power[r]);
    team.sync();
    write_heads(team, call, i, heads);
  }

 private:
  // The heads of a thread, from place `begin` on of those of all; as many as find room.
  template <typename Team>
  LPL_DEVICE static void list(Team& team, const TeamRow<Team, T, kAll>& here, int label, Acc shift,
                              Acc bound, int begin) {
    Shared& to = team.template shared<Shared>(0);
    int at = begin;
    here.each([&](int j, Acc z) {
      if (j == label || at >= kMostHeads || !(std::exp(z - shift) > bound)) return;
      to.column[at] = j;
      to.logit[at] = z;
      ++at;
    });
  }

  // In the order of their columns: a head's place is the number of those before it.
  template <typename Team>
  LPL_DEVICE static void write_heads(Team& team, const Call& call, i64 i, int heads) {
    const int room = heads_of(call.p.c), listed = heads < room ? heads : room;
    const Shared& from = team.template shared<Shared>(0);
    int32_t* columns = call.scratch.head_columns + i * room;
    Acc* logits = static_cast<Acc*>(call.scratch.head_numbers) + i * room;
    for (int k = team.rank(); k < room; k += team.size()) {
      int place = k;
      if (k < listed) {
        place = 0;
        for (int other = 0; other < listed; ++other) place += from.column[other] < from.column[k];
      }
      columns[place] = k < listed ? int32_t(call.p.first) + from.column[k] : -1;
      logits[place] = k < listed ? from.logit[k] : Acc(-INFINITY);
    }
  }
};

// z without a learned perturbation.
template <typename T>
struct PerturbedBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    const Algebra<T, kAll> algebra(call);
    Row<Acc> row = algebra.row(i, nullptr);
    TeamRow<Team, T, kAll> here(team, call, algebra, row);
    here.use(terms_of<Acc>(call, i));
    here.fill(static_cast<Acc*>(call.scratch.perturbed),
              [&](int, Acc z) { return row.live ? z : Acc(0); });
  }
};

}  // namespace lpl
