// The solver for classes with several rows in the batch, which share one perturbation δ.
//
// With q_ij the rivals of row i in units of their initial mass, x_j = e^(δ_j) and Z_i the row's
// mass,
//
//     δ_j ← δ_j + a·mean_i(q_ij·x_j / Z_i) ,   Z_i = own_i + Σ_j q_ij·x_j .
//
// Exact classes, those whose mean q_ij is above a threshold, are iterated like that: one
// exponential per class, whatever the number of rows. For all others, the tail, x_j is a function
// of one number
//
//     B_j = (direction·step_size/N)·Σ_i W_i q_ij ,  W_i = Σ_k 1/Z_i      x_j = 1/(1 − B_j) − κ·B_j²
//
// (κ: what the steps' being finite takes from the flow's 1/(1 − B)), so its mass needs the classes
// only through Gram matrix G = QQᵀ, taken once:  Σ_tail q_ij·x_j = Σ_tail q_ij + (a/N)(GW)_i +
// rest_i. The last part, of higher order, is taken from a first solution: its terms grow with the
// square and the cube of the way that W has gone.
#pragma once

#include "../series.h"
#include "call.h"
#include "learned.h"

namespace lpl {
namespace {

template <typename T>
class GroupSolver {
 public:
  using Acc = typename AccumulateOf<T>::type;

  explicit GroupSolver(const Call<T>& call) : call_(call), c_(call.c) {}

  // What a group costs, in plain steps: these take some 6 instructions per logit each, the solver
  // 24 for its sweeps and N/20 for the Gram matrix (counted, 8142 classes, AVX2). It pays where
  // that is less than the steps it saves.
  static double cost(i64 size) { return (24 + double(size) / 20) / 6; }
  static bool pays(i64 size, i64 steps) { return cost(size) < double(steps); }

  // δ of a group into `delta` (C,); place(i) says where the exponentials of a row may go, or null.
  // False, with `delta` unfinished, where the error bound is not met.
  template <typename Place>
  bool run(const Group& group, i64 steps, Acc* delta, int threads, Place place) {
    const double dose = call_.p.step_size * double(steps);
    if (dose > kLargestDose) return false;
    n_ = group.size;
    signed_step_ = call_.p.steps[group.label] > 0 ? call_.p.step_size : -call_.p.step_size;
    for (const double tail : kTails) {
      sweep(group, threads, place, tail != kTails[0]);
      const double threshold = dose > 0 ? std::min(1.0, kTailDose * tail / dose) : 1.0;
      if (!split(std::min(kLargestTail, threshold), threads)) return false;
      squares_.assign(n_, 0.0);
      cubes_.assign(n_, 0.0);
      way_.assign(n_, 0.0);
      iterate(steps);
      if (tail_.empty()) break;
      way_ = w_;
      higher_orders(threads);
      iterate(steps);
      if (error() <= kTolerance) break;
      if (tail == kTails[2]) return false;
    }
    finish(group, delta);
    return true;
  }

 private:
  static constexpr double kLargestDose = 500;  // e^δ has to stay a number
  // Classes of the tail have a mean q and a B of at most these; in double there is no tail, because
  // the orders that are left out would show.
  static constexpr double kTailDose = sizeof(Acc) == 8 ? 0 : 5e-3;
  static constexpr double kLargestTail = sizeof(Acc) == 8 ? 0 : 0.02;
  static constexpr i64 kMostExact = 16 << 20;  // entries of the exact classes' matrix
  // ... of these parts of that, one after the other until the error bound is met.
  static constexpr double kTails[] = {1, 0.2, 0.04};
  static constexpr double kTolerance = series_tolerance<Acc>();

