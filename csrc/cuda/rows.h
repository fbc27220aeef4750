// The loss of a row and its gradient: what a team does with one row.
#pragma once

#include "learned_row.h"
#include "norms.h"
#include "pieces.h"
#include "row_statistics.h"

namespace lpl {

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

  // The same, of the whole team; with `kStats` the row's statistics are stored on the way.
  template <bool kStats = false>
  LPL_DEVICE Gathered<E, kMore> gathered(int skip, bool weigh) {
    if constexpr (kStats) {
      RowStatistics<Acc> own = statistics();
      const Gathered<E, kMore> sums = sums_of_thread(skip, weigh, own);
      const auto all = of_team(team_, StatsSums<E, kMore>{sums, own.heat(), own.beaten()});
      if (team_.rank() == 0) store_stats(all);
      return all.sums;
    } else {
      NoStatistics none;
      return of_team(team_, sums_of_thread(skip, weigh, none));
    }
  }

  // Of no columns yet.
  LPL_DEVICE RowStatistics<Acc> statistics() const {
    const int aim = right();
    return RowStatistics<Acc>(aim, aim < 0 ? Acc(0) : load(a_.logits(row_.index)[aim]));
  }

  // Stores the statistics of the row, by sums that leave out its labels where nothing is spread.
  LPL_DEVICE void store_stats(const StatsSums<E, kMore>& t) const {
    Acc labels[2] = {-INFINITY, -INFINITY};
    if (!a_.spread) {
      labels[0] = a_.logit(row_.label, row_);
      if (a_.mixed() && row_.other != row_.label) labels[1] = a_.logit(row_.other, row_);
    }
    const RowSums<Acc> s = sums_of<E, kMore>(t.sums, larger(labels[0], labels[1]));
    const E all(finite_shift(t.sums.level));
    const Acc shift = finite_shift(s.top);
    const Acc unit = t.sums.level == -INFINITY ? Acc(1) : all.unit(shift);
    Acc total = s.rest, heat = (t.heat - t.sums.rest * all.exponent(shift)) * unit * E::kNats;
    for (const Acc label : labels) {
      const Acc x = label - shift, e = std::exp(x);
      total += e;
      heat += heat_of(e, x);
    }
    leave(row_.base + shift, total, heat, t.beaten == 0);
  }

  // What the first thread stores of the row: of total = Σ e^(z − shift) and heat = Σ e^(z −
  // shift)·(z − shift), and of whether its RowStatistics say that the one that is right is first.
  LPL_DEVICE void leave(Acc shift, Acc total, Acc heat, bool first) const {
    if (team_.rank() != 0) return;
    const Acc log_total = std::log(total), entropy = log_total - heat / total;
    const int aim = right();
    const T* u = a_.logits(row_.index);
    for (int j = aim < kSize ? 0 : aim - kSize + 1; j < aim; ++j)
      first = first && load(u[j]) != load(u[aim]);
    // of one class rounding leaves less than nothing; nan stays
    leave(shift + log_total, entropy < 0 ? Acc(0) : entropy,
          first && entropy - entropy == 0 && aim >= 0);
  }
  LPL_DEVICE void leave(Acc lse, Acc entropy, bool correct) const {
    if (team_.rank() != 0) return;
    static_cast<Acc*>(call_.out.lse)[row_.index] = lse;
    static_cast<Acc*>(call_.out.entropy)[row_.index] = entropy;
    call_.out.correct[row_.index] = correct;
  }

  // The sums of this thread, and its statistics.
  template <typename Statistics>
  LPL_DEVICE Gathered<E, kMore> sums_of_thread(int skip, bool weigh, Statistics& statistics) {
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
        statistics.raise(factor, mass.rest(), mass.e().level());
      });
      statistics.template add<kSize>(first, u, z, terms, mass.e(), kind, a_.c);
      if constexpr (kMore) {
        if (weigh) weigh_piece(first, z, kind, mass.e().shift(), s.mass, s.pull);
        if (a_.normed()) s.along += along_of_piece(first, u, terms, kind);
      }
    });
    s.level = mass.level();
    s.rest = mass.rest();
    return s;
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

  // The loss of the row, and its softmax's Terms; its statistics with `kStats`.
  template <bool kStats = false>
  LPL_DEVICE Acc loss(Terms<Acc>& t) {
    if (!a_.spread) return loss_of_label(gathered<kStats>(row_.label, false), t);
    Acc own = -INFINITY;
    if (a_.p.target) own = a_.logit(row_.label, row_);
    const bool by_log = a_.p.phi == Phi::log;
    const RowSums<Acc> s =
        sums_of<E, kMore>(gathered<kStats>(-1, a_.spread && by_log), Acc(-INFINITY));
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

  // The column that is right; −1 where there is none.
  LPL_DEVICE int right() const {
    const i64 aim = call_.scratch.aim[row_.index];
    return aim < 0 || aim >= a_.c ? -1 : int(aim);
  }

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

// Loss and gradient of row i under its δ, if any; with `kStats` its statistics beside.
template <typename T, Set kSet, bool kStats>
struct RowsBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    if constexpr (kStats)
      if (stats_by_steps<Acc>(call, i)) return;
    const Algebra<T, kSet> algebra(call);
    const void* delta = call.scratch.only_delta ? call.out.delta : nullptr;
    Row<Acc> row = algebra.row(i, static_cast<const Acc*>(delta));
    if (algebra.has(kMove) && delta) {
      row.base = base_of(learned_row<Acc>(call, i));
      expect(!call.out.terms);  // their shift would have to have the base
    }
    LPL_USUALLY(row.live);
    TeamRow<Team, T, kSet> here(team, call, algebra, row);
    if (!row.live) {
      here.clear();
      if constexpr (kStats) here.leave(0, 0, false);
      return here.say(0, Terms<Acc>{});
    }
    here.measure_all();
    if constexpr (Algebra<T, kSet>::kOneLabel && sizeof(Acc) == sizeof(float)) {
      const auto rivals = here.template gathered<kStats>(row.label, false);
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
      const Acc loss = here.template loss<kStats>(terms);
      here.finish(loss, terms);
    }
  }
};
template <typename T, Set kSet>
struct RowBody : RowsBody<T, kSet, false> {};
template <typename T, Set kSet>
struct StatsRowBody : RowsBody<T, kSet, true> {};

}  // namespace lpl
