// The module lpl_fused._cpu: pointers and sizes in, kernels called without the interpreter's lock.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "dispatch.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;  // of a tensor's data; 0 where the tensor is absent
using lpl::Outputs;
using lpl::Problem;
using lpl::Status;

const void* data(const py::handle& address) {
  return reinterpret_cast<const void*>(address.cast<Address>());
}

template <typename T>
const T* data_of(const py::handle& address) {
  return static_cast<const T*>(data(address));
}

template <typename T = void>
T* output(Address address) {
  return reinterpret_cast<T*>(address);
}

// `tensors`, `codes` and `numbers` are those of lpl_fused.backends.cpp.problem_arguments.
Problem make_problem(const py::tuple& tensors, const py::tuple& sizes, const py::tuple& codes,
                     const py::tuple& numbers) {
  Problem p{};
  int at = 0;
  p.input = data(tensors[at++]);
  p.target = data_of<int64_t>(tensors[at++]);
  p.dense = data(tensors[at++]);
  p.other = data_of<int64_t>(tensors[at++]);
  p.lam = data(tensors[at++]);
  p.weight = data(tensors[at++]);
  p.sample_weight = data(tensors[at++]);
  p.smoothing = data(tensors[at++]);
  p.scale = data(tensors[at++]);
  p.offset = data(tensors[at++]);
  p.margin = data(tensors[at++]);
  p.rows = data(tensors[at++]);
  p.row_index = data_of<int64_t>(tensors[at++]);
  p.steps = data_of<int32_t>(tensors[at++]);

  at = 0;
  p.n = sizes[at++].cast<int64_t>();
  p.c = sizes[at++].cast<int64_t>();
  p.row_stride = sizes[at++].cast<int64_t>();
  p.dense_stride = sizes[at++].cast<int64_t>();
  p.row_count = sizes[at++].cast<int64_t>();
  p.dtype = lpl::DType(sizes[at++].cast<int>());
  p.dense_dtype = lpl::DType(sizes[at++].cast<int>());
  p.threads = sizes[at++].cast<int32_t>();

  at = 0;
  p.reduction = lpl::Reduction(codes[at++].cast<int>());
  p.ignore_index = codes[at++].cast<int64_t>();
  p.phi = lpl::Phi(codes[at++].cast<int>());
  p.normalize = codes[at++].cast<int>() != 0;

  at = 0;
  p.phi_parameter = numbers[at++].cast<double>();
  p.label_smoothing = numbers[at++].cast<double>();
  p.z_loss = numbers[at++].cast<double>();
  p.softcap = numbers[at++].cast<double>();
  p.inverse_temperature = numbers[at++].cast<double>();
  p.step_size = numbers[at++].cast<double>();
  return p;
}

// (fault, value): (0, 0) when all went well.
py::tuple reported(const Status& status) {
  return py::make_tuple(int(status.fault), status.value);
}

py::tuple cross_entropy(const py::tuple& tensors, const py::tuple& sizes, const py::tuple& codes,
                        const py::tuple& numbers, Address loss, Address stats, Address norm,
                        Address grad, Address grad_rows, int64_t grad_rows_stride,
                        Address grad_perturbed, Address grad_scale, Address grad_offset,
                        Address grad_margin) {
  const Problem problem = make_problem(tensors, sizes, codes, numbers);
  Outputs out{};
  out.loss = output(loss);
  out.stats = output(stats);
  out.norm = output(norm);
  out.grad = output(grad);
  out.grad_rows = output(grad_rows);
  out.grad_rows_stride = grad_rows_stride;
  out.grad_perturbed = output(grad_perturbed);
  out.grad_scale = output(grad_scale);
  out.grad_offset = output(grad_offset);
  out.grad_margin = output(grad_margin);
  Status status{};
  {
    py::gil_scoped_release unlocked;
    status = lpl::kernels().cross_entropy(problem, out);
  }
  return reported(status);
}

py::tuple learned_perturbation(const py::tuple& tensors, const py::tuple& sizes,
                               const py::tuple& codes, const py::tuple& numbers, Address delta,
                               Address slot) {
  const Problem problem = make_problem(tensors, sizes, codes, numbers);
  Outputs out{};
  out.delta = output(delta);
  out.slot = output<int64_t>(slot);
  Status status{};
  {
    py::gil_scoped_release unlocked;
    status = lpl::kernels().learned_perturbation(problem, out);
  }
  return reported(status);
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const lpl::Kernels& kernels : lpl::usable_kernels()) names.push_back(kernels.isa);
  return names;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Vectorised row kernels; called through lpl_fused.backends.cpp.";
  m.def("cross_entropy", &cross_entropy);
  m.def("learned_perturbation", &learned_perturbation);
  m.def(
      "isa", [] { return std::string(lpl::kernels().isa); },
      "The instruction set whose kernels are in use.");
  m.def("usable_isas", &usable_isas, "The instruction sets that this processor runs, best first.");
  m.def("use_isa", &lpl::use_isa, py::arg("isa"),
        "Chooses an instruction set by name; False if this processor does not run it.");
}
