// The learned perturbation of a row alone in its class: all its steps for one softmax's price. The
// maths stands in ../series.h; here the rivals that stand out, the head, take their steps one by
// one in the hands of a warp, and a series stands for all others, the tail.
#pragma once

#include "../series.h"
#include "groups.h"
#include "rows.h"

namespace lpl {

template <typename Acc>
struct Heads {
  static constexpr int kOrder = sizeof(Acc) == 8 ? 10 : 8;
  // A rival with more than this part of the rivals' mass is of the head; where all classes find
  // room the series has nothing to do.
  static constexpr int kMost = 512;

  int column[kMost];
  // log q, δ, what rounding has added to it so far, and the mass in a step, at last in the end
  Acc start[kMost], change[kMost], lost[kMost], mass[kMost];

  // What becomes of the row, in units of e^unit times the rivals' mass before the steps.
  Acc series[kOrder + 1], own_change, unit, lift, rest;
  bool good;
};

// Σ q^r of the tail, and its largest q.
template <typename Acc>
struct Tail {
  Acc power[Heads<Acc>::kOrder], largest;
};

// The tail of a row with q = e^(z − shift)·inverse; of this thread's rivals `heads` exceed `bound`.
template <typename Team, typename Here, typename Acc>
LPL_DEVICE Tail<Acc> tail_of(Team& team, const Here& here, int label, Acc shift, Acc inverse,
                             Acc bound, int& heads) {
  constexpr int kOrder = Heads<Acc>::kOrder;
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

// Heads of a row that find room.
template <typename Acc>
LPL_HOST_DEVICE inline int heads_of(i64 c) {
  return c < Heads<Acc>::kMost ? int(c) : Heads<Acc>::kMost;
}

// All steps of a row, by the first warp of each block. `own` is log of the target's mass over the
// rivals'; `step` has the direction's sign.
template <typename Team, typename Acc>
LPL_DEVICE void take_steps(Team& team, Heads<Acc>& h, int heads, const Tail<Acc>& tail, Acc own,
                           int steps, Acc step, bool normalize) {
  constexpr int kOrder = Heads<Acc>::kOrder;
  const int first = team.place(), width = team.crew();
  Acc series[kOrder + 1], own_change = 0, own_lost = 0, dose = 0;
  for (int r = 1; r <= kOrder; ++r) series[r] = r == 1;
  const auto tail_of = [&](const Acc* coefficient, int from) {
    Acc sum = 0;
    for (int r = from; r <= kOrder; ++r) sum += coefficient[r] * tail.power[r - 1];
    return sum;
  };
  // log Z so far, up to what a step changes: keeps every exponential near its share of 1
  Acc level = own > 0 ? own : Acc(0);
  for (int k = 0; k < steps; ++k) {
    const Acc unit = std::exp(-level);
    Acc others = 0, squares = 0;
    for (int at = first; at < heads; at += width) {
      const Acc e = std::exp(h.start[at] + h.change[at] - level);
      h.mass[at] = e;
      others += e;
      squares += e * e;
    }
    others = team.crew_sum(others) + tail_of(series, 1) * unit;
    const Acc total = others + std::exp(own + own_change - level);
    Acc share = 1 / total;
    if (normalize) {
      Acc square[kOrder + 1];
      series_square<kOrder>(series, square);
      squares = team.crew_sum(squares) + tail_of(square, 2) * unit * unit;
      const Acc norm = std::sqrt(squares + others * others) * share;
      share = norm < Acc(kNormFloor) ? Acc(0) : share / norm;
    }
    share *= step;
    for (int at = first; at < heads; at += width) add(h.change[at], h.lost[at], h.mass[at] * share);
    add(own_change, own_lost, -others * share);
    const Acc a = share * unit;
    series_step<kOrder>(series, a);
    dose += std::fabs(a);
    level += std::log(total);
  }

  const Acc mass = tail_of(series, 1);
  own += own_change;
  Acc unit = own;
  for (int at = first; at < heads; at += width) {
    const Acc moved = h.start[at] + h.change[at];
    unit = moved > unit ? moved : unit;
  }
  unit = team.crew_max(unit);
  if (std::log(mass) > unit) unit = std::log(mass);
  unit = finite_shift(unit);
  Acc rest = 0;
  for (int at = first; at < heads; at += width) {
    h.mass[at] = std::exp(h.start[at] + h.change[at] - unit);
    rest += h.mass[at];
  }
  rest = team.crew_sum(rest) + mass * std::exp(-unit);
  if (first != 0) return;
  for (int r = 1; r <= kOrder; ++r) h.series[r] = series[r];
  h.own_change = own_change;
  h.unit = unit;
  h.lift = own - unit;
  h.rest = rest;
  const double error = series_error<kOrder>(double(dose), {0, double(tail.largest)});
  // what has overflowed on the way shows in the sums
  h.good =
      error <= series_tolerance<Acc>() && rest + h.lift < INFINITY && std::exp(-unit) < INFINITY;
}

// Row i if it takes steps: its loss and gradient, or its δ, if it is alone in its class; else its
// part of what a Group is made of.
template <typename T, Set kSet>
struct SolverBody {
  using Acc = typename AccumulateOf<T>::type;
  using Shared = Heads<Acc>;
  static constexpr int kOrder = Shared::kOrder;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    const Algebra<T, kSet> algebra(call);
    Row<Acc> row = algebra.row(i, nullptr);
    const i64 count = call.scratch.counts[i], label = call.p.target[i];
    const bool labelled = row.live && label >= 0 && label < call.p.c;
    // one whose index is out of range makes the whole class nan
    const int steps = labelled && !(row.outside && count == 1) ? call.p.steps[label] : 0;
    Outcome outcome = steps == 0 ? kUnchanged : kGroup;
    if (Group<Acc>::pays(call, steps, count))
      outcome = Group<Acc>::bounded(call, steps) ? join(team, call, algebra, row) : kFellBack;
    if (steps != 0 && count == 1) outcome = solve(team, call, algebra, row, steps);
    if (call.scratch.only_delta && outcome != kSolved && outcome != kRelaxed) fill(team, call, row);
    if (team.rank() == 0) call.scratch.outcome[i] = outcome;
  }

 private:
  // δ of rows that do not move, or not yet; a row with a label out of range has none.
  template <typename Team>
  LPL_DEVICE static void fill(Team& team, const Call& call, const Row<Acc>& row) {
    Acc* delta = static_cast<Acc*>(call.out.delta) + row.index * call.p.c;
    for (i64 j = team.rank(); j < call.p.c; j += team.size()) delta[j] = row.outside ? Acc(NAN) : 0;
  }

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

  template <typename Team>
  LPL_DEVICE static Outcome solve(Team& team, const Call& call, const Algebra<T, kSet>& algebra,
                                  Row<Acc>& row, int steps) {
    TeamRow<Team, T, kSet> here(team, call, algebra, row);
    here.measure_all();
    Terms<Acc> terms = here.measured();
    const RowSums<Acc> sums = here.sums(row.label, false);
    const Acc shift = finite_shift(sums.top), inverse = 1 / sums.rest;
    const Acc own = algebra.logit(row.label, row) - shift - std::log(sums.rest);
    // without rivals, or with nan among them, there is no direction to move in
    if (!(sums.rest > 0 && sums.rest < INFINITY) || own != own) return kUnchanged;

    // the head, in the order of ranks, and the power sums of the tail
    const Acc bound = algebra.c > Shared::kMost ? Acc(1.001) / Shared::kMost : Acc(-1);
    int heads, count = 0;
    const Tail<Acc> tail = tail_of(team, here, row.label, shift, inverse, bound, count);
    const int begin = team.before(count, heads), end = begin + count;
    if (heads > Shared::kMost) return kFellBack;
    int at = begin;
    if (count > 0) {
      here.each([&](int j, Acc z) {
        if (j == row.label || at == end || !(std::exp(z - shift) * inverse > bound)) return;
        for (int block = 0; block < team.blocks(); ++block) {
          Shared& to = team.template shared<Shared>(block);
          to.column[at] = j;
          to.start[at] = z - shift + std::log(inverse);
          to.change[at] = to.lost[at] = 0;
        }
        ++at;
      });
    }
    // a q at the bound itself, rounded otherwise this time
    const int missed = team.reduce(int(at != end), [](int a, int b) { return a | b; });
    if (missed) return kFellBack;
    Shared& h = team.template shared<Shared>(team.block());
    if (team.place() < team.crew()) {
      const Acc step = Acc(steps > 0 ? call.p.step_size : -call.p.step_size);
      take_steps(team, h, heads, tail, own, steps > 0 ? steps : -steps, step, call.p.normalize);
    }
    team.sync();
    if (!h.good) return kFellBack;
    // each thread comes across its heads in their order, every time it goes through its columns
    int next = begin;
    const auto head_at = [&](int j) {
      if (count == 0 || h.column[next] != j) return -1;
      const int at = next;
      next = at + 1 == end ? begin : at + 1;
      return at;
    };
    const auto gain = [&](Acc q) {  // E(q)/q − 1
      Acc value = h.series[kOrder];
#pragma unroll
      for (int r = kOrder - 1; r > 1; --r) value = value * q + h.series[r];
      return value * q;
    };
    if (call.scratch.only_delta) {
      here.fill(static_cast<Acc*>(call.out.delta), [&](int j, Acc z) {
        if (j == row.label) return h.own_change;
        const int at = head_at(j);
        return at >= 0 ? h.change[at] : std::log1p(gain(std::exp(z - shift) * inverse));
      });
      return kSolved;
    }
    const Acc base = shift + std::log(sums.rest) + h.unit, unit = std::exp(-h.unit);
    const Acc loss = algebra.of_label(row, h.lift, h.rest, base, terms);
    here.finish(loss, terms, [&](int j, Acc z, const Terms<Acc>& t) {
      if (j == row.label) return t.part;
      const int at = head_at(j);
      if (at >= 0) return h.mass[at] * t.strength;
      const Acc q = std::exp(z - shift) * inverse;
      return (q + q * gain(q)) * (unit * t.strength);
    });
    return kSolved;
  }
};

}  // namespace lpl
