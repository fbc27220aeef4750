// The tail of rows that take many short steps: see ../series.h.
//
// Within a block of steps a rival moves little, so few terms of a series in E do, E as it is where
// the block begins: x(E) = Σ_{s=1..Inner} x_s E^s. What the tail weighs is Σ x_s P_s with power
// sums P_s = Σ E^s, which are taken once a block, from the series in q that E is there and the
// moments of q. The series is made anew where the block ends, x(E(q)). With d = Σ|a| over a block
// it misses at most (dE)^Inner / (1 − dE) of E, and each step (aE)^kShortTerms / kShortTerms!.
#pragma once

#include "../series.h"
#include "simd.h"

namespace lpl {
namespace {

constexpr int kMostInner = 6;   // terms of x
constexpr int kShortTerms = 4;  // of x·exp(ax), by powers of x

// e^x to 4e-10 of it for |x| ≤ kShort, in the time of few operations.
inline Pack soon_exp_of(Pack x) {
  const Pack square = x * x;
  const Pack low = (1.0 + x) + square * (1.0 / 2 + x * (1.0 / 6));
  const Pack high = (1.0 / 24 + x * (1.0 / 120)) + square * (1.0 / 720 + x * (1.0 / 5040));
  return low + square * square * high;
}

template <int Order>
class ShortSteps {
 public:
  static constexpr bool kWhole = Order <= kMostInner;  // one block is enough
  static constexpr int kInner = kWhole ? Order : kMostInner;

  LPL_INLINE explicit ShortSteps(const Pack* moments) {
    LPL_UNROLL
    for (int r = 1; r <= Order; ++r) {
      moments_[r] = moments[r];
      series_[r] = Pack{} + (r == 1 ? 1.0 : 0.0);
    }
    LPL_UNROLL
    for (int s = 1; s <= kInner; ++s) sums_[s] = moments[s];
    restart();
  }

  LPL_INLINE void begin_block() {
    if (kWhole) return;
    LPL_UNROLL
    for (int s = 1; s <= kInner; ++s) {
      if (s > 1) multiply(s, s / 2, s - s / 2);
      Pack sum = power(s)[s] * moments_[s];
      LPL_UNROLL
      for (int n = s + 1; n <= Order; ++n) sum += power(s)[n] * moments_[n];
      sums_[s] = sum;
    }
    restart();
  }

  // What the tail weighs, and Σ of its squares.
  LPL_INLINE Pack mass() const { return mass_; }
  LPL_INLINE Pack squares() const { return by_[2]; }

  // x ← x·exp(a·x) = x + a·x² + a²/2·x³ + a³/6·x⁴. What a is multiplied with need not wait for it.
  LPL_INLINE void step(Pack a) {
    const Pack second = a * a * (1.0 / 2), third = second * a * (1.0 / 3);
    mass_ += a * by_[2] + (second * by_[3] + third * by_[4]);
    LPL_UNROLL
    for (int s = 2; s <= kInner; ++s) {
      x_[s] += a * to_[2][s];
      if (s > 2) x_[s] += second * to_[3][s];
      if (s > 3) x_[s] += third * to_[4][s];
    }
    look();
  }

  LPL_INLINE void end_block() {
    if (kWhole) return;
    LPL_UNROLL
    for (int n = Order; n > 1; --n) {
      Pack sum = series_[n];
      LPL_UNROLL
      for (int s = 2; s <= kInner; ++s)
        if (s <= n) sum += x_[s] * power(s)[n];
      series_[n] = sum;
    }
  }

  // Coefficients of E(q), from 1 on, after a block.
  LPL_INLINE const Pack* series() const { return kWhole ? x_ : series_; }

 private:
  LPL_INLINE Pack* power(int s) { return s == 1 ? series_ : powers_[s]; }

  // E is x.
  LPL_INLINE void restart() {
    LPL_UNROLL
    for (int s = 1; s <= kInner; ++s) x_[s] = Pack{} + (s == 1 ? 1.0 : 0.0);
    mass_ = sums_[1];
    look();
  }

  // E^s from smaller powers of E.
  LPL_INLINE void multiply(int s, int first, int second) {
    const Pack *x = power(first), *y = power(second);
    LPL_UNROLL
    for (int n = s; n <= Order; ++n) {
      Pack sum = x[first] * y[n - first];
      LPL_UNROLL
      for (int m = first + 1; m <= n - second; ++m) sum += x[m] * y[n - m];
      powers_[s][n] = sum;
    }
  }

  // Powers of x, and what the tail has of them.
  LPL_INLINE void look() {
    LPL_UNROLL
    for (int power = 2; power <= kShortTerms; ++power) {
      const Pack *left = power == 4 ? to_[2] : x_, *right = power == 2 ? x_ : to_[2];
      const int first = power == 4 ? 2 : 1, second = power - first;
      by_[power] = Pack{};
      LPL_UNROLL
      for (int s = power; s <= kInner; ++s) {
        Pack sum = left[first] * right[s - first];
        LPL_UNROLL
        for (int m = first + 1; m <= s - second; ++m) sum += left[m] * right[s - m];
        to_[power][s] = sum;
        by_[power] += sum * sums_[s];
      }
    }
  }

  Pack moments_[Order + 1], series_[Order + 1], powers_[kInner + 1][Order + 1];  // by q
  Pack sums_[kInner + 1], x_[kInner + 1], to_[kShortTerms + 1][kInner + 1];      // by E
  Pack by_[kShortTerms + 1], mass_;
};

}  // namespace
}  // namespace lpl
