// From Python objects to the structures of the C++ API: every check of a type, a shape or a number
// is here, and each message names the argument, what is expected and what came. No data is read or
// copied, except the values of pos_weight.
#ifndef SIGMOID_CE_BINDINGS_ARRAY_ARGS_H_
#define SIGMOID_CE_BINDINGS_ARRAY_ARGS_H_

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "math/float_environment.h"
#include "sigmoid_ce/options.h"
#include "sigmoid_ce/status.h"

namespace sigmoid_ce {
namespace bindings {

namespace py = pybind11;

// ---- Messages ----

inline std::string type_name(py::handle object) {
  return py::str(py::type::handle_of(object).attr("__name__"));
}

inline std::string repr_text(py::handle object) { return py::repr(object); }

// A str in double quotes; its repr where it is none that UTF-8 holds.
inline std::string quoted(py::handle text) {
  const char* const bytes = PyUnicode_AsUTF8(text.ptr());
  if (bytes == nullptr) {
    PyErr_Clear();
    return repr_text(text);
  }
  return "\"" + std::string(bytes) + "\"";
}

template <class Int>
std::string shape_text(const Int* shape, std::int64_t ndim) {
  std::string text = "(";
  for (std::int64_t i = 0; i < ndim; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(static_cast<long long>(shape[i]));
  }
  return text + (ndim == 1 ? ",)" : ")");
}

inline void raise_status(const Status& status) {
  if (status.ok()) return;
  if (status.code == Code::kOutOfMemory) throw std::bad_alloc();  // pybind11: MemoryError
  std::string text = status.message;
  if (status.argument[0] != '\0') text = std::string(status.argument) + ": " + text;
  // Not the caller's arguments: an environment variable names what this machine lacks.
  if (status.code == Code::kUnsupported) throw std::runtime_error(text);
  throw py::value_error(text);
}

// ---- Numbers ----

// True for the numbers of Python and the scalars of NumPy, with their value as a float.
inline bool read_number(py::handle object, const char* name, double* value) {
  if (PyFloat_CheckExact(object.ptr())) {
    *value = PyFloat_AS_DOUBLE(object.ptr());
    return true;
  }
  const bool python_number = PyFloat_Check(object.ptr()) || PyLong_Check(object.ptr());
  if (!python_number) {
    if (!py::isinstance(object, py::module_::import("numpy").attr("generic"))) return false;
    const char kind = py::dtype(object.attr("dtype")).kind();
    if (kind != 'f' && kind != 'i' && kind != 'u' && kind != 'b') return false;
  }
  *value = PyFloat_AsDouble(object.ptr());
  if (*value == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    throw py::value_error(std::string(name) + ": expected a number that fits a float, got " +
                          repr_text(object));
  }
  return true;
}

// True or False, Python's or NumPy's; -1 for anything else.
inline int read_bool(py::handle object) {
  if (PyBool_Check(object.ptr())) return object.ptr() == Py_True;
  if (!py::isinstance(object, py::module_::import("numpy").attr("bool_"))) return -1;
  return PyObject_IsTrue(object.ptr());
}

// Any object with __index__ except a bool, which is more likely a slip than a number.
inline std::int64_t read_integer(py::handle object, const char* name) {
  if (PyBool_Check(object.ptr()) || !PyIndex_Check(object.ptr()) ||
      py::isinstance<py::array>(object)) {
    throw py::type_error(std::string(name) + ": expected an int, got " + type_name(object));
  }
  const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
  if (!index) throw py::error_already_set();
  const long long value = PyLong_AsLongLong(index.ptr());
  if (value == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    throw py::value_error(std::string(name) + ": expected an int of 64 bits, got " +
                          repr_text(object));
  }
  return value;
}

// Parts of an array have no count of foreground.
inline void read_normalization(py::handle normalization, py::handle normalize, Options* options,
                               bool foreground = true) {
  const int valid = normalize.is_none() ? 0 : read_bool(normalize);
  if (valid == -1) {
    throw py::type_error("normalize: expected True (valid), False (batch_size) or None, got " +
                         type_name(normalize));
  }
  if (normalization.is_none()) {
    options->normalization = valid ? Normalization::kValid : Normalization::kBatchSize;
    return;
  }
  static const struct {
    const char* name;
    Normalization mode;
  } modes[] = {{"full", Normalization::kFull},
               {"valid", Normalization::kValid},
               {"batch_size", Normalization::kBatchSize},
               {"none", Normalization::kNone},
               {"foreground", Normalization::kForeground}};
  const char* const expected =
      foreground ? "normalization: expected \"full\", \"valid\", \"batch_size\", \"none\", "
                   "\"foreground\" or a positive number, got "
                 : "normalization: expected \"full\", \"valid\", \"batch_size\", \"none\" or a "
                   "positive number, got ";
  if (PyUnicode_Check(normalization.ptr())) {
    for (const auto& entry : modes) {
      if (!foreground && entry.mode == Normalization::kForeground) continue;
      if (PyUnicode_CompareWithASCIIString(normalization.ptr(), entry.name) == 0) {
        options->normalization = entry.mode;
        return;
      }
    }
    throw py::value_error(expected + repr_text(normalization));
  }
  double number = 0;
  if (PyBool_Check(normalization.ptr()) || !read_number(normalization, "normalization", &number)) {
    throw py::type_error(expected + type_name(normalization));
  }
  if (!(number > 0) || !std::isfinite(number))
    throw py::value_error(expected + repr_text(normalization));
  options->normalization = Normalization::kNumber;
  options->divisor = number;
}

// ---- The family of losses ----

// One of the words, which stand in the order of the values of an enumeration.
template <int kWords>
inline int read_word(py::handle object, const char* name, const char* const (&words)[kWords]) {
  if (PyUnicode_Check(object.ptr())) {
    for (int i = 0; i < kWords; ++i) {
      if (PyUnicode_CompareWithASCIIString(object.ptr(), words[i]) == 0) return i;
    }
  }
  std::string expected = std::string(name) + ": expected ";
  for (int i = 0; i < kWords; ++i) {
    if (i > 0) expected += i + 1 < kWords ? ", " : " or ";
    expected += "\"" + std::string(words[i]) + "\"";
  }
  if (PyUnicode_Check(object.ptr())) throw py::value_error(expected + ", got " + quoted(object));
  throw py::type_error(expected + ", got " + type_name(object));
}

// A number of an interval; `expected` says which. A bool is more likely a slip.
inline double read_number_in(py::handle object, const char* name, double least, double most,
                             const char* expected) {
  double number = 0;
  if (PyBool_Check(object.ptr()) || !read_number(object, name, &number)) {
    throw py::type_error(std::string(name) + ": expected a number, got " + type_name(object));
  }
  if (!(number >= least && number <= most)) {  // NaN too
    throw py::value_error(std::string(name) + ": expected " + expected + ", got " +
                          repr_text(object));
  }
  return number;
}

// The options of the family, as Python has them. All null: none of them. Those of `balance` are null for a part of
// an array.
struct Family {
  py::handle uncertain, label_smoothing, balance, balance_per_channel, negative_scale, gamma, alpha;
};

inline bool is_float(py::handle object, double value) {
  return PyFloat_CheckExact(object.ptr()) && PyFloat_AS_DOUBLE(object.ptr()) == value;
}

// `shape` is that of the scores.
template <class Int>
inline void read_family(const Family& family, const Int* shape, std::int64_t ndim,
                        Options* options) {
  if (family.uncertain.ptr() == nullptr) return;
  static const char* const uncertain[] = {"soft", "ignore"};
  static const char* const balance[] = {"none", "image", "batch", "batch_mean"};
  options->uncertain = static_cast<Uncertain>(read_word(family.uncertain, "uncertain", uncertain));
  if (!is_float(family.label_smoothing, 0)) {
    options->label_smoothing =
        read_number_in(family.label_smoothing, "label_smoothing", 0, std::nextafter(1.0, 0.0),
                       "a number of 0 or more and below 1");
  }
  if (!is_float(family.negative_scale, 1)) {
    options->negative_scale = read_number_in(family.negative_scale, "negative_scale", 0,
                                             std::numeric_limits<float>::max(),
                                             "a number >= 0 that is finite in float32");
  }
  if (!is_float(family.gamma, 0)) {
    options->gamma = read_number_in(family.gamma, "gamma", 0, 1e6, "a number from 0 to 1e6");
  }
  if (!family.alpha.is_none()) {
    options->has_alpha = true;
    options->alpha = read_number_in(family.alpha, "alpha", 0, 1, "a number from 0 to 1, or None");
  }
  if (family.balance.ptr() == nullptr) return;
  if (!family.balance.is_none()) {
    options->balance = static_cast<Balance>(read_word(family.balance, "balance", balance));
  }
  const int per_channel = read_bool(family.balance_per_channel);
  if (per_channel == -1) {
    throw py::type_error("balance_per_channel: expected True or False, got " +
                         type_name(family.balance_per_channel));
  }
  options->balance_per_channel = per_channel != 0;
  if (options->balance == Balance::kImage && ndim < 2) {
    throw py::value_error(
        "balance: expected scores with an axis of images and another one for \"image\", got "
        "shape " +
        shape_text(shape, ndim));
  }
  if (options->balance_per_channel && options->balance == Balance::kNone) {
    throw py::value_error(
        "balance_per_channel: expected False, since balance is \"none\", got True");
  }
  if (options->balance_per_channel && ndim < 2) {
    throw py::value_error(
        "balance_per_channel: expected scores with a channel axis (axis 1), got shape " +
        shape_text(shape, ndim));
  }
}

// ---- Arrays ----

inline py::array read_array(py::handle object, const char* name) {
  if (!py::isinstance<py::array>(object)) {
    throw py::type_error(std::string(name) + ": expected a NumPy array, got " + type_name(object));
  }
  if (Py_TYPE(object.ptr()) != py::detail::npy_api::get().PyArray_Type_ &&
      py::hasattr(object, "mask")) {
    throw py::type_error(
        std::string(name) +
        ": masked arrays are not read as such; pass .filled() or .data, and the mask as "
        "weight or ignore_label");
  }
  return py::reinterpret_borrow<py::array>(object);
}

// bfloat16 of the package ml_dtypes; or one field of that name, which stands for it where that package is not
// installed (see arrays.py).
inline bool is_bfloat16(const py::dtype& dtype) {
  if (dtype.kind() != 'V' || dtype.itemsize() != 2) return false;
  const py::object names = dtype.attr("names");
  if (names.is_none()) return std::string(py::str(dtype)) == "bfloat16";
  return py::len(names) == 1 && std::string(py::str(names[py::int_(0)])) == "bfloat16";
}

// False where the library has no such type. By kind and size, since several of NumPy's type numbers
// may mean one type (long and long long).
inline bool find_dtype(const py::dtype& dtype, DType* result) {
  const py::ssize_t size = dtype.itemsize();
  switch (dtype.kind()) {
    case 'V':
      return *result = DType::kBfloat16, is_bfloat16(dtype);
    case 'f':
      if (size == 2) return *result = DType::kFloat16, true;
      if (size == 4) return *result = DType::kFloat32, true;
      if (size == 8) return *result = DType::kFloat64, true;
      return false;
    case 'b':
      return *result = DType::kBool, size == 1;
    case 'u':
      return *result = DType::kUint8, size == 1;
    case 'i':
      if (size == 1) return *result = DType::kInt8, true;
      if (size == 4) return *result = DType::kInt32, true;
      if (size == 8) return *result = DType::kInt64, true;
      return false;
    default:
      return false;
  }
}

constexpr unsigned bit(DType dtype) { return 1u << static_cast<unsigned>(dtype); }
constexpr unsigned kHalves = bit(DType::kFloat16) | bit(DType::kBfloat16);
constexpr unsigned kFloats = bit(DType::kFloat32) | bit(DType::kFloat64) | kHalves;
constexpr unsigned kMasks = bit(DType::kBool) | bit(DType::kUint8) | bit(DType::kInt8);
constexpr unsigned kIntegers = kMasks | bit(DType::kInt32) | bit(DType::kInt64);

inline const char* dtype_name(DType dtype) {
  static const char* const names[] = {"float32", "float64", "bool",    "uint8",   "int8",
                                      "int32",   "int64",   "float16", "bfloat16"};
  return names[static_cast<int>(dtype)];
}

// One of the types in the set `allowed`, which may have that of the scores in it.
inline DType read_dtype(const py::array& array, const char* name, unsigned allowed,
                        const DType* of_scores = nullptr) {
  static const DType order_of_names[] = {DType::kFloat16, DType::kBfloat16, DType::kFloat32,
                                         DType::kFloat64, DType::kBool,     DType::kUint8,
                                         DType::kInt8,    DType::kInt32,    DType::kInt64};
  const py::dtype dtype = array.dtype();
  DType result = DType::kFloat32;
  const bool found = find_dtype(dtype, &result);
  if (!found || !(allowed & bit(result))) {
    std::string expected;
    unsigned rest = allowed;
    for (const DType type : order_of_names) {
      if (!(allowed & bit(type))) continue;
      rest &= ~bit(type);
      if (!expected.empty()) expected += rest == 0 ? " or " : ", ";
      expected += dtype_name(type);
      if (of_scores != nullptr && type == *of_scores) expected += " (the dtype of scores)";
    }
    throw py::type_error(
        std::string(name) + ": expected " + expected + ", got " +
        (found && result == DType::kBfloat16 ? "bfloat16" : std::string(py::str(dtype))));
  }
  const char order = dtype.byteorder();  // '=' is native, '|' a type of one byte
  if (order != '=' && order != '|' && !dtype.attr("isnative").cast<bool>()) {
    throw py::type_error(std::string(name) + ": expected native byte order, got " +
                         std::string(py::str(dtype)) + "; convert with .astype(\"" +
                         dtype_name(result) + "\")");
  }
  return result;
}

inline bool is_contiguous(const py::array& array) {
  return (array.flags() & py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_) != 0;
}

// The addresses [low, high) that the elements of an array lie in.
struct Bounds {
  std::uintptr_t low = 0;
  std::uintptr_t high = 0;

