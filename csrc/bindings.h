// How the native modules read a problem: addresses of its tensors, and numbers.
#pragma once

#include <pybind11/pybind11.h>

#include "row.h"

namespace lpl {
namespace {

namespace py = pybind11;

using Address = uintptr_t;  // of a tensor's data; 0 where the tensor is absent

template <typename T = void>
T* output(Address address) {
  return reinterpret_cast<T*>(address);
}

// The data of a tensor that may be None.
template <typename T = void>
const T* data(const py::handle& tensor) {
  if (tensor.is_none()) return nullptr;
  static PyObject* const name = PyUnicode_InternFromString("data_ptr");
  const auto address =
      py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor.ptr(), name));
  if (!address) throw py::error_already_set();
  return output<const T>(address.cast<Address>());
}

// `problem` is a lpl_fused.problem.Problem; `sizes` what lpl_fused.backends.native.sizes
// returns.
Problem make_problem(const py::tuple& problem, const py::tuple& sizes) {
  Problem p{};
  int at = 0;
  p.n = sizes[at++].cast<int64_t>();
  p.c = sizes[at++].cast<int64_t>();
  p.row_stride = sizes[at++].cast<int64_t>();
  const bool dense = sizes[at++].cast<bool>();
  p.dense_stride = sizes[at++].cast<int64_t>();
  p.row_count = sizes[at++].cast<int64_t>();
  p.dtype = DType(sizes[at++].cast<int>());
  p.dense_dtype = DType(sizes[at++].cast<int>());
  p.threads = sizes[at++].cast<int32_t>();

  at = 0;
  p.input = data(problem[at++]);
  const py::handle target = problem[at++];
  if (dense) {
    p.dense = data(target);
  } else {
    p.target = data<int64_t>(target);
  }
  p.other = data<int64_t>(problem[at++]);
  p.lam = data(problem[at++]);
  p.weight = data(problem[at++]);
  p.sample_weight = data(problem[at++]);
  p.smoothing = data(problem[at++]);
  p.scale = data(problem[at++]);
  p.offset = data(problem[at++]);
  p.margin = data(problem[at++]);
  p.rows = data(problem[at++]);
  p.row_index = data<int64_t>(problem[at++]);
  p.steps = data<int32_t>(problem[at++]);
  p.multiplier = data(problem[at++]);
  p.rho = data(problem[at++]);

  const py::tuple options = problem[at];
  at = 0;
  p.reduction = Reduction(options[at++].cast<int>());
  p.ignore_index = options[at++].cast<int64_t>();
  p.phi = Phi(options[at++].cast<int>());
  p.phi_parameter = options[at++].cast<double>();
  p.label_smoothing = options[at++].cast<double>();
  p.z_loss = options[at++].cast<double>();
  p.softcap = options[at++].cast<double>();
  p.norm_p = options[at++].cast<double>();
  p.norm_limit = options[at++].cast<double>();
  p.norm_gain = options[at++].cast<double>();
  p.norm_offset = options[at++].cast<double>();
  p.inverse_temperature = options[at++].cast<double>();
  p.step_size = options[at++].cast<double>();
  p.penalty = Penalty(options[at++].cast<int>());
  p.penalty_margin = options[at++].cast<double>();
  p.penalty_unit = options[at++].cast<double>();
  p.penalty_strength = options[at++].cast<double>();
  p.normalize = options[at++].cast<bool>();
  p.through = options[at++].cast<bool>();
  p.first = options[at++].cast<int64_t>();
  p.classes = options[at++].cast<int64_t>();
  if (p.classes == 0) p.classes = p.c;
  return p;
}

}  // namespace
}  // namespace lpl
