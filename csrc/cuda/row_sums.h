// Sums of exponentials over the columns of a row: of a thread, of a warp, of a team.
#pragma once

#include "exponent.h"

namespace lpl {

// Sums over some columns in units of e^top, `top` being near the largest logit: rest = Σ e^(z_j −
// top); where weights are spread over all columns also mass = Σ w_j and pull = Σ w_j·(z_j − top);
// with a norm along = Σ e^(z_j − top)·x_j, x_j what a dL/dz_j of 1 is along the norm.
template <typename Acc>
struct RowSums {
  Acc top, rest, mass, pull, along;
};

template <typename Acc>
LPL_DEVICE inline RowSums<Acc> no_columns() {
  return {Acc(-INFINITY), 0, 0, 0, 0};
}

// The sums of a thread in units of an Exponential E; of level −∞ if there is no mass.
template <typename E, bool kMore>
struct Gathered {
  typename E::Acc level, rest;
};
template <typename E>
struct Gathered<E, true> {
  typename E::Acc level, rest, mass, pull, along;

  LPL_DEVICE typename E::Acc shift() const { return E(finite_shift(level)).shift(); }
};

// What turns sums of a level into sums of a higher one.
template <typename E, typename Acc>
LPL_DEVICE inline Acc factor_to(Acc level, Acc from) {
  return from == level ? Acc(1) : E(from).in(E(level));
}

template <typename E, bool kMore>
LPL_DEVICE inline Gathered<E, kMore> joined(const Gathered<E, kMore>& a,
                                            const Gathered<E, kMore>& b) {
  Gathered<E, kMore> both{};
  both.level = a.level > b.level ? a.level : b.level;
  // also where there is no mass, so that a nan comes through
  const auto of_a = factor_to<E>(both.level, a.level), of_b = factor_to<E>(both.level, b.level);
  both.rest = a.rest * of_a + b.rest * of_b;
  if constexpr (kMore) {
    both.mass = a.mass + b.mass;
    both.pull =
        a.pull + a.mass * (a.shift() - both.shift()) + b.pull + b.mass * (b.shift() - both.shift());
    both.along = a.along * of_a + b.along * of_b;
  }
  return both;
}

// Few numbers are added one after the other.
template <int kSize, typename Acc>
LPL_DEVICE inline Acc sum_of(const Acc (&x)[kSize]) {
  Acc sum[kSize];
#pragma unroll
  for (int v = 0; v < kSize; ++v) sum[v] = x[v];
#pragma unroll
  for (int half = kSize / 2; half > 0; half /= 2)
#pragma unroll
    for (int v = 0; v < kSize / 2; ++v)
      if (v < half) sum[v] += sum[v + half];
  return sum[0];
}

// The larger one; of a nan and a number the number.
LPL_DEVICE inline float larger(float a, float b) {
  return fmaxf(a, b);
}
LPL_DEVICE inline double larger(double a, double b) {
  return fmax(a, b);
}

// How far the level of a sum may be from its largest logit. Near, exponents of what counts are near
// 0, where they are most exact: where gradients are differences. Ahead of what was found so far, a
// warp rarely has to raise the level of one of its threads.
enum class Level { near, ahead };
template <Level kLevel>
constexpr float kLarge = kLevel == Level::near ? 16 : 128;
template <Level kLevel>
constexpr float kAhead = kLevel == Level::near ? 0 : 2;

// Σ e^z piece by piece. Any level near the largest logit does: a new one is looked for where a sum
// becomes large, so that nothing is compared for a maximum.
template <typename E, int kSize, Level kLevel>
class Gather {
 public:
  using Acc = typename E::Acc;

  LPL_DEVICE explicit Gather(const E& e = E(0)) : e_(e) {}

  LPL_DEVICE const E& e() const { return e_; }
  LPL_DEVICE Acc level() const { return known_ ? e_.level() : Acc(-INFINITY); }
  LPL_DEVICE Acc rest() const { return rest_; }

