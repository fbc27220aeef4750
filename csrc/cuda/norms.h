// What a row's norm (lpl_fused.norm) and its penalty on logit distances (lpl_fused.penalty) add.
#pragma once

#include "algebra.h"
#include "lines.h"

namespace lpl {

// Kahan's sum: as exact after many steps as after one.
template <typename Acc>
LPL_DEVICE inline void add(Acc& total, Acc& lost, Acc term) {
  term -= lost;
  const Acc sum = total + term;
  lost = (sum - total) - term;
  total = sum;
}

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
  Acc peak, total;  // a number; Σ (|u_j|/peak)^p; for p = ∞ max |u_j|, and how many are that
  bool finite;      // known: all u_j are, so that all are counted
};

constexpr float kLeastSum = 1e-25f;  // of powers of numbers that are not scaled

// Σ f(u_j) over the columns of this thread, added up piece by piece.
template <typename Pieces, typename F, typename Acc = typename Pieces::Acc>
LPL_DEVICE Acc sum_of_all(const Pieces& pieces, F f) {
  Acc total = 0;
  pieces.visit_arriving([&](int, const Acc* u, auto) {
    Acc sum = 0;  // columns that do not exist are 0
#pragma unroll
    for (int v = 0; v < Pieces::kSize; ++v) sum = f(u[v], sum);
    total += sum;
  });
  return total;
}

template <typename Algebra, typename Team, typename Pieces, typename Acc = typename Pieces::Acc>
LPL_DEVICE Length<Acc> length_of(Team& team, double p, const Pieces& pieces) {
  LPL_USUALLY(p == 2);
  const auto plus = [](Acc x, Acc y) { return x + y; };
  if (p == 1 || p == 2) {
    Acc total = p == 1 ? sum_of_all(pieces, [](Acc u, Acc sum) { return std::fabs(u) + sum; })
                       : sum_of_all(pieces, [](Acc u, Acc sum) { return std::fma(u, u, sum); });
    total = team.reduce(total, plus);
    // else some are −∞, or it is out of range or near its ends
    const bool in_range = total > kLeastSum && total < 1 / kLeastSum;
    LPL_USUALLY(in_range);
    if (in_range) return {1, total, true};
  }
  Acc peak = 0;
  pieces.visit_arriving([&](int, const Acc* u, auto) {
#pragma unroll
    for (int v = 0; v < Pieces::kSize; ++v) {
      const Acc magnitude = std::fabs(counted(u[v]));
      if (magnitude > peak) peak = magnitude;
    }
  });
  peak = team.reduce(peak, [](Acc x, Acc y) { return x > y ? x : y; });
  Acc total = 0;
  if (p == INFINITY) {
    pieces.visit([&](int first, const Acc* u, auto kind) {
#pragma unroll
      for (int v = 0; v < Pieces::kSize; ++v)
        if (decltype(kind)::value || pieces.inside(first + v))
          total += Acc(std::fabs(counted(u[v])) == peak);
    });
    return {peak, team.reduce(total, plus), false};
  }
  // by a power of two, which rounds nothing; any power p as the reference has it, by the largest
  int exponent = 0;
  if (peak > 0 && peak < INFINITY) std::frexp(peak, &exponent);
  const int most = sizeof(Acc) == 8 ? 1020 : 120;
  exponent = exponent < -most ? -most : exponent > most ? most : exponent;
  const Acc scale = std::ldexp(Acc(1), -exponent);
  pieces.visit([&](int, const Acc* u, auto) {
    Acc sum = 0;  // columns that do not exist are 0
#pragma unroll
    for (int v = 0; v < Pieces::kSize; ++v) {
      const Acc magnitude = std::fabs(counted(u[v])), share = magnitude * scale;
      if (Algebra::has(kRest))
        sum += power_of(peak > 0 ? magnitude / peak : magnitude, p);
      else
        sum += p == 1 ? share : share * share;
    }
    total += sum;
  });
  return {Algebra::has(kRest) ? peak : 1 / scale, team.reduce(total, plus), false};
}

