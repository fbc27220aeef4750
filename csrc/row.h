// Plain-data structures of one call: what the launchers fill and every native kernel reads.
// No torch, no Python. Mirrors lpl_fused/problem.py and what its launchers add in backends/.
#pragma once

#include "fields.h"

namespace lpl {

enum class DType : int32_t { f64 = 0, f32 = 1, bf16 = 2, f16 = 3 };
enum class Phi : int32_t { log = 0, power = 1, focal = 2, poly1 = 3, asymmetric = 4 };
enum class Penalty : int32_t { none = 0, relu = 1, phr = 2, p2 = 3, p3 = 4 };
enum class Reduction : int32_t { none = 0, mean = 1, sum = 2 };

// Why a call gave nothing: a label out of range, or steps through which the kernels do not
// differentiate, an upstream gradient that is not finite.
enum class Fault : int32_t { none = 0, target = 1, row_index = 2, through = 3, upstream = 4 };

// The tensors of a problem beside logits and target, null where absent.
#define LPL_PARTS(X)                                                                  \
  X(const int64_t*, other, nullptr)      /* (N,) second labels of mixed targets */    \
  X(const void*, lam, nullptr)           /* (N,) Acc, the share of `target` */        \
  X(const void*, weight, nullptr)        /* (C,) Acc */                               \
  X(const void*, sample_weight, nullptr) /* (N,) Acc */                               \
  X(const void*, smoothing, nullptr)     /* (C,) Acc, by target class */              \
  X(const void*, scale, nullptr)         /* (C,) Acc */                               \
  X(const void*, offset, nullptr)        /* (C,) Acc */                               \
  X(const void*, margin, nullptr)        /* (C,) Acc */                               \
  X(const void*, rows, nullptr)          /* (R, C) Acc, added before 1/temperature */ \
  X(const int64_t*, row_index, nullptr)  /* (N,), or null: the target's row */        \
  X(const int32_t*, steps, nullptr)      /* (C,), learned perturbation */             \
  X(const void*, multiplier, nullptr)    /* (C,) Acc, λ of the penalty */             \
  X(const void*, rho, nullptr)           /* (C,) Acc, ρ of the penalty */             \
  X(const void*, normalizer, nullptr)    /* one Acc: what a sum is divided by */

// Its numbers: of lpl_fused.norm (p = 0: none), of lpl_fused.penalty, and others.
#define LPL_OPTIONS(X)                                                                     \
  X(Reduction, reduction, Reduction::mean)                                                 \
  X(int64_t, ignore_index, -100)                                                           \
  X(Phi, phi, Phi::log)                                                                    \
  X(double, phi_parameter, 0)                                                              \
  X(double, label_smoothing, 0)                                                            \
  X(double, z_loss, 0)                                                                     \
  X(double, softcap, 0)                                                                    \
  X(double, norm_p, 0)                                                                     \
  X(double, norm_limit, 0)                                                                 \
  X(double, norm_gain, 1)                                                                  \
  X(double, norm_offset, 0)                                                                \
  X(double, inverse_temperature, 1)                                                        \
  X(double, step_size, 0)                                                                  \
  X(Penalty, penalty, Penalty::none)                                                       \
  X(double, penalty_margin, 1)                                                             \
  X(double, penalty_unit, 1)                                                               \
  X(double, penalty_strength, 1)                                                           \
  X(bool, normalize, false)                                                                \
  X(bool, through, false) /* the gradient goes through the learned perturbation's steps */ \
  X(int64_t, first, 0)    /* the input's first column, numbered among all classes */       \
  X(int64_t, classes, 0)  /* how many there are; 0: c */

// What the launcher says of them.
#define LPL_SIZES(X)                                                                \
  X(int64_t, n, 0)                                                                  \
  X(int64_t, c, 0)                                                                  \
  X(int64_t, row_stride, 0)                                                         \
  X(bool, probabilities, false) /* the target is class probabilities, not labels */ \
  X(int64_t, dense_stride, 0)                                                       \
  X(int64_t, row_count, 0) /* of `rows` */                                          \
  X(DType, dtype, DType::f64)                                                       \
  X(DType, dense_dtype, DType::f64)                                                 \
  X(int32_t, threads, 0)

// (N, C) logits and all that the loss of their rows depends on. `Acc` parts are float, or double
// beside f64 logits. The logits, and class probabilities, may be some columns of all classes, of
// which all else is.
struct Problem {
  const void* input = nullptr;      // (N, C), rows `row_stride` elements apart
  const int64_t* target = nullptr;  // (N,) labels, or null: `dense`
  const void* dense = nullptr;      // (N, C) class probabilities of dtype `dense_dtype`
  LPL_SIZES(LPL_FIELD)
  LPL_PARTS(LPL_FIELD)
  LPL_OPTIONS(LPL_FIELD)
  // What an earlier sweep left (Outputs::swept), whose exponentials are in the gradient's rows.
  const void* swept = nullptr;

