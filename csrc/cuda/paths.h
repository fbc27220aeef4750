// What the CUDA kernels can do.
#pragma once

#include "../paths.h"
#include "kernels.h"

namespace lpl {
namespace {

constexpr Path kLossPath = {"loss", kEverything | kThrough, kLoss | kTerms | kDelta | kStatistics};
// gradients do not go through the steps
constexpr Path kRowPath = {"rows", kEverything, kLoss | kGrad | kTerms | kDelta | kStatistics};

// Sums over some columns, and gradients of rows that are settled.
constexpr Path kPartPath = {"parts", kEverything | kPart,
                            kLoss | kGrad | kTerms | kTableGrads | kDelta};

// What kernels of less than everything are compiled for: see Set in algebra.h, whose bits they are
// named by. All have one label a row.
constexpr uint64_t kLeanOutputs =
    kLoss | kGrad | kTerms | kDelta | set_of(Output::grad_scale, Output::grad_offset);
constexpr uint64_t kLean = kWeighing | kPressing | kPart | set_of(Is::margin);
constexpr uint64_t kScales = set_of(Is::scale, Is::offset, Is::inverse_temperature);

constexpr Path kBarePath = {"bare", kLean, kLeanOutputs};
constexpr Path kTablesPath = {"tables", kLean | kScales, kLeanOutputs};
constexpr Path kEvenPath = {"even smoothing",
                            (kLean & ~set_of(Is::weight, Is::phi, Is::phi_parameter)) |
                                set_of(Is::label_smoothing, Is::smoothing),
                            kLeanOutputs};
constexpr Path kLengthPath = {"norm", kLean | kNorming, kLeanOutputs};
constexpr Path kLengthTablesPath = {"norm, tables", kLean | kScales | kNorming, kLeanOutputs};
constexpr Path kPullPath = {"penalty", kLean | kPenalty, kLeanOutputs};
constexpr Path kMovePath = {"moved", kLean | kLearning | kThrough, kLeanOutputs};

// The solver has all that is wanted of a row, not only its δ.
constexpr Path kSolvedPath = {
    "solved rows",
    kWeighing | kPressing | kScaling | kByRow | kBounding | kLearning | kThrough | kPenalty,
    kRowPath.outputs};
// … of which these have kernels of their own.
constexpr Path kLearnedBarePath = {"learned", (kLean & ~kPart) | kLearning | kThrough,
                                   kRowPath.outputs};
constexpr Path kLearnedTablesPath = {"learned, tables", kLearnedBarePath.features | kScales,
                                     kRowPath.outputs};

constexpr const Path* kPaths[] = {&kLossPath,         &kRowPath,  &kPartPath,   &kBarePath,
                                  &kTablesPath,       &kEvenPath, &kLengthPath, &kLengthTablesPath,
                                  &kPullPath,         &kMovePath, &kSolvedPath, &kLearnedBarePath,
                                  &kLearnedTablesPath};

// What has to serve all that a call has and wants.
inline const Path& path_of(Work work, uint64_t wanted) {
  if (work != Work::cross_entropy && work != Work::learned_perturbation &&
      work != Work::learned_gradient)
    return kPartPath;
  return (wanted & ~kLossPath.outputs) == 0 ? kLossPath : kRowPath;
}

}  // namespace
}  // namespace lpl
