// The penalty on logit distances above a margin (lpl_fused/penalty.py) of one row.
#pragma once

#include <algorithm>

#include "simd.h"

namespace lpl {
namespace {

// P(h) and dP/dh of a class with multiplier λ and weight ρ; `floor` is −λ²/(2ρ).
template <typename Acc>
struct PenaltyValue {
  Acc value, slope;
};

template <Penalty Kind, typename Acc>
inline PenaltyValue<Acc> penalty_of(Acc h, Acc strength, Acc lam, Acc rho, Acc floor) {
  if (Kind == Penalty::relu) return {strength * (h > 0 ? h : Acc(0)), h > 0 ? strength : Acc(0)};
  const Acc x = lam + rho * h;
  // (x² − λ²)/(2ρ) without its cancellation
  if (Kind == Penalty::phr) return {x > 0 ? h * (lam + x) * Acc(0.5) : floor, x > 0 ? x : Acc(0)};
  const Acc dose = rho * h, square = Kind == Penalty::p2 ? dose * dose : Acc(0);
  const Acc inverse = 1 / (1 + (dose < 0 ? -dose : dose));
  return {h >= 0 ? h * (lam + lam * dose + square * Acc(1.0 / 6)) : lam * h * inverse,
          h >= 0 ? lam + 2 * lam * dose + square * Acc(0.5) : lam * inverse * inverse};
}

template <typename T>
class RowPenalty {
 public:
  using Acc = typename AccumulateOf<T>::type;

  explicit RowPenalty(const Problem& p)
      : p_(p),
        c_(p.c),
        lam_(static_cast<const Acc*>(p.multiplier)),
        rho_(static_cast<const Acc*>(p.rho)) {
    if (p.penalty != Penalty::phr) return;
    floor_.resize(c_);
    for (i64 j = 0; j < c_; ++j) floor_[j] = -lam_[j] * lam_[j] / (2 * rho_[j]);
  }

  // mean_j P of a row of logits; its gradient times `upstream` goes to `push` (C,), if not null.
  double run(const T* u, double upstream, Acc* push) const {
    switch (p_.penalty) {
      case Penalty::none: return 0;
      case Penalty::relu: return run<Penalty::relu>(u, upstream, push);
      case Penalty::phr: return run<Penalty::phr>(u, upstream, push);
      case Penalty::p2: return run<Penalty::p2>(u, upstream, push);
      case Penalty::p3: return run<Penalty::p3>(u, upstream, push);
    }
    return 0;
  }

 private:
  template <Penalty Kind>
  double run(const T* u, double upstream, Acc* push) const {
    Acc top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (i64 j = 0; j < c_; ++j) top = load(u[j]) > top ? load(u[j]) : top;
    double value = 0, slope = 0;
    const Acc each = Acc(upstream / (p_.penalty_unit * double(c_)));
    for (i64 lo = 0; lo < c_; lo += kBlock) {
      const i64 size = std::min(kBlock, c_ - lo);
      const PenaltyValue<Acc> block = push ? of_block<Kind, true>(u, lo, size, top, each, push)
                                           : of_block<Kind, false>(u, lo, size, top, each, push);
      value += block.value;
      slope += block.slope;
    }
    // the maximum takes what it pushes all others away with, in even shares
    if (push) {
      i64 ties = 0;
      for_each_at_least(u, top, [&](i64) { ++ties; });
      const Acc share = Acc(double(each) * slope / double(ties));
      for_each_at_least(u, top, [&](i64 j) { push[j] += share; });
    }
    return value / double(c_);
  }

  template <Penalty Kind, bool Store>
  __attribute__((noinline)) PenaltyValue<Acc> of_block(const T* u, i64 lo, i64 size, Acc top,
                                                       Acc each, Acc* push) const {
    constexpr bool kTables = Kind != Penalty::relu, kFloor = Kind == Penalty::phr;
    const Acc margin = Acc(p_.penalty_margin), inverse = Acc(1 / p_.penalty_unit);
    const Acc strength = Acc(p_.penalty_strength);
    const Acc *lam = lam_, *rho = rho_, *floor = floor_.data();
    Acc value = 0, slope = 0;
#pragma omp simd reduction(+ : value, slope)
    for (i64 j = lo; j < lo + size; ++j) {
      const Acc h = ((top - load(u[j])) - margin) * inverse;
      const PenaltyValue<Acc> at =
          penalty_of<Kind>(h, strength, kTables ? lam[j] : Acc(0), kTables ? rho[j] : Acc(0),
                           kFloor ? floor[j] : Acc(0));
      value += at.value;
      slope += at.slope;
      if (Store) push[j] = -each * at.slope;
    }
    return {value, slope};
  }

  template <typename Found>
  void for_each_at_least(const T* u, Acc top, Found found) const {
    constexpr i64 kChunk = 64;
    for (i64 lo = 0; lo < c_; lo += kChunk) {
      const i64 hi = std::min(c_, lo + kChunk);
      int32_t any = 0;
#pragma omp simd reduction(| : any)
      for (i64 j = lo; j < hi; ++j) any |= int32_t(load(u[j]) >= top);
      if (!any) continue;
      for (i64 j = lo; j < hi; ++j)
        if (load(u[j]) >= top) found(j);
    }
  }

  const Problem& p_;
  const i64 c_;
  const Acc *lam_, *rho_;
  Vector<Acc> floor_;
};

}  // namespace
}  // namespace lpl
