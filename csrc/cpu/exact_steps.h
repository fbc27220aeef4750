// The steps of a class with several rows one by one, with one exponential per class, whatever the
// rows: what costs least where classes are few, or steps, and in double.
//
// With q_ij the rivals of row i in units of their initial mass, x_j = e^(δ_j) and Z_i the row's
// mass,
//
//     δ_j ← δ_j + a·mean_i(q_ij·x_j / Z_i) ,   Z_i = own_i + Σ_j q_ij·x_j .
#pragma once

#include "group_rows.h"

namespace lpl {
namespace {

// sums_r = Σ_j rows_rj·x_j of Rows rows.
template <int Rows>
inline void masses_of(const double* const* rows, const double* x, i64 size, double* sums) {
  const double *a = rows[0], *b = rows[Rows > 1], *c = rows[Rows > 2 ? 2 : 0];
  const double* d = rows[Rows > 3 ? 3 : 0];
  double of_a = 0, of_b = 0, of_c = 0, of_d = 0;
#pragma omp simd reduction(+ : of_a, of_b, of_c, of_d)
  for (i64 j = 0; j < size; ++j) {
    of_a += a[j] * x[j];
    if (Rows > 1) of_b += b[j] * x[j];
    if (Rows > 2) of_c += c[j] * x[j];
    if (Rows > 3) of_d += d[j] * x[j];
  }
  const double all[] = {of_a, of_b, of_c, of_d};
  std::copy(all, all + Rows, sums);
}

template <typename T>
class ExactSteps {
 public:
  using Acc = typename AccumulateOf<T>::type;

  explicit ExactSteps(const Call<T>& call) : p_(call.p), c_(call.c) {}

  // Whether that many rows cost less like this than by the solver, or by plain steps.
  static bool pays(i64 rows, i64 classes, i64 steps) {
    const bool few = rows * classes <= kMost && (kPrecise || classes <= kClasses);
    return few && steps >= kSteps;
  }

  // δ of a group into `delta` (C,). False where steps lead out of what numbers hold.
  bool run(const GroupRows<T>& rows, const Group& group, i64 steps, Acc* delta) {
    take(rows);
    delta_.assign(size_, 0.0);
    x_.assign(size_, 1.0);
    mean_.resize(size_);
    own_delta_ = 0;
    least_ = 1;
    const double step = p_.steps[group.label] > 0 ? p_.step_size : -p_.step_size;
    // a class has at most all of the gradient's length
    p_.step_size <= kShort ? walk<true>(rows, step, steps) : walk<false>(rows, step, steps);
    if (!(std::abs(own_delta_) < INFINITY)) return false;
    // no step is longer
    if (p_.step_size * double(steps) > GroupRows<T>::kReach) {
      const double gain = *std::max_element(delta_.begin(), delta_.begin() + c_);
      if (std::max(gain, 0.0) - std::log(least_) > GroupRows<T>::kReach) return false;
    }
    LPL_SIMD
    for (i64 j = 0; j < c_; ++j) delta[j] = Acc(delta_[j]);
    delta[group.label] = Acc(own_delta_);
    return true;
  }

 private:
  static constexpr bool kPrecise = sizeof(Acc) == 8;
  static constexpr i64 kAtOnce = 16;  // no vector is left in part
  // Counted in instructions (AVX2, classes of 2 to 64 rows, 4 to 50 steps): of 300 classes they
  // take 0.2 to 0.8 of the solver's, of 1000 0.5 to 1.1, of 4000 1.2 to 3 times as many; from 2
  // steps on they take less than plain ones. In double the solver would have no tail, because that
  // would show.
  static constexpr i64 kClasses = 1024, kSteps = 2;
  // Entries of the matrix: in float what a cache holds, and what threads need not share.
  static constexpr i64 kMost = kPrecise ? 16 << 20 : 64 << 10;

  // The rivals' shares of each row, filled up with classes that have none.
  void take(const GroupRows<T>& rows) {
    const i64 n = rows.size();
    size_ = (c_ + kAtOnce - 1) / kAtOnce * kAtOnce;
    shares_.resize(n * size_);
    rows_.resize(n);
    rest_.resize(n);
    weights_.resize(n);
    for (i64 r = 0; r < n; ++r) {
      double* const q = shares_.data() + r * size_;
      std::fill(q + c_, q + size_, 0.0);
      rows_[r] = q;
    }
    typename GroupRows<T>::Tile tile = rows.tile();
    for (i64 lo = 0; lo < c_; lo += rows.width()) {
      const i64 size = std::min(rows.width(), c_ - lo);
      rows.read(lo, size, tile);
      for (i64 r = 0; r < n; ++r) {
        const Acc* const e = tile.rows[r];
        const double unit = rows.unit(r);
        double* const q = shares_.data() + r * size_ + lo;
        LPL_SIMD
        for (i64 j = 0; j < size; ++j) q[j] = unit * double(e[j]);
      }
    }
  }

  // `Brief`: no exponent of a step is above kShort.
  template <bool Brief>
  void walk(const GroupRows<T>& rows, double step, i64 steps) {
    const i64 n = rows.size(), size = size_ / kAtOnce * kAtOnce;
    const double share = 1 / double(n);
    double *const mean = mean_.data(), *const x = x_.data(), *const delta = delta_.data();
    for (i64 k = 0; k < steps; ++k) {
      for (i64 r = 0; r < n; r += 4) {
        const double* const* of = rows_.data() + r;
        switch (n - r) {
          case 1: masses_of<1>(of, x, size, &rest_[r]); break;
          case 2: masses_of<2>(of, x, size, &rest_[r]); break;
          case 3: masses_of<3>(of, x, size, &rest_[r]); break;
          default: masses_of<4>(of, x, size, &rest_[r]);
        }
      }
      double own = 0;
      for (i64 r = 0; r < n; ++r) {
        const double mass = rest_[r] + std::exp(std::min(rows.lift(r) + own_delta_, 700.0));
        if (rows.unit(r) > 0) least_ = std::min(least_, mass / rows.unit(r));
        weights_[r] = share / mass;
        own += rest_[r] * weights_[r];
      }
      sum_of_rows(rows_.data(), weights_.data(), n, size, mean);
      double a = step;
      if (p_.normalize) {
        double squares = own * own;
#pragma omp simd reduction(+ : squares)
        for (i64 j = 0; j < size; ++j) squares += mean[j] * x[j] * (mean[j] * x[j]);
        const double length = std::sqrt(squares);
        a = length < kNormFloor ? 0 : step / length;
      }
      LPL_SIMD
      for (i64 j = 0; j < size; ++j) {
        const double change = a * mean[j] * x[j];
        delta[j] += change;
        x[j] = Brief ? x[j] * short_exp_of<kPrecise>(change) : exp_of(delta[j]);
      }
      own_delta_ -= a * own;
    }
  }

  const Problem& p_;
  const i64 c_;
  i64 size_ = 0;  // of a row
  Vector<double> shares_, delta_, x_, mean_, rest_, weights_;
  Vector<const double*> rows_;
  double own_delta_ = 0, least_ = 1;  // mass of a row that has rivals, in its exponentials' unit
};

}  // namespace
}  // namespace lpl
