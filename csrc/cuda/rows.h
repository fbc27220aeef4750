// The loss of a row and its gradient: what a team does with one row.
#pragma once

#include "norms.h"
#include "pieces.h"

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

// The sums of all threads of a team: those of a warp by one level for all.
template <typename Team, typename E, bool kMore>
LPL_DEVICE inline Gathered<E, kMore> of_team(Team& team, const Gathered<E, kMore>& own) {
  Gathered<E, kMore> s = own;
  s.level = team.crew_max(own.level);
  const auto factor = factor_to<E>(s.level, own.level);
  s.rest = team.crew_sum(own.rest * factor);
  if constexpr (kMore) {
    s.pull = team.crew_sum(own.pull + own.mass * (own.shift() - s.shift()));
    s.mass = team.crew_sum(own.mass);
    s.along = team.crew_sum(own.along * factor);
  }
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

// Sums over the columns of a spread target.
template <typename Acc>
struct OfPhi {
  Acc value, slope, mass;
  double along;
};

template <typename Acc>
LPL_DEVICE inline RowSums<Acc> joined(const RowSums<Acc>& a, const RowSums<Acc>& b) {
  const Acc top = a.top > b.top ? a.top : b.top, shift = finite_shift(top);
  return {top, a.rest * std::exp(a.top - shift) + b.rest * std::exp(b.top - shift), 0, 0, 0};
}

// What is said of row i.
template <typename Acc>
LPL_DEVICE inline void say_of(const Call& call, i64 i, Acc loss, const Terms<Acc>& t) {
  if (call.scratch.losses) static_cast<Acc*>(call.scratch.losses)[i] = loss;
  if (call.out.terms) static_cast<Terms<Acc>*>(call.out.terms)[i] = t;
}

// Takes the norm from the row's Terms.
template <typename Algebra, typename Acc>
LPL_DEVICE void use_norm(const Algebra& a, const Terms<Acc>& t, Row<Acc>& row) {
  if (!a.normed()) return;
  row.factor = t.factor;
  row.length = t.length;
  row.per_length = t.length > kLeastLength ? 1 / t.length : Acc(0);
  row.bend = t.bend;
}

template <typename Team, typename T, Set kSet, bool kStages = true>
class TeamRow {
 public:
  using Acc = typename AccumulateOf<T>::type;
  using E = typename Algebra<T, kSet>::E;
  using Here = Pieces<Team, T, (kSet & kRest) != 0 ? (sizeof(T) < 4 ? 4 : sizeof(T)) : 16, kStages>;
  static constexpr int kSize = Here::kSize;

  LPL_DEVICE TeamRow(Team& team, const Call& call, const Algebra<T, kSet>& algebra, Row<Acc>& row)
      : team_(team),
        call_(call),
        a_(algebra),
        row_(row),
        pieces_(team, algebra.logits(row.index), algebra.c) {}

  LPL_DEVICE const Here& pieces() const { return pieces_; }
  // What the row's penalty adds to its loss, once it is measured.
  LPL_DEVICE Acc penalty() const { return penalty_; }

  // Measures the row's norm, which its logits are then of, and its penalty.
  LPL_DEVICE void measure_all() {
    if (a_.normed()) measure(team_, a_, pieces_, row_);
    if (!a_.penalised()) return;
    top_ = top_of<Team, T>(team_, pieces_);
    penalties_ = penalties_of(team_, a_.p, top_, pieces_);
  }

  // What is then known of its Terms.
  LPL_DEVICE Terms<Acc> measured() {
    Terms<Acc> t{};
    t.factor = row_.factor;
    t.length = row_.length;
    t.bend = row_.bend;
    if (!a_.penalised()) return t;
    // no weight touches a penalty, whose mean is over the rows that count
    const void* weight = call_.scratch.penalty_weight;
    const double share =
        (weight ? double(*static_cast<const Acc*>(weight)) : 1) / double(a_.classes);
    penalty_ = Acc(penalties_.value * share);
    t.top = top_;
    t.each = Acc(share / a_.p.penalty_unit);
    t.raises = Acc(penalties_.slope / penalties_.ties * share / a_.p.penalty_unit);
    return t;
  }

  // f(j, z_j, v) for the existing columns of a piece.
  template <typename Kind, typename F>
  LPL_DEVICE void columns(int first, const Acc* u, Kind kind, F f) const {
    Acc z[kSize];
    a_.template perturb<kSize>(first, u, row_, kind, z);
#pragma unroll
    for (int v = 0; v < kSize; ++v)
      if (Kind::value || pieces_.inside(first + v)) f(first + v, z[v], v);
  }

  // f(j, z_j) for all columns of this thread.
  template <typename F>
  LPL_DEVICE void each(F f) const {
    pieces_.visit([&](int first, const Acc* u, auto kind) {
      columns(first, u, kind, [&](int j, Acc z, int) { f(j, z); });
    });
  }

  // sums have mass, pull and along where kernels may want them
  static constexpr bool kMore = !Algebra<T, kSet>::kOneLabel || Algebra<T, kSet>::has(kLength);

  // Sums without column `skip` (or −1) and the other label's where nothing is spread, with mass and
  // pull if `weigh`; `own`: beside this logit.
  LPL_DEVICE RowSums<Acc> sums(int skip, bool weigh, Acc own = -INFINITY) {
    return sums_of<E, kMore>(gathered(skip, weigh), own);
  }

  // The same, of the whole team.
  LPL_DEVICE Gathered<E, kMore> gathered(int skip, bool weigh) {
    Gathered<E, kMore> s{};
    Gather<E, kSize, kMore ? Level::near : Level::ahead> mass;
    pieces_.visit_arriving([&](int first, const Acc* u, auto kind) {
      Acc z[kSize], terms[kSize];
      a_.template perturb<kSize>(first, u, row_, kind, z);
      a_.template replace<kSize>(skip - first, Acc(-INFINITY), z);
      if (a_.mixed() && !a_.spread)
        a_.template replace<kSize>(row_.other - first, Acc(-INFINITY), z);
      mass.add(z, terms, [&](Acc factor, Acc difference) {
        if constexpr (kMore) {
          s.along *= factor;
          s.pull += s.mass * difference;
        }
      });
      if constexpr (kMore) {
        if (weigh) weigh_piece(first, z, kind, mass.e().shift(), s.mass, s.pull);
        if (a_.normed()) s.along += along_of_piece(first, u, terms, kind);
      }
    });
    s.level = mass.level();
    s.rest = mass.rest();
    return of_team(team_, s);
  }

  // Σ of terms times unit_along.
  template <typename Kind>
  LPL_DEVICE Acc along_of_piece(int first, const Acc* u, const Acc (&terms)[kSize], Kind) const {
    Acc sum = 0;
    LPL_USUALLY(row_.finite);
    if (!Algebra<T, kSet>::has(kTables | kRest) && row_.finite) {  // columns beyond are 0
#pragma unroll
      for (int v = 0; v < kSize; ++v) sum = std::fma(terms[v], u[v], sum);
      return sum * row_.per_length;
    }
    Acc parts[kSize];
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      const bool exists = Kind::value || pieces_.inside(first + v);
      parts[v] = exists ? terms[v] * unit_along(a_, u[v], first + v, row_) : Acc(0);
    }
    return sum_of(parts);
  }

  // The loss of a row whose target is one label, and its softmax's Terms, from sums without it, so
  // that 1 − p keeps its digits; the same of two labels.
  LPL_DEVICE Acc loss_of_label(const Gathered<E, kMore>& rivals, Terms<Acc>& t) const {
    const Acc own = a_.logit(row_.label, row_);
    if (a_.mixed()) return loss_of_labels(rivals, own, t);
    const RowSums<Acc> s = sums_of<E, kMore>(rivals, own);
    const Acc shift = finite_shift(s.top);
    const Acc loss = a_.of_label(row_, own - shift, s.rest, shift, t);
    if (a_.normed()) {
      const Acc u = load(a_.logits(row_.index)[row_.label]);
      t.along = t.strength * s.along + t.part * unit_along(a_, u, row_.label, row_);
    }
    return loss;
  }

  LPL_DEVICE Acc loss_of_labels(const Gathered<E, kMore>& rivals, Acc own, Terms<Acc>& t) const {
    const bool same = row_.other == row_.label;
    const Acc other = same ? Acc(-INFINITY) : a_.logit(row_.other, row_);
    const RowSums<Acc> s = sums_of<E, kMore>(rivals, larger(own, other));
    const Acc shift = finite_shift(s.top), lift[2] = {own - shift, other - shift};
    const Acc loss = a_.of_labels(row_, lift, s.rest, shift, t);
    if (a_.normed()) {
      t.along = t.strength * s.along;
      const int labels[2] = {row_.label, row_.other};
      const Acc parts[2] = {t.part, t.other_part};
      for (int k = 0; k < (same ? 1 : 2); ++k) {
        const Acc u = load(a_.logits(row_.index)[labels[k]]);
        t.along += parts[k] * unit_along(a_, u, labels[k], row_);
      }
    }
    return loss;
  }

  // The loss of the row, and its softmax's Terms.
  LPL_DEVICE Acc loss(Terms<Acc>& t) {
    if (!a_.spread) return loss_of_label(gathered(row_.label, false), t);
    Acc own = -INFINITY;
    if (a_.p.target) own = a_.logit(row_.label, row_);
    const bool by_log = a_.p.phi == Phi::log;
    const RowSums<Acc> s = sums(-1, a_.spread && by_log);
    const Acc shift = finite_shift(s.top);
    Acc gap[2] = {own - shift, 0};
    if (a_.mixed()) gap[1] = a_.logit(row_.other, row_) - shift;
    Acc of_all[3] = {s.mass * std::log(s.rest) - s.pull, s.mass, s.mass};
    if (a_.has(kRest) && a_.spread && !by_log) {
      const OfPhi<Acc> sum = sum_phi(shift, std::log(s.rest));
      of_all[0] = sum.value;
      of_all[1] = sum.slope;
      of_all[2] = sum.mass;
    }
    return a_.of_target(row_, gap, s.rest, of_all, shift, t);
  }

  // Σ dL/dT_j·u_j/n over the columns, from dz(j, z_j); 0 without a norm.
  template <typename Gradient>
  LPL_DEVICE Acc along(Gradient dz) {
    if (!a_.normed()) return 0;
    double sum = 0;
    pieces_.visit([&](int first, const Acc* u, auto kind) {
      Acc terms[kSize] = {};
      columns(first, u, kind, [&](int j, Acc z, int v) {
        terms[v] = along_norm(a_, a_.to_input(a_.to_offset(dz(j, z)), u[v], j, row_), u[v], row_);
      });
      sum += double(sum_of(terms));
    });
    return Acc(team_.reduce(sum, [](double a, double b) { return a + b; }));
  }

  // All that is wanted of a row, from its loss, its Terms and dz(j, z_j, Terms).
  template <typename Gradient>
  LPL_DEVICE void finish(Acc loss, Terms<Acc> t, Gradient dz) {
    const bool wanted = call_.out.grad;
    if (wanted || call_.out.terms) t.along = along([&](int j, Acc z) { return dz(j, z, t); });
    say(loss, t);
    if (!wanted) return;
    t = scaled(t, upstream_of<Acc>(call_, row_.index));
    write(
        [&](int first, const Acc* u, auto kind, const auto&, Acc* d) {
          columns(first, u, kind, [&](int j, Acc z, int v) { d[v] = dz(j, z, t); });
        },
        t);
  }

  // The same where the gradient is the softmax's.
  LPL_DEVICE void finish(Acc loss, Terms<Acc> t) {
    const bool wanted = call_.out.grad;
    if ((wanted || call_.out.terms) && a_.spread)
      t.along =
          along([&](int j, Acc z) { return a_.gradient(z, std::exp(z - t.shift), j, row_, t); });
    say(loss, t);
    if (wanted) write(scaled(t, upstream_of<Acc>(call_, row_.index)));
  }

  // All that is wanted of the gradient, from its Terms.
  LPL_DEVICE void write(const Terms<Acc>& t) {
    const auto e = E::near(t.shift);
    const Acc unit = e.unit(t.shift);
    write(
        [&](int first, const Acc* u, auto kind, const auto& tables, Acc* dz) {
          Acc z[kSize];
          a_.template perturb<kSize>(first, u, row_, tables, kind, z);
          a_.template gradients<kSize, decltype(kind)>(first, z, e, unit, row_, t, dz);
        },
        t);
  }

  // The row's part of a contiguous (N, C) matrix, by value(j, z_j).
  template <typename U, typename Value>
  LPL_DEVICE void fill(U* matrix, Value value) {
    if (!matrix) return;
    const auto to = pieces_.target(matrix + row_.index * a_.p.c);
    pieces_.visit([&](int first, const Acc* u, auto kind) {
      Acc x[kSize] = {};
      columns(first, u, kind, [&](int j, Acc z, int v) { x[v] = value(j, z); });
      to.write(first, x, kind);
    });
  }

  // The gradients of a row that counts nothing.
  LPL_DEVICE void clear() {
    const auto nothing = [](int, Acc) { return Acc(0); };
    fill(static_cast<T*>(call_.out.grad), nothing);
    if (kTablesLearn) fill(static_cast<Acc*>(call_.out.grad_perturbed), nothing);
  }

  // Of a row whose label has no column here.
  LPL_DEVICE void clear_margin() {
    if (kTablesLearn && call_.out.grad_margin && team_.rank() == 0)
      static_cast<Acc*>(call_.out.grad_margin)[row_.index] = 0;
  }

  LPL_DEVICE void use(const Terms<Acc>& t) { use_norm(a_, t, row_); }

  // (Σ w_j φ(ℓ_j), Σ w_j φ'(ℓ_j), Σ w_j) of the row, with a norm Σ w_j φ'(ℓ_j) x_j as well.
  LPL_DEVICE OfPhi<Acc> sum_phi(Acc shift, Acc log_total) {
    OfPhi<Acc> s{};
    pieces_.visit([&](int first, const Acc* u, auto kind) {
      columns(first, u, kind, [&](int j, Acc z, int v) {
        const Acc w = a_.weight(j, row_);
        const PhiValue<Acc> at = a_.phi(log_total - (z - shift));
        if (w != 0 || !a_.p.dense) s.value += w * at.value;
        s.slope += w * at.slope;
        s.mass += w;
        if (a_.normed()) s.along += double(w * at.slope * unit_along(a_, u[v], j, row_));
      });
    });
    return team_.reduce(s, [](const OfPhi<Acc>& a, const OfPhi<Acc>& b) {
      return OfPhi<Acc>{a.value + b.value, a.slope + b.slope, a.mass + b.mass, a.along + b.along};
    });
  }

  // What the first thread says of the whole row.
  LPL_DEVICE void say(Acc loss, const Terms<Acc>& t) {
    if (team_.rank() != 0) return;
    if (a_.penalised()) loss += penalty_;
    say_of(call_, row_.index, loss, t);
  }

 private:
  static constexpr bool kTablesLearn = (kSet & kRest) != 0;

  // Adds mass and pull of a piece.
  template <typename Kind>
  LPL_DEVICE void weigh_piece(int first, const Acc* z, Kind, Acc shift, Acc& mass,
                              Acc& pull) const {
    Acc w[kSize] = {}, gaps[kSize] = {};
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      if (!Kind::value && !pieces_.inside(first + v)) continue;
      w[v] = a_.weight(first + v, row_);
      // a class without target mass counts nothing, even at a logit of −inf
      if (w[v] != 0 || !(a_.has(kRest) && a_.p.dense)) gaps[v] = w[v] * (z[v] - shift);
    }
    mass += sum_of(w);
    pull += sum_of(gaps);
  }

  // All that is wanted of the gradient, from make(first, u, kind, dz), which finds dL/dz of a
  // piece.
  template <typename Make>
  LPL_DEVICE void write(Make make, const Terms<Acc>& t) {
    const Outputs& out = call_.out;
    const i64 at = row_.index * a_.p.c;
    const auto grad = pieces_.target(out.grad ? static_cast<T*>(out.grad) + at : nullptr);
    const auto of_perturbed = pieces_.target(
        kTablesLearn && out.grad_perturbed ? static_cast<Acc*>(out.grad_perturbed) + at : nullptr);
    const Pull<Acc> pull(a_.p, t.top);
    pieces_.visit([&](int first, const Acc* u, auto kind) {
      Acc du[kSize] = {}, d_offset[kSize] = {};
      const auto tables = a_.template tables<kSize>(first, kind);
      make(first, u, kind, tables, d_offset);
#pragma unroll
      for (int v = 0; v < kSize; ++v) {
        const int j = first + v;
        if (!decltype(kind)::value && !pieces_.inside(j)) continue;
        d_offset[v] = a_.to_offset(d_offset[v]);
        du[v] = a_.to_input(d_offset[v], u[v], tables.scale[v], row_);
        if (kTablesLearn && out.grad_margin && j == row_.label)
          static_cast<Acc*>(out.grad_margin)[row_.index] = -d_offset[v];
      }
      if (a_.normed()) through_norm<kSize>(a_, t.along, u, row_, du);
      if (a_.penalised()) add_penalty<kSize, decltype(kind)>(a_.p, pull, pieces_, first, u, t, du);
      if (out.grad) grad.write(first, du, kind);
      if (kTablesLearn && out.grad_perturbed) of_perturbed.write(first, d_offset, kind);
    });
  }

  Team& team_;
  const Call& call_;
  const Algebra<T, kSet>& a_;
  Row<Acc>& row_;
  const Here pieces_;
  Penalties penalties_{};
  Acc top_ = 0, penalty_ = 0;
};