  // Leaves the exponentials in `terms`; moved(factor, difference of shifts) tells who has sums of
  // his own of a new level.
  template <typename Moved>
  LPL_DEVICE void add(const Acc* z, Acc (&terms)[kSize], Moved moved) {
    Acc sum = exponentials(z, terms);
    if (sum > kLarge<kLevel> || !known_) sum = raised(sum, z, terms, moved);
    rest_ += sum;
  }

  // The same without the logit at a place, if there is such a one, which becomes −∞: a piece is
  // asked one question for both.
  template <typename Moved>
  LPL_DEVICE void add_without(int place, Acc* z, Acc (&terms)[kSize], Moved moved) {
    Acc sum = exponentials(z, terms);
    if (sum > kLarge<kLevel> || !known_ || unsigned(place) < unsigned(kSize)) {
#pragma unroll
      for (int v = 0; v < kSize; ++v)
        if (v == place) z[v] = -INFINITY;
      sum = exponentials(z, terms);
      if (sum > kLarge<kLevel> || !known_) sum = raised(sum, z, terms, moved);
    }
    rest_ += sum;
  }

 private:
  // By a new level, if there is one to be found.
  template <typename Moved>
  LPL_DEVICE Acc raised(Acc sum, const Acc* z, Acc (&terms)[kSize], Moved moved) {
    Acc most = known_ ? e_.shift() : Acc(-INFINITY);
#pragma unroll
    for (int v = 0; v < kSize; ++v) most = larger(z[v], most);
    if (most > -INFINITY) {
      // higher than it has to be yet: a warp takes this way as often as all its threads together
      const E old = e_;
      e_ = e_.above(most, kAhead<kLevel>);
      const Acc factor = known_ ? old.in(e_) : Acc(1);
      rest_ *= factor;
      moved(factor, old.shift() - e_.shift());
      known_ = true;
      sum = exponentials(z, terms);
    }
    return sum;
  }

  LPL_DEVICE Acc exponentials(const Acc* z, Acc (&terms)[kSize]) const {
#pragma unroll
    for (int v = 0; v < kSize; ++v) terms[v] = e_.of(z[v]);
    return sum_of(terms);
  }

  E e_;
  bool known_ = false;
  Acc rest_ = 0;
};

// The sums of all threads of a warp, by one level for all.
template <typename Team, typename E, bool kMore>
LPL_DEVICE inline Gathered<E, kMore> of_crew(Team& team, const Gathered<E, kMore>& own) {
  Gathered<E, kMore> s = own;
  s.level = team.crew_max(own.level);
  const auto factor = factor_to<E>(s.level, own.level);
  s.rest = team.crew_sum(own.rest * factor);
  if constexpr (kMore) {
    s.pull = team.crew_sum(own.pull + own.mass * (own.shift() - s.shift()));
    s.mass = team.crew_sum(own.mass);
    s.along = team.crew_sum(own.along * factor);
  }
  return s;
}

// The same of a team.
template <typename Team, typename E, bool kMore>
LPL_DEVICE inline Gathered<E, kMore> of_team(Team& team, const Gathered<E, kMore>& own) {
  const Gathered<E, kMore> s = of_crew(team, own);
  return team.reduce_crews(s, [](const Gathered<E, kMore>& a, const Gathered<E, kMore>& b) {
    return joined<E, kMore>(a, b);
  });
}

// All sums of a row, beside a logit `own`.
template <typename E, bool kMore, typename Acc>
LPL_DEVICE inline RowSums<Acc> sums_of(const Gathered<E, kMore>& s, Acc own) {
  const E all(finite_shift(s.level));
  RowSums<Acc> found{};
  constexpr Level kLevel = kMore ? Level::near : Level::ahead;
  found.top = s.level == -INFINITY ? s.level : all.shift() - kAhead<kLevel>;
  if (own > found.top) found.top = own;
  const Acc shift = finite_shift(found.top);
  // without mass there is no level, and nothing but a nan to pass on
  const Acc unit = s.level == -INFINITY ? Acc(1) : all.unit(shift);
  found.rest = s.rest * unit;
  if constexpr (kMore) {
    found.mass = s.mass;
    found.pull = s.pull + s.mass * (all.shift() - shift);
    found.along = s.along * unit;
  }
  return found;
}

}  // namespace lpl