  // q of all rows, and of the target.
  template <typename Place>
  void sweep(const Group& group, int threads, Place place, bool again) {
    rows_.resize(n_);
    lift_.resize(n_);
    scratch_.clear();
    i64 homeless = 0;
    for (i64 r = 0; r < n_; ++r) homeless += (rows_[r] = place(group.rows[r])) == nullptr;
    scratch_.resize(homeless * c_);
    Acc* next = scratch_.data();
    for (i64 r = 0; r < n_; ++r) {
      if (rows_[r]) continue;
      rows_[r] = next;
      next += c_;
    }
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      Vector<Acc> z(c_), capped(call_.p.softcap > 0 ? c_ : 0);
#pragma omp for schedule(static)
      for (i64 r = 0; r < n_; ++r) {
        Acc* q = rows_[r];
        const auto swept = call_.exponentials(group.rows[r], nullptr, group.label, z.data(),
                                              capped.data(), q, again);
        q[group.label] = 0;
        const bool rivals = swept.rest > 0;
        scale_by(Acc(rivals ? 1 / swept.rest : 0), q, c_);
        const double own = double(swept.own) - double(swept.shift);
        lift_[r] = std::min(rivals ? own - std::log(swept.rest) : 0.0, 700.0);
      }
    }
  }

  // Tells exact classes from the tail: q of the former go to `exact_` and are 0 in the rows.
  bool split(double threshold, int threads) {
    Vector<Acc> mean(c_);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (i64 lo = 0; lo < c_; lo += kBlock) {
      const i64 size = std::min(kBlock, c_ - lo);
      std::fill(mean.data() + lo, mean.data() + lo + size, Acc(0));
      for (i64 r = 0; r < n_; ++r) {
        const Acc* q = rows_[r] + lo;
        Acc* sum = mean.data() + lo;
        LPL_SIMD
        for (i64 j = 0; j < size; ++j) sum[j] += q[j];
      }
    }
    exact_classes_.clear();
    for_each_above(mean.data(), Acc(threshold * double(n_)), c_,
                   [&](i64 j) { exact_classes_.push_back(j); });
    const i64 h = exact_classes_.size();
    if (h * n_ > kMostExact) return false;
    exact_.resize(n_ * h);
    tail_mass_.resize(n_);
    tail_.clear();
    bool any = false;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(|| : any)
    for (i64 r = 0; r < n_; ++r) {
      Acc* q = rows_[r];
      for (i64 k = 0; k < h; ++k) {
        exact_[r * h + k] = q[exact_classes_[k]];
        q[exact_classes_[k]] = 0;
      }
      tail_mass_[r] = sum_of(q, c_);
      any = any || tail_mass_[r] > 0;
    }
    if (any) gram(threads);
    return true;
  }

  // tail_ (N, N) = Σ_j q_ij q_kj over the tail.
  void gram(int threads) {
    tail_.assign(n_ * n_, 0.0);
    const i64 blocks = (c_ + kBlock - 1) / kBlock;
    threads = int(std::max<i64>(1, std::min<i64>(threads, blocks)));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      Vector<double> part;
      double* sums = tail_.data();
      if (threads > 1) {
        part.assign(n_ * n_, 0.0);
        sums = part.data();
      }
#pragma omp for schedule(static)
      for (i64 b = 0; b < blocks; ++b) {
        const i64 lo = b * kBlock, size = std::min(kBlock, c_ - lo);
        for (i64 i = 0; i < n_; i += kTile)
          for (i64 k = 0; k <= i; k += kTile) tile(i, k, lo, size, sums);
      }
      if (threads > 1) {
#pragma omp critical
        for (i64 k = 0; k < n_ * n_; ++k) tail_[k] += sums[k];
      }
    }
    for (i64 i = 0; i < n_; ++i)
      for (i64 k = 0; k < i; ++k) tail_[k * n_ + i] = tail_[i * n_ + k];
  }

  // kTile×kTile products of rows over a block. Rows beyond the last repeat it.
  static constexpr i64 kTile = 3;
  void tile(i64 i, i64 k, i64 lo, i64 size, double* sums) const {
    const Acc *left[kTile], *right[kTile];
    for (i64 t = 0; t < kTile; ++t) {
      left[t] = rows_[std::min(i + t, n_ - 1)] + lo;
      right[t] = rows_[std::min(k + t, n_ - 1)] + lo;
    }
    Acc products[kTile * kTile];
    products_of_three(left, right, size, products);
    for (i64 s = 0; s < kTile && i + s < n_; ++s)
      for (i64 t = 0; t < kTile && k + t <= i + s; ++t)
        sums[(i + s) * n_ + k + t] += products[s * kTile + t];
  }