  explicit Bounds(const py::array& array) {
    const std::uintptr_t data = reinterpret_cast<std::uintptr_t>(array.data());
    low = high = data;
    for (py::ssize_t i = 0; i < array.ndim(); ++i) {
      const py::ssize_t length = array.shape()[i];
      if (length == 0) {
        low = high = data;
        return;
      }
      const py::ssize_t reach = (length - 1) * array.strides()[i];
      (reach < 0 ? low : high) += static_cast<std::uintptr_t>(reach);
    }
    high += static_cast<std::uintptr_t>(array.itemsize());
  }
  bool overlaps(const Bounds& other) const { return low < other.high && other.low < high; }
};

inline bool same_shape(const py::array& a, const py::array& b) {
  if (a.ndim() != b.ndim()) return false;
  for (py::ssize_t i = 0; i < a.ndim(); ++i) {
    if (a.shape()[i] != b.shape()[i]) return false;
  }
  return true;
}

// Element i of one is element i of the other, for every i.
inline bool same_elements(const py::array& a, const py::array& b) {
  if (a.data() != b.data() || a.itemsize() != b.itemsize() || !same_shape(a, b)) return false;
  for (py::ssize_t i = 0; i < a.ndim(); ++i) {
    if (a.shape()[i] > 1 && a.strides()[i] != b.strides()[i]) return false;
  }
  return true;
}

// Exact where NumPy can tell with moderate work (it is a Diophantine problem), else on the safe
// side.
inline bool shares_memory(const py::array& a, const py::array& b) {
  if (!Bounds(a).overlaps(Bounds(b))) return false;
  if (is_contiguous(a) && is_contiguous(b)) return true;
  try {
    return py::module_::import("numpy")
        .attr("shares_memory")(a, b, py::arg("max_work") = 100000)
        .cast<bool>();
  } catch (py::error_already_set& error) {
    if (error.matches(PyExc_RuntimeError)) return true;  // TooHardError
    throw;
  }
}

// No two elements at one address, as far as nested strides show: each axis steps over all the inner
// ones.
inline bool elements_are_distinct(const py::array& array) {
  if (is_contiguous(array)) return true;
  std::vector<std::pair<py::ssize_t, py::ssize_t>> axes;  // |stride|, length
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    if (array.shape()[i] == 0) return true;
    if (array.shape()[i] > 1) axes.emplace_back(std::abs(array.strides()[i]), array.shape()[i]);
  }
  std::sort(axes.begin(), axes.end());
  py::ssize_t extent = array.itemsize();
  for (const auto& axis : axes) {
    if (axis.first < extent) return false;
    extent += axis.first * (axis.second - 1);
  }
  return true;
}

// An uninitialised array in C order, aligned to a cache line: streaming stores want that, and JAX
// takes an array over without a copy only then.
inline py::array new_array(const py::dtype& type, const py::ssize_t* shape, py::ssize_t ndim) {
  constexpr std::uintptr_t kAlignment = 64;
  py::ssize_t bytes = type.itemsize();
  for (py::ssize_t i = 0; i < ndim; ++i) bytes *= shape[i];
  py::array block(py::dtype::of<std::uint8_t>(),
                  bytes + static_cast<py::ssize_t>(kAlignment));  // NumPy's allocator: huge pages
  const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(block.data());
  const std::uintptr_t skip = (kAlignment - start % kAlignment) % kAlignment;
  return py::array(type, std::vector<py::ssize_t>(shape, shape + ndim),
                   static_cast<char*>(block.mutable_data()) + skip, block);
}

// ---- The arguments of one call ----

// Points into the caller's arrays and into itself: neither copied nor kept beyond the call.
class CallArgs {
 public:
  Inputs inputs;
  Options options;

