// How the native modules read what Python hands over, and what they say of themselves: their
// fields, which lpl_fused/backends/native.py compares with Python's, and their paths.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <type_traits>
#include <utility>

#include "binary.h"
#include "parts.h"

namespace lpl {
namespace {

namespace py = pybind11;

// The data of a tensor, null for None alone: one without elements is there, and read by nobody. One
// with elements and no memory (freed, or of a subclass that keeps its values elsewhere) is refused.
// An int is an address within a tensor's memory, which its caller has asked for.
inline const void* data(PyObject* tensor) {
  if (tensor == Py_None) return nullptr;
  if (PyLong_CheckExact(tensor)) {
    const void* const place = PyLong_AsVoidPtr(tensor);
    if (!place && !PyErr_Occurred()) throw std::runtime_error("no memory: an address of 0");
    if (!place) throw py::error_already_set();
    return place;
  }
  static PyObject* const name = PyUnicode_InternFromString("data_ptr");
  static PyObject* const size = PyUnicode_InternFromString("numel");
  static const char nothing = 0;
  PyObject* const address = PyObject_CallMethodNoArgs(tensor, name);
  if (!address) throw py::error_already_set();
  const auto place = reinterpret_cast<const void*>(PyLong_AsUnsignedLongLong(address));
  Py_DECREF(address);
  if (place) return place;
  PyObject* const count = PyObject_CallMethodNoArgs(tensor, size);
  if (!count) throw py::error_already_set();
  const bool empty = PyLong_AsLongLong(count) == 0;
  Py_DECREF(count);
  if (!empty) throw std::runtime_error("a tensor without memory: its storage was freed");
  return &nothing;
}
inline void* data(const py::object& tensor) {
  return const_cast<void*>(data(tensor.ptr()));
}

// A field of a tuple: the data of a tensor, a number or an enum's.
template <typename T>
T value_of(PyObject* field) {
  if constexpr (std::is_pointer<T>::value) {
    using Content = typename std::remove_const<typename std::remove_pointer<T>::type>::type;
    return static_cast<Content*>(const_cast<void*>(data(field)));
  } else if constexpr (std::is_same<T, bool>::value) {
    const int value = PyObject_IsTrue(field);
    if (value < 0) throw py::error_already_set();
    return value != 0;
  } else if constexpr (std::is_floating_point<T>::value) {
    const double value = PyFloat_AsDouble(field);
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    return value;
  } else {
    const long long value = PyLong_AsLongLong(field);
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    return T(value);
  }
}

// The fields of a named tuple, one after another. That their names are those of a list, in its
// order, Python has seen when it loaded the module.
class Reader {
 public:
  Reader(const py::handle& from, Py_ssize_t count) : from_(from.ptr()) {
    if (!PyTuple_Check(from_) || PyTuple_GET_SIZE(from_) != count)
      throw py::type_error("expected a tuple of " + std::to_string(count) + " fields, got a " +
                           Py_TYPE(from_)->tp_name + " of " + std::to_string(py::len(from)));
  }

  PyObject* next() { return PyTuple_GET_ITEM(from_, at_++); }
  template <typename T>
  void read(T& to) {
    to = value_of<T>(next());
  }

