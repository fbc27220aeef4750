// The solver for classes with several rows in the batch, which share one perturbation δ. (Where
// classes or steps are few all classes are exact: see exact_steps.h.)
//
// With q_ij the rivals of row i in units of their initial mass, x_j = e^(δ_j) and Z_i the row's
// mass,
//
//     δ_j ← δ_j + a·mean_i(q_ij·x_j / Z_i) ,   Z_i = own_i + Σ_j q_ij·x_j .
//
// Exact classes, those that move far, are iterated like that: one exponential per class, whatever
// the number of rows. For all others, the tail, x_j is a function of one number
//
//     B_j = (direction·step_size/N)·Σ_i W_i q_ij ,  W_i = Σ_k 1/Z_i      x_j = 1/(1 − B_j) − …
//
// (the rest, what the steps' being finite takes from the flow's 1/(1 − B), is in `Bend`). What the
// tail's mass gains, Σ_tail q_ij·(x_j − 1), is found by relaxation: all steps are taken with the
// gains at hand, W is kept at a few of them, the nodes, and one pass over the rows finds the gains
// there; in between they are interpolated by a polynomial in the mean of W. To begin with, rivals
// do not gain at all. B is linear in W, by factors of one sign, so that the relative distance
// between the W that the steps walk and the one that the gains were found for bounds the error of
// the gains: that is measured at every step, and more rounds are made until it is small enough.
#pragma once

#include "../series.h"
#include "exact_steps.h"
#include "nodes.h"

namespace lpl {
namespace {

template <typename T>
class GroupSolver {
 public:
  using Acc = typename AccumulateOf<T>::type;

  explicit GroupSolver(const Call<T>& call)
      : call_(call), c_(call.c), rows_(call), exact_steps_(call) {}

  // What a row of a group costs, in plain steps: these take some 6 instructions per logit each, the
  // solver's passes 8 to 20 (counted, 8142 classes, AVX2). It pays where that is less than the
  // steps it saves; in double, where a tail would show, exact steps alone do.
  static constexpr double kCost = 3;
  bool pays(const Group& group, i64 steps) const {
    return ExactSteps<T>::pays(group.size, c_, steps) ||
           (sizeof(Acc) == 4 && kCost < double(steps));
  }

  // δ of a group into `delta` (C,); place(i) says where the exponentials of a row may go, or null.
  // False, with `delta` unfinished, where the error bound is not met.
  template <typename Place>
  bool run(const Group& group, i64 steps, Acc* delta, int threads, Place place) {
    const double dose = call_.p.step_size * double(steps);
    if (dose > kLargestDose) return false;
    if (!rows_.sweep(group, threads, place)) return false;
    if (ExactSteps<T>::pays(group.size, c_, steps))
      return exact_steps_.run(rows_, group, steps, delta);
    const int few = few_nodes(dose);
    n_ = group.size;
    signed_step_ = call_.p.steps[group.label] > 0 ? call_.p.step_size : -call_.p.step_size;
    for (const double part : kTails) {
      exact_classes_.clear();
      exact_.clear();
      mass_.resize(n_);
      for (i64 r = 0; r < n_; ++r) mass_[r] = rows_.unit(r) > 0;
      known_.at[0] = known_.count = 0;
      known_.settle();
      walk(steps, few);
      if (lost()) return false;
      if (!collect(threads, part * kLargestTail, true)) return false;
      for (int round = 0; round < kRounds; ++round) {
        walk(steps, std::min(few << round, kMostNodes));
        // with gains that are far off steps may lead nowhere, from where there is no way back
        if (lost()) break;
        if (!(most_ * (1 + distance_) > kLargestB) && error_ <= kTolerance) {
          if (dose > GroupRows<T>::kReach && gain() - std::log(least_) > GroupRows<T>::kReach)
            return false;
          finish(group, delta, threads);
          return true;
        }
        if (round + 1 == kRounds) break;
        collect(threads, 0, false);
      }
    }
    return false;
  }

 private:
  static constexpr double kLargestDose = 500;  // e^δ has to stay a number
  // Classes of the tail have a B of at most kLargestTail, by a first estimate, times one of these,
  // tried one after the other; and of at most kLargestB, whose fourth power is left out.
  static constexpr double kLargestTail = 5e-3;
  static constexpr double kLargestB = 0.012;
  static constexpr double kTails[] = {1, 0.2, 0.04};
  static constexpr int kRounds = 4;
  static constexpr i64 kMostExact = 16 << 20;  // entries of the exact classes' matrix
  static constexpr double kTolerance = series_tolerance<Acc>();
  // To begin with; twice as many in every round. All are multiples of 3.
  static int few_nodes(double dose) { return dose <= 1 ? 3 : 6; }
  static constexpr double kNearest = 2e-3;  // nodes that are nearer than that carry rounding
  static constexpr i64 kChunks = 16;        // that threads share; they do not depend on threads