  CallArgs(py::handle scores, py::handle targets) {
    set_scores(scores);
    set_whole();
    set_targets(targets);
  }

  // A chunk, in C order, of a larger array: its elements from `first_index` on. Without `shape` the
  // chunk consists of whole rows (of axis 0), and the number of rows that follow it does not
  // matter.
  CallArgs(py::handle scores, py::handle targets, py::handle first_index, py::handle shape) {
    set_scores(scores);
    const std::int64_t first = read_integer(first_index, "first_index");
    if (first < 0) {
      throw py::value_error("first_index: expected an int >= 0, got " + std::to_string(first));
    }
    if (shape.is_none()) {
      set_rows(first);
    } else {
      set_flat(first, shape);
    }
    set_targets(targets);
  }

  CallArgs(const CallArgs&) = delete;
  CallArgs& operator=(const CallArgs&) = delete;

  // A number, (C,) for axis 1, or the forms that broadcast like axis 1: (C, 1, ..., 1), (1, C, 1,
  // ..., 1).
  void set_pos_weight(py::handle object) {
    if (object.is_none()) return;
    double number = 0;
    if (!py::isinstance<py::array>(object) && read_number(object, "pos_weight", &number)) {
      pos_weight_.assign(1, number);
    } else {
      read_pos_weight_array(object);
    }
    for (const double value : pos_weight_) {
      if (!is_weight(value)) {
        throw py::value_error("pos_weight: expected finite values >= 0" + of_dtype() + ", got " +
                              repr_text(py::float_(value)));
      }
    }
    options.pos_weight = pos_weight_.data();
    options.pos_weight_count = static_cast<std::int64_t>(pos_weight_.size());
  }

