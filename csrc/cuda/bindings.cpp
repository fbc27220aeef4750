// The module lpl_fused._cuda: pointers, sizes and a stream in, kernels queued.
#include "../bindings.h"

#include "../parts.h"
#include "kernels.h"

namespace {

namespace py = pybind11;

// Tables of all classes begin where the columns do, so that a label is a column as well, if perhaps
// none of these.
void begin_tables(lpl::Problem& p) {
  const int64_t bytes = p.first * (p.dtype == lpl::DType::f64 ? 8 : 4);
  for (const void** table : {&p.weight, &p.smoothing, &p.scale, &p.offset, &p.margin, &p.rows,
                             &p.multiplier, &p.rho})
    if (*table) *table = static_cast<const char*>(*table) + bytes;
}

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
  call.scratch.factor = next();
  call.scratch.part = next();
  call.scratch.threshold = next();
  call.scratch.powers = next();
  call.scratch.head_columns = static_cast<int32_t*>(next());
  call.scratch.head_logits = next();
  call.scratch.perturbed = next();
  call.out.grad_rows_stride = buffers[at++].cast<int64_t>();
  call.scratch.factor_stride = buffers[at++].cast<int64_t>();
  call.scratch.chunk = buffers[at++].cast<int64_t>();
  begin_tables(call.p);
  return call;
}

template <lpl::Work work>
void run(const py::tuple& problem, const py::tuple& sizes, const py::tuple& buffers,
         uintptr_t stream) {
  const lpl::Call call = make_call(problem, sizes, buffers);
  py::gil_scoped_release unlocked;
  lpl::run(work, call, stream);
}

#define LPL_NAMED(name) names.append(#name);
#define LPL_NAMES(LIST) \
  [] {                  \
    py::list names;     \
    LIST(LPL_NAMED)     \
    return names;       \
  }()

// What a row's numbers are called, in their order.
py::dict numbers() {
  py::dict found;
  found["Terms"] = LPL_NAMES(LPL_TERMS);
  found["Size"] = LPL_NAMES(LPL_SIZE);
  found["Mass"] = LPL_NAMES(LPL_MASS);
  found["Detail"] = LPL_NAMES(LPL_DETAIL);
  found["Rivals"] = LPL_NAMES(LPL_RIVALS);
  return found;
}

}  // namespace

#define LPL_DEFINE(name) m.def(#name, &run<lpl::Work::name>);

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Kernels for CUDA devices; called through lpl_fused.backends.cuda.";
  m.attr("device") = lpl::device_kind();
  m.attr("numbers") = numbers();
  LPL_WORK(LPL_DEFINE)
  m.def("group_bytes", &lpl::group_bytes);
}
