// The module lpl_fused._cuda: a problem, places for what is wanted of it and a stream in, kernels
// queued.
#include "../bindings.h"

#include "kernels.h"
#include "paths.h"

namespace {

namespace py = pybind11;

// Of the tuples in lpl_fused/backends that have these names.
lpl::Call make_call(const py::tuple& problem, const py::tuple& sizes, const py::tuple& outputs,
                    const py::tuple& scratch) {
  using lpl::Reader;
  lpl::Call call;
  call.p = lpl::make_problem(problem, sizes);
  call.out = lpl::make_outputs(outputs);
  lpl::Scratch& to = call.scratch;
  LPL_READ_ALL(LPL_SCRATCH, scratch)
  const uint64_t wanted = lpl::wanted_of(call.out);
  const bool loss_alone = (wanted & ~lpl::kLossPath.outputs) == 0;
  lpl::demand<lpl::Feature, lpl::Output>(loss_alone ? lpl::kLossPath : lpl::kRowPath,
                                         lpl::features_of(call.p), wanted);
  return call;
}

void cross_entropy(const py::tuple& problem, const py::tuple& sizes, const py::tuple& outputs,
                   const py::tuple& scratch, uintptr_t stream) {
  const lpl::Call call = make_call(problem, sizes, outputs, scratch);
  py::gil_scoped_release unlocked;
  lpl::cross_entropy(call, stream);
}

void learned_perturbation(const py::tuple& problem, const py::tuple& sizes,
                          const py::tuple& outputs, const py::tuple& scratch, uintptr_t stream) {
  lpl::Call call = make_call(problem, sizes, outputs, scratch);
  call.scratch.only_delta = true;
  py::gil_scoped_release unlocked;
  lpl::learned_perturbation(call, stream);
}

// grad (n, c), contiguous, times factors of its accumulate dtype, 0-dim (stride 0) or (n,); in
// place.
void scale_rows(const py::object& grad, const py::object& factors, int64_t n, int64_t c, int dtype,
                int64_t stride, uintptr_t stream) {
  lpl::Call call;
  call.p.n = n;
  call.p.c = c;
  call.p.dtype = lpl::DType(dtype);
  call.out.grad = lpl::data(grad);
  call.out.grad_rows = lpl::data(factors);
  call.out.grad_rows_stride = stride;
  py::gil_scoped_release unlocked;
  lpl::scale_rows(call, stream);
}

py::dict fields() {
  using namespace lpl;
  py::dict found;
  found["Problem"] = problem_fields(LPL_SHOWN(LPL_PARTS));
  found["Options"] = LPL_SHOWN(LPL_OPTIONS);
  found["Sizes"] = LPL_SHOWN(LPL_SIZES);
  found["Outputs"] = LPL_SHOWN(LPL_OUTPUTS);
  found["Scratch"] = LPL_SHOWN(LPL_SCRATCH);
  return found;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Kernels for CUDA devices; called through lpl_fused.backends.cuda.";
  m.attr("device") = lpl::device_kind();
  m.def("fields", &fields, "What is read of each tuple: [(name, what switches it off)].");
  lpl::define_paths<lpl::Feature, lpl::Output>(m, "paths", "serves", lpl::kPaths);
  m.def("features", [](const py::tuple& problem, const py::tuple& sizes) {
    return lpl::shown_features(lpl::make_problem(problem, sizes));
  });
  m.def("cross_entropy", &cross_entropy);
  m.def("learned_perturbation", &learned_perturbation);
  m.def("scale_rows", &scale_rows);
  m.def("group_bytes", &lpl::group_bytes);
}
