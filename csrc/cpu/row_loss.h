// The loss of one row and its gradient, for every target form.
#pragma once

#include "../parts.h"
#include "penalty.h"
#include "solver.h"

namespace lpl {
namespace {

// What a thread needs to work on rows: scratch, and of the row at work its norm and what its Terms
// are made of.
template <typename Acc>
struct Workspace {
  Vector<Acc> z, e, pull, dz, push;  // (C,)
  Vector<Acc> capped;                // of a block
  Vector<Acc> delta;                 // (C,), of a row that the solver has
  RowStatistics<Acc> stats;
  RowNorm<Acc> norm;
  double along = 0;  // Σ dL/dT_j·u_j/n
  Penalised<Acc> penalised;
  // in units e_j = e^(z_j − shift); of a target that is `uniform`, and what target and other label
  // have beside that, or instead where nothing is
  Acc shift, log_total, uniform, beside[2];
};

template <typename T>
class RowLoss {
 public:
  using Acc = typename AccumulateOf<T>::type;

  RowLoss(const Call<T>& call, const Outputs& out, double norm)
      : call_(call), p_(call.p), out_(out), norm_(norm), c_(call.c), penalty_(call.p) {
    penalised_ = p_.penalty != Penalty::none;
    // no weight touches a penalty, whose mean is over the rows that count
    if (penalised_ && p_.reduction == Reduction::mean)
      penalty_weight_ = norm / double(call.counted_rows());
    soft_ = p_.dense || call.smooth();
    direct_ = kDirectPath.serves(call.features, wanted_of(out));
    differentiates_ = out.grad || (out.terms && p_.norm_p > 0);
    stats_ = out.lse;
  }

  Workspace<Acc> workspace() const {
    Workspace<Acc> w;
    w.z.resize(c_);
    w.e.resize(c_);
    if (soft_) w.pull.resize(c_);
    if (penalised_ && out_.grad) w.push.resize(c_);
    if (p_.softcap > 0) w.capped.resize(kBlock);
    if (p_.softcap > 0) w.dz.resize(c_);
    if (stats_) w.stats.reserve();
    if (stats_ && p_.steps) w.delta.resize(c_);
    return w;
  }

  // Whether rows take the solver's result as it is.
  bool direct() const { return direct_; }

  // The gradient's row i as a place for exponentials, over which it will be written; else null.
  Acc* place(i64 i) const {
    if (!out_.grad || !std::is_same<T, Acc>::value) return nullptr;
    return reinterpret_cast<Acc*>(grad_row(i));
  }

  // Row i as the solver left it, if direct(). Writes its gradient, returns its loss.
  Acc run_solved(i64 i, Solver<T>& solver, int lane, Workspace<Acc>& w) const {
    const Solved<Acc>& solved = solver.solution(lane);
    const i64 y = p_.target[i];
    if (stats_) {  // the row is in a cache, and its exponentials are not yet written over
      solver.perturbation(lane, y, w.delta.data());
      with_stats(i, w.delta.data(), -1, nullptr, w);
    }
    Pull pull{};
    pull.labels = 1;
    pull.label[0] = y;
    pull.counts[0] = true;
    const Acc mass = call_.weight(y);
    // in units of the larger of the two masses, which float always holds
    const double unit = std::max(solved.rest, solved.own), log_unit = std::log(unit);
    const Acc lift = Acc(solved.lift - log_unit);
    const Acc own = Acc(solved.own / unit), rest = Acc(solved.rest / unit);
    const Acc total = own + rest;
    const Acc lse = p_.z_loss > 0 ? Acc(solved.base + log_unit) + std::log(total) : Acc(0);
    Acc slope;
    settle(pull, &mass, &lift, &own, &rest, total, lse, &slope);
    if (out_.grad) {
      const Acc upstream = this->upstream(i) * call_.sample_weight(i);
      double share = double(pull.share) / unit;
      if (p_.through) {
        pull.at_label[0] = Acc(solver.reverse(lane, share, double(pull.at_label[0])));
        share = 1;  // it is in the solution now
      }
      write_solved(i, solved, double(upstream) * share);
      write_labels(i, pull, upstream);
    }
    return pull.loss * call_.sample_weight(i);
  }

