// What the CUDA kernels can do.
#pragma once

#include "../paths.h"

namespace lpl {
namespace {

constexpr Path kLossPath = {"loss", kEverything | kThrough, kLoss | kDelta};
// gradients do not go through the steps
constexpr Path kRowPath = {"rows", kEverything, kLoss | kGrad | kTableGrads | kDelta};

// Labels, their weights and φ, learned perturbation or not.
constexpr Path kBarePath = {
    "bare", kWeighing | kLearning | kThrough,
    kLoss | kGrad | kDelta | set_of(Output::grad_scale, Output::grad_offset)};

// The solver has all that is wanted of a row, not only its δ.
constexpr Path kSolvedPath = {"solved rows",
                              kWeighing | kPressing | kScaling | kByRow | kNorming | kBounding |
                                  kLearning | kThrough | kPenalty,
                              kRowPath.outputs};

constexpr const Path* kPaths[] = {&kLossPath, &kRowPath, &kBarePath, &kSolvedPath};

}  // namespace
}  // namespace lpl
