// What the module lpl_fused._cuda runs: kernels.cu on a GPU, tests/cuda_on_host.cpp without one.
#pragma once

#include "call.h"

namespace lpl {

// Every function queues its kernels on `stream` of the current device and returns at once. Throws
// std::runtime_error where CUDA refuses a launch.
void cross_entropy(const Call& call, uintptr_t stream);
void learned_perturbation(const Call& call, uintptr_t stream);
void scale_rows(const Call& call, uintptr_t stream);

// Bytes that Scratch::groups wants for (n, c) logits of the DType `dtype`, 0 if none.
int64_t group_bytes(int64_t n, int64_t c, int dtype);

// Whose tensors they take: "cuda", or "cpu".
const char* device_kind();

}  // namespace lpl