  // A number, or an array that broadcasts to the shape of the scores (of the whole, for a chunk
  // with a shape).
  void set_weight(py::handle object) {
    if (object.is_none()) return;
    std::fill(weight_strides_, weight_strides_ + inputs.ndim, 0);
    if (!py::isinstance<py::array>(object)) {
      double number = 0;
      if (!read_number(object, "weight", &number)) {
        throw py::type_error("weight: expected a NumPy array or a number, got " +
                             type_name(object));
      }
      if (!is_weight(number)) {
        throw py::value_error("weight: expected a finite number >= 0" + of_dtype() + ", got " +
                              repr_text(object));
      }
      weight_number_.f64 = number;
      if (dtype_ != DType::kFloat64) {
        const math::FloatEnvironment environment;  // not by the caller's rounding mode
        const volatile double rounded_here = number;
        weight_number_.f32 = static_cast<float>(rounded_here);
      }
      options.weight = ConstArray(&weight_number_, computed(), weight_strides_);
      return;
    }
    weight_ = read_array(object, "weight");
    const DType dtype = read_dtype(weight_, "weight", bit(dtype_) | kMasks, &dtype_);
    // Broadcast against the scores, or against the whole that a flat chunk was cut from.
    const std::int64_t* shape = flat_chunk_ ? shape_ : scores_.shape();
    const int ndim = flat_chunk_ ? inputs.ndim : static_cast<int>(scores_.ndim());
    const int lead = ndim - static_cast<int>(weight_.ndim());
    bool fits = lead >= 0;
    bool full = lead == 0;
    for (int i = 0; fits && i < ndim - lead; ++i) {
      const py::ssize_t length = weight_.shape()[i];
      if (length != shape[lead + i]) {
        full = false;
        fits = length == 1;
      }
      if (length != 1) weight_strides_[lead + i] = weight_.strides()[i];
    }
    if (!fits) {
      throw py::value_error("weight: expected a shape that broadcasts to " +
                            shape_text(shape, ndim) +
                            (flat_chunk_ ? ", the whole shape" : ", the shape of scores") +
                            ", got " + shape_text(weight_.shape(), weight_.ndim()));
    }
    const char* data = static_cast<const char*>(weight_.data());
    if (full && !flat_chunk_ && is_contiguous(weight_)) {
      options.weight = ConstArray(data, dtype);
    } else {
      if (!flat_chunk_) data = rebase(data, weight_strides_);
      options.weight = ConstArray(data, dtype, weight_strides_);
    }
  }

