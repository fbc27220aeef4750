// What launchers share.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace lpl {
namespace {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA refused ") + what + ": " +
                             cudaGetErrorString(error));
}

}  // namespace
}  // namespace lpl
