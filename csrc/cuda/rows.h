// The loss of a row and its gradient: what a team does with one row.
#pragma once

#include "norms.h"
#include "pieces.h"

namespace lpl {

// rest = Σ e^(z_j − top) of some columns; where weights are spread over all columns also mass = Σ
// w_j and pull = Σ w_j·(z_j − top).
template <typename Acc>
struct Sums {
  Acc top, rest, mass, pull;
};

template <typename Acc>
LPL_DEVICE inline Sums<Acc> no_columns() {
  return {Acc(-INFINITY), 0, 0, 0};
}

template <typename Acc>
LPL_DEVICE inline Sums<Acc> joined(const Sums<Acc>& a, const Sums<Acc>& b) {
  const Acc top = a.top > b.top ? a.top : b.top, shift = finite_shift(top);
  return {top, a.rest * std::exp(a.top - shift) + b.rest * std::exp(b.top - shift), a.mass + b.mass,
          a.pull + a.mass * (finite_shift(a.top) - shift) + b.pull +
              b.mass * (finite_shift(b.top) - shift)};
}

// Kahan's sum: as exact after many steps as after one.
template <typename Acc>
LPL_DEVICE inline void add(Acc& total, Acc& lost, Acc term) {
  term -= lost;
  const Acc sum = total + term;
  lost = (sum - total) - term;
  total = sum;
}

template <typename Team, typename T, bool Bare>
class TeamRow {
 public:
  using Acc = typename AccumulateOf<T>::type;
  using Here = Pieces<Team, T, Bare ? 16 : (sizeof(T) < 4 ? 4 : sizeof(T))>;
  static constexpr int kSize = Here::kSize;

  LPL_DEVICE TeamRow(Team& team, const Call& call, const Algebra<T, Bare>& algebra, Row<Acc>& row)
      : team_(team),
        call_(call),
        a_(algebra),
        row_(row),
        pieces_(team, algebra.logits(row.index), algebra.c) {
    if (a_.normed()) measure(team, a_, pieces_, row_);
    if (!a_.penalised()) return;
    push_.prepare(team, a_.p, pieces_);
    // no weight touches a penalty, whose mean is over the rows that count
    const void* weight = call.scratch.penalty_weight;
    if (weight) push_.weigh(*static_cast<const Acc*>(weight));
  }

  LPL_DEVICE const Here& pieces() const { return pieces_; }

  LPL_DEVICE Acc upstream() const {
    const Acc* factors = static_cast<const Acc*>(call_.out.grad_rows);
    if (factors) return factors[row_.index * call_.out.grad_rows_stride];
    return call_.out.norm ? 1 / *static_cast<const Acc*>(call_.out.norm) : Acc(1);
  }

  // f(j, z_j, v) for the existing columns of a piece.
  template <typename F>
  LPL_DEVICE void columns(int first, const Acc* u, F f) const {
#pragma unroll
    for (int v = 0; v < kSize; ++v)
      if (pieces_.inside(first + v)) f(first + v, a_.perturbed(u[v], first + v, row_), v);
  }

  // f(j, z_j) for all columns of this thread.
  template <typename F>
  LPL_DEVICE void each(F f) const {
    pieces_.visit(
        [&](int first, const Acc* u) { columns(first, u, [&](int j, Acc z, int) { f(j, z); }); });
  }

