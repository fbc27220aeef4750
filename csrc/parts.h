// What sums over some columns of a problem are told and what they leave, plain data as in row.h.
// Mirrors lpl_fused/algebra/, which says what every number is.
#pragma once

#include "row.h"

namespace lpl {

enum class Kind : int32_t { size = 0, mass = 1, detail = 2, rivals = 3 };

// A row of Terms in lpl_fused/algebra/terms.py: the numbers that its gradient is made of.
template <typename Acc>
struct Terms {
  Acc factor, length, bend, top, shift, log_total, strength, uniform, part, other_part, along,
      raise, each;
};

// What is known of the rows of a problem; null is not.
struct Known {
  const void* terms;        // (N,) Terms
  const double* threshold;  // (N,), of heads: Kind::rivals
  const void* delta;        // (N, C) Acc, the learned perturbation of every row
};

// What the rows of a part leave: a number a field of its class in lpl_fused/algebra/parts.py, and
// rivals more. Powers are of e_j, from the first on, kPowers of them.
struct Sums {
  double* numbers;   // (N, fields)
  double* powers;    // (N, kPowers)
  int32_t* columns;  // (N, heads), −1 where there is none
  void* logits;      // (N, heads) Acc, −∞ where there is none
  int64_t heads;
};

template <typename Acc>
constexpr int kPowers = sizeof(Acc) == 8 ? 10 : 8;

// The gradient of a part, for an upstream gradient by row; null pointers are not wanted.
struct Gradients {
  const void* upstream;  // (N,) Acc
  int64_t upstream_stride;
  void* input;   // (N, C) of the logits' dtype, contiguous
  void* rows;    // (N, C) Acc, dL/d rows of each sample
  void* scale;   // (C,) Acc
  void* offset;  // (C,) Acc
  void* margin;  // Acc, of all classes
};

}  // namespace lpl