 private:
  PyObject* from_;
  Py_ssize_t at_ = 0;
};

#define LPL_ONE(type, name, off) +1
#define LPL_READ(type, name, off) fields.read(to.name);

// Reads a tuple that has the fields of LIST into `to`.
#define LPL_READ_ALL(LIST, from)          \
  {                                       \
    Reader fields((from), LIST(LPL_ONE)); \
    LIST(LPL_READ)                        \
  }

// Of lpl_fused.problem.Problem and lpl_fused.backends.native.Sizes.
inline Problem make_problem(const py::tuple& problem, const py::tuple& sizes) {
  Problem to;
  LPL_READ_ALL(LPL_SIZES, sizes)
  Reader fields(problem, 2 LPL_PARTS(LPL_ONE) + 1);
  fields.read(to.input);
  if (to.probabilities) {
    fields.read(to.dense);
  } else {
    fields.read(to.target);
  }
  LPL_PARTS(LPL_READ)
  const py::handle options = fields.next();
  LPL_READ_ALL(LPL_OPTIONS, options)
  return to;
}

// Of lpl_fused.backends.native.Outputs.
inline Outputs make_outputs(const py::tuple& outputs) {
  Outputs to;
  LPL_READ_ALL(LPL_OUTPUTS, outputs)
  return to;
}

// Of lpl_fused.backends.cpp.Given.
inline Known make_known(const py::tuple& known) {
  Known to;
  LPL_READ_ALL(LPL_KNOWN, known)
  return to;
}

// Of lpl_fused.backends.cpp.Sums.
inline Sums make_sums(const py::tuple& sums) {
  Sums to;
  LPL_READ_ALL(LPL_SUMS, sums)
  return to;
}

// Of lpl_fused.problem.BinaryProblem and lpl_fused.backends.native.BinarySizes.
inline BinaryProblem make_binary_problem(const py::tuple& problem, const py::tuple& sizes) {
  BinaryProblem to;
  LPL_READ_ALL(LPL_BINARY_SIZES, sizes)
  Reader fields(problem, 2 LPL_BINARY_PARTS(LPL_ONE) + 1);
  fields.read(to.input);
  fields.read(to.target);
  LPL_BINARY_PARTS(LPL_READ)
  const py::handle options = fields.next();
  LPL_READ_ALL(LPL_BINARY_OPTIONS, options)
  return to;
}

// Of lpl_fused.backends.native.BinaryOutputs.
inline BinaryOutputs make_binary_outputs(const py::tuple& outputs) {
  BinaryOutputs to;
  LPL_READ_ALL(LPL_BINARY_OUTPUTS, outputs)
  return to;
}

// What switches a field off, as Python has it.
template <typename T>
py::object shown(T off) {
  if constexpr (std::is_pointer<T>::value) {
    return py::none();
  } else if constexpr (std::is_enum<T>::value) {
    return py::int_(int(off));
  } else {
    return py::cast(off);
  }
}

#define LPL_SHOW(type, name, off) \
  fields.append(py::make_tuple(#name, shown(static_cast<type>(off))));

// [(name, off)] of a list of fields.
#define LPL_SHOWN(LIST) \
  [] {                  \
    py::list fields;    \
    LIST(LPL_SHOW)      \
    return fields;      \
  }()

// The same of a problem: its parts stand between two tensors that are always there and its options.
inline py::list problem_fields(const py::list& parts) {
  py::list fields;
  for (const char* name : {"input", "target"}) fields.append(py::make_tuple(name, py::none()));
  for (const py::handle& part : parts) fields.append(part);
  fields.append(py::make_tuple("options", py::none()));
  return fields;
}

// Adds to `found` those of multi-label problems.
inline void show_binary_fields(py::dict& found) {
  found["BinaryProblem"] = problem_fields(LPL_SHOWN(LPL_BINARY_PARTS));
  found["BinaryOptions"] = LPL_SHOWN(LPL_BINARY_OPTIONS);
  found["BinarySizes"] = LPL_SHOWN(LPL_BINARY_SIZES);
  found["BinaryOutputs"] = LPL_SHOWN(LPL_BINARY_OUTPUTS);
}

template <typename Member>
py::list names_of(uint64_t set) {
  py::list names;
  for (int k = 0; k < int(Member::unknown); ++k)
    if (set >> k & 1) names.append(name_of(Member(k)));
  if (set >> int(Member::unknown)) names.append("unknown");
  return names;
}

// The set of members of these names; one that nobody knows is `unknown`.
template <typename Member>
uint64_t set_of_names(const py::list& names) {
  static_assert(int(Member::unknown) < 64, "a set has 64 bits");
  uint64_t set = 0;
  for (const py::handle& name : names) {
    int k = 0;
    while (k < int(Member::unknown) && name.cast<std::string>() != name_of(Member(k))) ++k;
    set |= uint64_t(1) << k;
  }
  return set;
}

// Raises where a call has or wants what no kernel knows.
template <typename Feature, typename Output>
void demand(const Path& path, uint64_t features, uint64_t wanted) {
  if (path.serves(features, wanted)) return;
  py::list missing = names_of<Feature>(features & ~path.features);
  for (const py::handle& name : names_of<Output>(wanted & ~path.outputs)) missing.append(name);
  const py::str names = py::str(", ").attr("join")(missing);
  throw std::runtime_error("no kernel serves " + names.cast<std::string>());
}

// For tests: the names of the features that are on in a problem as it was read.
template <typename Problem>
py::list shown_features(const Problem& problem) {
  using Feature = typename std::conditional<std::is_same<Problem, lpl::BinaryProblem>::value,
                                            BinaryFeature, lpl::Feature>::type;
  return names_of<Feature>(features_of(problem));
}

// For tests: the module's paths of a kind of problem, by name what each serves; and whether one
// serves a call by the names of what it has and wants.
template <typename Feature, typename Output, size_t Count>
void define_paths(py::module_& m, const char* paths_name, const char* serves_name,
                  const Path* const (&paths)[Count]) {
  m.def(paths_name, [&paths] {
    py::dict found;
    for (const Path* path : paths)
      found[path->name] =
          py::make_tuple(names_of<Feature>(path->features), names_of<Output>(path->outputs));
    return found;
  });
  m.def(serves_name, [&paths](const std::string& name, const py::list& features,
                              const py::list& outputs) {
    const uint64_t on = set_of_names<Feature>(features), wanted = set_of_names<Output>(outputs);
    for (const Path* path : paths)
      if (name == path->name) return path->serves(on, wanted);
    throw py::key_error(name);
  });
}

#define LPL_NAMED(name) names.append(#name);
#define LPL_NAMES(LIST) \
  [] {                  \
    py::list names;     \
    LIST(LPL_NAMED)     \
    return names;       \
  }()

// What the numbers of a row are called, in their order, by the class that has them.
inline py::dict numbers() {
  py::dict found;
  found["Terms"] = LPL_NAMES(LPL_TERMS);
  found["Size"] = LPL_NAMES(LPL_SIZE);
  found["Mass"] = LPL_NAMES(LPL_MASS);
  found["Detail"] = LPL_NAMES(LPL_DETAIL);
  found["Rivals"] = LPL_NAMES(LPL_RIVALS);
  found["Statistics"] = LPL_NAMES(LPL_STATISTICS);
  return found;
}

}  // namespace
}  // namespace lpl
