// Plain-data structures of one multi-label call; mirrors BinaryProblem of lpl_fused/problem.py.
#pragma once

#include "row.h"

namespace lpl {

// Dtypes of labels: those of logits, and integers. bool is u8.
enum class LabelType : int32_t {
  f64 = 0,
  f32 = 1,
  bf16 = 2,
  f16 = 3,
  u8 = 4,
  i8 = 5,
  i16 = 6,
  i32 = 7,
  i64 = 8
};

// The tensors of a problem beside logits and labels, null where absent.
#define LPL_BINARY_PARTS(X)                                                  \
  X(const void*, positive_weight, nullptr) /* (C,) Acc */                    \
  X(const void*, negative_weight, nullptr) /* (C,) Acc */                    \
  X(const void*, positive_scale, nullptr)  /* (C,) Acc */                    \
  X(const void*, positive_offset, nullptr) /* (C,) Acc */                    \
  X(const void*, negative_scale, nullptr)  /* (C,) Acc */                    \
  X(const void*, negative_offset, nullptr) /* (C,) Acc */                    \
  X(const void*, inverse_count, nullptr)   /* (C,) Acc: row×class weights */ \
  X(const void*, sample_weight, nullptr)   /* (N,) Acc */                    \
  X(const int32_t*, steps, nullptr)        /* (C,), learned perturbation */  \
  X(const void*, normalizer, nullptr)      /* one Acc: what a sum is divided by */

#define LPL_BINARY_OPTIONS(X)                                        \
  X(Reduction, reduction, Reduction::mean)                           \
  X(Phi, phi, Phi::log)                                              \
  X(bool, missing, false) /* labels equal to `ignored` or nan are */ \
  X(bool, phi_detached, false)                                       \
  X(double, phi_parameter, 0)                                        \
  X(double, phi_negative, 0)                                         \
  X(double, phi_clip, 0)                                             \
  X(double, ignored, 0)                                              \
  X(double, alpha, 0)                                                \
  X(double, beta, 0)                                                 \
  X(double, mu, 0)                                                   \
  X(double, step_size, 0)

#define LPL_BINARY_SIZES(X)                 \
  X(int64_t, n, 0)                          \
  X(int64_t, c, 0)                          \
  X(int64_t, row_stride, 0)                 \
  X(int64_t, target_stride, 0)              \
  X(DType, dtype, DType::f64)               \
  X(LabelType, target_type, LabelType::f64) \
  X(int32_t, threads, 0)

// (N, C) logits and labels, and all that their losses depend on. `Acc` parts are float, or double
// beside f64 logits.
struct BinaryProblem {
  const void* input = nullptr;   // (N, C), rows `row_stride` elements apart
  const void* target = nullptr;  // (N, C), rows `target_stride` elements apart
  LPL_BINARY_SIZES(LPL_FIELD)
  LPL_BINARY_PARTS(LPL_FIELD)
  LPL_BINARY_OPTIONS(LPL_FIELD)

  // Tables of negatives [0] and positives [1].
  LPL_HOST_DEVICE const void* weight(int side) const {
    return side ? positive_weight : negative_weight;
  }
  LPL_HOST_DEVICE const void* scale(int side) const {
    return side ? positive_scale : negative_scale;
  }
  LPL_HOST_DEVICE const void* offset(int side) const {
    return side ? positive_offset : negative_offset;
  }
};

// What to compute, null where it is not wanted, and what for.
#define LPL_BINARY_OUTPUTS(X)                                                          \
  X(void*, loss, nullptr)           /* (N, C) Acc for Reduction::none, else one Acc */ \
  X(void*, norm, nullptr)           /* one Acc */                                      \
  X(void*, grad, nullptr)           /* (N, C) of the logits' dtype, contiguous */      \
  X(const void*, upstream, nullptr) /* Acc, for the gradient; null: 1/norm, or 1 */    \
  X(bool, upstream_each, false)     /* there are (N, C) of it, else one */             \
  X(void*, delta, nullptr)          /* (2, C) Acc: of positives, then of negatives */

struct BinaryOutputs {
  LPL_BINARY_OUTPUTS(LPL_FIELD)
};

enum class BinaryFeature { LPL_BINARY_PARTS(LPL_MEMBER) LPL_BINARY_OPTIONS(LPL_MEMBER) unknown };
enum class BinaryOutput { LPL_BINARY_OUTPUTS(LPL_MEMBER) unknown };

namespace {

inline const char* name_of(BinaryFeature feature) {
  constexpr const char* names[] = {LPL_BINARY_PARTS(LPL_NAME) LPL_BINARY_OPTIONS(LPL_NAME)};
  return names[int(feature)];
}

inline const char* name_of(BinaryOutput output) {
  constexpr const char* names[] = {LPL_BINARY_OUTPUTS(LPL_NAME)};
  return names[int(output)];
}

inline uint64_t features_of(const BinaryProblem& of) {
  using Members = BinaryFeature;
  uint64_t found = 0;
  LPL_BINARY_PARTS(LPL_ADD_IF_ON)
  LPL_BINARY_OPTIONS(LPL_ADD_IF_ON)
  return found;
}

inline uint64_t wanted_of(const BinaryOutputs& of) {
  using Members = BinaryOutput;
  uint64_t found = 0;
  LPL_BINARY_OUTPUTS(LPL_ADD_IF_ON)
  return found;
}

}  // namespace

struct BinaryStatus {
  int64_t solved, swept;  // classes whose δ was found from moments; by plain steps
};

}  // namespace lpl
