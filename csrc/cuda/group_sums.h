// What the rows of a class say of one of its steps.
#pragma once

#include <cmath>

#include "call.h"

namespace lpl {

// Sums of rest/Z and 1/Z, and the largest errors of any row.
template <typename Acc>
struct StepSums {
  Acc own, speed;
  Acc way, square;   // relative errors of W and W²
  Acc low, high;     // of the square of 1/Z over that at the nodes, beside own²
  Acc gained, bend;  // the tail's gain over Z; Σ 1/Z² over 2W²
};

// nan prevails
template <typename Acc>
LPL_DEVICE inline Acc larger(Acc a, Acc b) {
  return a > b || a != a ? a : b;
}

template <typename Acc>
LPL_DEVICE inline StepSums<Acc> no_rows() {
  return {0, 0, 0, 0, INFINITY, -INFINITY, 0, 0};
}

template <typename Acc>
LPL_DEVICE inline StepSums<Acc> joined(const StepSums<Acc>& a, const StepSums<Acc>& b) {
  return {a.own + b.own,
          a.speed + b.speed,
          larger(a.way, b.way),
          larger(a.square, b.square),
          -larger(-a.low, -b.low),
          larger(a.high, b.high),
          larger(a.gained, b.gained),
          larger(a.bend, b.bend)};
}

}  // namespace lpl