  void set_ignore_label(py::handle object) {
    if (object.is_none()) return;
    options.ignore_label = read_integer(object, "ignore_label");
    options.has_ignore_label = true;
  }

  // What every function has: the options of the single elements.
  void set_elements(py::handle pos_weight, py::handle weight, py::handle ignore_label,
                    const Family& family) {
    set_pos_weight(pos_weight);
    set_weight(weight);
    set_ignore_label(ignore_label);
    read_family(family, shape_, inputs.ndim, &options);
  }

  void set_normalization(py::handle normalization, py::handle normalize) {
    read_normalization(normalization, normalize, &options);
  }

  void set_divisor(py::handle object) {
    double number = 0;
    if (PyBool_Check(object.ptr()) || !read_number(object, "divisor", &number)) {
      throw py::type_error("divisor: expected a positive number, got " + type_name(object));
    }
    if (!(number > 0) || !std::isfinite(number)) {
      throw py::value_error("divisor: expected a positive number, got " + repr_text(object));
    }
    options.normalization = Normalization::kNumber;
    options.divisor = number;
  }

  void set_loss_weight(py::handle object) {
    if (!read_number(object, "loss_weight", &options.loss_weight)) {
      throw py::type_error("loss_weight: expected a number, got " + type_name(object));
    }
    if (!std::isfinite(options.loss_weight)) {
      throw py::value_error("loss_weight: expected a finite number, got " + repr_text(object));
    }
  }

