// Exponentials of a row's logits less one shift.
#pragma once

#include "call.h"

namespace lpl {

template <typename Acc>
LPL_DEVICE inline Acc finite_shift(Acc top) {
  return top == -INFINITY ? Acc(0) : top;  // where all logits are −inf: no −inf + inf
}

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// Levels from here on are further apart than exponents reach: what is made of one is nan, so that
// no row is wrong without a word.
constexpr float kTooFar = 2147483648.0f;

LPL_DEVICE inline float level_or_nan(float level) {
  return std::abs(level) < kTooFar ? level : NAN;
}

// 2^x to two units in the last place; 0 where that is no normal number.
LPL_DEVICE inline float exp2_of(float x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
#else
  return std::exp2(x);
#endif
}

// of(z) is e^z up to a factor that all logits of a row share: e^(z − shift) = unit(shift)·of(z), of
// which the level says how large it is. As exact as the type; or
template <typename Number, bool kFast = true>
class Exponential {
 public:
  using Acc = Number;

  LPL_DEVICE static Exponential near(Acc shift) { return Exponential(shift); }
  LPL_DEVICE explicit Exponential(Acc level) : level_(level) {}
  // Of the same kind, so far above a logit.
  LPL_DEVICE Exponential above(Acc z, Acc ahead) const { return near(z + ahead); }

  LPL_DEVICE Acc level() const { return level_; }
  // Near the level, as logits are.
  LPL_DEVICE Acc shift() const { return level_; }

  // of(z) is the exponential of this, which is in units of so many nats.
  static constexpr Acc kNats = 1;
  LPL_DEVICE Acc exponent(Acc z) const { return z - level_; }
  LPL_DEVICE Acc of(Acc z) const { return std::exp(exponent(z)); }
  LPL_DEVICE Acc unit(Acc shift) const { return std::exp(level_ - shift); }
  // What turns a sum of of(z) into one of `to`.
  LPL_DEVICE Acc in(const Exponential& to) const { return std::exp(level_ - to.level_); }

 private:
  Acc level_;
};

// fast: one multiplication and one exponential a logit. z·log₂e − level is rounded once, `level`
// being about shift·log₂e; how far it is off is in `unit`, so that a common offset of the logits
// costs no digits.
template <>
class Exponential<float, true> {
 public:
  using Acc = float;

  LPL_DEVICE static Exponential near(float shift) { return Exponential(shift * kLog2E); }
  LPL_DEVICE explicit Exponential(float level) : level_(level) {}
  LPL_DEVICE Exponential above(float z, float ahead) const { return near(z + ahead); }

  LPL_DEVICE float level() const { return level_; }
  LPL_DEVICE float shift() const { return level_ * kLn2; }

  static constexpr float kNats = kLn2;
  LPL_DEVICE float exponent(float z) const { return std::fma(z, kLog2E, -level_); }
  LPL_DEVICE float of(float z) const { return exp2_of(exponent(z)); }
  LPL_DEVICE float unit(float shift) const {
    return exp2_of(-std::fma(shift, kLog2E, -level_or_nan(level_)));
  }
  LPL_DEVICE float in(const Exponential& to) const { return exp2_of(level_ - to.level_); }

 private:
  float level_;
};

// The same of logits that are still to be multiplied by one factor, for nothing: of(y) is
// e^(factor·y) up to a factor that all share. y·(factor·log₂e) − level is rounded once; what the
// product in brackets lacks changes differences of logits alone, as `unit` makes up for the rest.
class FactorExponential {
 public:
  using Acc = float;

  LPL_DEVICE explicit FactorExponential(float factor, float shift = 0)
      : times_(factor * kLog2E),
        lack_(std::fma(factor, kLog2E, -times_) / times_),
        level_(shift * kLog2E) {}
  LPL_DEVICE FactorExponential above(float y, float ahead) const {
    FactorExponential e = *this;
    e.level_ = std::fma(y, times_, ahead * kLog2E);
    return e;
  }

  LPL_DEVICE float level() const { return level_; }
  LPL_DEVICE float shift() const { return level_ / times_; }  // of y

  LPL_DEVICE float of(float y) const { return exp2_of(std::fma(y, times_, -level_)); }
  LPL_DEVICE float unit(float shift) const {
    return exp2_of(level_or_nan(level_) * lack_ - std::fma(shift, kLog2E, -level_));
  }
  // What turns a sum of of(y), in units of any level, into one of factor·y's Exponential of it.
  LPL_DEVICE float made_up(float level) const { return exp2_of(level * lack_); }
  LPL_DEVICE float in(const FactorExponential& to) const { return exp2_of(level_ - to.level_); }

 private:
  float times_, lack_;  // factor·log₂e, and how much of it that lacks
  float level_;
};

}  // namespace lpl
