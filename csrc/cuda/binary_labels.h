// The labels of a multi-label problem, whatever their type.
#pragma once

#include <type_traits>

#include "binary_call.h"

namespace lpl {

// What a label of each of these types is: a number of Acc; of a bool, a byte, its lowest bit.
struct Bool {
  uint8_t bits;
};
struct Any {};  // whatever a problem's target_type says, missing ones among them

template <typename Acc, typename From>
LPL_DEVICE inline Acc label_of(From y) {
  if constexpr (std::is_integral<From>::value)
    return Acc(y);
  else
    return Acc(load(y));
}

// The labels of a problem.
template <typename Acc, typename Label>
class Labels {
 public:
  LPL_DEVICE explicit Labels(const BinaryProblem& p) : of_(static_cast<const Label*>(p.target)) {}

  // A place that moves, of label k.
  LPL_DEVICE const Label* from(i64 k) const { return of_ + k; }
  // (y, whether it is there)
  LPL_DEVICE Acc at(const Label* place, bool& there) const {
    there = true;
    if constexpr (std::is_same<Label, Bool>::value)
      return place->bits ? Acc(1) : Acc(0);
    else
      return Acc(load(*place));
  }

 private:
  const Label* of_;
};

template <typename Acc>
class Labels<Acc, Any> {
 public:
  LPL_DEVICE explicit Labels(const BinaryProblem& p)
      : of_(p.target), type_(p.target_type), missing_(p.missing), ignored_(Acc(p.ignored)) {}

  LPL_DEVICE static i64 from(i64 k) { return k; }
  LPL_DEVICE Acc at(i64 k, bool& there) const {
    Acc y;
    switch (type_) {
      case LabelType::f64: y = of<double>(k); break;
      case LabelType::f32: y = of<float>(k); break;
      case LabelType::bf16: y = of<BFloat16>(k); break;
      case LabelType::f16: y = of<Float16>(k); break;
      case LabelType::u8: y = of<uint8_t>(k); break;
      case LabelType::i8: y = of<int8_t>(k); break;
      case LabelType::i16: y = of<int16_t>(k); break;
      case LabelType::i32: y = of<int32_t>(k); break;
      default: y = of<int64_t>(k);
    }
    there = !missing_ || (y == y && y != ignored_);
    return there ? y : Acc(0);
  }

 private:
  template <typename From>
  LPL_DEVICE Acc of(i64 k) const {
    return label_of<Acc>(static_cast<const From*>(of_)[k]);
  }

  const void* of_;
  const LabelType type_;
  const bool missing_;
  const Acc ignored_;
};

}  // namespace lpl
