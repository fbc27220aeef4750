// The order of kernels in a call. A Launcher (kernels.cu; in tests the host) offers
//     rows(body, call, n, bytes, stage)   a team for each of n rows of so many bytes, on chip if
//                                         `stage`
//     once(body, call)                    one team for all
#pragma once

#include <type_traits>

#include "batch.h"
#include "group_steps.h"
#include "group_tail.h"
#include "paths.h"
#include "solver.h"
#include "steps.h"

namespace lpl {

template <typename T>
struct Type {
  using type = T;
};

// run(Type<T>) for the element type of `dtype`.
template <typename Run>
void for_type(DType dtype, Run run) {
  switch (dtype) {
    case DType::f64: return run(Type<double>());
    case DType::bf16: return run(Type<BFloat16>());
    case DType::f16: return run(Type<Float16>());
    default: return run(Type<float>());
  }
}

inline bool serves(const Path& path, const Call& call) {
  return path.serves(features_of(call.p), wanted_of(call.out));
}

template <template <typename, bool> class Body, typename T, typename Launcher>
void launch_rows(Launcher& launch, const Call& call) {
  // float64 has no kernels of its own for that
  constexpr bool simple = !std::is_same<T, double>::value;
  const i64 bytes = call.p.c * i64(sizeof(T));
  if (serves(kBarePath, call)) return launch.rows(Body<T, simple>(), call, call.p.n, bytes, true);
  launch.rows(Body<T, false>(), call, call.p.n, bytes, true);
}

// δ of the classes with several rows that are solved, whose rows SolverBody has read. Those that
// have a verdict let the rest of the kernels pass.
template <typename Acc, typename Launcher>
void relax_groups(Launcher& launch, Call call) {
  const i64 n = call.p.n, bytes = call.p.c * i64(sizeof(Acc));
  const i64 most = n * kMostExact * i64(sizeof(Acc));  // that one class has for its steps
  for (int round = 0;; ++round) {
    call.scratch.round = round;
    launch.rows(GroupStepsBody<Acc>(), call, n, most, false);
    if (round == kRounds) break;
    launch.rows(GroupTailBody<Acc>(), call, n, bytes, false);
  }
  launch.rows(GroupDeltaBody<Acc>(), call, n, bytes, false);
}

// The learned perturbation: of rows alone in their class all that is wanted, or with only_delta δ;
// of the others δ.
template <typename T, typename Launcher>
void take_steps(Launcher& launch, const Call& call) {
  launch_rows<SolverBody, T>(launch, call);
  if (call.scratch.groups) relax_groups<typename AccumulateOf<T>::type>(launch, call);
  launch.rows(StepsBody<T>(), call, call.p.n, call.p.c * i64(sizeof(T)), false);
}

template <typename Launcher>
void learned_perturbation(Launcher& launch, const Call& call) {
  for_type(call.p.dtype,
           [&](auto type) { take_steps<typename decltype(type)::type>(launch, call); });
}

// The loss of every row, its gradients, and what is summed over the batch, as far as wanted.
template <typename Launcher>
void cross_entropy(Launcher& launch, Call call) {
  const Problem& p = call.p;
  for_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using Acc = typename AccumulateOf<T>::type;
    if (call.out.norm) launch.once(NormBody<Acc>(), call);
    if (p.steps) {
      call.scratch.only_delta = !serves(kSolvedPath, call);
      take_steps<T>(launch, call);
      if (call.scratch.only_delta) call.scratch.outcome = nullptr;
    }
    launch_rows<RowBody, T>(launch, call);
    if (call.out.loss) launch.once(LossBody<Acc>(), call);
    if (!call.out.grad_scale && !call.out.grad_offset) return;
    const i64 chunks = (p.n + call.scratch.chunk - 1) / call.scratch.chunk;
    const i64 bytes = p.c * i64(sizeof(T));
    launch.rows(TableBody<T>(), call, chunks * TableBody<T>::tiles(p.c), bytes, false);
  });
}

template <typename Launcher>
void scale_rows(Launcher& launch, const Call& call) {
  for_type(call.p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch.rows(ScaleBody<T>(), call, call.p.n, call.p.c * i64(sizeof(T)), false);
  });
}

// Bytes of Scratch::groups.
inline i64 group_bytes(i64 n, i64 c, DType dtype) {
  return dtype == DType::f64 ? Group<double>::bytes(n, c) : Group<float>::bytes(n, c);
}

}  // namespace lpl
