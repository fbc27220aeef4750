// What the module lpl_fused._cuda runs: kernels.cu on a GPU, tests/cuda_on_host.cpp without one.
#pragma once

#include "call.h"

namespace lpl {

// What is done with a call, each a function of the module.
#define LPL_WORK(X)       \
  X(cross_entropy)        \
  X(learned_perturbation) \
  X(learned_gradient)     \
  X(size)                 \
  X(mass)                 \
  X(detail)               \
  X(rivals)               \
  X(perturbed)            \
  X(gradient)             \
  X(rescale)

#define LPL_ENUMERATOR(name) name,
enum class Work { LPL_WORK(LPL_ENUMERATOR) };
#undef LPL_ENUMERATOR

// Queues kernels on `stream` of the current device and returns at once. Throws std::runtime_error
// where CUDA refuses a launch.
void run(Work work, const Call& call, uintptr_t stream);

// Bytes that Scratch::groups wants for (n, c) logits of the DType `dtype`, 0 if none.
int64_t group_bytes(int64_t n, int64_t c, int dtype);

// Bytes of Scratch::learned for one row, and teams of a device that may have memory for plain
// steps.
int64_t learned_bytes(int dtype);
int64_t most_teams(int device);

// Whose tensors they take: "cuda", or "cpu".
const char* device_kind();

}  // namespace lpl
