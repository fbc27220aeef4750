// The module lpl_fused._cuda: a problem, places for what is wanted of it and a stream in, kernels
// queued.
#include "../bindings.h"

#include "../numbers.h"
#include "binary_kernels.h"
#include "binary_paths.h"
#include "kernels.h"
#include "paths.h"

namespace {

namespace py = pybind11;

// Tables of all classes begin where the columns do, so that a label is a column as well, if perhaps
// none of these.
void begin_tables(lpl::Problem& p) {
  const int64_t bytes = p.first * (p.dtype == lpl::DType::f64 ? 8 : 4);
  for (const void** table :
       {&p.weight, &p.smoothing, &p.scale, &p.offset, &p.margin, &p.rows, &p.multiplier, &p.rho})
    if (*table) *table = static_cast<const char*>(*table) + bytes;
}

// Queues what is done with a call: tuples in lpl_fused/backends have these names.
template <lpl::Work work>
void run(const py::tuple& problem, const py::tuple& sizes, const py::tuple& outputs,
         const py::tuple& scratch, uintptr_t stream) {
  using lpl::Reader;
  lpl::Call call;
  call.p = lpl::make_problem(problem, sizes);
  call.out = lpl::make_outputs(outputs);
  lpl::Scratch& to = call.scratch;
  LPL_READ_ALL(LPL_SCRATCH, scratch)
  const uint64_t wanted = lpl::wanted_of(call.out);
  lpl::demand<lpl::Feature, lpl::Output>(lpl::path_of(work, wanted), lpl::features_of(call.p),
                                         wanted);
  begin_tables(call.p);
  py::gil_scoped_release unlocked;
  lpl::run(work, call, stream);
}

template <lpl::BinaryWork work>
void run_binary(const py::tuple& problem, const py::tuple& sizes, const py::tuple& outputs,
                const py::tuple& scratch, uintptr_t stream) {
  using lpl::Reader;
  lpl::BinaryCall call;
  call.p = lpl::make_binary_problem(problem, sizes);
  call.out = lpl::make_binary_outputs(outputs);
  lpl::BinaryScratch& to = call.scratch;
  LPL_READ_ALL(LPL_BINARY_SCRATCH, scratch)
  lpl::demand<lpl::BinaryFeature, lpl::BinaryOutput>(lpl::kBinaryPath, lpl::features_of(call.p),
                                                     lpl::wanted_of(call.out));
  py::gil_scoped_release unlocked;
  lpl::run_binary(work, call, stream);
}

py::dict fields() {
  using namespace lpl;
  py::dict found;
  found["Problem"] = problem_fields(LPL_SHOWN(LPL_PARTS));
  found["Options"] = LPL_SHOWN(LPL_OPTIONS);
  found["Sizes"] = LPL_SHOWN(LPL_SIZES);
  found["Outputs"] = LPL_SHOWN(LPL_OUTPUTS);
  found["Scratch"] = LPL_SHOWN(LPL_SCRATCH);
  found["BinaryScratch"] = LPL_SHOWN(LPL_BINARY_SCRATCH);
  show_binary_fields(found);
  return found;
}

}  // namespace

#define LPL_DEFINE(name) m.def(#name, &run<lpl::Work::name>);
#define LPL_DEFINE_BINARY(name) m.def(#name, &run_binary<lpl::BinaryWork::name>);

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Kernels for CUDA devices; called through lpl_fused.backends.cuda.";
  m.attr("device") = lpl::device_kind();
  m.def("fields", &fields, "What is read of each tuple: [(name, what switches it off)].");
  m.def("numbers", &lpl::numbers, "What the numbers of a row are called, in their order.");
  lpl::define_paths<lpl::Feature, lpl::Output>(m, "paths", "serves", lpl::kPaths);
  m.def("features", [](const py::tuple& problem, const py::tuple& sizes) {
    return lpl::shown_features(lpl::make_problem(problem, sizes));
  });
  lpl::define_paths<lpl::BinaryFeature, lpl::BinaryOutput>(m, "binary_paths", "binary_serves",
                                                           lpl::kBinaryPaths);
  m.def("binary_features", [](const py::tuple& problem, const py::tuple& sizes) {
    return lpl::shown_features(lpl::make_binary_problem(problem, sizes));
  });
  LPL_WORK(LPL_DEFINE)
  LPL_BINARY_WORK(LPL_DEFINE_BINARY)
  m.def("binary_room", [](const py::tuple& problem, const py::tuple& sizes) {
    const lpl::BinaryRoom room = lpl::binary_room(lpl::make_binary_problem(problem, sizes));
    return py::make_tuple(room.losses, room.partial);
  });
  m.def("group_bytes", &lpl::group_bytes);
  m.def("learned_bytes", &lpl::learned_bytes);
  m.def("most_teams", &lpl::most_teams);
}
