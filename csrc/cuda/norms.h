// What a row's norm (lpl_fused.norm) and its penalty on logit distances (lpl_fused.penalty) add.
#pragma once

#include "algebra.h"

namespace lpl {

// A logit as its norm sees it: those of −inf stay so, and count nothing.
template <typename Acc>
LPL_DEVICE inline Acc counted(Acc u) {
  return u == -INFINITY ? Acc(0) : u;
}

// x^p for x ≥ 0.
template <typename Acc>
LPL_DEVICE inline Acc power_of(Acc x, double p) {
  return p == 1 ? x : p == 2 ? x * x : std::pow(x, Acc(p));
}

// What a p-norm is made of.
template <typename Acc>
struct Length {
  Acc peak, total;  // max |u_j|; Σ (|u_j|/peak)^p, for p = ∞ how many are the peak
};

template <typename Team, typename Pieces, typename Acc = typename Pieces::Acc>
LPL_DEVICE Length<Acc> length_of(Team& team, double p, const Pieces& pieces) {
  Acc peak = 0;
  pieces.visit([&](int first, const Acc* u, auto kind) {
#pragma unroll
    for (int v = 0; v < Pieces::kSize; ++v) {
      if (!decltype(kind)::value && !pieces.inside(first + v)) continue;
      const Acc magnitude = std::fabs(counted(u[v]));
      if (magnitude > peak) peak = magnitude;
    }
  });
  peak = team.reduce(peak, [](Acc x, Acc y) { return x > y ? x : y; });
  const bool infinite = p == INFINITY;
  Acc total = 0;
  pieces.visit([&](int first, const Acc* u, auto kind) {
#pragma unroll
    for (int v = 0; v < Pieces::kSize; ++v) {
      if (!decltype(kind)::value && !pieces.inside(first + v)) continue;
      const Acc magnitude = std::fabs(counted(u[v]));
      total += infinite   ? Acc(magnitude == peak)
               : peak > 0 ? power_of(magnitude / peak, p)
                          : magnitude;
    }
  });
  return {peak, team.reduce(total, [](Acc x, Acc y) { return x + y; })};
}

// T(u) = u·f(‖u‖_p): with n = ‖u‖_p and g = dL/dT
//     dL/du_j = f·(g_j − bend·s_j·Σ_k g_k u_k/n) ,   s = ∇n ,   bend = −f'·n/f
template <typename Team, typename Algebra, typename Pieces, typename Acc>
LPL_DEVICE void measure(Team& team, const Algebra& a, const Pieces& pieces, Row<Acc>& row) {
  const double p = a.p.norm_p;
  const bool infinite = p == INFINITY;
  const Length<Acc> found = length_of(team, p, pieces);
  const double total = double(found.total);
  // a norm may be larger than what float holds
  double n = double(found.peak);
  if (!infinite && p == 2) n *= std::sqrt(total);
  if (!infinite && p != 2) n *= p == 1 ? total : std::pow(total, 1 / p);
  const double length = n + a.p.norm_offset;
  row.length = Acc(n);
  row.factor = 1;
  row.bend = 0;
  if (!(length > a.p.norm_limit)) return;
  row.factor = Acc(a.p.norm_gain / length);
  row.bend = Acc(n / length / (infinite ? total : 1.0));
}

// g·u/n
template <typename Acc>
LPL_DEVICE inline Acc along_norm(Acc g, Acc u, const Row<Acc>& row) {
  return row.length == 0 ? Acc(0) : g * (counted(u) / row.length);
}

// What the sum of those multiplies by dL/dz_j.
template <typename Algebra, typename Acc>
LPL_DEVICE inline Acc unit_along(const Algebra& a, Acc u, int j, const Row<Acc>& row) {
  return along_norm(a.to_input(a.to_offset(Acc(1)), u, j, row), u, row);
}

template <typename Acc>
LPL_DEVICE inline Acc through_norm(const Problem& p, Acc g, Acc along, Acc u, const Row<Acc>& row) {
  const Acc x = counted(u), pull = along * row.bend;
  const Acc sign = x > 0 ? pull : x < 0 ? -pull : Acc(0);
  const Acc unit = row.length == 0 ? Acc(1) : row.length, magnitude = std::fabs(x);
  if (p.norm_p == 2) return (g - x * (pull / unit)) * row.factor;
  if (p.norm_p == 1) return (g - sign) * row.factor;
  if (p.norm_p == INFINITY) return (magnitude == row.length ? g - sign : g) * row.factor;
  return (g - sign * power_of(magnitude / unit, p.norm_p - 1)) * row.factor;
}

// The largest logit of a row, and how many are.
template <typename Acc>
struct Top {
  Acc top, ties;
};

template <typename Team, typename Pieces, typename Acc = typename Pieces::Acc>
LPL_DEVICE Top<Acc> top_of(Team& team, const Pieces& pieces) {
  Top<Acc> found = {Acc(-INFINITY), 0};
  pieces.visit([&](int first, const Acc* u, auto kind) {
#pragma unroll
    for (int v = 0; v < Pieces::kSize; ++v) {
      if (!decltype(kind)::value && !pieces.inside(first + v)) continue;
      if (u[v] > found.top) found = {u[v], 0};
      found.ties += u[v] == found.top;
    }
  });
  return team.reduce(found, [](const Top<Acc>& a, const Top<Acc>& b) {
    return Top<Acc>{a.top > b.top ? a.top : b.top,
                    (a.top >= b.top ? a.ties : Acc(0)) + (b.top >= a.top ? b.ties : Acc(0))};
  });
}

// P(h_j) and P'(h_j) of a logit, h_j = (top − u_j − margin)/unit.
template <typename Acc>
LPL_DEVICE inline PhiValue<Acc> penalty_of(const Problem& p, Acc top, Acc u, int j) {
  const Acc h = ((top - u) - Acc(p.penalty_margin)) / Acc(p.penalty_unit);
  if (p.penalty == Penalty::relu) {
    const Acc strength = h > 0 ? Acc(p.penalty_strength) : Acc(0);
    return {h * strength, strength};
  }
  const Acc lam = static_cast<const Acc*>(p.multiplier)[j];
  const Acc rho = static_cast<const Acc*>(p.rho)[j], dose = rho * h;
  if (p.penalty == Penalty::phr) {
    const Acc x = lam + dose;
    // (x² − λ²)/(2ρ) without its cancellation
    if (x > 0) return {h * (lam + x) / 2, x};
    return {-lam * lam / (2 * rho), 0};
  }
  const Acc inverse = 1 / (1 + std::fabs(dose));
  const Acc square = p.penalty == Penalty::p2 ? dose * dose : Acc(0);
  if (h < 0) return {lam * h * inverse, lam * inverse * inverse};
  return {h * (lam + lam * dose + square / 6), lam + 2 * lam * dose + square / 2};
}

// Their sums over the columns of a row.
template <typename Team, typename Pieces, typename Acc = typename Pieces::Acc>
LPL_DEVICE PhiValue<double> penalties_of(Team& team, const Problem& p, Acc top,
                                         const Pieces& pieces) {
  PhiValue<double> sum = {0, 0};
  pieces.visit([&](int first, const Acc* u, auto kind) {
#pragma unroll
    for (int v = 0; v < Pieces::kSize; ++v) {
      if (!decltype(kind)::value && !pieces.inside(first + v)) continue;
      const PhiValue<Acc> at = penalty_of(p, top, u[v], first + v);
      sum.value += double(at.value);
      sum.slope += double(at.slope);
    }
  });
  return team.reduce(sum, [](const PhiValue<double>& a, const PhiValue<double>& b) {
    return PhiValue<double>{a.value + b.value, a.slope + b.slope};
  });
}

// What the penalty adds to a logit's gradient. The maximum takes what it pushes all others away
// with, in even shares.
template <typename Acc>
LPL_DEVICE inline Acc pushed(const Problem& p, Acc u, int j, const Terms<Acc>& t) {
  return (u == t.top ? t.raises : Acc(0)) - penalty_of(p, t.top, u, j).slope * t.each;
}

}  // namespace lpl