  int64_t all_classes() const { return classes ? classes : c; }
};

// What to compute, null where it is not wanted, and what for.
#define LPL_OUTPUTS(X)                                                                            \
  X(void*, loss, nullptr)            /* (N,) Acc for Reduction::none, else one Acc */             \
  X(void*, norm, nullptr)            /* one Acc */                                                \
  X(void*, grad, nullptr)            /* (N, C) of the logits' dtype, contiguous */                \
  X(const void*, grad_rows, nullptr) /* (N,) Acc upstream; null: 1/norm, or 1 */                  \
  X(int64_t, grad_rows_stride, 0)    /* 0 or 1 */                                                 \
  X(void*, terms, nullptr)           /* (N,) Terms: see numbers.h */                              \
  X(void*, grad_perturbed, nullptr)  /* (N, C) Acc, dL/d rows of each sample */                   \
  X(void*, grad_scale, nullptr)      /* (C,) Acc */                                               \
  X(void*, grad_offset, nullptr)     /* (C,) Acc */                                               \
  X(void*, grad_margin, nullptr)     /* (C,) Acc */                                               \
  X(void*, swept, nullptr)           /* (N, 3) Acc: shift, rest and target's logit of each row */ \
  X(void*, delta, nullptr)           /* (N, C) Acc, zero at first: the learned perturbation */    \
  X(int64_t*, slot, nullptr)         /* (N,) row of `delta` that each row uses */                 \
  X(void*, lse, nullptr)             /* (N,) Acc, of z; with it the next two, of every row */     \
  X(void*, entropy, nullptr)         /* (N,) Acc, of softmax(z) */                                \
  X(bool*, correct, nullptr)         /* (N,): the largest of the raw logits is the target's */

struct Outputs {
  LPL_OUTPUTS(LPL_FIELD)
};

// What can be on in a problem, and what can be wanted of it.
enum class Feature { dense, LPL_PARTS(LPL_MEMBER) LPL_OPTIONS(LPL_MEMBER) unknown };
enum class Output { LPL_OUTPUTS(LPL_MEMBER) unknown };

namespace {

inline const char* name_of(Feature feature) {
  constexpr const char* names[] = {"dense", LPL_PARTS(LPL_NAME) LPL_OPTIONS(LPL_NAME)};
  return names[int(feature)];
}

inline const char* name_of(Output output) {
  constexpr const char* names[] = {LPL_OUTPUTS(LPL_NAME)};
  return names[int(output)];
}

inline uint64_t features_of(const Problem& of) {
  using Members = Feature;
  uint64_t found = of.dense ? set_of(Feature::dense) : 0;
  LPL_PARTS(LPL_ADD_IF_ON)
  LPL_OPTIONS(LPL_ADD_IF_ON)
  return found;
}

inline uint64_t wanted_of(const Outputs& of) {
  using Members = Output;
  uint64_t found = 0;
  LPL_OUTPUTS(LPL_ADD_IF_ON)
  return found;
}

}  // namespace

struct Status {
  Fault fault;
  int64_t value;  // the label or index at fault
  int64_t solved,
      swept;  // rows alone in their class: by the solver, by plain steps after it failed
};

}  // namespace lpl
