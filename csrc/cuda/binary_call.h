// One call of multi-label losses on the device.
#pragma once

#include "binary_plan.h"

namespace lpl {

// Buffers that the launcher's caller allocates; null where a call does not need them. A finished
// gradient is multiplied by `factor`.
#define LPL_BINARY_SCRATCH(X)                                                                    \
  X(void*, losses, nullptr)       /* Acc, of each team of the sweep: binary_room */              \
  X(void*, masses, nullptr)       /* (N,) Acc: Σ of inverse_count over a row's positives */      \
  X(int64_t*, known, nullptr)     /* (N,): how many labels of a row are there */                 \
  X(const void*, delta, nullptr)  /* (2, C) Acc, as BinaryOutputs::delta: added to the logits */ \
  X(void*, partial, nullptr)      /* floats, of moments: binary_room */                          \
  X(void*, centre, nullptr)       /* (2, C) floats: of moments, negatives first */               \
  X(int32_t*, left, nullptr)      /* (C,): steps of a class that moments did not give */         \
  X(const void*, factor, nullptr) /* one Acc */                                                  \
  X(bool, hard, false)            /* labels are bool, and none is missing */

struct BinaryScratch {
  LPL_BINARY_SCRATCH(LPL_FIELD)
  i64 teams = 0;      // that have stored `losses`
  bool anew = false;  // kernels have nothing to do unless `factor` rounds a gradient again
};

struct BinaryCall {
  BinaryProblem p;
  BinaryOutputs out;
  BinaryScratch scratch;
  // as far as they are used
  Spans spans;
  Tiles tiles;
  Chunks chunks;
};

template <typename Acc>
LPL_DEVICE inline bool spared(const BinaryCall& call) {
  if (!call.scratch.factor) return false;
  const Acc factor = *static_cast<const Acc*>(call.scratch.factor);
  return factor == 1 || (call.scratch.anew && keeps_digits(factor));
}

}  // namespace lpl
