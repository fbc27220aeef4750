// One call on the device, the element types of its logits, and what is shared by all bodies of
// kernels. Bodies are templates over a `Team`, the threads that share a row (team.cuh); beside
// LPL_DEVICE there is nothing of CUDA in them, so that tests run the same text on the host, with
// 16-bit types of their own.
#pragma once

#include <cmath>

#include "../row.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define LPL_DEVICE __device__
#else
#define LPL_DEVICE
#endif

namespace lpl {

using i64 = int64_t;

// Buffers that the launcher's caller allocates; null where a call does not need them.
struct Scratch {
  void* losses;          // (N,) Acc
  void* penalty_weight;  // one Acc: out.norm over the number of rows that count
  void* terms;           // (N,) Terms<Acc>
  // rows that a partial sum of grad_scale and grad_offset is over; those are (⌈N/chunk⌉, C)
  int64_t chunk;

  // rows by class: those of row i's are order[begin[i] : begin[i] + count[i]]
  const int64_t *order, *begin, *count;
  int32_t* outcome;  // (N,) Outcome
  void* groups;      // Group::bytes, null where that is 0
  int round;         // of the kernels of groups
  // (N, 3) Acc: shift, 1/Σ and norm's factor of each row in a plain step; for Group its lift
  void* rowwise;
  void* direction;  // (N, C) Acc, where steps are normalised
  bool only_delta;  // the solver leaves loss and gradient to RowBody, whose δ it makes

  // What a finished gradient is multiplied by, (N,) Acc or one (stride 0). Where that would round
  // it a second time it is made anew, by what runs with `anew` set, which else has nothing to do.
  const void* factor;
  int64_t factor_stride;
  bool anew;

  // Reductions: the part's numbers (parts.h), (N, …) double; of rivals threshold (N,) Acc, powers
  // (N, kOrder) double, heads by column (N, min(kMost, C)) with their logits, Acc. z: (N, C) Acc
  void* part;
  const void* threshold;
  void* powers;
  int32_t* head_columns;
  void* head_logits;
  void* perturbed;
};

// What the solver made of a row.
enum Outcome : int32_t {
  kSolved = 0,     // it has all that is wanted of it
  kUnchanged = 1,  // it takes no steps
  kPerturbed = 2,  // it shares its δ with others, which is there
  kGroup = 3,      // it shares its δ with others: left to plain steps
  kFellBack = 4,   // the solver would not be exact enough: left to plain steps
  kRelaxed = 5,    // it shares its δ with others, which is being found
};

struct Call {
  Problem p;
  Outputs out;
  Scratch scratch;
};

template <typename Acc>
LPL_DEVICE inline Acc factor_of(const Call& call, i64 i) {
  return static_cast<const Acc*>(call.scratch.factor)[i * call.scratch.factor_stride];
}

// Whether 16-bit numbers times this are not rounded again: it is a power of two, or leaves nothing
// to round.
template <typename Acc>
LPL_DEVICE inline bool keeps_digits(Acc factor) {
  int exponent;
  const Acc digits = std::fabs(std::frexp(factor, &exponent));
  return digits == Acc(0.5) || !(digits > 0 && digits < 1);
}

// Whether all kernels of a call have nothing to do.
template <typename Acc>
LPL_DEVICE inline bool spared(const Call& call) {
  return call.scratch.anew && keeps_digits(factor_of<Acc>(call, 0));
}

struct Nothing {};  // Body::Shared, a block's own memory, of bodies that need none

#if defined(__CUDACC__)
using BFloat16 = __nv_bfloat16;
using Float16 = __half;
LPL_DEVICE inline float load(BFloat16 x) {
  return __bfloat162float(x);
}
LPL_DEVICE inline float load(Float16 x) {
  return __half2float(x);
}
LPL_DEVICE inline void store(BFloat16& to, float x) {
  to = __float2bfloat16_rn(x);
}
LPL_DEVICE inline void store(Float16& to, float x) {
  to = __float2half_rn(x);
}
#endif
LPL_DEVICE inline float load(float x) {
  return x;
}
LPL_DEVICE inline double load(double x) {
  return x;
}
LPL_DEVICE inline void store(float& to, float x) {
  to = x;
}
LPL_DEVICE inline void store(double& to, double x) {
  to = x;
}

template <typename T>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};

}  // namespace lpl
