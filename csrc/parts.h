// What sums over some columns of a problem are told and what they leave, plain data as in row.h.
// Mirrors lpl_fused/algebra/, which says what every number is.
#pragma once

#include "numbers.h"
#include "row.h"

namespace lpl {

enum class Kind : int32_t { size = 0, mass = 1, detail = 2, rivals = 3, statistics = 4 };

// What is known of the rows of a problem.
#define LPL_KNOWN(X)                                                      \
  X(const void*, terms, nullptr)       /* (N,) Terms */                   \
  X(const double*, threshold, nullptr) /* (N,), of heads: Kind::rivals */ \
  X(const void*, delta, nullptr)       /* (N, C) Acc, learned, of every row */

struct Known {
  LPL_KNOWN(LPL_FIELD)
};

// What the rows of a part leave: its numbers, and rivals more. Powers are of e_j, from the first
// on, kPowers of them.
#define LPL_SUMS(X)                                                          \
  X(double*, numbers, nullptr)  /* (N, fields) */                            \
  X(double*, powers, nullptr)   /* (N, kPowers) */                           \
  X(int32_t*, columns, nullptr) /* (N, heads), −1 where there is none */     \
  X(void*, logits, nullptr)     /* (N, heads) Acc, −∞ where there is none */ \
  X(int64_t, heads, 0)

struct Sums {
  LPL_SUMS(LPL_FIELD)
};

template <typename Acc>
constexpr int kPowers = sizeof(Acc) == 8 ? 10 : 8;

}  // namespace lpl
