// The penalty on logit distances above a margin (lpl_fused/penalty.py) of one row.
#pragma once

#include <algorithm>

#include "simd.h"

namespace lpl {
namespace {

// P and dP/dh of a class with multiplier λ and weight ρ, up to the factors of `run`: relu of h in
// units of the logits, without its strength; phr as 2P and with ρ in those units, `floor` −λ²/ρ.
template <typename Acc>
struct PenaltyValue {
  Acc value, slope;
};

template <Penalty Kind, typename Acc>
inline PenaltyValue<Acc> penalty_of(Acc h, Acc lam, Acc rho, Acc floor) {
  if (Kind == Penalty::relu) return {h > 0 ? h : Acc(0), h > 0 ? Acc(1) : Acc(0)};
  const Acc x = lam + rho * h;
  // (x² − λ²)/(2ρ) without its cancellation
  if (Kind == Penalty::phr) return {x > 0 ? h * (lam + x) : floor, x > 0 ? x : Acc(0)};
  const Acc dose = rho * h, square = Kind == Penalty::p2 ? dose * dose : Acc(0);
  const Acc inverse = 1 / (1 + (dose < 0 ? -dose : dose));
  return {h >= 0 ? h * (lam + lam * dose + square * Acc(1.0 / 6)) : lam * h * inverse,
          h >= 0 ? lam + 2 * lam * dose + square * Acc(0.5) : lam * inverse * inverse};
}

// What a row's penalty comes to: mean_j P, the largest logit and how many are as large, Σ dP/dh.
template <typename Acc>
struct Penalised {
  double value = 0;
  Acc top = 0;
  i64 ties = 1;
  double slope = 0;
};

template <typename T>
class RowPenalty {
 public:
  using Acc = typename AccumulateOf<T>::type;

  explicit RowPenalty(const Problem& p)
      : p_(p), c_(p.c), lam_(by_column(p, p.multiplier)), rho_(by_column(p, p.rho)) {
    if (p.penalty == Penalty::none) return;
    const bool relu = p.penalty == Penalty::relu, phr = p.penalty == Penalty::phr;
    const double inverse = 1 / p.penalty_unit;
    strength_ = relu ? p.penalty_strength : 1;
    unit_ = phr ? inverse / 2 : relu ? strength_ * inverse : 1;
    if (!phr) return;
    floor_.resize(c_);
    scaled_.resize(c_);
    for (i64 j = 0; j < c_; ++j) {
      scaled_[j] = rho_[j] * Acc(inverse);
      floor_[j] = -lam_[j] * lam_[j] / scaled_[j];
    }
    rho_ = scaled_.data();
  }

  // Of a row of logits; the penalty's gradient times `upstream` goes to `push` (C,), if not null.
  Penalised<Acc> run(const T* u, double upstream, Acc* push) const {
    Penalised<Acc> row;
    row.top = -INFINITY;
    // the largest logit, and the blocks between which it is found
    i64 first = 0, last = 0;
    for (i64 lo = 0; lo < c_; lo += kBlock) {
      const Acc here = largest(u + lo, std::min(kBlock, c_ - lo));
      if (here > row.top) first = lo;
      if (here >= row.top) last = lo;
      row.top = std::max(row.top, here);
    }
    const double each = upstream * each_of();
    for (i64 lo = 0; lo < c_; lo += kBlock) {
      const Sums block = at(u, lo, row.top, each, push ? push + lo : nullptr);
      row.value += block.value;
      row.slope += block.slope;
    }
    row.value /= double(c_);
    const i64 end = std::min(c_, last + kBlock);
    row.ties = 0;
    for (i64 lo = first; lo < end; lo += kPart) row.ties += count_of(u, lo, end, row.top);
    if (push) raise(u, first, end, row.top, Acc(each * raise_of(row)), push);
    return row;
  }

  // dL/du_j of the mean is −each_of()·dP/dh_j, and beside it raise_of()·each_of() at the largest.
  double each_of() const { return 1 / p_.penalty_unit / double(p_.all_classes()); }
  static double raise_of(const Penalised<Acc>& row) { return row.slope / double(row.ties); }

