// The loss of one row and its gradient, for every target form.
#pragma once

#include "penalty.h"
#include "solver.h"

namespace lpl {
namespace {

// What a thread needs to work on rows: scratch of C numbers each, and the sums of table gradients.
template <typename Acc>
struct Workspace {
  Vector<Acc> z, e, pull, capped, dz, push;          // (C,)
  RowNorm<Acc> norm;                                 // of the row at work
  Vector<Acc> grad_scale, grad_offset, grad_margin;  // (C,), zero at first
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
    tables_ = out.grad_scale || out.grad_offset || out.grad_margin || out.grad_perturbed;
  }

  bool wants_grad() const { return out_.grad || tables_; }

  Workspace<Acc> workspace() const {
    Workspace<Acc> w;
    w.z.resize(c_);
    w.e.resize(c_);
    if (soft_) w.pull.resize(c_);
    if (penalised_ && out_.grad) w.push.resize(c_);
    if (p_.softcap > 0) w.capped.resize(c_);
    if (tables_ || p_.softcap > 0) w.dz.resize(c_);
    if (out_.grad_scale) w.grad_scale.assign(c_, 0);
    if (out_.grad_offset) w.grad_offset.assign(c_, 0);
    if (out_.grad_margin) w.grad_margin.assign(c_, 0);
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
  Acc run_solved(i64 i, Solver<T>& solver, int lane) const {
    const Solved<Acc>& solved = solver.solution(lane);
    const i64 y = p_.target[i];
    Pull pull{};
    pull.labels = 1;
    pull.label[0] = y;
    const Acc mass = call_.weight(y);
    // in units of the larger of the two masses, which float always holds
    const double unit = std::max(solved.rest, solved.own), log_unit = std::log(unit);
    const Acc lift = Acc(solved.lift - log_unit);
    const Acc own = Acc(solved.own / unit), rest = Acc(solved.rest / unit);
    const Acc total = own + rest;
    const Acc lse = p_.z_loss > 0 ? Acc(solved.base + log_unit) + std::log(total) : Acc(0);
    settle(pull, &mass, &lift, &own, &rest, total, lse);
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
    if (nothing(i)) {
      clear(i);
      return 0;
    }
    const Acc upstream = this->upstream(i) * call_.sample_weight(i);
    const Pull pull = soft_ ? soft(i, delta, w) : labelled(i, delta, w);
    double penalty = 0;
    if (penalised_) {
      Acc* push = w.push.empty() ? nullptr : w.push.data();
      const double weight = double(this->upstream(i)) * penalty_weight_;
      penalty = penalty_weight_ * penalty_.run(call_.logits(i), weight, push);
    }
    if (wants_grad()) write(i, pull, upstream, w);
    return Acc(double(pull.loss * call_.sample_weight(i)) + penalty);
  }

 private:
  // dL/dz_j = share·e_j − (the pull towards the target); at up to two labels it is known exactly.
  struct Pull {
    Acc loss, share;
    i64 label[2];
    Acc at_label[2];
    int labels;
  };

  bool nothing(i64 i) const {
    return p_.target && call_.ignored(p_.target[i]) && (!p_.other || call_.ignored(p_.other[i]));
  }

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
    Acc* e = wants_grad() ? exponentials(i, w) : nullptr;
    const auto swept = call_.exponentials(i, delta, skip, w.z.data(), w.capped.data(), e);
    w.norm = swept.norm;
    return swept;
  }

  // One label, or the two of a mixed target, unsmoothed.
  Pull labelled(i64 i, const Acc* delta, Workspace<Acc>& w) const {
    Pull pull{};
    Acc mass[2];
    const int64_t* labels[2] = {p_.target, p_.other};
    for (int k = 0; k < (p_.other ? 2 : 1); ++k) {
      const i64 y = labels[k][i];
      if (call_.ignored(y)) continue;
      const Acc m = (k ? 1 - call_.share(i) : call_.share(i)) * call_.weight(y);
      if (pull.labels == 1 && pull.label[0] == y) {
        mass[0] += m;
        continue;
      }
      pull.label[pull.labels] = y;
      mass[pull.labels++] = m;
    }
    // without the first label's own term, so that 1 − p keeps its digits as p → 1
    const i64 y = pull.label[0];
    const auto [top, others, z_own, z, norm] = sweep(i, delta, y, w);
    const Acc own = exp_of(z_own - top);
    const Acc total = Acc(others + own);
    const Acc lse = p_.z_loss > 0 ? top + std::log(total) : Acc(0);
    Acc own_of[2], rest_of[2], lift[2];
    for (int k = 0; k < pull.labels; ++k) {
      lift[k] = (k ? z[pull.label[k]] : z_own) - top;
      own_of[k] = k ? exp_of(lift[k]) : own;
      rest_of[k] = std::max(Acc(k ? others + own - own_of[k] : others), Acc(0));
    }
    settle(pull, mass, lift, own_of, rest_of, total, lse);
    return pull;
  }

