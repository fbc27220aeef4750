// What the CUDA kernels can do.
#pragma once

#include "../paths.h"
#include "kernels.h"

namespace lpl {
namespace {

constexpr Path kLossPath = {"loss", kEverything | kThrough, kLoss | kTerms | kDelta};
// gradients do not go through the steps
constexpr Path kRowPath = {"rows", kEverything, kLoss | kGrad | kTerms | kDelta};

// Sums over some columns, and gradients of rows that are settled.
constexpr Path kPartPath = {"parts", kEverything | kPart,
                            kLoss | kGrad | kTerms | kTableGrads | kDelta};

// Labels, their weights and φ, learned perturbation or not.
constexpr Path kBarePath = {
    "bare", kWeighing | kLearning | kThrough | kPart,
    kLoss | kGrad | kTerms | kDelta | set_of(Output::grad_scale, Output::grad_offset)};

// The solver has all that is wanted of a row, not only its δ.
constexpr Path kSolvedPath = {"solved rows",
                              kWeighing | kPressing | kScaling | kByRow | kNorming | kBounding |
                                  kLearning | kThrough | kPenalty,
                              kRowPath.outputs};

constexpr const Path* kPaths[] = {&kLossPath, &kRowPath, &kPartPath, &kBarePath, &kSolvedPath};

// What has to serve all that a call has and wants.
inline const Path& path_of(Work work, uint64_t wanted) {
  if (work != Work::cross_entropy && work != Work::learned_perturbation) return kPartPath;
  return (wanted & ~kLossPath.outputs) == 0 ? kLossPath : kRowPath;
}

}  // namespace
}  // namespace lpl
