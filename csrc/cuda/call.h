// One call on the device, the element types of its logits, and what is shared by all bodies of
// kernels. Bodies are templates over a `Team`, the threads that share a row (team.h); beside
// LPL_DEVICE there is nothing of CUDA in them, so that tests run the same text on the host, with
// 16-bit types of their own.
#pragma once

#include <cmath>
#include <cstdlib>
#include <type_traits>

#include "../row.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define LPL_DEVICE __device__
#define LPL_APART __device__ __noinline__
#else
#define LPL_DEVICE
#define LPL_APART
#endif

// What holds on the way that most threads take through a kernel: of ways that exclude each other
// benchmarks/device_cost.py counts the dearest, and this one by compiling with LPL_USUAL. Nobody
// runs such a kernel.
#if defined(LPL_USUAL) && defined(__CUDA_ARCH__)
#define LPL_USUALLY(condition) __builtin_assume(condition)
// The same where it is asked for every logit, or piece of them: the question remains.
#define LPL_USUALLY_NOT(asked)        \
  asm volatile("" ::"r"(int(asked))); \
  __builtin_assume(!(asked))
#else
#define LPL_USUALLY(condition) static_cast<void>(0)
#define LPL_USUALLY_NOT(asked) static_cast<void>(0)
#endif

namespace lpl {

using i64 = int64_t;

// Buffers that the launcher's caller allocates; null where a call does not need them. Rows by
// class: those of row i's are order[begin[i] : begin[i] + counts[i]]. A partial sum of grad_scale
// and grad_offset is over `chunk` rows, so that there are ⌈N/chunk⌉ of each. A finished gradient is
// multiplied by `factor`.
#define LPL_SCRATCH(X)                                                                             \
  X(void*, losses, nullptr)         /* (N,) Acc */                                                 \
  X(void*, penalty_weight, nullptr) /* one Acc: out.norm over the number of rows that count */     \
  X(int64_t*, order, nullptr)                                                                      \
  X(int64_t*, begin, nullptr)                                                                      \
  X(int64_t*, counts, nullptr)                                                                     \
  X(int32_t*, flags, nullptr)   /* (kFlags,) Flag */                                               \
  X(int32_t*, outcome, nullptr) /* (N,) Outcome */                                                 \
  X(void*, groups, nullptr)     /* Group::bytes, null where that is 0 */                           \
  X(int64_t, chunk, 1)                                                                             \
  X(const void*, factor, nullptr)    /* (N,) Acc */                                                \
  X(int64_t, factor_stride, 0)       /* 0 or 1 */                                                  \
  X(const void*, divisor, nullptr)   /* one Acc: what out.grad_rows is divided by */               \
  X(void*, part, nullptr)            /* (N,) of the part's numbers, double: ../numbers.h */        \
  X(const void*, threshold, nullptr) /* (N,) Acc, of heads */                                      \
  X(void*, powers, nullptr)          /* (N, kOrder) double, of the tail */                         \
  X(int32_t*, head_columns, nullptr) /* (N, heads_of), -1 where there is none */                   \
  X(void*, head_numbers, nullptr)    /* the same, Acc: what learned_row.h says, or their logits */ \
  X(void*, learned, nullptr)         /* (N,) LearnedRow */                                         \
  X(void*, swept, nullptr)           /* (teams, C) Acc: δ of a row that takes plain steps */       \
  X(int64_t, teams, 1)               /* that take plain steps of rows alone in their class */      \
  X(void*, perturbed, nullptr)       /* (N, C) Acc, z */                                           \
  X(const int64_t*, aim, nullptr)    /* (N,): the class that is right, for statistics of rows */

struct Scratch {
  LPL_SCRATCH(LPL_FIELD)
  int round = 0;                // of the kernels of groups
  bool by_class = false;        // order, begin and counts are there before the statistics
  bool only_delta = false;      // δ is all that is wanted of the steps; RowBody takes it from there
  bool stats_by_steps = false;  // of rows that have taken steps, from what these have left
  bool anew = false;  // kernels have nothing to do unless `factor` rounds a gradient again
};

// What became of a row's steps.
enum Outcome : int32_t {
  kSolved = 0,     // it has its class to itself, and a series gave them
  kUnchanged = 1,  // it takes none
  kPerturbed = 2,  // it shares its δ with others, which is found
  kGroup = 3,      // the same, left to plain steps: nothing can be solved, or it has no room
  kFellBack = 4,   // left to plain steps: the solver would not be exact enough
  kRelaxed = 5,    // it shares its δ with others, which is being found
};

// What is 1 where there is such a row: who has nothing to do need not look at every one.
enum Flag : int {
  kSharing = 0,  // it shares its class
  kLeft = 1,     // it is left to plain steps
  kOpen = 2,     // its class has no verdict yet after round 0, or so many more
  kArrived = 5,  // how many teams have done with plain steps, or with rows whose loss the last sums
  kFlags = 8
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
  if (!call.scratch.factor || call.scratch.factor_stride) return false;
  const Acc factor = factor_of<Acc>(call, 0);
  return factor == 1 || (call.scratch.anew && keeps_digits(factor));
}

// What has to hold before memory is read; a device would not say.
LPL_DEVICE inline void expect(bool holds) {
#if !defined(__CUDACC__)
  if (!holds) std::abort();
#endif
}

// Keeps a place in a register, where the compiler would make it anew for every use.
template <typename X>
LPL_DEVICE inline void keep(X*& place) {
#if defined(__CUDA_ARCH__)
  asm("" : "+l"(place));
#else
  static_cast<void>(place);
#endif
}

struct Nothing {};  // Body::Shared, a block's own memory, of bodies that need none

template <typename Body, typename = void>
struct SharedOf {
  using type = Nothing;
};
template <typename Body>
struct SharedOf<Body, std::void_t<typename Body::Shared>> {
  using type = typename Body::Shared;
};

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