  // Loss and gradient of a row with up to two labels, from each label's mass in the target and the
  // masses e^lift = own and rest of its softmax.
  void settle(Pull& pull, const Acc* mass, const Acc* lift, const Acc* own, const Acc* rest,
              Acc total, Acc lse) const {
    const Acc pressure = Acc(2 * p_.z_loss) * lse;
    Acc slope[2], strength = 0;
    for (int k = 0; k < pull.labels; ++k) {
      const Acc ell = cross_entropy_of(lift[k], own[k], rest[k]);
      const PhiValue<Acc> phi = phi_of(ell, p_.phi, Acc(p_.phi_parameter));
      if (mass[k] != 0) pull.loss += mass[k] * (phi.value + Acc(p_.z_loss) * lse * lse);
      slope[k] = mass[k] * phi.slope;
      strength += slope[k] + mass[k] * pressure;
    }
    pull.share = strength / total;
    for (int k = 0; k < pull.labels; ++k)
      pull.at_label[k] = ((strength - slope[k]) * own[k] - slope[k] * rest[k]) / total;
  }

  // Smoothed labels or class probabilities: the target is spread over the row. Fills w.pull.
  Pull soft(i64 i, const Acc* delta, Workspace<Acc>& w) const {
    Acc* t = w.pull.data();
    fill_target(i, t);
    const auto [top, total, unused, z, norm] = sweep(i, delta, -1, w);
    const Acc log_total = std::log(Acc(total));
    const Acc lse = top + log_total;
    const double mass = sum_of(t, c_);

    Pull pull{};
    double loss = 0, slopes = mass;
    if (p_.phi == Phi::log) {
      // a class without target mass counts nothing, even at a logit of −inf
      for (i64 lo = 0; lo < c_; lo += kBlock) {
        const i64 hi = std::min(c_, lo + kBlock);
        Acc part = 0;
#pragma omp simd reduction(+ : part)
        for (i64 j = lo; j < hi; ++j) part += t[j] == 0 ? Acc(0) : t[j] * (z[j] - top);
        loss -= part;
      }
      loss += mass * double(log_total);
    } else {
      slopes = 0;
      for (i64 j = 0; j < c_; ++j) {
        if (t[j] == 0) continue;
        const PhiValue<Acc> phi = phi_of(log_total - (z[j] - top), p_.phi, Acc(p_.phi_parameter));
        loss += double(t[j]) * phi.value;
        t[j] *= phi.slope;
        slopes += t[j];
      }
    }
    pull.loss = Acc(loss + mass * p_.z_loss * double(lse) * double(lse));
    pull.share = Acc((slopes + mass * 2 * p_.z_loss * double(lse)) / total);
    return pull;
  }

  void fill_target(i64 i, Acc* t) const {
    const Acc even = Acc(1) / Acc(c_);
    if (p_.dense) {
      switch (p_.dense_dtype) {
        case DType::f64: return dense_target<double>(i, even, t);
        case DType::f32: return dense_target<float>(i, even, t);
        case DType::bf16: return dense_target<BFloat16>(i, even, t);
        case DType::f16: return dense_target<Float16>(i, even, t);
      }
    }
    Acc spread = 0;
    Acc sharp[2] = {0, 0};
    const int64_t* labels[2] = {p_.target, p_.other};
    for (int k = 0; k < (p_.other ? 2 : 1); ++k) {
      const i64 y = labels[k][i];
      if (call_.ignored(y)) continue;
      const Acc share = k ? 1 - call_.share(i) : call_.share(i);
      const Acc epsilon = p_.smoothing ? Call<T>::table(p_.smoothing)[y] : Acc(p_.label_smoothing);
      spread += share * epsilon * even;
      sharp[k] = share * (1 - epsilon) * call_.weight(y);
    }
    weigh(t, [&](i64) { return spread; });
    for (int k = 0; k < (p_.other ? 2 : 1); ++k)
      if (!call_.ignored(labels[k][i])) t[labels[k][i]] += sharp[k];
  }

  template <typename D>
  void dense_target(i64 i, Acc even, Acc* t) const {
    const D* row = static_cast<const D*>(p_.dense) + i * p_.dense_stride;
    const Acc keep = Acc(1 - p_.label_smoothing), spread = Acc(p_.label_smoothing) * even;
    weigh(t, [&](i64 j) { return Acc(load(row[j])) * keep + spread; });
  }

  template <typename F>
  void weigh(Acc* t, F target) const {
    const Acc* weight = Call<T>::table(p_.weight);
    if (weight) {
      LPL_SIMD
      for (i64 j = 0; j < c_; ++j) t[j] = target(j) * weight[j];
    } else {
      LPL_SIMD
      for (i64 j = 0; j < c_; ++j) t[j] = target(j);
    }
  }