  // Sums without column `skip` (or −1), with mass and pull if `weigh`.
  LPL_DEVICE Sums<Acc> sums(int skip, bool weigh) {
    Sums<Acc> s = no_columns<Acc>();
    Acc lost = 0;  // a thread may have thousands of columns
    pieces_.visit([&](int first, const Acc* u) {
      Acc z[kSize], top = s.top;
#pragma unroll
      for (int v = 0; v < kSize; ++v) z[v] = -INFINITY;
      columns(first, u, [&](int, Acc value, int v) {
        z[v] = value;
        if (value > top) top = value;
      });
      const Acc shift = finite_shift(top);
      if (top > s.top) {
        const Acc old = finite_shift(s.top);
        const Acc shrink = std::exp(s.top - shift);
        s.rest *= shrink;
        lost *= shrink;
        s.pull += s.mass * (old - shift);
        s.top = top;
      }
      Acc rest = 0;
#pragma unroll
      for (int v = 0; v < kSize; ++v) {
        const Acc e = std::exp(z[v] - shift);
        rest += first + v == skip ? Acc(0) : e;
      }
      add(s.rest, lost, rest);
      if (!weigh) return;
      columns(first, u, [&](int j, Acc, int v) {
        const Acc w = a_.weight(j, row_);
        s.mass += w;
        // a class without target mass counts nothing, even at a logit of −inf
        if (w != 0 || !a_.p.dense) s.pull += w * (z[v] - shift);
      });
    });
    return team_.reduce(s, [](const Sums<Acc>& a, const Sums<Acc>& b) { return joined(a, b); });
  }

  // The loss of the row, and its gradient's Terms times `upstream`.
  LPL_DEVICE Acc loss(const Sums<Acc>& s, Acc upstream, Terms<Acc>& t) {
    const Acc shift = finite_shift(s.top);
    Acc gap[2] = {0, 0};
    if (a_.p.target) gap[0] = a_.logit(row_.label, row_) - shift;
    if (a_.one_label) return a_.of_label(row_, gap[0], s.rest, shift, upstream, t);
    if (a_.p.other) gap[1] = a_.logit(row_.other, row_) - shift;
    Acc of_all[3] = {s.mass * std::log(s.rest) - s.pull, s.mass, s.mass};
    if (a_.spread && a_.p.phi != Phi::log) sum_phi(shift, std::log(s.rest), of_all);
    return a_.of_target(row_, gap, s.rest, of_all, shift, upstream, t);
  }

  // All that is wanted of the gradient, from dz(j, z_j).
  template <typename Gradient>
  LPL_DEVICE void write(Acc upstream, Gradient dz) {
    const Outputs& out = call_.out;
    double total = 0;
    if (a_.normed() && out.grad) {
      pieces_.visit([&](int first, const Acc* u) {
        columns(first, u, [&](int j, Acc z, int v) {
          total += along_norm(a_.to_input(a_.to_offset(dz(j, z)), u[v], j, row_), u[v], row_);
        });
      });
      total = team_.reduce(total, [](double a, double b) { return a + b; });
    }
    const Acc along = Acc(total);
    const i64 at = row_.index * a_.p.c;
    pieces_.visit([&](int first, const Acc* u) {
      Acc du[kSize], d_offset[kSize];
#pragma unroll
      for (int v = 0; v < kSize; ++v) du[v] = d_offset[v] = 0;
      columns(first, u, [&](int j, Acc z, int v) {
        d_offset[v] = a_.to_offset(dz(j, z));
        du[v] = a_.to_input(d_offset[v], u[v], j, row_);
        if (a_.normed()) du[v] = through_norm(a_.p, du[v], along, u[v], row_);
        if (a_.penalised()) du[v] += push_.slope(a_.p, u[v], j) * upstream;
        if (!Bare && out.grad_margin && j == row_.label)
          static_cast<Acc*>(out.grad_margin)[row_.index] = -d_offset[v];
      });
      if (out.grad) pieces_.write(static_cast<T*>(out.grad) + at, first, du);
      if (!Bare && out.grad_perturbed)
        pieces_.write(static_cast<Acc*>(out.grad_perturbed) + at, first, d_offset);
    });
  }

  // The row's part of a contiguous (N, C) matrix, by value(j, z_j).
  template <typename U, typename Value>
  LPL_DEVICE void fill(U* matrix, Value value) {
    if (!matrix) return;
    pieces_.visit([&](int first, const Acc* u) {
      Acc x[kSize];
#pragma unroll
      for (int v = 0; v < kSize; ++v) x[v] = 0;
      columns(first, u, [&](int j, Acc z, int v) { x[v] = value(j, z); });
      pieces_.write(matrix + row_.index * a_.p.c, first, x);
    });
  }

