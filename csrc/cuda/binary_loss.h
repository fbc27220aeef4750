// Loss and gradient of single multi-label logits.
//
// In the distance s of a logit from its label (−z of positives, z of negatives) both sides are
// ℓ = log(1 + e^s) and dℓ/ds = σ(s), of one exponential: with e = e^−|s| it is ℓ = max(s, 0) +
// log(1 + e), and σ(s) is 1/(1 + e) or e/(1 + e), so that small numbers keep their digits.
#pragma once

#include <cstring>

#include "../lpl_math.h"
#include "binary_labels.h"
#include "exponent.h"

namespace lpl {

// 1/x to the last place.
LPL_DEVICE inline float reciprocal_of(float x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
#else
  return 1 / x;
#endif
}
LPL_DEVICE inline double reciprocal_of(double x) {
  return 1 / x;
}

// e^x. Beside logits of 16 bits there are no digits that one rounding of x·log₂e would cost.
template <typename T, typename Acc>
LPL_DEVICE inline Acc exp_of(Acc x) {
  if constexpr (sizeof(T) == 2)
    return exp2_of(x * kLog2E);
  else
    return std::exp(x);
}

// x, with the other sign if `flips` is the sign's bit.
LPL_DEVICE inline float flipped(float x, uint32_t flips) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  bits ^= flips;
  memcpy(&x, &bits, sizeof(bits));
  return x;
}

template <typename Acc>
LPL_DEVICE inline Acc positive_part(Acc x) {
  return x > 0 ? x : Acc(0);
}

// Σ log(1 + e) as the logarithm of a product, which is kept less 1, so that small e keep their
// digits.
template <typename A>
class Logarithms {
 public:
  using Acc = A;

  LPL_DEVICE void add(Acc e) { product_ = std::fma(e, product_, e) + product_; }
  // Often enough: a product holds some 60 more numbers up to 1.
  LPL_DEVICE void settle() {
    if (product_ > Acc(1 << 30)) take();
  }
  LPL_DEVICE Acc sum() {
    take();
    return sum_;
  }

 private:
  LPL_DEVICE void take() {
    sum_ += std::log1p(product_);
    product_ = 0;
  }

  Acc product_ = 0, sum_ = 0;
};

// Sums of losses as they come, and gradients, of logits z whose sides are alike and whose labels
// weigh nothing else; times `pull`.
template <typename T>
class PlainLoss {
 public:
  using Acc = typename AccumulateOf<T>::type;

  LPL_DEVICE explicit PlainLoss(Acc pull) : pull_(pull) {}

  // A hard label, by the sign's bit where it is 1: dL/dz.
  LPL_DEVICE Acc hard(Acc z, uint32_t positive) {
    const Acc s = flipped(z, positive), e = exp_of<T>(-std::fabs(s)),
              inverse = reciprocal_of(1 + e);
    far_ += positive_part(s);
    near_.add(e);
    return flipped((s > 0 ? inverse : e * inverse) * pull_, positive);
  }

  // Any label; a side without mass counts nothing, however infinite its loss.
  LPL_DEVICE Acc soft(Acc z, Acc y) {
    const Acc e = exp_of<T>(-std::fabs(z)), inverse = reciprocal_of(1 + e), other = 1 - y;
    const Acc away = z > 0 ? other : y, toward = z > 0 ? y : other;
    far_ += away == 0 ? Acc(0) : away * std::fabs(z);
    near_.add(e);
    const Acc slope = std::fma(-toward, e, away) * (inverse * pull_);
    return z > 0 ? slope : -slope;
  }

  // After a few: many terms that are alike would lose digits in one sum.
  LPL_DEVICE void settle() {
    near_.settle();
    sum_ += far_;
    far_ = 0;
  }
  LPL_DEVICE Acc sum() { return (sum_ + far_) + near_.sum(); }

 private:
  const Acc pull_;
  Acc far_ = 0, sum_ = 0;
  Logarithms<Acc> near_;
};

// φ(ℓ) and dφ/ds.
template <typename Acc>
struct SideLoss {
  Acc value, slope;
};

template <typename T, typename Acc = typename AccumulateOf<T>::type>
LPL_DEVICE inline SideLoss<Acc> side_loss(Acc s, Phi phi, Acc parameter) {
  const Acc e = exp_of<T>(-std::fabs(s)), inverse = reciprocal_of(1 + e);
  const Acc sigma = s > 0 ? inverse : e * inverse;
  const Acc low = std::log1p(e), ell = positive_part(s) + low;
  if (phi == Phi::log) return {ell, sigma};
  if (phi == Phi::focal) {
    const Acc log_sigma = (s < 0 ? s : Acc(0)) - low;
    const Acc factor = parameter == 2 ? sigma * sigma : exp_of<T>(parameter * log_sigma);
    const Acc rest = s > 0 ? e * inverse : inverse;
    // ℓ·p vanishes where ℓ is beyond all numbers
    const Acc bounded = ell < Acc(1e30) ? ell * rest : ell == ell ? Acc(0) : ell;
    return {factor * ell, factor * std::fma(parameter, bounded, sigma)};
  }
  const PhiValue<Acc> value = phi_of(ell, phi, parameter);
  return {value.value, value.slope * sigma};
}

// The same of an asymmetric φ, which depends on the side.
template <typename T, typename Acc = typename AccumulateOf<T>::type>
LPL_APART SideLoss<Acc> asymmetric_loss(Acc s, Acc gamma, Acc clip, bool detached) {
  const Acc e = exp_of<T>(-std::fabs(s)), inverse = reciprocal_of(1 + e);
  const Acc ell = positive_part(s) + std::log1p(e);
  const Acc away = s > 0 ? inverse : e * inverse, near = s > 0 ? e * inverse : inverse;
  const PhiValue<Acc> value = asymmetric_of(ell, away, near, gamma, clip, detached);
  return {value.value, value.slope};
}

// Loss and dL/du of a label that both sides share, each moved by a δ of its own. Labels are seldom
// that: out of the way of those that are not.
template <typename T, typename Acc = typename AccumulateOf<T>::type>
LPL_APART SideLoss<Acc> shared_loss(Acc u, Acc y, Acc positive, Acc negative) {
  SideLoss<Acc> sum = {0, 0};
  if (y != 0) {  // a side without mass counts nothing, however infinite its loss
    const SideLoss<Acc> of = side_loss<T>(-(u + positive), Phi::log, Acc(0));
    sum = {y * of.value, -y * of.slope};
  }
  if (y != 1) {
    const SideLoss<Acc> of = side_loss<T>(u + negative, Phi::log, Acc(0));
    sum = {std::fma(1 - y, of.value, sum.value), std::fma(1 - y, of.slope, sum.slope)};
  }
  return sum;
}

}  // namespace lpl