  bool lost() const { return !(std::abs(own_delta_) < INFINITY); }

  // The most that δ raises a class.
  double gain() const {
    double most = 0;
    for (const double change : exact_delta_) most = std::max(most, change);
    return most;
  }

  // All steps, from the start: δ of the exact classes and of the target, W, nodes, error.
  void walk(i64 steps, int nodes) {
    const i64 h = exact_classes_.size();
    const double share = 1 / double(n_);
    const bool normalize = call_.p.normalize;
    exact_delta_.assign(h, 0.0);
    x_.assign(h, 1.0);
    way_.assign(n_, 0.0);
    taken_.way.assign((kMostNodes + 1) * n_, 0.0);
    taken_.shape.assign(normalize ? (kMostNodes + 1) * n_ : 0, 0.0);
    taken_.at[0] = taken_.count = 0;
    Vector<double> rest(n_), inverse(n_), gains(n_), mean(h), squares;
    squares.assign(n_, 0.0);
    double own_delta = 0, walked = 0, squares_walked = 0, weights[kMostNodes + 1];
    int passed = 0;
    error_ = distance_ = 0;
    least_ = 1;
    for (i64 k = 0;; ++k) {
      known_.interpolate(walked, weights);
      std::fill(gains.begin(), gains.end(), 0.0);
      for (int m = 1; m <= known_.count; ++m)
        add_scaled(gains.data(), known_.gains.data() + m * n_, weights[m], n_);
      double own = 0, inverses = 0;
      for (i64 r = 0; r < n_; ++r) {
        rest[r] = mass_[r] + gains[r] + dot(exact_.data() + r * h, x_.data(), h);
        const double mass = rest[r] + std::exp(std::min(rows_.lift(r) + own_delta, 700.0));
        if (rows_.unit(r) > 0) least_ = std::min(least_, mass / rows_.unit(r));
        inverse[r] = 1 / mass;
        own += rest[r] * inverse[r] * share;
        inverses += inverse[r] * share;
      }
      std::fill(mean.begin(), mean.end(), 0.0);
      for (i64 r = 0; r < n_; ++r)
        add_scaled(mean.data(), exact_.data() + r * h, inverse[r] * share, h);
      for (i64 j = 0; j < h; ++j) mean[j] *= x_[j];
      double a = signed_step_, factor = 1, tail_share = 0;
      if (normalize) {
        double ratio = 0;
        for (int m = 0; m <= known_.count && known_.count; ++m)
          ratio += weights[m] * known_.ratio[m];
        const double length_squared = own * own * (1 + ratio) + dot(mean.data(), mean.data(), h);
        const double length = std::sqrt(length_squared);
        // to begin with the tail's part is unknown: it is at most the target's
        const double longest = known_.count ? length : std::sqrt(length_squared + own * own);
        factor = longest < kNormFloor ? 0 : 1 / length;
        tail_share = factor > 0 ? ratio * own * own / length_squared : 0;
        a *= factor;
      }
      if (known_.count && k > 0) measure(weights, gains, inverse, own, tail_share);

      const double end = known_.at[known_.count];
      const double progress = known_.count ? walked / end : double(k) / double(steps);
      bool due = k > 0 && (k == steps || steps <= nodes);
      for (; passed + 1 < nodes && progress >= Nodes::place(passed + 1, nodes); ++passed)
        due = true;
      if (k == 0 || (due && walked > 0)) {
        // one that is too near the last takes its place
        const bool near = walked - taken_.at[taken_.count] <= kNearest * walked;
        if (k > 0 && !(near && taken_.count)) ++taken_.count;
        const int m = taken_.count;
        taken_.at[m] = walked;
        taken_.bend[m].kappa = k ? squares_walked / (2 * walked * walked) : 0;
        std::copy(way_.begin(), way_.end(), taken_.way.begin() + m * n_);
        if (normalize && own > 0)
          for (i64 r = 0; r < n_; ++r) taken_.shape[m * n_ + r] = inverse[r] / own;
      }
      if (k == steps) break;
      for (i64 r = 0; r < n_; ++r) squares[r] += factor * inverse[r] * factor * inverse[r];
      LPL_SIMD
      for (i64 j = 0; j < h; ++j) {
        exact_delta_[j] += a * mean[j];
        x_[j] = exp_of(exact_delta_[j]);
      }
      own_delta -= a * own;
      const double weight = factor * inverses;
      walked += weight;
      squares_walked += weight * weight;
      add_scaled(way_.data(), inverse.data(), factor, n_);
    }
    own_delta_ = own_delta;
    if (known_.count == 0 || walked == 0) return;
    // κ of a class is at most the largest of its rows, and at least that of equal steps
    const double kappa = taken_.bend[taken_.count].kappa;
    double spread = kappa - 0.5 / double(steps);
    for (i64 r = 0; r < n_; ++r)
      spread = std::max(spread, squares[r] / (2 * way_[r] * way_[r]) - kappa);
    error_ = std::max(error_, most_ * most_ * spread);
  }