  // All steps, from the start: δ of the exact classes and of the target, W.
  void iterate(i64 steps) {
    const i64 h = exact_classes_.size();
    const double share = 1 / double(n_);
    const double whole_way = sum_of(way_.data(), n_);
    exact_delta_.assign(h, 0.0);
    x_.assign(h, 1.0);
    w_.assign(n_, 0.0);
    rest_.resize(n_);
    z_.resize(n_);
    Vector<double> inverse(n_), mean(h), tail(n_), gained(n_);
    own_delta_ = 0;
    deviation_ = tail_share_ = sum_steps_ = sum_squares_ = 0;
    for (i64 k = 0;; ++k) {
      const double walked = sum_of(w_.data(), n_);
      const double way = whole_way > 0 ? walked / whole_way : 0;
      for (i64 r = 0; r < n_; ++r) {
        double rest = tail_mass_[r] + way * way * ((1 - kappa()) * squares_[r] + way * cubes_[r]);
        if (!tail_.empty())
          rest += signed_step_ * share * dot(tail_.data() + r * n_, w_.data(), n_);
        rest_[r] = rest + dot(exact_.data() + r * h, x_.data(), h);
        z_[r] = rest_[r] + std::exp(std::min(lift_[r] + own_delta_, 700.0));
        inverse[r] = 1 / z_[r];
        if (way > 0 && way_[r] > 0)
          deviation_ = std::max(deviation_, way * way * std::abs(w_[r] / (way * way_[r]) - 1));
      }
      if (k == steps) return;
      std::fill(mean.begin(), mean.end(), 0.0);
      double own = 0;
      for (i64 r = 0; r < n_; ++r) {
        add_scaled(mean.data(), exact_.data() + r * h, inverse[r] * share, h);
        own += rest_[r] * inverse[r] * share;
      }
      for (i64 j = 0; j < h; ++j) mean[j] *= x_[j];
      double a = signed_step_, factor = 1;
      if (call_.p.normalize) {
        double squares = own * own + dot(mean.data(), mean.data(), h);
        if (!tail_.empty()) {
          double tail_squares = 0;
          for (i64 r = 0; r < n_; ++r)
            tail_squares +=
                share * share * inverse[r] * dot(tail_.data() + r * n_, inverse.data(), n_);
          // of first order in B, from the first solution
          const double speed = sum_of(inverse.data(), n_) / std::max(whole_way, 1e-300);
          tail_squares += 2 * way * speed * speed * speed_cubes_;
          squares += tail_squares;
          tail_share_ = std::max(tail_share_, tail_squares / squares);
        }
        const double length = std::sqrt(squares);
        factor = length < kNormFloor ? 0 : 1 / length;
        a *= factor;
      }
      LPL_SIMD
      for (i64 j = 0; j < h; ++j) {
        exact_delta_[j] += a * mean[j];
        x_[j] = exp_of(exact_delta_[j]);
      }
      own_delta_ -= a * own;
      const double weight = factor * sum_of(inverse.data(), n_);
      sum_steps_ += weight;
      sum_squares_ += weight * weight;
      add_scaled(w_.data(), inverse.data(), factor, n_);
    }
  }

  double kappa() const { return sum_steps_ > 0 ? sum_squares_ / (2 * sum_steps_ * sum_steps_) : 0; }

  // B of a block of classes.
  void flow(i64 lo, i64 size, Acc* b) const {
    const double factor = signed_step_ / double(n_);
    std::fill(b, b + size, Acc(0));
    for (i64 r = 0; r < n_; ++r) {
      const Acc weight = Acc(factor * w_[r]);
      const Acc* q = rows_[r] + lo;
      LPL_SIMD
      for (i64 j = 0; j < size; ++j) b[j] += weight * q[j];
    }
  }

