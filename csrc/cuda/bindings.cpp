// The module lpl_fused._cuda: pointers, sizes and a stream in, kernels queued.
#include "../bindings.h"

#include "kernels.h"

namespace {

namespace py = pybind11;

// `buffers` is a lpl_fused.backends.cuda.Buffers.
lpl::Call make_call(const py::tuple& problem, const py::tuple& sizes, const py::tuple& buffers) {
  lpl::Call call{};
  call.p = lpl::make_problem(problem, sizes);
  int at = 0;
  const auto next = [&] { return const_cast<void*>(lpl::data(buffers[at++])); };
  call.out.loss = next();
  call.out.norm = next();
  call.out.grad = next();
  call.out.grad_rows = next();
  call.out.grad_perturbed = next();
  call.out.grad_scale = next();
  call.out.grad_offset = next();
  call.out.grad_margin = next();
  call.out.delta = next();
  call.out.slot = static_cast<int64_t*>(next());
  call.scratch.losses = next();
  call.scratch.penalty_weight = next();
  call.scratch.terms = next();
  call.scratch.order = static_cast<int64_t*>(next());
  call.scratch.begin = static_cast<int64_t*>(next());
  call.scratch.count = static_cast<int64_t*>(next());
  call.scratch.outcome = static_cast<int32_t*>(next());
  call.scratch.groups = next();
  call.scratch.rowwise = next();
  call.scratch.direction = next();
  call.out.grad_rows_stride = buffers[at++].cast<int64_t>();
  call.scratch.chunk = buffers[at++].cast<int64_t>();
  return call;
}

void cross_entropy(const py::tuple& problem, const py::tuple& sizes, const py::tuple& buffers,
                   uintptr_t stream) {
  const lpl::Call call = make_call(problem, sizes, buffers);
  py::gil_scoped_release unlocked;
  lpl::cross_entropy(call, stream);
}

void learned_perturbation(const py::tuple& problem, const py::tuple& sizes,
                          const py::tuple& buffers, uintptr_t stream) {
  lpl::Call call = make_call(problem, sizes, buffers);
  call.scratch.only_delta = true;
  py::gil_scoped_release unlocked;
  lpl::learned_perturbation(call, stream);
}

// grad (n, c), contiguous, times factors of its accumulate dtype, 0-dim (stride 0) or (n,); in
// place.
void scale_rows(lpl::Address grad, int64_t n, int64_t c, int dtype, lpl::Address factors,
                int64_t stride, uintptr_t stream) {
  lpl::Call call{};
  call.p.n = n;
  call.p.c = c;
  call.p.dtype = lpl::DType(dtype);
  call.out.grad = lpl::output(grad);
  call.out.grad_rows = lpl::output(factors);
  call.out.grad_rows_stride = stride;
  py::gil_scoped_release unlocked;
  lpl::scale_rows(call, stream);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Kernels for CUDA devices; called through lpl_fused.backends.cuda.";
  m.attr("device") = lpl::device_kind();
  m.def("cross_entropy", &cross_entropy);
  m.def("learned_perturbation", &learned_perturbation);
  m.def("scale_rows", &scale_rows);
  m.def("group_bytes", &lpl::group_bytes);
}
