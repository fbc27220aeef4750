// Sets of features by what they do to a call, of which the modules' paths are made. A new feature
// is in none: no path serves it until somebody has said which does.
#pragma once

#include "row.h"

namespace lpl {
namespace {

using Is = Feature;

// what weighs a row's loss, given its softmax
constexpr uint64_t kWeighing = set_of(Is::weight, Is::sample_weight, Is::reduction, Is::normalizer,
                                      Is::ignore_index, Is::phi, Is::phi_parameter);
constexpr uint64_t kPressing = set_of(Is::z_loss);
// what makes z of the logits, class by class
constexpr uint64_t kScaling = set_of(Is::scale, Is::offset, Is::margin, Is::inverse_temperature);
constexpr uint64_t kByRow = set_of(Is::rows, Is::row_index);
// what bends the logits before
constexpr uint64_t kNorming = set_of(Is::norm_p, Is::norm_limit, Is::norm_gain, Is::norm_offset);
constexpr uint64_t kBounding = set_of(Is::softcap);
// targets that are not one label
constexpr uint64_t kMixing = set_of(Is::other, Is::lam);
constexpr uint64_t kSpreading = set_of(Is::dense, Is::smoothing, Is::label_smoothing);
// the learned perturbation
constexpr uint64_t kLearning = set_of(Is::steps, Is::step_size, Is::normalize);
constexpr uint64_t kThrough = set_of(Is::through);
constexpr uint64_t kPenalty = set_of(Is::penalty, Is::penalty_margin, Is::penalty_unit,
                                     Is::penalty_strength, Is::multiplier, Is::rho);
// the logits are of some of the classes
constexpr uint64_t kPart = set_of(Is::first, Is::classes);

// all but kThrough and kPart
constexpr uint64_t kEverything = kWeighing | kPressing | kScaling | kByRow | kNorming | kBounding |
                                 kMixing | kSpreading | kLearning | kPenalty;

constexpr uint64_t kLoss = set_of(Output::loss, Output::norm);
constexpr uint64_t kGrad = set_of(Output::grad, Output::grad_rows, Output::grad_rows_stride);
constexpr uint64_t kTerms = set_of(Output::terms);
constexpr uint64_t kTableGrads =
    set_of(Output::grad_perturbed, Output::grad_scale, Output::grad_offset, Output::grad_margin);
constexpr uint64_t kDelta = set_of(Output::delta, Output::slot);
constexpr uint64_t kStatistics = set_of(Output::lse, Output::entropy, Output::correct);

}  // namespace
}  // namespace lpl
