// Plain-data structures of one call: what the launchers fill and every native kernel reads.
// No torch, no Python. Mirrors lpl_fused/problem.py; a null pointer is an absent part.
#pragma once

#include <cstdint>

namespace lpl {

enum class DType : int32_t { f64 = 0, f32 = 1, bf16 = 2, f16 = 3 };
enum class Phi : int32_t { log = 0, power = 1, focal = 2, poly1 = 3 };
enum class Penalty : int32_t { none = 0, relu = 1, phr = 2, p2 = 3, p3 = 4 };
enum class Reduction : int32_t { none = 0, mean = 1, sum = 2 };

// Why a call gave nothing: a label out of range, or steps through which the kernels do not
// differentiate.
enum class Fault : int32_t { none = 0, target = 1, row_index = 2, through = 3 };

// (N, C) logits and all that the loss of their rows depends on. `Acc` parts are float, or double
// beside f64 logits.
//
// The logits, and class probabilities, may be of some columns alone: `c` of them, from `first` on of
// all `classes`.
struct Problem {
  const void* input;  // (N, C), rows `row_stride` elements apart
  int64_t n, c, row_stride;
  int64_t first, classes;
  DType dtype;

  const int64_t* target;  // (N,) labels, or null: `dense`
  const void* dense;      // (N, C) class probabilities of dtype `dense_dtype`
  int64_t dense_stride;
  DType dense_dtype;
  const int64_t* other;  // (N,) second labels of mixed targets
  const void* lam;       // (N,) Acc, the share of `target`

  const void* weight;         // (C,) Acc
  const void* sample_weight;  // (N,) Acc
  const void* smoothing;      // (C,) Acc, by target class
  const void* scale;          // (C,) Acc
  const void* offset;         // (C,) Acc
  const void* margin;         // (C,) Acc
  const void* rows;           // (R, C) Acc, added before 1/temperature
  int64_t row_count;
  const int64_t* row_index;  // (N,), or null: the target's row
  const int32_t* steps;      // (C,), learned perturbation
  const void* multiplier;    // (C,) Acc, λ of the penalty
  const void* rho;           // (C,) Acc, ρ of the penalty

  // What an earlier sweep of a direct problem (RowLoss::direct) left, or null: (N, 3) Acc, shift,
  // rest and target's logit of each row, whose exponentials are in the gradient's row.
  const void* swept;

  Reduction reduction;
  Phi phi;
  Penalty penalty;
  bool normalize;
  bool through;  // the gradient goes through the learned perturbation's steps
  int64_t ignore_index;
  double phi_parameter, label_smoothing, z_loss, softcap, inverse_temperature, step_size;
  double norm_p, norm_limit, norm_gain, norm_offset;  // of lpl_fused.norm; p = 0: none
  double penalty_margin, penalty_unit, penalty_strength;

  int32_t threads;
};

// What to compute; null pointers are not wanted.
struct Outputs {
  void* loss;  // (N,) Acc for Reduction::none, else one Acc
  void* norm;  // one Acc

  void* grad;                // (N, C) of the logits' dtype, contiguous
  const void* grad_rows;     // (N,) Acc upstream; null: 1/norm (mean) or 1
  int64_t grad_rows_stride;  // 0 or 1
  void* grad_perturbed;      // (N, C) Acc, dL/d rows of each sample
  void* grad_scale;          // (C,) Acc
  void* grad_offset;         // (C,) Acc
  void* grad_margin;         // (C,) Acc
  void* swept;               // (N, 3) Acc: see Problem
  void* delta;               // (N, C) Acc, zeroed by the caller: the learned perturbation
  int64_t* slot;             // (N,) row of `delta` that each row uses
};

struct Status {
  Fault fault;
  int64_t value;  // the label or index at fault
  int64_t solved,
      swept;  // rows alone in their class: by the solver, by plain steps after it failed
};

}  // namespace lpl
