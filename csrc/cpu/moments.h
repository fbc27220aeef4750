// Steps of d ← d + a·mean_i σ(s_i + d), classes side by side, from moments of the batch.
//
// About a centre c, with T_i = tanh((s_i + c)/2) and τ = tanh((d − c)/2),
//
//     σ(s_i + d) = 1/2 + (τ + (1 − τ²)·T_i/(1 + T_i τ))/2 ,   1/(1 + T τ) = Σ_n (−τ)^n T^n
//
// so the steps need the batch only through moments mean T^n. |τ| bounds what the series leaves out:
// about one centre one tanh per logit serves all steps that stay near it.
#pragma once

#include "binary_block.h"

namespace lpl {
namespace {

constexpr int kMoments = 10;             // about 0 enough for any steps that add up to 1
constexpr double kLargestMiss = 1.5e-7;  // of δ, which is to have the digits of a float
constexpr int kGroup = 8;                // classes side by side

typedef float Floats __attribute__((vector_size(kGroup * sizeof(float))));
typedef int32_t FloatBits __attribute__((vector_size(kGroup * sizeof(float))));

template <typename Acc>
struct GroupOf {
  using type = Floats;
};
template <>
struct GroupOf<double> {
  using type = Lanes;
};

inline Floats exp_of(Floats x) {
  const Floats shifted = x * 1.44269504088896341f + 12582912.0f;
  const Floats n = shifted - 12582912.0f;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Floats y = (Floats)((FloatBits)p + ((FloatBits)shifted << 23));
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
  V p = square * 2.846606306e-11f + 1.675570683e-7f;
  p = p * square + 1.107845477e-4f;
  p = p * square + 1.677791123e-2f;
  p = p * square + 4.999999796e-1f;
  V q = square * 3.227567632e-9f + 5.261794616e-6f;
  q = q * square + 1.629007772e-3f;
  q = q * square + 1.16889114e-1f;
  q = q * square + 1.0f;
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
  Lanes mean[kMoments + 1], step, count;
  const Lanes mass = load_group<Lanes>(moments);
  const Lanes middle = __builtin_convertvector(load_group<Floats>(centre), Lanes);
  const Lanes inverse = mass > 0 ? 1 / mass : Lanes{};
  for (int n = 1; n <= kMoments; ++n) mean[n] = load_group<Lanes>(moments + n * width) * inverse;
  for (int lane = 0; lane < kGroup; ++lane) {
    const int32_t k = mass[lane] > 0 ? steps[lane] : 0;
    count[lane] = std::abs(k);
    step[lane] = k < 0 ? -step_size : step_size;
  }
  // an early miss grows with the steps that follow, by σ' ≤ 1/4 in each
  const Lanes dose = count * (step_size / 4);
  const Lanes growth = exp_of<false>(dose < 100.0 ? dose : Lanes{} + 100.0);
  for (; walk.k < most; ++walk.k) {
    const Lanes tau = half_tanh(walk.d - middle), square = tau * tau;
    static_assert(kMoments == 10, "the powers that are left out");
    const Lanes left = square * square * (square * square) * square;
    const Lanes active = count > double(walk.k) ? Lanes{} + 1.0 : Lanes{};
    const Lanes miss = walk.miss + active * growth * (0.5 * step_size) * left;
    const double allowed = kLargestMiss * (walk.k + 1) / most;
    for (int lane = 0; lane < kGroup; ++lane)
      if (!(miss[lane] <= allowed)) return;
    Lanes sum = mean[kMoments];
    for (int n = kMoments - 1; n > 0; --n) sum = mean[n] - tau * sum;
    walk.miss = miss;
    walk.d += active * step * (0.5 + 0.5 * (tau + (1 - square) * sum));
  }
}

}  // namespace
}  // namespace lpl
