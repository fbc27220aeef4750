// The element types of logits, which a call names.
#pragma once

#include "call.h"

namespace lpl {

template <typename T>
struct Type {
  using type = T;
};

// run(Type<T>) for the element type of `dtype`.
template <typename Run>
void for_type(DType dtype, Run run) {
  switch (dtype) {
    case DType::f64: return run(Type<double>());
    case DType::bf16: return run(Type<BFloat16>());
    case DType::f16: return run(Type<Float16>());
    default: return run(Type<float>());
  }
}

}  // namespace lpl
