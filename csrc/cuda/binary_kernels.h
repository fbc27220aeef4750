// What the module lpl_fused._cuda runs of multi-label losses: binary_kernels.cu on a GPU,
// tests/cuda_on_host.cpp without one.
#pragma once

#include "binary_call.h"

namespace lpl {

// What is done with a call, each a function of the module.
#define LPL_BINARY_WORK(X) \
  X(binary_cross_entropy)  \
  X(binary_perturbation)   \
  X(binary_rescale)

#define LPL_ENUMERATOR(name) name,
enum class BinaryWork { LPL_BINARY_WORK(LPL_ENUMERATOR) };
#undef LPL_ENUMERATOR

// As run in kernels.h.
void run_binary(BinaryWork work, const BinaryCall& call, uintptr_t stream);

// How many numbers a call wants of BinaryScratch::losses and ::partial.
struct BinaryRoom {
  int64_t losses, partial;
};
BinaryRoom binary_room(const BinaryProblem& p);

}  // namespace lpl