  // How far a value is off the one that gains were found for, in units of the latter: as much are
  // the gains.
  static double excess(double value, double found) {
    return found > 0 ? std::abs(value / found - 1) : INFINITY;
  }

  // Error of what a step was taken with, relative to the rows' masses: that of W, which B and most
  // of the gains share, that of W² in their second order, and what becomes of the gradient's
  // length.
  void measure(const double* weights, const Vector<double>& gains, const Vector<double>& inverse,
               double own, double tail_share) {
    double first = 0, second = 0, shapes = 0, gained = 0;
    for (i64 r = 0; r < n_; ++r) {
      double way = 0, square = 0, shape = 0;
      for (int m = 0; m <= known_.count; ++m) {
        const double w = known_.way[m * n_ + r];
        way += weights[m] * w;
        square += weights[m] * w * w;
        if (tail_share > 0) {
          const double s = known_.shape[m * n_ + r];
          shape += weights[m] * s * s;
        }
      }
      first = std::max(first, excess(way_[r], way));
      second = std::max(second, excess(way_[r] * way_[r], square));
      if (tail_share > 0) {
        const double s = inverse[r] / own;
        shapes = std::max(shapes, excess(s * s, shape));
      }
      gained = std::max(gained, std::abs(gains[r]) * inverse[r]);
    }
    distance_ = std::max(distance_, first);
    error_ = std::max(error_, (first + 2 * most_ * second) * gained);
    error_ = std::max(error_, (shapes + 2 * most_ * first) * tail_share);
  }

  // What one chunk of columns adds to collect().
  struct Part {
    Vector<double> gains, shares, masses;
    Vector<i64> classes;
    double squares[kMostNodes + 1] = {0}, most = 0;
  };

  // Gains of the tail at the nodes of the last walk. At `first` classes whose B exceeds `threshold`
  // become exact; false if that are too many.
  bool collect(int threads, double threshold, bool first) {
    std::swap(known_, taken_);
    known_.settle();
    const int count = known_.count;
    const bool normalize = call_.p.normalize;
    // as weights of the exponentials that are in the rows
    const double step = std::abs(signed_step_) / double(n_);
    Vector<Acc> weights((count + 1) * n_), shapes(normalize ? (count + 1) * n_ : 0);
    for (int m = 0; m <= count; ++m)
      for (i64 r = 0; r < n_; ++r) {
        weights[m * n_ + r] = Acc(step * known_.way[m * n_ + r] * rows_.unit(r));
        if (normalize)
          shapes[m * n_ + r] = Acc(known_.shape[m * n_ + r] * rows_.unit(r) / double(n_));
      }
    const i64 width = rows_.width();
    Vector<Part> parts(chunks());
    for_shares(threads, parts.size(), [&](int, i64 begin, i64 end_of_share) {
      typename GroupRows<T>::Tile tile = rows_.tile();
      Vector<Acc> b((count + 1) * width), u(width);
      for (i64 chunk = begin; chunk < end_of_share; ++chunk) {
        Part& part = parts[chunk];
        part.gains.assign((count + 1) * n_, 0.0);
        part.masses.assign(n_, 0.0);
        const i64 end = std::min(c_, (chunk + 1) * chunk_size());
        for (i64 lo = chunk * chunk_size(); lo < end; lo += width) {
          const i64 size = std::min(width, end - lo);
          rows_.read(lo, size, tile);
          for (int m = 1; m <= count; ++m)
            rows_.add(tile, weights.data() + m * n_, size, &b[m * width]);
          const i64 old = part.classes.size();
          const Acc* last = b.data() + count * width;
          if (first && count) {
            for_each_above(last, Acc(threshold), size, [&](i64 j) {
              part.classes.push_back(lo + j);
              for (i64 r = 0; r < n_; ++r)
                part.shares.push_back(double(tile.rows[r][j]) * rows_.unit(r));
            });
          } else if (!first) {
            const auto begin = exact_classes_.begin(), all = exact_classes_.end();
            part.classes.assign(std::lower_bound(begin, all, lo),
                                std::lower_bound(begin, all, lo + size));
          }
          const i64 exact_from = first ? old : 0;
          const auto without_exact = [&](Acc* values) {
            for (size_t k = exact_from; k < part.classes.size(); ++k)
              values[part.classes[k] - lo] = 0;
          };
          if (first) {
            std::fill(b.begin(), b.begin() + size, Acc(1));
            without_exact(b.data());
            for (i64 r = 0; r < n_; ++r) {
              const Acc *row = tile.rows[r], *tail = b.data();
              part.masses[r] += sum_over<Acc>(size, [=](i64 j) { return row[j] * tail[j]; });
            }
          }
          for (int m = 1; m <= count; ++m) without_exact(&b[m * width]);
          part.most = std::max(part.most, double(max_of(last, count ? size : 0)));
          for (int m = 1; m <= count; ++m) gain(known_.bend[m], size, &b[m * width]);
          for (int m = 0; m <= count && normalize; ++m) {
            rows_.add(tile, shapes.data() + m * n_, size, u.data());
            without_exact(u.data());
            const Acc* g = m ? &b[m * width] : nullptr;
            part.squares[m] += sum_over<Acc>(size, [&](i64 j) {
              const Acc v = g ? u[j] * (1 + g[j]) : u[j];
              return v * v;
            });
          }
          rows_.add_products(tile, b.data(), count, size, part.gains.data());
        }
      }
    });
    known_.gains.assign((count + 1) * n_, 0.0);
    std::fill(known_.ratio, known_.ratio + count + 1, 0.0);
    most_ = 0;
    for (const Part& part : parts) {
      for (i64 k = 0; k < (count + 1) * n_; ++k) known_.gains[k] += part.gains[k];
      for (int m = 0; m <= count; ++m) known_.ratio[m] += part.squares[m];
      most_ = std::max(most_, part.most);
    }
    for (int m = 1; m <= count; ++m)
      for (i64 r = 0; r < n_; ++r) known_.gains[m * n_ + r] *= rows_.unit(r);
    return !first || take_exact(parts);
  }

