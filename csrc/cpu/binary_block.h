// The losses of a block of multi-label logits, and their gradient: the vectorised part.
#pragma once

#include <type_traits>

#include "../binary.h"
#include "../lpl_math.h"
#include "simd.h"

namespace lpl {
namespace {

// Of e = e^−|s|: log(1 + e), and 1/(1 + e). One division serves both: log(1 + e) = 2·artanh(t) with
// t = e/(2 + e) ≤ 1/3, by a polynomial of t² that is fitted to the last place.
template <typename Acc>
struct Tail {
  Acc log1p, inverse;
};
inline Tail<float> tail_of(float e) {
  const float both = 1.0f / ((1.0f + e) * (2.0f + e));
  const float t = e * (1.0f + e) * both, square = t * t;
  float p = 0.281577783631f;
  p = p * square + 0.279651577452f;
  p = p * square + 0.400245952307f;
  p = p * square + 0.666663216414f;
  p = p * square + 2.0f;
  return {t * p, (2.0f + e) * both};
}
inline Tail<double> tail_of(double e) {
  const double both = 1.0 / ((1.0 + e) * (2.0 + e));
  const double t = e * (1.0 + e) * both, square = t * t;
  double p = 0.177807638261133029;
  p = p * square + 0.0988078904876478624;
  p = p * square + 0.135913054855798938;
  p = p * square + 0.153636762488916343;
  p = p * square + 0.18182859800473911;
  p = p * square + 0.22222190861346284;
  p = p * square + 0.285714291116571602;
  p = p * square + 0.399999999952876;
  p = p * square + 0.666666666666825743;
  p = p * square + 1.99999999999999991;
  return {t * p, (2.0 + e) * both};
}

// What a block of one row is made of. Labels are 0 and 1 (of positives), or nan where there is
// none.
template <typename T>
struct Block {
  using Acc = typename AccumulateOf<T>::type;