  // Row i under `delta` (may be null). Writes its gradient, returns its loss.
  Acc run(i64 i, const Acc* delta, Workspace<Acc>& w) const {
    if (call_.nothing(i)) {
      clear(i);
      return 0;
    }
    const Acc upstream = this->upstream(i) * call_.sample_weight(i);
    const Pull pull = soft_ ? soft(i, delta, w) : labelled(i, delta, w);
    double penalty = 0;
    if (penalised_) {
      Acc* push = w.push.empty() ? nullptr : w.push.data();
      const double weight = double(this->upstream(i)) * penalty_weight_;
      w.penalised = penalty_.run(call_.logits(i), weight, push);
      penalty = penalty_weight_ * w.penalised.value;
    }
    if (differentiates_) write(i, pull, upstream, w);
    if (out_.terms) keep(i, pull, w);
    return Acc(double(pull.loss * call_.sample_weight(i)) + penalty);
  }

 private:
  // dL/dz_j = share·e_j − (the pull towards the target); at up to two labels it is known exactly.
  struct Pull {
    Acc loss, share;
    i64 label[2];
    Acc at_label[2];
    bool counts[2];  // it has a share of the target: a weight of 0 hides no nan
    int labels;
  };

  // What a target has of all classes alike, and at its one or two labels.
  struct Spread {
    Acc even, sharp[2];
  };

  Acc upstream(i64 i) const {
    if (out_.grad_rows) return Call<T>::table(out_.grad_rows)[i * out_.grad_rows_stride];
    return Acc(1 / norm_);
  }

  Acc* exponentials(i64 i, Workspace<Acc>& w) const {
    Acc* own = w.dz.empty() ? place(i) : nullptr;
    return own ? own : w.e.data();
  }
  T* grad_row(i64 i) const { return static_cast<T*>(out_.grad) + i * c_; }

  typename Call<T>::Exponentials sweep(i64 i, const Acc* delta, i64 skip, Workspace<Acc>& w) const {
    Acc* e = differentiates_ ? exponentials(i, w) : nullptr;
    const auto swept = stats_ ? with_stats(i, delta, skip, e, w)
                              : call_.exponentials(i, delta, skip, w.z.data(), w.capped.data(), e);
    w.norm = swept.norm;
    return swept;
  }

  // The same with statistics of the row. Not inlined: few ask.
  __attribute__((noinline)) typename Call<T>::Exponentials with_stats(i64 i, const Acc* delta,
                                                                      i64 skip, Acc* e,
                                                                      Workspace<Acc>& w) const {
    const auto swept = call_.exponentials(i, delta, skip, w.z.data(), w.capped.data(), e, &w.stats);
    const Statistics<double>& found = w.stats.sums();
    const double shift = double(swept.base) + swept.shift;
    store_stats<Acc>(out_, i, stats_of(shift, found.total, found.heat),
                     found.place == double(call_.aim(i)));
    return swept;
  }