// T(u) = u·f(‖u‖_p): with n = ‖u‖_p and g = dL/dT
//     dL/du_j = f·(g_j − bend·s_j·Σ_k g_k u_k/n) ,   s = ∇n ,   bend = −f'·n/f
template <typename Team, typename Algebra, typename Pieces, typename Acc>
LPL_DEVICE void measure(Team& team, const Algebra& a, const Pieces& pieces, Row<Acc>& row) {
  const double p = a.p.norm_p;
  const Length<Acc> found = length_of<Algebra>(team, p, pieces);
  struct Made {
    Acc factor, length, bend, per_length;
  };
  const Made made = team.template of_first_crew<Made>([&] {
    const bool infinite = p == INFINITY;
    const double total = double(found.total);
    // a norm may be larger than what float holds
    double n = double(found.peak);
    if (!infinite && p == 2) n *= std::sqrt(total);
    if (p == 1) n *= total;
    if constexpr (Algebra::has(kRest))
      if (!infinite && p != 1 && p != 2) n *= std::pow(total, 1 / p);
    const double length = n + a.p.norm_offset;
    Made m = {1, Acc(n), 0, n > kLeastLength ? Acc(1 / n) : Acc(0)};
    if (!(length > a.p.norm_limit)) return m;
    m.factor = Acc(a.p.norm_gain / length);
    m.bend = Acc(n / length / (infinite ? total : 1.0));
    return m;
  });
  row.factor = made.factor;
  row.length = made.length;
  row.bend = made.bend;
  row.per_length = made.per_length;
  row.finite = found.finite;
}

// g·u/n
template <typename Algebra, typename Acc>
LPL_DEVICE inline Acc along_norm(const Algebra& a, Acc g, Acc u, const Row<Acc>& row) {
  // where gradients may cancel digits are worth a division
  if (a.norm == Norm::other) return row.length > 0 ? g * (counted(u) / row.length) : Acc(0);
  return g * (counted(u) * row.per_length);
}

// What the sum of those multiplies by dL/dz_j.
template <typename Algebra, typename Acc>
LPL_DEVICE inline Acc unit_along(const Algebra& a, Acc u, int j, const Row<Acc>& row) {
  return along_norm(a, a.to_input(a.to_offset(Acc(1)), u, j, row), u, row);
}

// du ← dL/du of the columns of a piece from dL/dT.
template <int kSize, typename Algebra, typename Acc>
LPL_DEVICE inline void through_norm(const Algebra& a, Acc along, const Acc* u, const Row<Acc>& row,
                                    Acc* du) {
  LPL_USUALLY(a.norm == Norm::two && row.finite);
  const Acc pull = along * row.bend;
  const auto each = [&](auto direction) {  // s_j of |x|
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      const Acc x = counted(u[v]), s = direction(std::fabs(x)) * pull;
      du[v] = (du[v] - (x > 0 ? s : x < 0 ? -s : Acc(0))) * row.factor;
    }
  };
  if (a.norm == Norm::two) {
    const Acc slope = pull * row.per_length;
    if (row.finite) {
      const Acc by = -slope * row.factor;
#pragma unroll
      for (int v = 0; v < kSize; ++v) du[v] = std::fma(u[v], by, du[v] * row.factor);
      return;
    }
#pragma unroll
    for (int v = 0; v < kSize; ++v) du[v] = (du[v] - counted(u[v]) * slope) * row.factor;
  } else if (a.norm == Norm::one) {
    each([](Acc) { return Acc(1); });
  } else if (a.norm == Norm::most) {
    each([&](Acc magnitude) { return Acc(magnitude == row.length); });
  } else if constexpr (Algebra::has(kRest)) {
    each([&](Acc magnitude) {
      return power_of(row.length > 0 ? magnitude / row.length : magnitude, a.p.norm_p - 1);
    });
  }
}

// The largest logit of a row.
template <typename Team, typename T, typename Pieces, typename Acc = typename Pieces::Acc>
LPL_DEVICE Acc top_of(Team& team, const Pieces& pieces) {
  Largest<T> whole;
  Acc top = -INFINITY;
  pieces.visit_arriving([&](int first, const typename Pieces::Line& line, auto kind) {
    if constexpr (decltype(kind)::value && Pieces::kSize % 2 == 0) {
      whole.template add<Pieces::kSize>(line.value);
    } else {
#pragma unroll
      for (int v = 0; v < Pieces::kSize; ++v) {
        const Acc u = load(line.value[v]);
        if ((decltype(kind)::value || pieces.inside(first + v)) && u > top) top = u;
      }
    }
  });
  if (whole.value() > top) top = whole.value();
  return team.reduce(top, [](Acc a, Acc b) { return a > b ? a : b; });
}