  // The array to write: `out` where the caller gave one, else a new one. Called last, after
  // set_weight.
  py::array output(py::handle out, MutableArray* result) {
    if (out.is_none()) return new_output(result);
    return given_output(out, "out", out_strides_, result);
  }

  // Likewise for the Hessian, of which True makes a new array: no object for False. `gradient` is what output() gave.
  py::object hessian(py::handle object, const py::array& gradient, MutableArray* result) {
    if (object.ptr() == Py_False) return py::object();
    if (object.ptr() == Py_True) return new_output(result);
    if (!py::isinstance<py::array>(object)) {
      throw py::type_error("hessian: expected True, False or a NumPy array, got " +
                           type_name(object));
    }
    py::array array = given_output(object, "hessian", hessian_strides_, result);
    if (shares_memory(array, gradient)) {
      throw py::value_error("hessian: shares memory with the gradient");
    }
    return std::move(array);
  }

 private:
  py::array new_output(MutableArray* result) {
    py::array fresh = new_array(scores_.dtype(), scores_.shape(), scores_.ndim());
    *result = MutableArray(fresh.mutable_data());
    return fresh;
  }

  py::array given_output(py::handle out, const char* name, std::int64_t* strides,
                         MutableArray* result) {
    const std::string prefix = std::string(name) + ": ";
    py::array array = read_array(out, name);
    const unsigned wider = bit(dtype_) & kHalves ? bit(DType::kFloat32) : 0;
    const DType dtype = read_dtype(array, name, bit(dtype_) | wider, &dtype_);
    if (!same_shape(array, scores_)) {
      throw py::value_error(
          prefix + "expected shape " + shape_text(scores_.shape(), scores_.ndim()) +
          ", the shape of scores, got " + shape_text(array.shape(), array.ndim()));
    }
    if (!array.writeable()) {
      throw py::value_error(prefix + "expected an array that can be written, got a read-only one");
    }
    if (!elements_are_distinct(array)) {
      throw py::value_error(prefix + "expected one address per element, got strides " +
                            shape_text(array.strides(), array.ndim()) + " that may overlap");
    }
    if (!same_elements(array, scores_) && shares_memory(array, scores_)) {
      throw py::value_error(
          prefix + "shares memory with scores; pass the scores array itself, or a separate one");
    }
    if (shares_memory(array, targets_)) {
      throw py::value_error(prefix + "shares memory with targets");
    }
    if (weight_ && shares_memory(array, weight_)) {
      throw py::value_error(prefix + "shares memory with weight");
    }
    for (py::ssize_t i = 0; i < array.ndim(); ++i) strides[i] = array.strides()[i];
    const ConstArray place =
        flat_chunk_ ? flat_address(array, name, dtype, strides) : address(array, dtype, strides);
    *result = MutableArray(const_cast<void*>(place.data), place.strides);
    result->as_float32 = dtype != dtype_;
    return array;
  }

  void set_scores(py::handle object) {
    scores_ = read_array(object, "scores");
    dtype_ = read_dtype(scores_, "scores", kFloats);
    inputs.count = scores_.size();
    inputs.shape = shape_;
  }

  void set_whole() {
    inputs.ndim = static_cast<int>(scores_.ndim());
    for (int i = 0; i < inputs.ndim; ++i) {
      shape_[i] = scores_.shape()[i];
      scores_strides_[i] = scores_.strides()[i];
    }
    inputs.scores = address(scores_, dtype_, scores_strides_);
  }