  // One label, or the two of a mixed target, unsmoothed. Inlined by force: a call costs short rows.
  __attribute__((always_inline)) Pull labelled(i64 i, const Acc* delta, Workspace<Acc>& w) const {
    Pull pull{};
    Acc mass[2];
    int from[2];
    const int64_t* labels[2] = {p_.target, p_.other};
    for (int k = 0; k < (p_.other ? 2 : 1); ++k) {
      const i64 y = labels[k][i];
      if (call_.ignored(y)) continue;
      const Acc share = k ? 1 - call_.share(i) : call_.share(i), m = share * call_.weight(y);
      if (pull.labels == 1 && pull.label[0] == y) {
        mass[0] += m;
        pull.counts[0] |= share != 0;
        continue;
      }
      pull.label[pull.labels] = y;
      pull.counts[pull.labels] = share != 0;
      from[pull.labels] = k;
      mass[pull.labels++] = m;
    }
    // without a label's own term, so that 1 − p keeps its digits as p → 1: of two that one which
    // may come so far
    const T* u = call_.logits(i);
    const int first = pull.labels == 2 && load(u[pull.label[1]]) > load(u[pull.label[0]]);
    const auto [top, others, z_own, z, norm, base] = sweep(i, delta, pull.label[first], w);
    const Acc own = exp_of(z_own - top);
    const Acc total = Acc(others + own);
    const Acc lse = p_.z_loss > 0 ? (base + top) + std::log(total) : Acc(0);
    Acc own_of[2], rest_of[2], lift[2];
    for (int k = 0; k < pull.labels; ++k) {
      lift[k] = (k == first ? z_own : z[pull.label[k]]) - top;
      own_of[k] = k == first ? own : exp_of(lift[k]);
      double rest = others;
      if (k != first)
        rest = own_of[k] > own ? rest_without(pull.label[k], z, top) : rest - own_of[k] + own;
      rest_of[k] = std::max(Acc(rest), Acc(0));
    }
    Acc slope[2];
    settle(pull, mass, lift, own_of, rest_of, total, lse, slope);
    if (out_.terms) {
      w.shift = base + top;
      w.log_total = std::log(total);
      w.uniform = w.beside[0] = w.beside[1] = 0;
      for (int k = 0; k < pull.labels; ++k) w.beside[from[k]] = pull.at_label[k];
      if (p_.other && p_.other[i] == p_.target[i]) w.beside[1] = w.beside[0];
    }
    return pull;
  }

  // Σ_{j ≠ y} e^(z_j − top), once more, where tables have turned the order of two labels.
  double rest_without(i64 y, const Acc* z, Acc top) const {
    double rest = 0;
    for (i64 lo = 0; lo < c_; lo += kBlock)
      rest += exp_sum<Acc>(z + lo, top, nullptr, std::min(kBlock, c_ - lo), y - lo);
    return rest;
  }

  // Loss and gradient of a row with up to two labels, from each label's mass in the target and the
  // masses e^lift = own and rest of its softmax. Leaves what each label pulls.
  void settle(Pull& pull, const Acc* mass, const Acc* lift, const Acc* own, const Acc* rest,
              Acc total, Acc lse, Acc* slope) const {
    const Acc pressure = Acc(2 * p_.z_loss) * lse;
    Acc strength = 0, push = 0;
    for (int k = 0; k < pull.labels; ++k) {
      const Acc ell = cross_entropy_of(lift[k], own[k], rest[k]);
      const PhiValue<Acc> phi = phi_of(ell, p_.phi, Acc(p_.phi_parameter));
      if (pull.counts[k]) pull.loss += mass[k] * (phi.value + Acc(p_.z_loss) * lse * lse);
      slope[k] = mass[k] * phi.slope;
      push += mass[k] * pressure;
      strength += slope[k];
    }
    strength += push;
    pull.share = strength / total;
    for (int k = 0; k < pull.labels; ++k) {
      // all strength but the label's own, which would cancel where it has all mass
      const Acc others = pull.labels == 2 ? slope[1 - k] + push : push;
      pull.at_label[k] = (others * own[k] - slope[k] * rest[k]) / total;
    }
  }