  void write(i64 i, const Pull& pull, Acc upstream, Workspace<Acc>& w) const {
    if (!w.dz.empty()) return write_tables(i, pull, upstream, w);
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
  void write_input(i64 i, const Workspace<Acc>& w, const Pull& pull, Acc upstream, Acc* e,
                   Gradient g) const {
    const RowNorm<Acc>& norm = w.norm;
    const Acc factor = norm.factor;
    if (factor == 1 && norm.bend == 0) {
      store_row(i, w, pull, upstream, [=](i64, Acc own) { return own; }, g);
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
    const Acc each = Acc(double(factor) * norm.bend * norm.inverse * norm.inverse * along);
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
  void write_by_any_norm(i64 i, const Workspace<Acc>& w, const Pull& pull, Acc upstream,
                         Acc* e) const {
    const RowNorm<Acc>& norm = w.norm;
    const T* u = call_.logits(i);
    for (int k = 0; k < pull.labels; ++k) e[pull.label[k]] = label_gradient(pull, k, upstream);
    const double along = sum_over<Acc>(c_, [=](i64 j) { return e[j] * counted(u[j]); });
    const Acc factor = norm.factor;
    const Acc each = Acc(double(factor) * norm.bend * norm.inverse * along);
    const auto finish = [&](auto slope) {
      const auto through = [=](i64 j, Acc own) {
        const Acc x = counted(u[j]), sign = Acc(x > 0) - Acc(x < 0);
        return factor * own - each * sign * slope(magnitude_of(x));
      };
      store_row(i, w, Pull{}, upstream, through, [=](i64 j) { return e[j]; });
    };
    const Acc inverse = Acc(norm.inverse), peak = norm.peak, power = Acc(p_.norm_p - 1);
    if (p_.norm_p == 2) return finish([=](Acc x) { return x * inverse; });
    if (p_.norm_p == 1) return finish([](Acc) { return Acc(1); });
    if (p_.norm_p == std::numeric_limits<double>::infinity())
      return finish([=](Acc x) { return Acc(x == peak); });
    finish([=](Acc x) { return power_of(x * inverse, power); });
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

  // With table gradients or a softcap dL/dz is formed first, then carried on.
  void write_tables(i64 i, const Pull& pull, Acc upstream, Workspace<Acc>& w) const {
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
    const Acc uniform = call_.uniform;
    const Acc* capped = w.capped.data();
    const T* u = call_.logits(i);
    if (out_.grad_offset) add_scaled(w.grad_offset.data(), dz, uniform);
    if (out_.grad_scale) {
      Acc* sum = w.grad_scale.data();
      if (p_.softcap > 0) {
        LPL_SIMD
        for (i64 j = 0; j < c_; ++j) sum[j] += uniform * dz[j] * capped[j];
      } else {
        const Acc length = uniform * w.norm.factor;
        LPL_SIMD
        for (i64 j = 0; j < c_; ++j) sum[j] += length * dz[j] * load(u[j]);
      }
    }
    if (out_.grad_margin) w.grad_margin[p_.target[i]] -= uniform * dz[p_.target[i]];
    if (out_.grad_perturbed) {
      Acc* row = static_cast<Acc*>(out_.grad_perturbed) + i * c_;
      LPL_SIMD
      for (i64 j = 0; j < c_; ++j) row[j] = uniform * dz[j];
    }
    if (!out_.grad) return;
    const Acc* scale = call_.scale;
    const Pull whole{};  // with its labels in dz
    if (p_.softcap > 0) {
      // 1 − tanh² from e^(−2|x|), not from tanh, where it would cancel
      const Acc twice = Acc(-2 / p_.softcap) * w.norm.factor;
      write_input(i, w, whole, upstream, dz, [=](i64 j) {
        const Acc decay = exp_of(twice * magnitude_of(load(u[j])));
        const Acc slope = 4 * decay / ((1 + decay) * (1 + decay));
        return dz[j] * (scale ? scale[j] : uniform) * slope;
      });
    } else {
      write_input(i, w, whole, upstream, dz,
                  [=](i64 j) { return dz[j] * (scale ? scale[j] : uniform); });
    }
  }

  void add_scaled(Acc* sum, const Acc* x, Acc factor) const {
    LPL_SIMD
    for (i64 j = 0; j < c_; ++j) sum[j] += factor * x[j];
  }

  void clear(i64 i) const {
    if (out_.grad) std::memset(grad_row(i), 0, sizeof(T) * c_);
    if (out_.grad_perturbed)
      std::memset(static_cast<Acc*>(out_.grad_perturbed) + i * c_, 0, sizeof(Acc) * c_);
  }

  const Call<T>& call_;
  const Problem& p_;
  const Outputs& out_;
  const double norm_;
  const i64 c_;
  bool soft_, tables_, penalised_, direct_;
  double penalty_weight_ = 1;
  RowPenalty<T> penalty_;
};

}  // namespace
}  // namespace lpl