  void set_rows(std::int64_t first) {
    std::int64_t row = 1;
    for (py::ssize_t i = 1; i < scores_.ndim(); ++i) row *= scores_.shape()[i];
    if (first > 0 && (scores_.ndim() == 0 || row == 0 || first % row != 0)) {
      throw py::value_error("first_index: expected a multiple of the " + std::to_string(row) +
                            " elements of a row, got " + std::to_string(first) +
                            " for scores of shape " + shape_text(scores_.shape(), scores_.ndim()) +
                            "; give the whole array's shape as shape= to cut elsewhere");
    }
    rows_before_ = first > 0 ? first / row : 0;
    set_whole();
    if (first > 0) {
      if (rows_before_ > INT64_MAX / 8 / row - shape_[0]) {
        throw py::value_error("first_index: expected fewer than 2^60 elements in all, got " +
                              std::to_string(first));
      }
      shape_[0] += rows_before_;
    }
    inputs.first_index = first;
  }

  void set_flat(std::int64_t first, py::handle shape) {
    const std::string expected = "shape: expected a tuple of ints >= 0, got ";
    if (!PyTuple_Check(shape.ptr()) && !PyList_Check(shape.ptr())) {
      throw py::type_error(expected + type_name(shape));
    }
    const py::tuple lengths = py::reinterpret_steal<py::tuple>(PySequence_Tuple(shape.ptr()));
    if (lengths.size() > static_cast<std::size_t>(kMaxDims)) {
      throw py::value_error("shape: expected at most " + std::to_string(kMaxDims) + " axes, got " +
                            std::to_string(lengths.size()));
    }
    inputs.ndim = static_cast<int>(lengths.size());
    std::int64_t total = 1;
    bool equal = inputs.ndim == scores_.ndim();
    for (int i = 0; i < inputs.ndim; ++i) {
      shape_[i] = read_integer(lengths[static_cast<std::size_t>(i)], "shape");
      if (shape_[i] < 0) throw py::value_error(expected + repr_text(shape));
      if (shape_[i] > 0 && total > std::numeric_limits<std::int64_t>::max() / 8 / shape_[i]) {
        throw py::value_error("shape: more elements than 64 bits can count, got " +
                              repr_text(shape));
      }
      total *= shape_[i];
      equal = equal && shape_[i] == scores_.shape()[i];
    }
    if (first > total || inputs.count > total - first) {
      throw py::value_error("shape: expected at least first_index + scores.size = " +
                            std::to_string(first) + " + " + std::to_string(inputs.count) +
                            " elements, got " + std::to_string(total) + " in " + repr_text(shape));
    }
    if (equal) return set_whole();
    flat_chunk_ = true;
    inputs.first_index = first;
    inputs.scores = flat_address(scores_, "scores", dtype_, scores_strides_);
  }

  void set_targets(py::handle object) {
    targets_ = read_array(object, "targets");
    const unsigned wider = bit(dtype_) & kHalves ? bit(DType::kFloat32) : 0;
    const DType dtype = read_dtype(targets_, "targets", bit(dtype_) | wider | kIntegers, &dtype_);
    // The axes of scores and targets side by side, those of length 1 skipped.
    const py::ssize_t* shape = targets_.shape();
    py::ssize_t j = 0;
    bool equal = true;
    for (py::ssize_t i = 0; i < scores_.ndim(); ++i) {
      targets_strides_[i] = 0;
      if (scores_.shape()[i] == 1) continue;
      while (j < targets_.ndim() && shape[j] == 1) ++j;
      equal = equal && j < targets_.ndim() && shape[j] == scores_.shape()[i];
      if (!equal) break;
      targets_strides_[i] = targets_.strides()[j++];
    }
    while (j < targets_.ndim() && shape[j] == 1) ++j;
    if (!equal || j != targets_.ndim()) {
      throw py::value_error("targets: expected shape " +
                            shape_text(scores_.shape(), scores_.ndim()) +
                            ", the shape of scores (axes of length 1 aside), got " +
                            shape_text(targets_.shape(), targets_.ndim()));
    }
    inputs.targets = flat_chunk_ ? flat_address(targets_, "targets", dtype, targets_strides_)
                                 : address(targets_, dtype, targets_strides_);
  }

