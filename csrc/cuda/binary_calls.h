// The order of kernels in a call of multi-label losses. A launcher (binary_kernels.cu; in tests the
// host) offers
//     teams(body, call, count)    so many blocks, a team each
//     once(body, call)            one team for all
//     crew                        threads of a warp
//     places()                    threads of a team
#pragma once

#include <stdexcept>
#include <string>

#include "binary_kernels.h"
#include "binary_learned.h"
#include "binary_paths.h"
#include "binary_sums.h"
#include "binary_tiles.h"
#include "types.h"

namespace lpl {

inline bool serves(const Path& path, const BinaryCall& call) {
  return path.serves(features_of(call.p), wanted_of(call.out));
}

// use(Label()) for labels that are bool, floats as the logits are or as what is calculated in; else
// of Any.
template <typename T, typename Use>
void for_labels(const BinaryCall& call, Use use) {
  const LabelType type = call.p.target_type;
  if (call.scratch.hard) return use(Bool());
  if (!call.p.missing && int(type) == int(call.p.dtype)) return use(T());
  use(Any());
}

// use(body) for the sweep that serves the call.
template <typename T, typename Use>
void for_sweep(const BinaryCall& call, Use use) {
  if constexpr (!std::is_same<T, double>::value) {
    const bool each = call.out.loss && call.p.reduction == Reduction::none;
    const bool moved = call.scratch.delta;
    if (!each && serves(moved ? kBinaryMovedPath : kBinarySpanPath, call)) {
      const auto sweep = [&](auto label) {
        using Label = decltype(label);
        if (moved) return use(BinaryTileBody<T, Label, false>());
        use(BinarySpanBody<T, Label>());
      };
      if (call.scratch.hard) return sweep(Bool());
      if (int(call.p.target_type) == int(call.p.dtype)) return sweep(T());
      if (call.p.target_type == LabelType::f32) return sweep(float());
    }
  }
  if (call.p.phi == Phi::asymmetric) return use(BinarySidedBody<T>());
  use(BinaryTileBody<T, Any, true>());
}

// δ, into out.delta.
template <typename T, typename Launcher>
void learn_binary(Launcher& launch, BinaryCall call) {
  const i64 blocks = (call.p.c + launch.crew - 1) / launch.crew;
  call.chunks = Chunks::of(call.p);
  if constexpr (!std::is_same<T, double>::value) {
    launch.teams(BinaryGuessBody<T>(), call, blocks);
    for_labels<T>(call, [&](auto label) {
      launch.teams(BinaryMomentsBody<T, decltype(label)>(), call, blocks * call.chunks.count);
    });
  }
  launch.teams(BinaryStepsBody<T>(), call, blocks);
}

// What has to be known before the sweep.
template <typename T, typename Launcher>
void before_sweep(Launcher& launch, const BinaryCall& call) {
  using Acc = typename AccumulateOf<T>::type;
  if (call.p.steps) learn_binary<T>(launch, call);
  const bool counts = call.out.loss && call.p.missing && call.p.reduction == Reduction::mean;
  if (counts || call.scratch.masses) launch.teams(BinaryLabelsBody<Acc>(), call, call.p.n);
  if (counts) launch.once(BinaryNormBody<Acc>(), call);
}

template <typename T, typename Launcher>
void sweep_binary(Launcher& launch, BinaryCall& call) {
  call.p.steps = nullptr;  // δ is there
  for_sweep<T>(call, [&](auto body) {
    call.scratch.teams = body.plan(call, launch.places());
    launch.teams(body, call, call.scratch.teams);
  });
}

// Loss and gradient, as far as wanted.
template <typename T, typename Launcher>
void binary_cross_entropy(Launcher& launch, BinaryCall call) {
  before_sweep<T>(launch, call);
  sweep_binary<T>(launch, call);
  if (call.out.loss && call.p.reduction != Reduction::none)
    launch.once(BinaryLossBody<typename AccumulateOf<T>::type>(), call);
}

// A finished gradient times a factor. One of 16 bits is made anew where that would round it again.
template <typename T, typename Launcher>
void binary_rescale(Launcher& launch, BinaryCall call) {
  call.spans = Spans::of_memory(call.p.n * call.p.c);
  launch.teams(BinaryScaleBody<T>(), call, call.spans.count);
  if (sizeof(T) != 2) return;
  call.scratch.anew = true;
  before_sweep<T>(launch, call);
  sweep_binary<T>(launch, call);
}

// Threads go from row to row of a column by 32 bits.
inline void expect_near_rows(const BinaryProblem& p, int places) {
  const i64 most = p.n > i64(places) * kGuessed ? p.n / kGuessed : places;  // rows at once
  for (const i64 stride : {p.row_stride, p.target_stride, p.c})
    if (p.n > 1 && stride > ((i64(1) << 32) - 1) / most)
      throw std::runtime_error("rows of " + std::to_string(stride) +
                               " elements are too far apart for multi-label kernels");
}

// A call of logits of one type.
template <typename T, typename Launcher>
void run_binary_of(Launcher& launch, BinaryWork work, const BinaryCall& call) {
  expect_near_rows(call.p, launch.places());
  switch (work) {
    case BinaryWork::binary_cross_entropy: return binary_cross_entropy<T>(launch, call);
    case BinaryWork::binary_perturbation: return learn_binary<T>(launch, call);
    case BinaryWork::binary_rescale: return binary_rescale<T>(launch, call);
  }
}

// Enough for whatever sweep serves a call.
inline BinaryRoom room_of(const BinaryProblem& p, int places) {
  const i64 spans = Spans::of(p).count, tiles = Tiles::of(p, places).count();
  const bool sums = p.steps && p.dtype != DType::f64;
  return {spans < tiles ? tiles : spans, sums ? 2 * kSums * Chunks::of(p).count * p.c : 0};
}

}  // namespace lpl