  // Smoothed labels or class probabilities: the target is spread over the row. Fills w.pull.
  Pull soft(i64 i, const Acc* delta, Workspace<Acc>& w) const {
    Acc* t = w.pull.data();
    const Spread target = fill_target(i, t);
    // without the class that may have all mass, whose rivals' mass is then what log_total is made
    // of
    const i64 lead = leader(i, t);
    const auto [top, others, z_lead, z, norm, base] = sweep(i, delta, lead, w);
    const Acc own = exp_of(z_lead - top), total = Acc(others + own);
    const Acc log_total =
        own >= Acc(others) ? (z_lead - top) + std::log1p(Acc(others) / own) : std::log(total);
    const Acc lse = (base + top) + log_total;
    const double mass = sum_of(t, c_);

    Pull pull{};
    double loss = 0, slopes = mass;
    // where nothing is spread, and of class probabilities, a class without target mass counts
    // nothing, even at a logit of −inf; a class weight of 0 hides no infinite loss
    const bool masses = p_.dense || target.even == 0;
    if (p_.phi == Phi::log) {
      const Acc shift = top;
      const double pulled =
          masses
              ? sum_over<Acc>(c_, [=](i64 j) { return t[j] == 0 ? Acc(0) : t[j] * (z[j] - shift); })
              : sum_over<Acc>(c_, [=](i64 j) { return t[j] * (z[j] - shift); });
      loss = mass * double(log_total) - pulled;
    } else {
      slopes = 0;
      for (i64 j = 0; j < c_; ++j) {
        if (masses && t[j] == 0) continue;
        const PhiValue<Acc> phi = phi_of(log_total - (z[j] - top), p_.phi, Acc(p_.phi_parameter));
        loss += double(t[j]) * phi.value;
        t[j] *= phi.slope;
        slopes += t[j];
      }
    }
    pull.loss = Acc(loss + mass * p_.z_loss * double(lse) * double(lse));
    pull.share = Acc((slopes + mass * 2 * p_.z_loss * double(lse)) / total);
    if (out_.terms) {
      w.shift = base + top;
      w.log_total = log_total;
      w.uniform = target.even;
      w.beside[0] = w.beside[1] = 0;
      const int64_t* labels[2] = {p_.target, p_.other};
      for (int k = 0; k < 2; ++k) {
        if (target.sharp[k] == 0) continue;
        const Acc ell = log_total - (z[labels[k][i]] - top);
        w.beside[k] = -target.sharp[k] * phi_of(ell, p_.phi, Acc(p_.phi_parameter)).slope;
      }
    }
    return pull;
  }

  // The class that has most of row i's target.
  i64 leader(i64 i, const Acc* t) const {
    if (!p_.dense) return p_.other && call_.ignored(p_.target[i]) ? p_.other[i] : p_.target[i];
    const i64 at = std::find(t, t + c_, max_of(t, c_)) - t;
    return at < c_ ? at : 0;  // nan throughout
  }

  Spread fill_target(i64 i, Acc* t) const {
    Spread spread{};
    if (p_.dense) {
      spread.even = 1;
      call_.weigh(i, 0, c_, 1, t);
      return spread;
    }
    const int64_t* labels[2] = {p_.target, p_.other};
    for (int k = 0; k < (p_.other ? 2 : 1); ++k) {
      const i64 y = labels[k][i];
      if (call_.ignored(y)) continue;
      const Acc share = k ? 1 - call_.share(i) : call_.share(i);
      const Acc epsilon = p_.smoothing ? Call<T>::table(p_.smoothing)[y] : Acc(p_.label_smoothing);
      spread.even += share * epsilon * (Acc(1) / Acc(c_));
      spread.sharp[k] = share * (1 - epsilon) * call_.weight(y);
    }
    call_.weigh(i, 0, c_, spread.even, t);
    for (int k = 0; k < (p_.other ? 2 : 1); ++k)
      if (!call_.ignored(labels[k][i])) t[labels[k][i]] += spread.sharp[k];
    return spread;
  }

  void write(i64 i, const Pull& pull, Acc upstream, Workspace<Acc>& w) const {
    if (!w.dz.empty()) return write_capped(i, pull, upstream, w);
    const Acc share = upstream * pull.share;
    Acc* e = exponentials(i, w);
    const Acc uniform = call_.uniform;
    const Acc* scale = call_.scale;
    if (soft_) {
      const Acc* t = w.pull.data();
      write_input(i, w, pull, upstream, e, [=](i64 j) {
        return (share * e[j] - upstream * t[j]) * (scale ? scale[j] : uniform);
      });
    } else if (scale) {
      write_input(i, w, pull, upstream, e, [=](i64 j) { return share * e[j] * scale[j]; });
    } else {
      const Acc factor = share * uniform;
      write_input(i, w, pull, upstream, e, [=](i64 j) { return factor * e[j]; });
    }
  }