  // The exact classes of all parts.
  bool take_exact(const Vector<Part>& parts) {
    for (const Part& part : parts)
      exact_classes_.insert(exact_classes_.end(), part.classes.begin(), part.classes.end());
    const i64 h = exact_classes_.size();
    if (h * n_ > kMostExact) return false;
    exact_.resize(n_ * h);
    i64 k = 0;
    for (const Part& part : parts)
      for (size_t s = 0; s < part.classes.size(); ++s, ++k)
        for (i64 r = 0; r < n_; ++r) {
          exact_[r * h + k] = part.shares[s * n_ + r];
          mass_[r] -= part.shares[s * n_ + r];
        }
    // what is left of 1 has lost its digits where it is little
    for (i64 r = 0; r < n_; ++r) {
      if (mass_[r] > 0.5) continue;
      mass_[r] = 0;
      for (const Part& part : parts) mass_[r] += part.masses[r] * rows_.unit(r);
    }
    return true;
  }

  i64 chunk_size() const {
    const i64 blocks = (c_ + kBlock - 1) / kBlock;
    return (blocks + kChunks - 1) / kChunks * kBlock;
  }
  i64 chunks() const { return (c_ + chunk_size() - 1) / chunk_size(); }

  // |B| becomes x − 1.
  void gain(Bend bend, i64 size, Acc* b) const {
    const Acc sign = Acc(signed_step_ < 0 ? -1 : 1);
    const Acc second = Acc(bend.second()), third = Acc(bend.third());
    LPL_SIMD
    for (i64 j = 0; j < size; ++j) {
      const Acc t = sign * b[j];
      b[j] = t * (1 + t * (second + t * third));
    }
  }

  void finish(const Group& group, Acc* delta, int threads) const {
    const Bend bend = taken_.bend[taken_.count];
    const Acc second = Acc(bend.log_second()), third = Acc(bend.log_third());
    Vector<Acc> weights(n_);
    for (i64 r = 0; r < n_; ++r)
      weights[r] = Acc(signed_step_ / double(n_) * way_[r] * rows_.unit(r));
    const i64 width = rows_.width();
    for_shares(threads, (c_ + width - 1) / width, [&](int, i64 begin, i64 end) {
      typename GroupRows<T>::Tile tile = rows_.tile();
      for (i64 lo = begin * width; lo < std::min(c_, end * width); lo += width) {
        const i64 size = std::min(width, c_ - lo);
        rows_.read(lo, size, tile);
        Acc* b = delta + lo;
        rows_.add(tile, weights.data(), size, b);
        LPL_SIMD
        for (i64 j = 0; j < size; ++j) b[j] *= 1 + b[j] * (second + b[j] * third);
      }
    });
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
  GroupRows<T> rows_;
  ExactSteps<T> exact_steps_;
  i64 n_ = 0;
  double signed_step_ = 0;
  Vector<i64> exact_classes_;
  Vector<double> exact_, mass_;  // (N, exact classes); (N,), of the tail
  Nodes known_, taken_;          // of the walk that gains were found for, and of the last walk
  Vector<double> exact_delta_, x_, way_;
  double own_delta_ = 0, most_ = 0, error_ = 0, distance_ = 0;
  double least_ = 1;  // mass of a row that has rivals, in its exponentials' unit
};

}  // namespace
}  // namespace lpl
