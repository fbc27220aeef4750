// What the CPU kernels can do: all of it by rows; few things faster.
#pragma once

#include "../binary.h"
#include "../paths.h"

namespace lpl {
namespace {

constexpr Path kRowPath = {"rows", kEverything | kThrough, kLoss | kGrad | kTerms | kStatistics};
constexpr Path kDeltaPath = {"learned perturbation", kEverything | kThrough, kDelta};

// Sums over some of the columns, and their gradient.
constexpr Path kPartPath = {"parts", kEverything | kPart, kGrad | kTableGrads};

// The logits are z (but for a norm, which may leave a row as it is), and the learned perturbation
// is not there yet: the loss has them as they stand.
constexpr Path kRawPath = {"raw logits",
                           kWeighing | kPressing | kNorming | kMixing | kSpreading | kLearning |
                               kThrough | kPenalty | kPart,
                           kRowPath.outputs | kTableGrads | kDelta | set_of(Output::swept)};

// Few classes: rows side by side (narrow_rows.h).
constexpr Path kNarrowPath = {"narrow rows", kWeighing | kPressing | kScaling,
                              kLoss | kGrad | kTerms | kStatistics};

// A row's loss needs nothing of its softmax but the masses of target and rivals, and its gradient
// nothing but one product per class: such rows take the solver's result as it is.
constexpr Path kDirectPath = {"solved rows",
                              kWeighing | kPressing | kScaling | kByRow | kLearning | kThrough,
                              kLoss | kGrad | kStatistics | set_of(Output::swept)};

// One sweep makes the exponentials that another call ends with (Problem::swept).
constexpr Path kSweepPath = {"one sweep",
                             kWeighing | kPressing | kScaling | kByRow | kLearning | kThrough,
                             kLoss | kGrad | set_of(Output::swept)};

constexpr const Path* kPaths[] = {&kRowPath,    &kPartPath,   &kDeltaPath, &kRawPath,
                                  &kNarrowPath, &kDirectPath, &kSweepPath};

using IsBinary = BinaryFeature;

constexpr uint64_t kBinaryOutputs =
    set_of(BinaryOutput::loss, BinaryOutput::norm, BinaryOutput::grad, BinaryOutput::upstream,
           BinaryOutput::upstream_each, BinaryOutput::delta);

// Logits as they are, or with the learned perturbation.
constexpr Path kBareBinaryPath = {
    "bare", set_of(IsBinary::steps, IsBinary::step_size, IsBinary::reduction, IsBinary::normalizer),
    kBinaryOutputs};
constexpr Path kBinaryPath = {
    "tables",
    kBareBinaryPath.features |
        set_of(IsBinary::positive_weight, IsBinary::negative_weight, IsBinary::positive_scale,
               IsBinary::positive_offset, IsBinary::negative_scale, IsBinary::negative_offset,
               IsBinary::inverse_count, IsBinary::sample_weight, IsBinary::phi,
               IsBinary::phi_parameter, IsBinary::phi_negative, IsBinary::phi_clip,
               IsBinary::phi_detached, IsBinary::missing, IsBinary::ignored, IsBinary::alpha,
               IsBinary::beta, IsBinary::mu),
    kBinaryOutputs};

constexpr const Path* kBinaryPaths[] = {&kBinaryPath, &kBareBinaryPath};

}  // namespace
}  // namespace lpl
