// T(u) = u·f(‖u‖_p) of a row of logits: its norm, and what the norm makes of the gradient.
#pragma once

#include <algorithm>
#include <limits>

#include "../lpl_math.h"
#include "simd.h"

namespace lpl {
namespace {

// What a row's norm n does to it: dL/du_j = factor·g_j − pull·s_j for g = dL/dT, with
// pull = factor·bend·Σ g_k u_k/n and s = ∇n.
template <typename Acc>
struct RowNorm {
  Acc factor = 1;       // f(n)
  double length = 0;    // n
  double inverse = 0;   // 1/n, 0 for n as good as 0
  double bend = 0;      // −f'·n/f, over the number of ties for p = ∞; 0 where f is constant
  Acc peak = 0;         // max |u_j|
  bool masked = false;  // some logits are −∞: they stay so, and count nothing
};

// x^p for x ≥ 0, p ≥ 1; at 0 less than any number of use.
inline float power_of(float x, float p) {
  return exp_of(p * log_of(x));
}
inline double power_of(double x, double p) {
  return std::pow(x, p);
}

// |x|, of −0 too, whose sign power_of would take for an exponent.
template <typename Acc>
inline Acc magnitude_of(Acc x) {
  return std::abs(x);
}

// A logit as its norm sees it.
template <typename T>
inline typename AccumulateOf<T>::type counted(T x) {
  const auto value = load(x);
  return value == -INFINITY ? 0 : value;
}

// Whether the sum of powers neither overflowed nor lost what counts, on its way or at its end.
template <typename Acc>
inline bool well_scaled(double sum) {
  return sizeof(Acc) == 8 ? sum > 1e-250 && sum < 1e280 : sum > 1e-25 && sum < 1e30;
}

template <typename Acc, typename T>
RowNorm<Acc> measured_norm(const Problem& problem, const T* u) {
  const i64 c = problem.c;
  const double p = problem.norm_p;
  RowNorm<Acc> row;
  double n = 0, ties = 1;
  bool done = false;
  if (p == 2 || p == 1) {
    double sum;
    if (p == 2) {
      sum = sum_over<Acc>(c, [=](i64 j) { return load(u[j]) * load(u[j]); });
    } else {
      sum = sum_over<Acc>(c, [=](i64 j) { return magnitude_of(load(u[j])); });
    }
    done = well_scaled<Acc>(sum);
    n = p == 2 ? std::sqrt(sum) : sum;
  }
  if (!done) {
    Acc peak = 0, least = 0;
#pragma omp simd reduction(max : peak) reduction(min : least)
    for (i64 j = 0; j < c; ++j) {
      const Acc magnitude = magnitude_of(counted(u[j]));
      peak = magnitude > peak ? magnitude : peak;
      least = load(u[j]) < least ? load(u[j]) : least;
    }
    row.peak = peak;
    row.masked = least == -std::numeric_limits<Acc>::infinity();
    n = peak;
    if (p == std::numeric_limits<double>::infinity()) {
      ties = sum_over<Acc>(c, [=](i64 j) { return Acc(magnitude_of(load(u[j])) == peak); });
    } else if (peak > 0) {
      const Acc power = Acc(p);
      const double sum = sum_over<Acc>(
          c, [=](i64 j) { return power_of(magnitude_of(counted(u[j])) / peak, power); });
      n *= std::pow(sum, 1 / p);
    }
  }
  row.length = n;
  const double length = n + problem.norm_offset;
  if (!(length > problem.norm_limit)) return row;
  row.factor = Acc(problem.norm_gain / length);
  row.inverse = n > kLeastLength ? 1 / n : 0;
  row.bend = n / length / ties;
  return row;
}

// Calls visit(through), with through(u_j, g_j) = factor·g_j − pull·∂n/∂u_j, for any p; n is what
// the row's logits measure.
template <typename Acc, typename Visit>
inline void through_norm(double p, double n, Acc factor, Acc pull, Visit visit) {
  const auto finish = [&](auto slope) {
    visit([=](auto u, Acc own) {
      const Acc x = counted(u), sign = Acc(x > 0) - Acc(x < 0);
      return factor * own - pull * sign * slope(magnitude_of(x));
    });
  };
  const Acc inverse = Acc(n > kLeastLength ? 1 / n : 0), peak = Acc(n), power = Acc(p - 1);
  if (p == 2) return finish([=](Acc x) { return x * inverse; });
  if (p == 1) return finish([](Acc) { return Acc(1); });
  if (p == std::numeric_limits<double>::infinity())
    return finish([=](Acc x) { return Acc(x == peak); });
  finish([=](Acc x) { return power_of(x * inverse, power); });
}

}  // namespace
}  // namespace lpl