  const T* u;
  const Acc* label;
  const Acc *weight[2], *scale[2], *offset[2];  // as BinaryProblem, at the block's first class
  const Acc* balance;                           // v_k: see row_class; null where it is the same
  Acc inverse_mass, alpha, beta, mu;
  Acc row;   // the row's weight
  Acc pull;  // the upstream gradient
  Phi phi;
  Acc parameter;
  T* grad;
  Acc* loss;  // of each logit; may be null
  int32_t size;
};

constexpr int kLog = 0, kSquare = 1, kFocal = 2, kOther = 3;  // forms of φ

inline int form_of(Phi phi, double parameter) {
  if (phi == Phi::log) return kLog;
  if (phi != Phi::focal) return kOther;
  return parameter == 2 ? kSquare : kFocal;
}

// Unweighted logits with all labels there, under φ = log; returns the sum of losses. `Moved` ones
// have an offset by their label, others are as they are.
template <bool Each, bool Moved, typename T, typename Acc>
__attribute__((noinline)) Acc plain_block(const T* u, const Acc* label, const Acc* offset0,
                                          const Acc* offset1, Acc pull, T* grad, Acc* loss,
                                          int32_t size) {
  Acc sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int32_t j = 0; j < size; ++j) {
    Acc z = load(u[j]);
    if (Moved) {
      const Acc zero = offset0[j], one = offset1[j];
      z += label[j] > Acc(0.5) ? one : zero;
    }
    const Acc sign = Acc(1) - 2 * label[j];
    const Acc s = sign * z;
    const Acc e = exp_of(-std::abs(s));
    const Tail<Acc> tail = tail_of(e);
    const Acc ell = (s > 0 ? s : Acc(0)) + tail.log1p;
    const Acc probability = s > 0 ? tail.inverse : e * tail.inverse;
    grad[j] = store<T>(pull * sign * probability);
    if (Each) loss[j] = ell;
    sum += ell;
  }
  return sum;
}

// Everything else.
template <bool Each, bool Balance, int Form, typename T, typename Acc>
__attribute__((noinline)) Acc table_block(const Block<T>& b) {
  const T* u = b.u;
  const Acc* label = b.label;
  const Acc *w0 = b.weight[0], *w1 = b.weight[1], *a0 = b.scale[0], *a1 = b.scale[1];
  const Acc *b0 = b.offset[0], *b1 = b.offset[1], *balance = b.balance;
  const Acc row = b.row, pull = b.pull, gamma = b.parameter;
  const Acc slope_of_ratio = b.beta * b.inverse_mass, shift = b.beta * b.mu, alpha = b.alpha;
  const Phi phi = b.phi;
  T* grad = b.grad;
  Acc* loss = b.loss;
  const int32_t size = b.size;
  Acc sum = 0;
  const auto one = [&](int32_t j) {
    const Acc y = label[j];
    const bool known = y == y, positive = y > Acc(0.5);
    const Acc scale0 = a0[j], scale1 = a1[j], offset0 = b0[j], offset1 = b1[j];
    const Acc weight0 = w0[j], weight1 = w1[j];
    const Acc scale = positive ? scale1 : scale0;
    const Acc z = load(u[j]) * scale + (positive ? offset1 : offset0);
    const Acc sign = positive ? Acc(-1) : Acc(1);
    const Acc s = sign * z;
    const Acc e = exp_of(-std::abs(s));
    const Tail<Acc> tail = tail_of(e);
    const Acc near = e * tail.inverse;
    Acc ell = (s > 0 ? s : Acc(0)) + tail.log1p;
    const Acc probability = s > 0 ? tail.inverse : near;  // σ(s) = 1 − p
    Acc slope = probability;                              // dφ/ds
    if (Form == kSquare || Form == kFocal) {
      const Acc rest = s > 0 ? near : tail.inverse;  // p
      const Acc factor = Form == kSquare ? probability * probability
                                         : exp_of(gamma * ((s < 0 ? s : Acc(0)) - tail.log1p));
      slope = factor * (probability + gamma * ell * rest);
      ell *= factor;
    }
    if (Form == kOther) {
      const PhiValue<Acc> value = phi_of(ell, phi, gamma);
      slope *= value.slope;
      ell = value.value;
    }
    Acc weight = (positive ? weight1 : weight0) * row;
    if (Balance) {
      // σ(x) with e^−x capped, where σ is nothing beside what it is added to or 0 itself
      const Acc x = shift - slope_of_ratio * balance[j];
      weight *= alpha + 1 / (1 + exp_of(x < Acc(80) ? x : Acc(80)));
    }
    const Acc value = known ? ell * weight : Acc(0);
    grad[j] = store<T>(known ? pull * sign * scale * slope * weight : Acc(0));
    if (Each) loss[j] = value;
    return value;
  };
  if (Form == kOther) {
    for (int32_t j = 0; j < size; ++j) sum += one(j);
  } else {
#pragma omp simd reduction(+ : sum)
    for (int32_t j = 0; j < size; ++j) sum += one(j);
  }
  return sum;
}

template <bool Each, bool Balance, typename T>
typename AccumulateOf<T>::type table_block_of_form(const Block<T>& b) {
  using Acc = typename AccumulateOf<T>::type;
  switch (form_of(b.phi, b.parameter)) {
    case kLog: return table_block<Each, Balance, kLog, T, Acc>(b);
    case kSquare: return table_block<Each, Balance, kSquare, T, Acc>(b);
    case kFocal: return table_block<Each, Balance, kFocal, T, Acc>(b);
    default: return table_block<Each, Balance, kOther, T, Acc>(b);
  }
}

template <typename T>
typename AccumulateOf<T>::type table_block(const Block<T>& b) {
  if (b.loss)
    return b.balance ? table_block_of_form<true, true>(b) : table_block_of_form<true, false>(b);
  return b.balance ? table_block_of_form<false, true>(b) : table_block_of_form<false, false>(b);
}

template <typename Y>
inline Y load_label(Y label) {
  return label;
}
inline float load_label(BFloat16 label) {
  return load(label);
}
inline float load_label(Float16 label) {
  return load(label);
}

// Labels of a block as Acc, nan where they are missing; whether all that are there are 0 or 1.
template <bool Missing, typename Y, typename Acc>
__attribute__((noinline)) bool read_block(const Y* label, Acc ignored, Acc* y, int32_t size) {
  using Bits = typename std::conditional<sizeof(Acc) == 8, uint64_t, uint32_t>::type;
  Bits soft = 0;
#pragma omp simd reduction(| : soft)
  for (int32_t j = 0; j < size; ++j) {
    Acc value = Acc(load_label(label[j]));
    if (Missing) value = value == ignored ? Acc(NAN) : value;
    y[j] = value;
    const Acc off = value * value - value;  // +0 of 0 and 1 alone
    soft |= bit_cast<Bits>(Missing && value != value ? Acc(0) : off);
  }
  return soft == 0;
}

}  // namespace
}  // namespace lpl