  struct Sums {
    double value, slope;  // Σ P, Σ dP/dh
  };

  // Of a block of a row whose largest logit is `top`; −each·dP/dh to `push`, if not null.
  Sums at(const T* u, i64 lo, Acc top, double each, Acc* push) const {
    switch (p_.penalty) {
      case Penalty::none: break;
      case Penalty::relu: return at<Penalty::relu>(u, lo, top, each, push);
      case Penalty::phr: return at<Penalty::phr>(u, lo, top, each, push);
      case Penalty::p2: return at<Penalty::p2>(u, lo, top, each, push);
      case Penalty::p3: return at<Penalty::p3>(u, lo, top, each, push);
    }
    return {0, 0};
  }

 private:
  static const Acc* by_column(const Problem& p, const void* table) {
    return table ? static_cast<const Acc*>(table) + p.first : nullptr;
  }

  template <Penalty Kind>
  Sums at(const T* u, i64 lo, Acc top, double each, Acc* push) const {
    // where P is linear in a factor, that comes in at the end
    const Acc down = Acc(-each * strength_);
    const BlockSums block = push ? of_block<Kind, true>(u, lo, top, down, push)
                                 : of_block<Kind, false>(u, lo, top, down, push);
    return {block.value * unit_, block.slope * strength_};
  }

  struct BlockSums {
    Acc value, slope;
  };

  template <Penalty Kind, bool Store>
  __attribute__((noinline)) BlockSums of_block(const T* u, i64 lo, Acc top, Acc each,
                                               Acc* push) const {
    constexpr bool relu = Kind == Penalty::relu, phr = Kind == Penalty::phr;
    const i64 size = std::min(kBlock, c_ - lo);
    const Acc margin = Acc(p_.penalty_margin), inverse = Acc(1 / p_.penalty_unit);
    const Acc *lam = lam_ + lo, *rho = rho_ + lo, *floor = floor_.data() + lo;
    Acc value = 0, slope = 0;
    u += lo;
#pragma omp simd reduction(+ : value, slope)
    for (i64 j = 0; j < size; ++j) {
      const Acc excess = (top - load(u[j])) - margin;
      const Acc h = relu || phr ? excess : excess * inverse;
      const PenaltyValue<Acc> at = penalty_of<Kind>(
          h, relu ? Acc(0) : lam[j], relu ? Acc(0) : rho[j], phr ? floor[j] : Acc(0));
      value += at.value;
      slope += at.slope;
      if (Store) push[j] = each * at.slope;
    }
    return {value, slope};
  }

  // By two halves at once, for a loop of half as many rounds.
  __attribute__((noinline)) Acc largest(const T* u, i64 size) const {
    const i64 half = size / 2;
    const T* second = u + half;
    Acc one = load(u[size - 1]), other = one;
#pragma omp simd reduction(max : one, other)
    for (i64 j = 0; j < half; ++j) {
      one = load(u[j]) > one ? load(u[j]) : one;
      other = load(second[j]) > other ? load(second[j]) : other;
    }
    return one > other ? one : other;
  }

  // The maximum takes what it pushes all others away with, in even shares.
  void raise(const T* u, i64 first, i64 end, Acc top, Acc share, Acc* push) const {
    for (i64 lo = first; lo < end; lo += kPart) {
      if (count_of(u, lo, end, top) == 0) continue;
      for (i64 j = lo; j < std::min(end, lo + kPart); ++j)
        if (load(u[j]) == top) push[j] += share;
    }
  }

  static constexpr i64 kPart = 128;
  __attribute__((noinline)) i64 count_of(const T* u, i64 lo, i64 end, Acc top) const {
    const i64 hi = std::min(end, lo + kPart);
    int32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (i64 j = lo; j < hi; ++j) count += int32_t(load(u[j]) == top);
    return count;
  }

  const Problem& p_;
  const i64 c_;
  const Acc *lam_, *rho_;
  double strength_ = 1, unit_ = 1;  // dP/dh and P by those of `penalty_of`
  Vector<Acc> floor_, scaled_;
};

}  // namespace
}  // namespace lpl
