// Statistics of a row beside its loss, gathered in the sweep of that: the part `Statistics` of
// lpl_fused/algebra/parts.py says what each number is.
#pragma once

#include "../numbers.h"
#include "row_sums.h"

namespace lpl {

// Sums of such a row: heat = Σ e_j·exponent(z_j) of an Exponential of their level;
// `beaten` is not 0 where a column has a larger raw logit than the one that is right, or the same
// and is before it (but see RowStatistics).
template <typename E, bool kMore>
struct StatsSums {
  Gathered<E, kMore> sums;
  typename E::Acc heat, beaten;

  // In terms of a higher level.
  LPL_DEVICE typename E::Acc heat_at(typename E::Acc level) const {
    const auto by = finite_shift(sums.level) - finite_shift(level);
    return (heat + sums.rest * by) * factor_to<E>(level, sums.level);
  }
};

template <typename Team, typename E, bool kMore>
LPL_DEVICE inline StatsSums<E, kMore> of_team(Team& team, const StatsSums<E, kMore>& own) {
  using Each = StatsSums<E, kMore>;
  Each s;
  s.sums = of_crew(team, own.sums);
  s.heat = team.crew_sum(own.heat_at(s.sums.level));
  s.beaten = team.crew_sum(own.beaten);
  return team.reduce_crews(s, [](const Each& a, const Each& b) {
    Each both;
    both.sums = joined<E, kMore>(a.sums, b.sums);
    both.heat = a.heat_at(both.sums.level) + b.heat_at(both.sums.level);
    both.beaten = a.beaten + b.beaten;
    return both;
  });
}

// e·x of e = e^x in some units: nothing, where that is 0.
template <typename Acc>
LPL_DEVICE inline Acc heat_of(Acc e, Acc x) {
  return e * larger(x, Acc(kNothing));
}

// Of rows without: nothing.
struct NoStatistics {
  template <typename Acc>
  LPL_DEVICE void raise(Acc, Acc, Acc) const {}
  template <int kSize, typename E, typename Kind, typename Acc>
  LPL_DEVICE void add(int, const Acc*, const Acc*, const Acc (&)[kSize], const E&, Kind,
                      int) const {}
};

// What a thread adds up of one that is. A piece is asked one question; of columns that are equal to
// the one that is right those of its own piece are left out.
template <typename Acc>
class RowStatistics {
 public:
  LPL_DEVICE RowStatistics(int aim, Acc u) : aim_(aim), u_(u) {}

  LPL_DEVICE Acc heat() const { return heat_; }
  LPL_DEVICE Acc beaten() const { return beaten_ ? Acc(1) : Acc(0); }

  // The sums are of a new level: `rest` of it.
  LPL_DEVICE void raise(Acc factor, Acc rest, Acc level) {
    heat_ = heat_ * factor + rest * (level_ - level);
    level_ = level;
  }

  // Columns from `first` on, of c: their raw logits, z and e.of(z).
  template <int kSize, typename E, typename Kind>
  LPL_DEVICE void add(int first, const Acc* u, const Acc* z, const Acc (&terms)[kSize], const E& e,
                      Kind kind, int c) {
    Acc heat = 0;
#pragma unroll
    for (int v = 0; v < kSize; ++v)
      heat = std::fma(terms[v], larger(e.exponent(z[v]), Acc(kNothing)), heat);
    heat_ += heat;
    compare<kSize>(first, u, kind, c);
  }

  // Of such columns only the raw logits.
  template <int kSize, typename Kind>
  LPL_DEVICE void compare(int first, const Acc* u, Kind, int c) {
    Acc most = -INFINITY;
#pragma unroll
    for (int v = 0; v < kSize; ++v)
      if (Kind::value || unsigned(first + v) < unsigned(c)) most = larger(u[v], most);
    beaten_ |= most > u_ || (most == u_ && first + kSize <= aim_);
  }

 private:
  const int aim_;  // the column that is right
  const Acc u_;    // its raw logit
  Acc heat_ = 0, level_ = 0;
  bool beaten_ = false;
};

}  // namespace lpl
