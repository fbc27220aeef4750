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

// (N, C) logits and labels, and all that their losses depend on. `Acc` parts are float, or double
// beside f64 logits; null is absent.
struct BinaryProblem {
  const void* input;  // (N, C), rows `row_stride` elements apart
  int64_t n, c, row_stride;
  DType dtype;
  const void* target;  // (N, C), rows `target_stride` elements apart
  int64_t target_stride;
  LabelType target_type;

  const void* weight[2];      // (C,) Acc, of negatives [0] and positives [1]; so the next two
  const void* scale[2];       // (C,) Acc
  const void* offset[2];      // (C,) Acc
  const void* inverse_count;  // (C,) Acc: row×class weights
  const void* sample_weight;  // (N,) Acc
  const int32_t* steps;       // (C,), learned perturbation

  Reduction reduction;
  Phi phi;
  bool missing;  // labels equal to `ignored` or nan are
  double phi_parameter, ignored, alpha, beta, mu, step_size;

  int32_t threads;
};

// What to compute; null pointers are not wanted.
struct BinaryOutputs {
  void* loss;  // (N, C) Acc for Reduction::none, else one Acc
  void* norm;  // one Acc

  void* grad;            // (N, C) of the logits' dtype, contiguous
  const void* upstream;  // Acc: one, or (N, C) if `upstream_each`; null: 1/norm (mean) or 1
  bool upstream_each;
  void* delta;  // (2, C) Acc: of positives, then of negatives
};

struct BinaryStatus {
  int64_t solved, swept;  // classes whose δ was found from moments; by plain steps
};

}  // namespace lpl
