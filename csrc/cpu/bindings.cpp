// The module lpl_fused._cpu: a problem and places for what is wanted of it in, kernels called
// without the interpreter's lock.
#include "../bindings.h"

#include <pybind11/stl.h>

#include <algorithm>

#include "dispatch.h"
#include "memory.h"
#include "paths.h"

namespace {

namespace py = pybind11;
using lpl::Known;
using lpl::Outputs;
using lpl::Path;
using lpl::Problem;
using lpl::Status;
using lpl::Sums;

int64_t bytes_of(int64_t logits, lpl::DType dtype) {
  const int64_t sizes[] = {8, 4, 2, 2};  // by DType
  return logits * sizes[int(dtype)];
}

// (fault, value, rows solved, rows swept) of a kernel: fault is 0 when all went well.
template <typename Kernel>
py::tuple run(Kernel kernel, const Path& path, const Problem& problem, const Outputs& out) {
  lpl::demand<lpl::Feature, lpl::Output>(path, lpl::features_of(problem), lpl::wanted_of(out));
  Status status{};
  {
    py::gil_scoped_release unlocked;
    lpl::prefer_huge_pages(out.grad, bytes_of(problem.n * problem.c, problem.dtype));
    status = kernel(problem, out);
  }
  return py::make_tuple(int(status.fault), status.value, status.solved, status.swept);
}

py::tuple cross_entropy(const py::tuple& problem, const py::tuple& sizes,
                        const py::tuple& outputs) {
  return run(lpl::kernels().cross_entropy, lpl::kRowPath, lpl::make_problem(problem, sizes),
             lpl::make_outputs(outputs));
}

// The same where `sweep` has been before, with the same places.
py::tuple cross_entropy_after(const py::tuple& problem, const py::tuple& sizes,
                              const py::tuple& outputs) {
  Problem p = lpl::make_problem(problem, sizes);
  const Outputs out = lpl::make_outputs(outputs);
  p.swept = out.swept;
  return run(lpl::kernels().cross_entropy, lpl::kSweepPath, p, out);
}

py::tuple learned_perturbation(const py::tuple& problem, const py::tuple& sizes,
                               const py::tuple& outputs) {
  return run(lpl::kernels().learned_perturbation, lpl::kDeltaPath,
             lpl::make_problem(problem, sizes), lpl::make_outputs(outputs));
}

py::tuple sweep(const py::tuple& problem, const py::tuple& sizes, const py::tuple& outputs) {
  return run(lpl::kernels().sweep, lpl::kSweepPath, lpl::make_problem(problem, sizes),
             lpl::make_outputs(outputs));
}

py::tuple reduce(const py::tuple& problem, const py::tuple& sizes, const py::tuple& known, int kind,
                 const py::tuple& sums) {
  const Known given = lpl::make_known(known);
  const Sums out = lpl::make_sums(sums);
  const auto kernel = [&](const Problem& p, const Outputs&) {
    return lpl::kernels().reduce(p, given, lpl::Kind(kind), out);
  };
  return run(kernel, lpl::kPartPath, lpl::make_problem(problem, sizes), {});
}

// z of columns begin to end, without δ, to `z`.
py::tuple perturbed(const py::tuple& problem, const py::tuple& sizes, const py::tuple& known,
                    int64_t begin, int64_t end, const py::object& z) {
  const Known given = lpl::make_known(known);
  void* const to = lpl::data(z);
  const auto kernel = [&](const Problem& p, const Outputs&) {
    return lpl::kernels().perturbed(p, given, begin, end, to);
  };
  return run(kernel, lpl::kPartPath, lpl::make_problem(problem, sizes), {});
}

// Sums of tables are added to what stands there.
py::tuple gradient(const py::tuple& problem, const py::tuple& sizes, const py::tuple& known,
                   const py::tuple& outputs) {
  const Known given = lpl::make_known(known);
  const auto kernel = [&](const Problem& p, const Outputs& out) {
    return lpl::kernels().gradient(p, given, out);
  };
  return run(kernel, lpl::kPartPath, lpl::make_problem(problem, sizes), lpl::make_outputs(outputs));
}

// grad (n, c), contiguous, times factors of its accumulate dtype, 0-dim (stride 0) or (n,); in
// place. False, and nothing done, where a factor is not finite.
bool scale_rows(const py::object& grad, const py::object& factors, int64_t n, int64_t c, int dtype,
                int64_t stride, int32_t threads) {
  Problem problem;
  problem.n = n;
  problem.c = c;
  problem.dtype = lpl::DType(dtype);
  problem.threads = threads;
  Outputs out;
  out.grad = lpl::data(grad);
  out.grad_rows = lpl::data(factors);
  out.grad_rows_stride = stride;
  py::gil_scoped_release unlocked;
  return lpl::kernels().scale_rows(problem, out).fault == lpl::Fault::none;
}

// Whether a label is among (n,) labels.
bool has_label(const py::object& labels, int64_t n, int64_t label) {
  const auto* from = static_cast<const int64_t*>(lpl::data(labels));
  return std::find(from, from + n, label) != from + n;
}

template <typename T>
bool take_margins_of_type(T* z, const int64_t* labels, const T* margin, int64_t n, int64_t classes,
                          int64_t row, int64_t column, T factor, int64_t ignored) {
  const auto counts = [=](int64_t y) { return y >= 0 && y < classes && y != ignored; };
  if (!std::all_of(labels, labels + n, counts)) return false;
  for (int64_t i = 0; i < n; ++i) z[i * row + labels[i] * column] -= factor * margin[labels[i]];
  return true;
}

// Takes factor·margin from z (n, classes) of any strides at each row's label. False, and nothing
// done, where a label is ignored or out of range.
bool take_margins(const py::object& z, const py::object& labels, const py::object& margin,
                  int64_t n, int64_t classes, int64_t row, int64_t column, double factor,
                  int64_t ignored, bool is_double) {
  const auto* of = static_cast<const int64_t*>(lpl::data(labels));
  void *const to = lpl::data(z), *const from = lpl::data(margin);
  if (is_double)
    return take_margins_of_type(static_cast<double*>(to), of, static_cast<const double*>(from), n,
                                classes, row, column, factor, ignored);
  return take_margins_of_type(static_cast<float*>(to), of, static_cast<const float*>(from), n,
                              classes, row, column, float(factor), ignored);
}

// Gives the classes (solved, swept).
py::tuple binary_cross_entropy(const py::tuple& problem, const py::tuple& sizes,
                               const py::tuple& outputs) {
  const lpl::BinaryProblem p = lpl::make_binary_problem(problem, sizes);
  const lpl::BinaryOutputs out = lpl::make_binary_outputs(outputs);
  lpl::demand<lpl::BinaryFeature, lpl::BinaryOutput>(lpl::kBinaryPath, lpl::features_of(p),
                                                     lpl::wanted_of(out));
  lpl::BinaryStatus status{};
  {
    py::gil_scoped_release unlocked;
    lpl::prefer_huge_pages(out.grad, bytes_of(p.n * p.c, p.dtype));
    status = lpl::kernels().binary_cross_entropy(p, out);
  }
  return py::make_tuple(status.solved, status.swept);
}

py::dict fields() {
  using namespace lpl;
  py::dict found;
  found["Problem"] = problem_fields(LPL_SHOWN(LPL_PARTS));
  found["Options"] = LPL_SHOWN(LPL_OPTIONS);
  found["Sizes"] = LPL_SHOWN(LPL_SIZES);
  found["Outputs"] = LPL_SHOWN(LPL_OUTPUTS);
  found["Given"] = LPL_SHOWN(LPL_KNOWN);
  found["Sums"] = LPL_SHOWN(LPL_SUMS);
  show_binary_fields(found);
  return found;
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const lpl::Kernels& kernels : lpl::usable_kernels()) names.push_back(kernels.isa);
  return names;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Vectorised row kernels; called through lpl_fused.backends.cpp.";
  m.def("fields", &fields, "What is read of each tuple: [(name, what switches it off)].");
  m.def("numbers", &lpl::numbers, "What the numbers of a row are called, in their order.");
  lpl::define_paths<lpl::Feature, lpl::Output>(m, "paths", "serves", lpl::kPaths);
  lpl::define_paths<lpl::BinaryFeature, lpl::BinaryOutput>(m, "binary_paths", "binary_serves",
                                                           lpl::kBinaryPaths);
  m.def("features", [](const py::tuple& problem, const py::tuple& sizes) {
    return lpl::shown_features(lpl::make_problem(problem, sizes));
  });
  m.def("binary_features", [](const py::tuple& problem, const py::tuple& sizes) {
    return lpl::shown_features(lpl::make_binary_problem(problem, sizes));
  });
  m.def("cross_entropy", &cross_entropy);
  m.def("cross_entropy_after", &cross_entropy_after);
  m.def("learned_perturbation", &learned_perturbation);
  m.def("sweep", &sweep);
  m.def("scale_rows", &scale_rows);
  m.def("has_label", &has_label);
  m.def("take_margins", &take_margins);
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