  // dL/du from the gradient g(j) of what the norm hands on; at the labels it is that of `pull`.
  // g(j) reads `e` at j, which may lie where the result goes.
  template <typename Gradient>
  void write_input(i64 i, Workspace<Acc>& w, const Pull& pull, Acc upstream, Acc* e,
                   Gradient g) const {
    const RowNorm<Acc>& norm = w.norm;
    const Acc factor = norm.factor;
    if (factor == 1 && norm.bend == 0) {
      if (out_.grad) store_row(i, w, pull, upstream, [=](i64, Acc own) { return own; }, g);
      return;
    }
    // the labels' own terms apart, so that 1 − p keeps its digits as p → 1
    for (int k = 0; k < pull.labels; ++k) e[pull.label[k]] = 0;
    if (p_.norm_p != 2 || norm.masked) {
      LPL_SIMD
      for (i64 j = 0; j < c_; ++j) e[j] = g(j);
      return write_by_any_norm(i, w, pull, upstream, e);
    }
    const T* u = call_.logits(i);
    double along = sum_over<Acc>(c_, [=](i64 j) { return g(j) * load(u[j]); });
    for (int k = 0; k < pull.labels; ++k)
      along += double(label_gradient(pull, k, upstream)) * double(load(u[pull.label[k]]));
    w.along = norm.inverse * along;
    if (!out_.grad) return;
    const Acc each = Acc(double(factor) * norm.bend * norm.inverse * w.along);
    const auto through = [=](i64 j, Acc own) { return factor * own - each * load(u[j]); };
    store_row(i, w, pull, upstream, through, g);
  }

  // The row of dL/du, through(j, g_j) and what the penalty adds.
  template <typename Through, typename Gradient>
  void store_row(i64 i, const Workspace<Acc>& w, const Pull& pull, Acc upstream, Through through,
                 Gradient g) const {
    T* out = grad_row(i);
    const Acc* push = w.push.data();
    if (w.push.empty()) {
      LPL_SIMD
      for (i64 j = 0; j < c_; ++j) out[j] = store<T>(through(j, g(j)));
    } else {
      LPL_SIMD
      for (i64 j = 0; j < c_; ++j) out[j] = store<T>(through(j, g(j)) + push[j]);
    }
    for (int k = 0; k < pull.labels; ++k) {
      const i64 y = pull.label[k];
      const Acc value = through(y, label_gradient(pull, k, upstream));
      out[y] = store<T>(w.push.empty() ? value : value + push[y]);
    }
  }

  Acc label_gradient(const Pull& pull, int k, Acc upstream) const {
    return upstream * pull.at_label[k] * scale_of(pull.label[k]);
  }

  // The same, whatever p, and with masked classes; the gradient g comes in `e`.
  void write_by_any_norm(i64 i, Workspace<Acc>& w, const Pull& pull, Acc upstream, Acc* e) const {
    const RowNorm<Acc>& norm = w.norm;
    const T* u = call_.logits(i);
    for (int k = 0; k < pull.labels; ++k) e[pull.label[k]] = label_gradient(pull, k, upstream);
    w.along = norm.inverse * sum_over<Acc>(c_, [=](i64 j) { return e[j] * counted(u[j]); });
    if (!out_.grad) return;
    const Acc each = Acc(double(norm.factor) * norm.bend * w.along);
    through_norm<Acc>(p_.norm_p, norm.length, norm.factor, each, [&](auto through) {
      const auto at = [=](i64 j, Acc own) { return through(u[j], own); };
      store_row(i, w, Pull{}, upstream, at, [=](i64 j) { return e[j]; });
    });
  }

  void write_labels(i64 i, const Pull& pull, Acc upstream) const {
    T* out = grad_row(i);
    for (int k = 0; k < pull.labels; ++k) {
      const i64 y = pull.label[k];
      out[y] = store<T>(label_gradient(pull, k, upstream));
    }
  }

  Acc scale_of(i64 j) const { return call_.scale ? call_.scale[j] : call_.uniform; }