// Loss and gradient of row i under its δ, if any.
template <typename T, Set kSet>
struct RowBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    const Algebra<T, kSet> algebra(call);
    const void* delta = call.scratch.only_delta ? call.out.delta : nullptr;
    Row<Acc> row = algebra.row(i, static_cast<const Acc*>(delta));
    LPL_USUALLY(row.live);
    TeamRow<Team, T, kSet> here(team, call, algebra, row);
    if (!row.live) {
      here.clear();
      return here.say(0, Terms<Acc>{});
    }
    here.measure_all();
    if constexpr (Algebra<T, kSet>::kOneLabel && sizeof(Acc) == sizeof(float)) {
      const auto rivals = here.gathered(row.label, false);
      // what a row's numbers cost is worth no more threads than one warp has
      const auto make = [&] {
        Terms<Acc> t = here.measured();
        const Acc loss = here.loss_of_label(rivals, t);
        here.say(loss, t);
        return call.out.grad ? scaled(t, upstream_of<Acc>(call, i)) : t;
      };
      if (call.out.grad)
        here.write(team.template of_first_crew<Terms<Acc>>(make));
      else if (team.rank() < team.crew())
        make();
    } else {
      Terms<Acc> terms = here.measured();
      const Acc loss = here.loss(terms);
      here.finish(loss, terms);
    }
  }
};

}  // namespace lpl
