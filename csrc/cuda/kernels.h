// What the module lpl_fused._cuda runs: kernels.cu on a GPU, tests/cuda_on_host.cpp without one.
#pragma once

#include "call.h"

namespace lpl {

// Every function queues its kernels on `stream` of the current device and returns at once. Throws
// std::runtime_error where CUDA refuses a launch.
void cross_entropy(const Call& call, uintptr_t stream);
void learned_perturbation(const Call& call, uintptr_t stream);
void scale_rows(const Call& call, uintptr_t stream);

// Whose tensors they take: "cuda", or "cpu".
const char* device_kind();

}  // namespace lpl