  // The rivals' gradient, share·E(q_j): by a short polynomial, then where that does not do.
  void write_solved(i64 i, const Solved<Acc>& solved, double share) const {
    T* out = grad_row(i);
    const Acc* e = solved.e;
    const Acc* scale = call_.scale;
    const Acc inverse = Acc(solved.inverse);
    const double factor = scale ? share : share * double(call_.uniform);
    static_assert(kTinyOrder == 5, "as many coefficients as stand here");
    const Acc first = Acc(factor * solved.series[1]), second = Acc(factor * solved.series[2]);
    const Acc third = Acc(factor * solved.series[3]), fourth = Acc(factor * solved.series[4]);
    const Acc fifth = Acc(factor * solved.series[5]);
    const auto value = [&](Acc q) {
      return ((((fifth * q + fourth) * q + third) * q + second) * q + first) * q;
    };
    if (scale) {
      LPL_SIMD
      for (i64 j = 0; j < c_; ++j) out[j] = store<T>(value(e[j] * inverse) * scale[j]);
    } else {
      LPL_SIMD
      for (i64 j = 0; j < c_; ++j) out[j] = store<T>(value(e[j] * inverse));
    }
    for (size_t k = 0; k < solved.middling.size(); ++k) {
      const i64 j = solved.middling[k];
      out[j] = store<T>(Acc(share * solved.at(solved.middling_q[k])) * scale_of(j));
    }
    for (size_t k = 0; k < solved.head.size(); ++k) {
      const i64 j = solved.head[k];
      out[j] = store<T>(Acc(share * solved.head_mass[k]) * scale_of(j));
    }
  }

  // With a softcap dL/dz is formed first, then carried on.
  void write_capped(i64 i, const Pull& pull, Acc upstream, Workspace<Acc>& w) const {
    const Acc share = upstream * pull.share;
    const Acc* e = w.e.data();
    Acc* dz = w.dz.data();
    if (soft_) {
      const Acc* t = w.pull.data();
      LPL_SIMD
      for (i64 j = 0; j < c_; ++j) dz[j] = share * e[j] - upstream * t[j];
    } else {
      LPL_SIMD
      for (i64 j = 0; j < c_; ++j) dz[j] = share * e[j];
      for (int k = 0; k < pull.labels; ++k) dz[pull.label[k]] = upstream * pull.at_label[k];
    }
    const Acc uniform = call_.uniform, inverse = w.norm.factor * Acc(1 / p_.softcap);
    const T* u = call_.logits(i);
    const Acc* scale = call_.scale;
    const Pull whole{};  // with its labels in dz
    write_input(i, w, whole, upstream, dz, [=](i64 j) {
      return dz[j] * (scale ? scale[j] : uniform) * cap_slope(load(u[j]) * inverse);
    });
  }

  // What the gradient of row i is made of, for an upstream of 1.
  void keep(i64 i, const Pull& pull, const Workspace<Acc>& w) const {
    const Acc weight = call_.sample_weight(i);
    const double each = penalised_ ? penalty_weight_ * penalty_.each_of() : 0;
    static_cast<Terms<Acc>*>(out_.terms)[i] = {
        w.norm.factor,
        Acc(w.norm.length),
        Acc(w.norm.bend),
        w.penalised.top,
        w.shift,
        w.log_total,
        weight * pull.share,
        weight * w.uniform,
        weight * w.beside[0],
        weight * w.beside[1],
        Acc(w.norm.bend == 0 ? 0 : w.along * norm_),
        Acc(each * RowPenalty<T>::raise_of(w.penalised)),
        Acc(each),
    };
  }

  void clear(i64 i) const {
    if (out_.grad) std::memset(grad_row(i), 0, sizeof(T) * c_);
    if (out_.terms) static_cast<Terms<Acc>*>(out_.terms)[i] = {};
    if (stats_) store_stats<Acc>(out_, i, {}, false);
  }

  const Call<T>& call_;
  const Problem& p_;
  const Outputs& out_;
  const double norm_;
  const i64 c_;
  bool soft_, penalised_, differentiates_, direct_, stats_;
  double penalty_weight_ = 1;
  RowPenalty<T> penalty_;
};

}  // namespace
}  // namespace lpl
