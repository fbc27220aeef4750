// The maths of the learned perturbation's solver, shared by every native kernel, host and device.
//
// Rivals j of a row with target y are measured by q_j = e^(z_j) / Σ_{i≠y} e^(z_i). One step of size
// a (= direction·step_size / Z, or / (Z‖g‖) where steps are normalised) maps every e^(z_j + δ_j),
// in units of the rivals' initial mass, by one and the same scalar map
//
//     E(q) = q ,   E ← E·exp(a·E)
//
// so k steps of all rivals with small q are one polynomial E(q) = Σ_{r=1..kOrder} E_r q^r, and
// their mass is Σ E_r M_r with power sums M_r = Σ q^r taken once. E_r is at most D^(r−1), D = Σ|a|,
// because E/(1 − aE) majorises the map; what is cut off is therefore, relative to E(q), at most
// (Dq)^kOrder / (1 − Dq).
#pragma once

#include <cmath>

#include "loops.h"
#include "lpl_math.h"

namespace lpl {
namespace {  // every object has its own, made for its instruction set

constexpr int kOrder = 10;     // terms of E for rivals of middling q
constexpr int kTinyOrder = 5;  // terms that do for the many of tiny q

// What numbers beside a Real are: double, also beside vectors of them.
template <typename Real>
struct ScalarOf {
  using type = double;
};
template <>
struct ScalarOf<float> {
  using type = float;
};

// E ← E·exp(a·E); `Real` is float, double, or a vector of doubles: one per row.
template <int Order = kOrder, typename Real>
LPL_HOST_DEVICE LPL_INLINE void series_step(Real* e, Real a) {
  using Scalar = typename ScalarOf<Real>::type;
  // g = exp(aE) by n·g_n = Σ k·(aE_k)·g_{n−k}
  Real g[Order], slope[Order];
  g[0] = a - a + Scalar(1);
  LPL_UNROLL
  for (int n = 1; n < Order; ++n) {
    slope[n] = a * e[n] * Scalar(n);
    Real sum = slope[n];
    LPL_UNROLL
    for (int k = n - 1; k > 0; --k) sum += slope[k] * g[n - k];
    g[n] = sum * Scalar(1.0 / n);
  }
  LPL_UNROLL
  for (int n = Order; n > 1; --n) {
    Real sum = e[n];
    LPL_UNROLL
    for (int m = n - 1; m > 0; --m) sum += e[m] * g[n - m];
    e[n] = sum;
  }
}

// Coefficients of E², of order 2 to Order: Σ over rivals of squares is Σ_s square[s]·M_s.
template <int Order = kOrder, typename Real>
LPL_HOST_DEVICE LPL_INLINE void series_square(const Real* e, Real* square) {
  LPL_UNROLL
  for (int s = 2; s <= Order; ++s) {
    Real sum = e[1] * e[s - 1];
    LPL_UNROLL
    for (int r = 2; r < s; ++r) sum += e[r] * e[s - r];
    square[s] = sum;
  }
}

// δ(q) = log(E(q)/q) = Σ_{n=1..kOrder−1} log_e[n]·q^n.
LPL_HOST_DEVICE inline void series_log(const double* e, double* log_e) {
  for (int n = 1; n < kOrder; ++n) {
    double sum = n * e[n + 1];
    for (int k = 1; k < n; ++k) sum -= k * log_e[k] * e[n - k + 1];
    log_e[n] = sum / n;
  }
}

// How a row's rivals are told apart: q ≤ tiny, q ≤ middling (by kOrder terms), above: one by one.
struct Thresholds {
  double tiny, middling;
};

// The largest relative error of a probability that the solver leaves, before rounding.
template <typename Acc>
LPL_HOST_DEVICE constexpr double series_tolerance() {
  return sizeof(Acc) == 8 ? 1e-13 : 2e-7;
}

// What an error of Z counts for beside one of a probability. A share ε_k of Z that is missing
// before step k changes the dose by |a_k|·ε_k. It is a term of the order of what is cut off, so
// that it grows with the dose d that was taken until then like (d/D)^kTinyOrder or faster: the sum
// over the steps is at most ∫ ε·(d/D)^kTinyOrder dd from 0 to D.
LPL_HOST_DEVICE constexpr double series_weight(double dose) {
  return 1 + dose / (kTinyOrder + 1);
}

// Bound of the relative error of all probabilities: what is cut off, and what that does to Z and so
// to all later steps.
template <int Order = kOrder>
LPL_HOST_DEVICE inline double series_error(double dose, const Thresholds& cut) {
  static_assert(Order >= kTinyOrder, "the tiny ones' terms are the fewest");
  const double middling = dose * cut.middling, tiny = dose * cut.tiny;
  if (!(middling < 0.5)) return INFINITY;
  const double worst = std::fmax(std::pow(middling, Order), std::pow(tiny, kTinyOrder));
  return series_weight(dose) * 2 * worst;
}

// The largest thresholds that keep the error of a row of this dose within the tolerance.
LPL_HOST_DEVICE inline Thresholds series_thresholds(double dose, double tolerance) {
  const double worst = tolerance / (2 * series_weight(dose));
  const double middling = std::fmin(0.49, std::pow(worst, 1.0 / kOrder) * 0.999);
  const double tiny = std::pow(worst, 1.0 / kTinyOrder) * 0.999;
  if (!(dose > 0)) return {1, 1};
  return {std::fmin(1.0, tiny / dose), std::fmin(1.0, middling / dose)};
}

}  // namespace
}  // namespace lpl