  // Loss and gradients of a row that counts nothing.
  LPL_DEVICE void clear() {
    const auto nothing = [](int, Acc) { return Acc(0); };
    fill(static_cast<T*>(call_.out.grad), nothing);
    if (!Bare) fill(static_cast<Acc*>(call_.out.grad_perturbed), nothing);
    if (team_.rank() != 0) return;
    if (!Bare && call_.out.grad_margin) static_cast<Acc*>(call_.out.grad_margin)[row_.index] = 0;
    if (call_.scratch.losses) static_cast<Acc*>(call_.scratch.losses)[row_.index] = 0;
  }

  LPL_DEVICE bool wants_gradient() const {
    return call_.out.grad || call_.out.grad_perturbed || call_.out.grad_margin;
  }

  // What the first thread says of the whole row.
  LPL_DEVICE void say(Acc loss, const Terms<Acc>& t) {
    if (team_.rank() != 0) return;
    if (a_.penalised()) loss += push_.value;
    if (call_.scratch.losses) static_cast<Acc*>(call_.scratch.losses)[row_.index] = loss;
    if (!call_.scratch.terms) return;
    Acc* to = static_cast<Acc*>(call_.scratch.terms) + 8 * row_.index;
    const Acc terms[7] = {t.shift, t.log_total,  t.strength, t.uniform,
                          t.part,  t.other_part, row_.factor};
    for (int k = 0; k < 7; ++k) to[k] = terms[k];
  }

 private:
  // (Σ w_j φ(ℓ_j), Σ w_j φ'(ℓ_j), Σ w_j) of the row.
  LPL_DEVICE void sum_phi(Acc shift, Acc log_total, Acc* of_all) {
    struct Three {
      Acc value, slope, mass;
    } s = {0, 0, 0};
    pieces_.visit([&](int first, const Acc* u) {
      columns(first, u, [&](int j, Acc z, int) {
        const Acc w = a_.weight(j, row_);
        const PhiValue<Acc> at = a_.phi(log_total - (z - shift));
        if (w != 0 || !a_.p.dense) s.value += w * at.value;
        s.slope += w * at.slope;
        s.mass += w;
      });
    });
    s = team_.reduce(s, [](const Three& a, const Three& b) {
      return Three{a.value + b.value, a.slope + b.slope, a.mass + b.mass};
    });
    of_all[0] = s.value;
    of_all[1] = s.slope;
    of_all[2] = s.mass;
  }

  Team& team_;
  const Call& call_;
  const Algebra<T, Bare>& a_;
  Row<Acc>& row_;
  const Here pieces_;
  Push<Acc> push_;
};

// Loss and gradient of row i under its δ, if any; of rows that have an outcome unless solved.
template <typename T, bool Bare>
struct RowBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    const int outcome = call.scratch.outcome ? call.scratch.outcome[i] : kUnchanged;
    if (outcome == kSolved) return;
    const Algebra<T, Bare> algebra(call);
    const bool moves = outcome != kUnchanged || call.scratch.only_delta;
    Row<Acc> row = algebra.row(i, moves ? static_cast<const Acc*>(call.out.delta) : nullptr);
    TeamRow<Team, T, Bare> here(team, call, algebra, row);
    Terms<Acc> terms{};
    if (!row.live) return here.clear();
    const Acc upstream = here.upstream();
    // without the label's own where that is the whole target, so that 1 − p keeps its digits
    const Sums<Acc> sums =
        here.sums(algebra.one_label ? row.label : -1, algebra.spread && algebra.p.phi == Phi::log);
    const Acc loss = here.loss(sums, upstream, terms);
    here.say(loss, terms);
    if (!here.wants_gradient()) return;
    here.write(upstream, [&](int j, Acc z) {
      return algebra.gradient(z, std::exp(z - terms.shift), j, row, terms);
    });
  }
};

}  // namespace lpl
