// What the kernels of the learned perturbation leave of a row for each other: its statistics for
// its steps, its steps for its gradient (../series.h has the maths).
//
// Rivals are measured by e_j = e^(z_j)/e^top, top being the largest of them. Those that stand out,
// the heads, are listed in the order of their columns (Scratch::head_columns, head_numbers); for
// all others, the tail, stands a series in e.
#pragma once

#include "../series.h"
#include "algebra.h"

namespace lpl {

// Exponents: of 2 in float, whose exponential is one instruction; of e in double.
template <typename Acc>
struct Scale;

template <>
struct Scale<float> {
  static constexpr float kUnit = kLn2, kPerUnit = kLog2E;  // nats in a unit; units
  static LPL_DEVICE float level(float top) { return level_or_nan(finite_shift(top) * kLog2E); }
  // rounded once, so that a common offset of the logits costs no digits
  static LPL_DEVICE float exponent(float z, float level) { return std::fma(z, kLog2E, -level); }
  static LPL_DEVICE float exp(float x) { return exp2_of(x); }
  static LPL_DEVICE float log(float x) {
#if defined(__CUDA_ARCH__)
    return __log2f(x);
#else
    return std::log2(x);
#endif
  }
};

template <>
struct Scale<double> {
  static constexpr double kUnit = 1, kPerUnit = 1;
  static LPL_DEVICE double level(double top) { return finite_shift(top); }
  static LPL_DEVICE double exponent(double z, double level) { return z - level; }
  static LPL_DEVICE double exp(double x) { return std::exp(x); }
  static LPL_DEVICE double log(double x) { return std::log(x); }
};

// Where all rivals find room the series has nothing to do.
constexpr int kMostHeads = 512;

// Heads of a row that find room.
LPL_HOST_DEVICE inline int heads_of(i64 c) {
  return c < kMostHeads ? int(c) : kMostHeads;
}

// Terms of the series: of most rows, and of those whose dose wants more.
template <typename Acc>
constexpr int kShortOrder = sizeof(Acc) == 8 ? 10 : 4;
template <typename Acc>
constexpr int kLongOrder = sizeof(Acc) == 8 ? 10 : 8;

enum class Standing : int32_t {
  dead,     // it counts nothing
  settled,  // its steps are taken, or it takes none
  left,     // the series would not be exact enough: plain steps
  grouped   // it shares its δ with other rows, which is solved
};

template <typename Acc>
struct LearnedRow {
  Terms<Acc> terms;  // its norm's and its penalty's; with its steps all, for an upstream of 1
  Acc penalty;       // what its penalty adds to its loss
  Acc rest;          // Σ e of its rivals; nan where it has no softmax, or its index is out of range
  Acc level;         // e_j = exp(exponent(z_j, level))
  Acc own;           // the label's exponent, once the steps are taken in units of e^(terms.shift);
                     // if δ is wanted the label's
  Acc largest;       // e of the tail is at most that
  // Σ e^r over the tail, r from 1 on. Once the steps are taken what e becomes is Σ series_r·e^r: in
  // units of terms.strength, or if δ is wanted in its own
  Acc series[kLongOrder<Acc>];
  int32_t order, heads, steps;
  Standing standing;
};

template <typename Acc>
LPL_DEVICE inline LearnedRow<Acc>& learned_row(const Call& call, i64 i) {
  return static_cast<LearnedRow<Acc>*>(call.scratch.learned)[i];
}

// Whether the statistics of row i come from its steps.
template <typename Acc>
LPL_DEVICE inline bool stats_by_steps(const Call& call, i64 i) {
  if (!call.scratch.stats_by_steps) return false;
  const Standing standing = learned_row<Acc>(call, i).standing;
  return standing == Standing::settled || standing == Standing::dead;
}

// Near the largest rival: what is taken off z before δ is added (Row::base).
template <typename Acc>
LPL_DEVICE inline Acc base_of(const LearnedRow<Acc>& row) {
  return row.level * Scale<Acc>::kUnit;
}

// Leaves row i to plain steps.
template <typename Acc>
LPL_DEVICE inline void leave(const Call& call, i64 i, Outcome outcome) {
  learned_row<Acc>(call, i).standing = Standing::left;
  call.scratch.outcome[i] = outcome;
  call.scratch.flags[kLeft] = 1;
}

// (heads_of(C),) of row i: the columns of its heads, and a number of each.
LPL_DEVICE inline int32_t* head_columns_of(const Call& call, i64 i) {
  return call.scratch.head_columns + i * heads_of(call.p.c);
}
template <typename Acc>
LPL_DEVICE inline Acc* head_numbers_of(const Call& call, i64 i) {
  return static_cast<Acc*>(call.scratch.head_numbers) + i * heads_of(call.p.c);
}

// What the steps of a row may add up to, as bounds of the error see it.
template <typename Acc>
struct Dose {
  Acc sum;    // Σ |a|: step a maps e to e·exp(a·e)
  Acc least;  // Z at least, in units of e^top
  Acc size;   // steps times their size: how far δ of any class gets
};

// The largest relative error of a gradient that the series may leave: a small part of a rounding.
inline LPL_DEVICE double gradient_tolerance(DType dtype) {
  return dtype == DType::f64    ? 1e-13
         : dtype == DType::bf16 ? 1.0 / (1 << 14)
         : dtype == DType::f16  ? 1.0 / (1 << 17)
                                : 2e-7;
}

// Whether a series of kOrder terms is exact enough: |series_r| ≤ sum^(r−1), so that of a rival's
// mass at most (sum·e)^kOrder/(1 − sum·e) is missing, and of all the tail's the same weighed by e.
template <int kOrder, typename Acc>
LPL_DEVICE bool exact_enough(const Call& call, const Dose<Acc>& dose, Acc largest, Acc last_power) {
  const Acc x = dose.sum * largest;
  if (!(x < Acc(0.5))) return false;
  Acc of_rival = 1, of_tail = largest * last_power;
#pragma unroll
  for (int r = 0; r < kOrder; ++r) {
    of_rival *= x;
    of_tail *= dose.sum;
  }
  // what is missing disturbs Z, and with it all later steps
  const Acc of_z = 2 * (1 + dose.size) * of_tail / ((1 - x) * dose.least);
  return of_z <= Acc(series_tolerance<Acc>()) &&
         of_rival <= Acc(gradient_tolerance(call.p.dtype)) * (1 - x);
}

}  // namespace lpl