  // By row, the tail's Σ q_ij B_j² and Σ q_ij B_j³ at the end of all steps; Σ (B_j/step)² B_j.
  void higher_orders(int threads) {
    const i64 blocks = (c_ + kBlock - 1) / kBlock;
    double speed_cubes = 0, most = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(+ : speed_cubes) \
    reduction(max : most)
    {
      Vector<double> squares, cubes;
      squares.assign(n_, 0.0);
      cubes.assign(n_, 0.0);
      Acc b[kBlock];
#pragma omp for schedule(static)
      for (i64 block = 0; block < blocks; ++block) {
        const i64 lo = block * kBlock, size = std::min(kBlock, c_ - lo);
        flow(lo, size, b);
        Acc cube = 0, high = 0;
#pragma omp simd reduction(+ : cube) reduction(max : high)
        for (i64 j = 0; j < size; ++j) {
          cube += b[j] * b[j] * b[j];
          const Acc magnitude = b[j] < 0 ? -b[j] : b[j];
          high = magnitude > high ? magnitude : high;
        }
        speed_cubes += cube;
        most = std::max(most, double(high));
        for (i64 r = 0; r < n_; ++r) {
          const Acc* q = rows_[r] + lo;
          Acc square = 0, third = 0;
#pragma omp simd reduction(+ : square, third)
          for (i64 j = 0; j < size; ++j) {
            const Acc term = q[j] * b[j] * b[j];
            square += term;
            third += term * b[j];
          }
          squares[r] += square;
          cubes[r] += third;
        }
      }
#pragma omp critical
      for (i64 r = 0; r < n_; ++r) {
        squares_[r] += squares[r];
        cubes_[r] += cubes[r];
      }
    }
    most_ = most;
    speed_cubes_ = signed_step_ == 0 ? 0 : speed_cubes / (signed_step_ * signed_step_);
  }

  // Bound of the relative error of a row's mass: the second order as far as W did not go straight
  // to its end, what the steps' being finite takes from the third order, and the fourth order.
  double error() const {
    double worst = 1.5 * most_ * most_ * tail_share_;  // second order of the gradient's length
    for (i64 r = 0; r < n_; ++r) {
      const double third = (3 * kappa() + most_) * std::abs(cubes_[r]);
      worst = std::max(worst, (2 * deviation_ * squares_[r] + third) / z_[r]);
    }
    return worst;
  }

  void finish(const Group& group, Acc* delta) const {
    const Acc k = Acc(kappa());
    for (i64 lo = 0; lo < c_; lo += kBlock) {
      const i64 size = std::min(kBlock, c_ - lo);
      Acc b[kBlock];
      if (tail_.empty()) {
        std::fill(b, b + size, Acc(0));
      } else {
        flow(lo, size, b);
      }
      // log(1/(1 − B) − κB²)
      LPL_SIMD
      for (i64 j = 0; j < size; ++j)
        delta[lo + j] =
            b[j] * (1 + b[j] * (Acc(0.5) - k + b[j] * (Acc(1.0 / 3) + k + b[j] * Acc(0.25))));
    }
    for (size_t j = 0; j < exact_classes_.size(); ++j)
      delta[exact_classes_[j]] = Acc(exact_delta_[j]);
    delta[group.label] = Acc(own_delta_);
  }

  static double dot(const double* a, const double* b, i64 n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 j = 0; j < n; ++j) sum += a[j] * b[j];
    return sum;
  }
  static void add_scaled(double* sum, const double* x, double factor, i64 n) {
    LPL_SIMD
    for (i64 j = 0; j < n; ++j) sum[j] += factor * x[j];
  }

  const Call<T>& call_;
  const i64 c_;
  i64 n_ = 0;
  double signed_step_ = 0;
  Vector<Acc*> rows_;    // q of each row, 0 at the target and, after split(), at exact classes
  Vector<Acc> scratch_;  // rows that have no other place
  Vector<double> lift_;  // log of the target's mass in units of the rivals'
  Vector<i64> exact_classes_;
  Vector<double> exact_;             // (N, exact classes)
  Vector<double> tail_mass_, tail_;  // (N,); Gram matrix (N, N), empty where there is no tail
  Vector<double> exact_delta_, x_, w_, rest_, z_;
  double own_delta_ = 0;
  Vector<double> way_, squares_, cubes_;  // W and the higher orders where the first solution ended
  double speed_cubes_ = 0, most_ = 0, deviation_ = 0, tail_share_ = 0, sum_steps_ = 0,
         sum_squares_ = 0;
};

}  // namespace
}  // namespace lpl