  void read_pos_weight_array(py::handle object) {
    const py::array array = read_array(object, "pos_weight");
    const char kind = array.dtype().kind();
    if (kind != 'f' && kind != 'i' && kind != 'u' && kind != 'b') {
      throw py::type_error("pos_weight: expected real numbers, got " +
                           std::string(py::str(array.dtype())));
    }
    const py::ssize_t ndim = array.ndim();
    const py::ssize_t size = array.size();
    const bool has_channels = inputs.ndim >= 2;
    bool fits = size == 1;
    if (!fits && has_channels && size == shape_[1]) {
      const py::ssize_t axis = ndim == inputs.ndim ? 1 : 0;
      fits = (ndim == 1 || ndim == inputs.ndim - 1 || ndim == inputs.ndim) &&
             array.shape()[axis] == size;
      // With the size in one axis, the others are of length 1 unless the size is 0.
    }
    if (!fits) {
      const std::string came = ", got shape " + shape_text(array.shape(), ndim);
      if (!has_channels) {
        throw py::value_error("pos_weight: expected a number, since scores of shape " +
                              shape_text(shape_, inputs.ndim) + " have no channel axis (axis 1)" +
                              came);
      }
      std::string forms = "a number or shape (" + std::to_string(shape_[1]) + ",)";
      if (inputs.ndim > 2) {
        forms += " or (" + std::to_string(shape_[1]);
        for (int i = 2; i < inputs.ndim; ++i) forms += ", 1";
        forms += ")";
      }
      throw py::value_error("pos_weight: expected " + forms + " for scores of shape " +
                            shape_text(shape_, inputs.ndim) + came);
    }
    // Not ensure(), which clears the error: no memory, or a warning that the caller made one.
    const py::array_t<double, py::array::c_style | py::array::forcecast> values(array);
    pos_weight_.assign(values.data(), values.data() + size);
  }

  // Strides over the shape of the scores. The core reads an array with strides from the whole's
  // element 0.
  ConstArray address(const py::array& array, DType dtype, const std::int64_t* strides) const {
    const char* data = static_cast<const char*>(array.data());
    if (is_contiguous(array)) return ConstArray(data, dtype);
    return ConstArray(rebase(data, strides), dtype, strides);
  }

  // As integers: the address of row 0 may lie outside of the array, and is not read there.
  const char* rebase(const char* data, const std::int64_t* strides) const {
    if (rows_before_ == 0) return data;
    return reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(data) -
                                         static_cast<std::uintptr_t>(rows_before_) *
                                             static_cast<std::uintptr_t>(strides[0]));
  }

  // Element i of the chunk is element first_index + i of the whole; one stride serves all axes.
  ConstArray flat_address(const py::array& array, const char* name, DType dtype,
                          std::int64_t* strides) const {
    const char* data = static_cast<const char*>(array.data());
    if (is_contiguous(array)) return ConstArray(data, dtype);
    std::int64_t stride = 0;
    int long_axes = 0;
    for (py::ssize_t i = 0; i < array.ndim(); ++i) {
      if (array.shape()[i] == 1) continue;
      stride = array.strides()[i];
      ++long_axes;
    }
    if (long_axes > 1) {
      throw py::value_error(
          std::string(name) +
          ": expected a chunk with one axis or contiguous in C order, got shape " +
          shape_text(array.shape(), array.ndim()) + " with strides " +
          shape_text(array.strides(), array.ndim()));
    }
    std::int64_t step = stride;
    for (int i = inputs.ndim - 1; i >= 0; --i) {
      strides[i] = step;
      step *= shape_[i];
    }
    const std::uintptr_t skip =
        static_cast<std::uintptr_t>(inputs.first_index) * static_cast<std::uintptr_t>(stride);
    data = reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(data) - skip);
    return ConstArray(data, dtype, strides);
  }

  bool is_weight(double value) const {
    const double largest = dtype_ == DType::kFloat64 ? std::numeric_limits<double>::max()
                                                     : std::numeric_limits<float>::max();
    return value >= 0 && value <= largest;  // false for NaN
  }

  std::string of_dtype() const { return dtype_ == DType::kFloat64 ? "" : " in float32"; }

  DType computed() const { return dtype_ == DType::kFloat64 ? dtype_ : DType::kFloat32; }

  py::array scores_{py::reinterpret_steal<py::array>(py::handle())};
  py::array targets_{py::reinterpret_steal<py::array>(py::handle())};
  py::array weight_{py::reinterpret_steal<py::array>(py::handle())};
  DType dtype_ = DType::kFloat32;
  bool flat_chunk_ = false;       // scores are a flat piece of an array of another shape
  std::int64_t rows_before_ = 0;  // else: rows of axis 0 that stand before the scores
  std::vector<double> pos_weight_;
  union {
    float f32;
    double f64;
  } weight_number_;
  std::int64_t shape_[kMaxDims];
  std::int64_t scores_strides_[kMaxDims];
  std::int64_t targets_strides_[kMaxDims];
  std::int64_t weight_strides_[kMaxDims];
  std::int64_t out_strides_[kMaxDims];
  std::int64_t hessian_strides_[kMaxDims];
};

}  // namespace bindings
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_BINDINGS_ARRAY_ARGS_H_
