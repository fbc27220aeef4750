// Statistics of a row beside its loss, gathered while the blocks of its sweep are in the first
// cache: the part `Statistics` of lpl_fused/algebra/parts.py, which says what each number is.
#pragma once

#include <cmath>

#include "../numbers.h"
#include "simd.h"

namespace lpl {
namespace {

template <typename Acc>
class RowStatistics {
 public:
  // Memory for exponentials that nobody else wants.
  void reserve() { e_.resize(kBlock); }
  Acc* room() { return e_.data(); }

  void begin() { sums_ = {0, 0, 0, -INFINITY, INFINITY}; }

  // The shift rises.
  void raise(Acc from, Acc to) {
    if (sums_.total == 0) return;
    const double by = double(from) - double(to), factor = std::exp(by);
    sums_.heat = (sums_.heat + sums_.total * by) * factor;
    sums_.total *= factor;
  }

  // A block of classes from `first` on: its z, e^(z − shift) and Σ of them, its raw logits and
  // their largest.
  template <typename T>
  void add(i64 first, i64 size, const Acc* z, const Acc* e, Acc shift, double total, const T* u,
           Acc top) {
    sums_.total += total;
    sums_.heat += sum_over<Acc>(size, [=](i64 j) {
      const Acc above = z[j] - shift;
      return e[j] * (above < Acc(kNothing) ? Acc(kNothing) : above);
    });
    // what a softcap bounds may be −inf throughout
    if (!(top > sums_.top) && sums_.place < INFINITY) return;
    sums_.top = top;
    sums_.place = double(first + first_of(u, size, top));
  }

  // All but the shift, which who sweeps knows.
  const Statistics<double>& sums() const { return sums_; }

 private:
  Statistics<double> sums_{};
  Vector<Acc> e_;
};

// What is left of a row's statistics.
struct RowStats {
  double lse, entropy;
};

// Of Σ e^(z − shift) and Σ e^(z − shift)·(z − shift).
inline RowStats stats_of(double shift, double total, double heat) {
  const double log_total = std::log(total), entropy = log_total - heat / total;
  // of one class rounding leaves less than nothing; nan stays
  return {shift + log_total, entropy < 0 ? 0 : entropy};
}

// `first`: the target is the first of the largest logits.
template <typename Acc>
inline void store_stats(const Outputs& out, i64 i, const RowStats& stats, bool first) {
  static_cast<Acc*>(out.lse)[i] = Acc(stats.lse);
  static_cast<Acc*>(out.entropy)[i] = Acc(stats.entropy);
  out.correct[i] = first && std::isfinite(stats.entropy);
}

}  // namespace
}  // namespace lpl