// How many are that.
template <typename Team, typename Pieces, typename Acc = typename Pieces::Acc>
LPL_DEVICE Acc ties_of(Team& team, const Pieces& pieces, Acc top) {
  Acc ties = 0;
  pieces.visit([&](int first, const Acc* u, auto kind) {
#pragma unroll
    for (int v = 0; v < Pieces::kSize; ++v)
      if (decltype(kind)::value || pieces.inside(first + v)) ties += u[v] == top;
  });
  return team.reduce(ties, [](Acc a, Acc b) { return a + b; });
}

// The constants of a row's penalty, once a row.
template <typename Acc>
struct Pull {
  Acc top, margin, per_unit, strength;

  LPL_DEVICE Pull(const Problem& p, Acc top)
      : top(top),
        margin(Acc(p.penalty_margin)),
        per_unit(Acc(1 / p.penalty_unit)),
        strength(Acc(p.penalty_strength)) {}

  // h_j
  LPL_DEVICE Acc distance(Acc u) const { return ((top - u) - margin) * per_unit; }
};

// P(h_j) and P'(h_j) of a logit, h_j = (top − u_j − margin)/unit.
template <typename Acc>
LPL_DEVICE inline PhiValue<Acc> relu_of(const Pull<Acc>& pull, Acc u) {
  const Acc h = pull.distance(u), strength = h > 0 ? pull.strength : Acc(0);
  return {h * strength, strength};
}
template <typename Acc>
LPL_DEVICE inline PhiValue<Acc> penalty_of(const Problem& p, const Pull<Acc>& pull, Acc u, int j) {
  const Acc h = pull.distance(u);
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

// use(v, P, P') for the existing columns of a piece.
template <int kSize, typename Kind, typename Pieces, typename Acc, typename Use>
LPL_DEVICE inline void penalties_of_piece(const Problem& p, const Pull<Acc>& pull,
                                          const Pieces& pieces, int first, const Acc* u, Use use) {
  const bool relu = p.penalty == Penalty::relu;
  LPL_USUALLY(relu);
#pragma unroll
  for (int v = 0; v < kSize; ++v)
    if (relu && (Kind::value || pieces.inside(first + v))) use(v, relu_of(pull, u[v]));
  if (relu) return;
#pragma unroll
  for (int v = 0; v < kSize; ++v)
    if (Kind::value || pieces.inside(first + v)) use(v, penalty_of(p, pull, u[v], first + v));
}

// Their sums over the columns of a row, and how many of these are its largest.
struct Penalties {
  double value, slope, ties;
};

template <typename Team, typename Pieces, typename Acc = typename Pieces::Acc>
LPL_DEVICE Penalties penalties_of(Team& team, const Problem& p, Acc top, const Pieces& pieces) {
  const Pull<Acc> pull(p, top);
  PhiValue<Acc> sum = {0, 0}, lost = {0, 0};
  int ties = 0;
  pieces.visit([&](int first, const Acc* u, auto kind) {
    PhiValue<Acc> part = {0, 0};
    penalties_of_piece<Pieces::kSize, decltype(kind)>(p, pull, pieces, first, u,
                                                      [&](int v, const PhiValue<Acc>& at) {
                                                        part.value += at.value;
                                                        part.slope += at.slope;
                                                        ties += u[v] == top;
                                                      });
    add(sum.value, lost.value, part.value);
    add(sum.slope, lost.slope, part.slope);
  });
  const Penalties wide = {double(sum.value), double(sum.slope), double(ties)};
  return team.reduce(wide, [](const Penalties& a, const Penalties& b) {
    return Penalties{a.value + b.value, a.slope + b.slope, a.ties + b.ties};
  });
}

// du += what the penalty adds to a piece's gradient. The maximum takes what it pushes all others
// away with, in even shares.
template <int kSize, typename Kind, typename Pieces, typename Acc>
LPL_DEVICE inline void add_penalty(const Problem& p, const Pull<Acc>& pull, const Pieces& pieces,
                                   int first, const Acc* u, const Terms<Acc>& t, Acc* du) {
  penalties_of_piece<kSize, Kind>(p, pull, pieces, first, u, [&](int v, const PhiValue<Acc>& at) {
    du[v] += (u[v] == pull.top ? t.raises : Acc(0)) - at.slope * t.each;
  });
}

}  // namespace lpl
