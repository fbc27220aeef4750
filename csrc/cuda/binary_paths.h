// What the multi-label kernels can do.
#pragma once

#include "../binary.h"

namespace lpl {
namespace {

using IsBinary = BinaryFeature;

constexpr uint64_t kBinarySums =
    set_of(BinaryOutput::loss, BinaryOutput::norm, BinaryOutput::grad, BinaryOutput::upstream);

// Logits and labels, nothing else; the same under a learned perturbation.
constexpr Path kBinarySpanPath = {"spans", set_of(IsBinary::reduction, IsBinary::normalizer),
                                  kBinarySums};
constexpr Path kBinaryMovedPath = {
    "moved", kBinarySpanPath.features | set_of(IsBinary::steps, IsBinary::step_size),
    kBinarySums | set_of(BinaryOutput::delta)};
constexpr Path kBinaryPath = {
    "tiles",
    kBinaryMovedPath.features |
        set_of(IsBinary::positive_weight, IsBinary::negative_weight, IsBinary::positive_scale,
               IsBinary::positive_offset, IsBinary::negative_scale, IsBinary::negative_offset,
               IsBinary::inverse_count, IsBinary::sample_weight, IsBinary::phi,
               IsBinary::phi_parameter, IsBinary::phi_negative, IsBinary::phi_clip,
               IsBinary::phi_detached, IsBinary::missing, IsBinary::ignored, IsBinary::alpha,
               IsBinary::beta, IsBinary::mu),
    kBinaryMovedPath.outputs | set_of(BinaryOutput::upstream_each)};

constexpr const Path* kBinaryPaths[] = {&kBinarySpanPath, &kBinaryMovedPath, &kBinaryPath};

}  // namespace
}  // namespace lpl
