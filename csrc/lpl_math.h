// Scalar maths shared by every native kernel, host and device: one text for both.
#pragma once

#include <cmath>

#include "row.h"

namespace lpl {
namespace {  // every object has its own, made for its instruction set

// A gradient shorter than this has no direction: the normalised step is 0.
constexpr double kNormFloor = 1e-12;

// A row of logits shorter than this has no direction either: a float does not hold 1/‖u‖.
constexpr double kLeastLength = 1.2e-38;

template <typename Acc>
struct PhiValue {
  Acc value, slope;  // φ(ℓ), φ'(ℓ)
};

// φ of the cross-entropy ℓ = −log p and its derivative; see lpl_fused/phi.py.
template <typename Acc>
LPL_HOST_DEVICE inline PhiValue<Acc> phi_of(Acc ell, Phi phi, Acc parameter) {
  switch (phi) {
    case Phi::power: {
      // beyond the limit e^(−κℓ) would overflow (κ < 0): the loss saturates there, the slope is 0
      const Acc limit = sizeof(Acc) == 8 ? Acc(700) : Acc(80);
      const Acc exponent = -parameter * ell;
      if (exponent > limit) return {-std::expm1(limit) / parameter, Acc(0)};
      return {-std::expm1(exponent) / parameter, std::exp(exponent)};
    }
    case Phi::focal: {
      const Acc rest = ell < 0 ? Acc(0) : -std::expm1(-ell);  // 1 − p; rounding leaves −1e-7 nats
      const Acc p = std::exp(-ell);
      const Acc factor = std::pow(rest, parameter);
      // γ·ℓ·p·(1 − p)^(γ−1) with ℓ/(1 − p) → 1 at p = 1, and ℓ·p → 0 at p = 0
      const Acc ratio = rest > Acc(0) ? ell / rest : Acc(1);
      const Acc bend = p > Acc(0) ? parameter * p * factor * ratio : Acc(0);
      return {factor * ell, factor + bend};
    }
    case Phi::poly1:
      return {ell - parameter * std::expm1(-ell), Acc(1) + parameter * std::exp(-ell)};
    default: return {ell, Acc(1)};
  }
}

// An asymmetric φ of a label, and its derivative by the distance s of a logit: of ℓ = log(1 + e^s),
// away = σ(s) and near = σ(−s). `clip` is 0 for positives; see lpl_fused/phi.py.
template <typename Acc>
LPL_HOST_DEVICE inline PhiValue<Acc> asymmetric_of(Acc ell, Acc away, Acc near, Acc gamma, Acc clip,
                                                   bool detached) {
  Acc rest = away, slope = away, bend;  // bend: ℓ·near·away/rest
  if (clip > Acc(0)) {
    rest = away - clip;
    if (rest <= Acc(0)) return {Acc(0), Acc(0)};
    const Acc kept = near + clip;
    ell = std::log1p(rest / kept);
    slope = away * (near / kept);
    bend = ell * (near * (away / rest));
  } else {
    // ℓ·near vanishes where ℓ is beyond all numbers
    bend = ell < Acc(1e30) ? ell * near : ell == ell ? Acc(0) : ell;
  }
  if (gamma == Acc(0)) return {ell, slope};
  const Acc factor = std::pow(rest, gamma);
  return {factor * ell, factor * (detached ? slope : slope + gamma * bend)};
}

// −log p of a class: `lift` is z − max (≤ 0), `rest` the mass of the other classes and `own` =
// e^lift its own, both in units of e^max. Keeps its digits at p → 1 and under a common offset.
template <typename Acc>
LPL_HOST_DEVICE inline Acc cross_entropy_of(Acc lift, Acc own, Acc rest) {
  return own >= rest ? std::log1p(rest / own) : std::log(rest + own) - lift;
}

}  // namespace
}  // namespace lpl
