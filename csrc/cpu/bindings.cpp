// The module lpl_fused._cpu: pointers and sizes in, kernels called without the interpreter's lock.
#include "../bindings.h"

#include <pybind11/stl.h>

#include "dispatch.h"
#include "memory.h"

namespace {

namespace py = pybind11;
using lpl::Address;
using lpl::data;
using lpl::Gradients;
using lpl::Kind;
using lpl::Known;
using lpl::make_problem;
using lpl::output;
using lpl::Outputs;
using lpl::Problem;
using lpl::Status;
using lpl::Sums;

int64_t bytes_of(int64_t logits, lpl::DType dtype) {
  const int64_t sizes[] = {8, 4, 2, 2};  // by DType
  return logits * sizes[int(dtype)];
}

// (fault, value, rows solved, rows swept) of a kernel: fault is 0 when all went well.
template <typename Kernel>
py::tuple unlocked(Kernel kernel) {
  Status status{};
  {
    py::gil_scoped_release released;
    status = kernel();
  }
  return py::make_tuple(int(status.fault), status.value, status.solved, status.swept);
}

py::tuple run(Status (*kernel)(const Problem&, const Outputs&), const Problem& problem,
              const Outputs& out) {
  if (problem.classes != problem.c)
    throw std::invalid_argument("expected all classes: a part of them has no loss of its own");
  return unlocked([&] {
    lpl::prefer_huge_pages(out.grad, bytes_of(problem.n * problem.c, problem.dtype));
    return kernel(problem, out);
  });
}

py::tuple cross_entropy(const py::tuple& tensors, const py::tuple& sizes, Address swept,
                        Address loss, Address norm, Address grad, Address terms, Address grad_rows,
                        int64_t grad_rows_stride) {
  Problem problem = make_problem(tensors, sizes);
  problem.swept = output(swept);
  Outputs out{};
  out.loss = output(loss);
  out.norm = output(norm);
  out.grad = output(grad);
  out.terms = output(terms);
  out.grad_rows = output(grad_rows);
  out.grad_rows_stride = grad_rows_stride;
  return run(lpl::kernels().cross_entropy, problem, out);
}

Known make_known(Address terms, Address threshold, Address delta) {
  return {output(terms), output<double>(threshold), output(delta)};
}

py::tuple reduce(const py::tuple& tensors, const py::tuple& sizes, Address terms, Address threshold,
                 Address delta, int kind, Address numbers, Address powers, Address columns,
                 Address logits, int64_t heads) {
  const Problem problem = make_problem(tensors, sizes);
  const Sums out{output<double>(numbers), output<double>(powers), output<int32_t>(columns),
                 output(logits), heads};
  const Known known = make_known(terms, threshold, delta);
  return unlocked([&] { return lpl::kernels().reduce(problem, known, Kind(kind), out); });
}

py::tuple perturbed(const py::tuple& tensors, const py::tuple& sizes, Address terms,
                    Address threshold, Address delta, int64_t begin, int64_t end, Address out) {
  const Problem problem = make_problem(tensors, sizes);
  const Known known = make_known(terms, threshold, delta);
  return unlocked(
      [&] { return lpl::kernels().perturbed(problem, known, begin, end, output(out)); });
}

// Sums of tables are added to what stands there.
py::tuple gradient(const py::tuple& tensors, const py::tuple& sizes, Address terms,
                   Address threshold, Address delta, Address upstream, int64_t upstream_stride,
                   Address input, Address rows, Address scale, Address offset, Address margin) {
  const Problem problem = make_problem(tensors, sizes);
  const Known known = make_known(terms, threshold, delta);
  const Gradients out{output(upstream), upstream_stride, output(input), output(rows),
                      output(scale),    output(offset),  output(margin)};
  return unlocked([&] {
    lpl::prefer_huge_pages(out.input, bytes_of(problem.n * problem.c, problem.dtype));
    return lpl::kernels().gradient(problem, known, out);
  });
}

py::tuple learned_perturbation(const py::tuple& tensors, const py::tuple& sizes, Address delta,
                               Address slot) {
  const Problem problem = make_problem(tensors, sizes);
  Outputs out{};
  out.delta = output(delta);
  out.slot = output<int64_t>(slot);
  return run(lpl::kernels().learned_perturbation, problem, out);
}

py::tuple sweep(const py::tuple& tensors, const py::tuple& sizes, Address swept, Address loss,
                Address grad) {
  const Problem problem = make_problem(tensors, sizes);
  Outputs out{};
  out.swept = output(swept);
  out.loss = output(loss);
  out.grad = output(grad);
  return run(lpl::kernels().sweep, problem, out);
}

// grad (n, c), contiguous, times factors of its accumulate dtype, 0-dim (stride 0) or (n,); in
// place.
void scale_rows(Address grad, int64_t n, int64_t c, int dtype, Address factors, int64_t stride,
                int32_t threads) {
  Problem problem{};
  problem.n = n;
  problem.c = c;
  problem.dtype = lpl::DType(dtype);
  problem.threads = threads;
  Outputs out{};
  out.grad = output(grad);
  out.grad_rows = output(factors);
  out.grad_rows_stride = stride;
  py::gil_scoped_release unlocked;
  lpl::kernels().scale_rows(problem, out);
}

// `problem` is a lpl_fused.problem.BinaryProblem; `sizes` what cpp._binary_sizes returns. Gives the
// classes (solved, swept).
py::tuple binary_cross_entropy(const py::tuple& problem, const py::tuple& sizes, Address loss,
                               Address norm, Address grad, Address upstream, bool upstream_each,
                               Address delta) {
  lpl::BinaryProblem p{};
  int at = 0;
  p.n = sizes[at++].cast<int64_t>();
  p.c = sizes[at++].cast<int64_t>();
  p.row_stride = sizes[at++].cast<int64_t>();
  p.target_stride = sizes[at++].cast<int64_t>();
  p.dtype = lpl::DType(sizes[at++].cast<int>());
  p.target_type = lpl::LabelType(sizes[at++].cast<int>());
  p.threads = sizes[at++].cast<int32_t>();

  at = 0;
  p.input = data(problem[at++]);
  p.target = data(problem[at++]);
  p.weight[1] = data(problem[at++]);
  p.weight[0] = data(problem[at++]);
  for (const int side : {1, 0}) {
    p.scale[side] = data(problem[at++]);
    p.offset[side] = data(problem[at++]);
  }
  p.inverse_count = data(problem[at++]);
  p.sample_weight = data(problem[at++]);
  p.steps = data<int32_t>(problem[at++]);

  const py::tuple options = problem[at];
  at = 0;
  p.reduction = lpl::Reduction(options[at++].cast<int>());
  p.phi = lpl::Phi(options[at++].cast<int>());
  p.missing = options[at++].cast<bool>();
  p.phi_parameter = options[at++].cast<double>();
  p.ignored = options[at++].cast<double>();
  p.alpha = options[at++].cast<double>();
  p.beta = options[at++].cast<double>();
  p.mu = options[at++].cast<double>();
  p.step_size = options[at++].cast<double>();

  const lpl::BinaryOutputs out{output(loss),     output(norm),  output(grad),
                               output(upstream), upstream_each, output(delta)};
  lpl::BinaryStatus status{};
  {
    py::gil_scoped_release unlocked;
    lpl::prefer_huge_pages(out.grad, bytes_of(p.n * p.c, p.dtype));
    status = lpl::kernels().binary_cross_entropy(p, out);
  }
  return py::make_tuple(status.solved, status.swept);
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
  m.def("sweep", &sweep);
  m.def("scale_rows", &scale_rows);
  m.def("reduce", &reduce);
  m.def("perturbed", &perturbed);
  m.def("gradient", &gradient);
  m.def("binary_cross_entropy", &binary_cross_entropy);
  m.def(
      "isa", [] { return std::string(lpl::kernels().isa); },
      "The instruction set whose kernels are in use.");
  m.def("usable_isas", &usable_isas, "The instruction sets that this processor runs, best first.");
  m.def("use_isa", &lpl::use_isa, py::arg("isa"),
        "Chooses an instruction set by name; False if this processor does not run it.");
}
