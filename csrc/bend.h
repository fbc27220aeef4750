// How the masses of many small rivals follow what a class's steps add up to: see
// cpu/group_solver.h.
#pragma once

#include "lpl_math.h"

namespace lpl {
namespace {  // every object has its own, made for its instruction set

// With B = Σ β, β what B gains by a step: κ = Σ β²/2B², 0 for the flow, 1/2 for a single step.
struct Bend {
  double kappa = 0;
  // x − 1 = B + second·B² + third·B³
  LPL_HOST_DEVICE double second() const { return 1 - kappa; }
  LPL_HOST_DEVICE double third() const { return 1 - kappa * (2.5 - kappa * 5 / 3); }
  // log x = B + log_second·B² + log_third·B³
  LPL_HOST_DEVICE double log_second() const { return 0.5 - kappa; }
  LPL_HOST_DEVICE double log_third() const { return (1 - 2 * kappa) * (2 - 5 * kappa) / 6; }
};

}  // namespace
}  // namespace lpl
