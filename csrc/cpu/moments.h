// Steps of d ← d + a·mean_i σ(s_i + d), classes side by side, from moments of the batch.
//
// About a centre c, with T_i = tanh((s_i + c)/2), ρ = tanh((d − c)/4) and Chebyshev's polynomials
// C_n, whose generating function 1/(1 + 2ρT + ρ²) leads to,
//
//     σ(s_i + d) = ½ + ½·(ρ + (1 − ρ²)·Σ_{n ≥ 1} (−ρ)^(n−1) C_n(T_i))
//
// so the steps need the batch only through moments mean T^n. |C_n| ≤ 1, so |ρ| bounds what the
// series leaves out: about one centre one tanh per logit serves all steps that stay near it.
#pragma once

#include "binary_block.h"

namespace lpl {
namespace {

constexpr int kMoments = 10;             // about 0 enough for any steps that add up to 1
constexpr double kLargestMiss = 1.5e-7;  // of δ, which is to have the digits of a float
constexpr int kGroup = 8;                // classes side by side

typedef float Floats __attribute__((vector_size(kGroup * sizeof(float))));
typedef uint32_t FloatBits __attribute__((vector_size(kGroup * sizeof(float))));

template <typename Acc>
struct GroupOf {
  using type = Floats;
};
template <>
struct GroupOf<double> {
  using type = Lanes;
};

inline Floats exp_of(Floats x) {
  Floats shifted;
  const Floats p = exp_near_zero(split_power<float, 127>(x, shifted));
  const Floats y = p * (Floats)((FloatBits)shifted << 23);
  return x < -87.33654f ? Floats{} : y;
}
inline Lanes exp_of(Lanes x) {
  return exp_of<true>(x);
}

template <typename V>
inline V sigmoid_of(V x) {
  const V e = exp_of(x < 0 ? x : -x);
  const V near = 1 / (1 + e);
  return x > 0 ? near : e * near;
}

// tanh(x/2) to 1e-8 of the largest, an odd rational fitted up to where it is 1 in float; nan stays.
template <typename V>
inline V half_tanh(V x) {
  const V far = V{} + 16.5f;
  x = far < x ? far : x;
  x = -far > x ? -far : x;
  const V square = x * x;
  const V p = polynomial(square, 4.999999796e-1f, 1.677791123e-2f, 1.107845477e-4f, 1.675570683e-7f,
                         2.846606306e-11f);
  const V q =
      polynomial(square, 1.0f, 1.16889114e-1f, 1.629007772e-3f, 5.261794616e-6f, 3.227567632e-9f);
  return x * p / q;
}

template <typename V, typename Acc>
inline V load_group(const Acc* from) {
  V values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

// Adds Σ share·T^n, n = 0 … kMoments, of `rows` rows that are `pitch` apart to moments that are
// `width` apart; without shares they are 1, and n = 0 is left to the caller. Few rows: sums of
// floats.
template <bool Shared>
__attribute__((noinline)) void add_moments(const float* s, const float* share, i64 pitch, i64 rows,
                                           const float* centre, double* moments, i64 width) {
  const Floats c = load_group<Floats>(centre);
  Floats s0 = {}, s1 = {}, s2 = {}, s3 = {}, s4 = {}, s5 = {}, s6 = {}, s7 = {}, s8 = {};
  Floats s9 = {}, s10 = {};
  for (i64 i = 0; i < rows; ++i) {
    const Floats t = half_tanh(load_group<Floats>(s + i * pitch) + c);
    const Floats whole = Shared ? load_group<Floats>(share + i * pitch) : Floats{} + 1;
    const Floats t2 = t * t, t3 = t2 * t, fourth = whole * (t2 * t2), eighth = fourth * (t2 * t2);
    s0 += whole;
    s1 += whole * t;
    s2 += whole * t2;
    s3 += whole * t3;
    s4 += fourth;
    s5 += fourth * t;
    s6 += fourth * t2;
    s7 += fourth * t3;
    s8 += eighth;
    s9 += eighth * t;
    s10 += eighth * t2;
  }
  static_assert(kMoments == 10, "as many sums; an array of them would stay in memory");
  const Floats all[kMoments + 1] = {s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10};
  for (int n = Shared ? 0 : 1; n <= kMoments; ++n) {
    double* to = moments + n * width;
    const Lanes sum = load_group<Lanes>(to) + __builtin_convertvector(all[n], Lanes);
    std::memcpy(to, &sum, sizeof(sum));
  }
}

// Coefficients of Chebyshev's polynomials: C_{n+1} = 2x·C_n − C_{n−1}.
struct Chebyshev {
  double of[kMoments + 1][kMoments + 1] = {};

  constexpr Chebyshev() {
    of[0][0] = of[1][1] = 1;
    for (int n = 1; n < kMoments; ++n)
      for (int m = 0; m <= kMoments; ++m)
        of[n + 1][m] = (m > 0 ? 2 * of[n][m - 1] : 0) - of[n - 1][m];
  }
};

// How far the steps of a group of classes have come: k of them, to d. `miss` bounds what the series
// left out, at the end of all steps.
struct Walk {
  Lanes d = {}, miss = {};
  int32_t k = 0;
};

// Goes on with up to `most` steps, from moments that are `width` apart, as long as what the series
// leaves out is as little as promised.
inline void walk_on(const double* moments, i64 width, const int32_t* steps, int32_t most,
                    double step_size, const float* centre, Walk& walk) {
  constexpr Chebyshev chebyshev;
  Lanes mean[kMoments + 1], step, count;  // mean C_n
  const Lanes mass = load_group<Lanes>(moments);
  const Lanes middle = __builtin_convertvector(load_group<Floats>(centre), Lanes);
  const Lanes inverse = mass > 0 ? 1 / mass : Lanes{};
  for (int n = 1; n <= kMoments; ++n) {
    mean[n] = Lanes{} + chebyshev.of[n][0];
    for (int m = 1; m <= n; ++m)
      mean[n] += chebyshev.of[n][m] * (load_group<Lanes>(moments + m * width) * inverse);
  }
  for (int lane = 0; lane < kGroup; ++lane) {
    const int32_t k = mass[lane] > 0 ? steps[lane] : 0;
    count[lane] = std::abs(k);
    step[lane] = k < 0 ? -step_size : step_size;
  }
  // an early miss grows with the steps that follow, by σ' ≤ 1/4 in each
  const Lanes dose = count * (step_size / 4);
  const Lanes growth = exp_of<false>(dose < 100.0 ? dose : Lanes{} + 100.0);
  for (; walk.k < most; ++walk.k) {
    const Lanes rho = half_tanh(0.5 * (walk.d - middle)), square = rho * rho;
    static_assert(kMoments == 10, "the powers that are left out");
    // (1 + |ρ|)·|ρ|^10, where it is of use
    const Lanes left = 1.5 * (square * square * (square * square) * square);
    const Lanes active = count > double(walk.k) ? Lanes{} + 1.0 : Lanes{};
    const Lanes miss = walk.miss + active * growth * (0.5 * step_size) * left;
    const double allowed = kLargestMiss * (walk.k + 1) / most;
    for (int lane = 0; lane < kGroup; ++lane)
      if (!(miss[lane] <= allowed)) return;
    Lanes sum = mean[kMoments];
    for (int n = kMoments - 1; n > 0; --n) sum = mean[n] - rho * sum;
    walk.miss = miss;
    // not times 0: a class that takes no step hears nothing of its logits, which may be nan
    walk.d += active > 0 ? step * (0.5 + 0.5 * (rho + (1 - square) * sum)) : Lanes{};
  }
}

}  // namespace
}  // namespace lpl
