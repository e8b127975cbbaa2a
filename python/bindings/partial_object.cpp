// The Python type Partial, made with Python's own C API: an instance of a class of pybind11 ends the
// process where memory runs out while it is made, or where it is pickled with protocol 0 or 1.
#include "partial_object.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <new>
#include <string>
#include <utility>

#include "array_args.h"
#include "sigmoid_ce/cpu.h"

namespace sigmoid_ce {
namespace bindings {
namespace {

struct PartialObject {
  PyObject_HEAD Partial value;  // normalised
};

PyTypeObject* type = nullptr;  // made once, and kept to the end of the process

bool is_partial(PyObject* object) { return Py_TYPE(object) == type; }

const Partial& value_of(PyObject* object) {
  return reinterpret_cast<PartialObject*>(object)->value;
}

// What `function` returns, or a null pointer with the Python error for what it throws.
template <class Function>
PyObject* guarded(Function function) {
  try {
    return function().release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

[[noreturn]] void throw_overflow(const char* text) {
  PyErr_SetString(PyExc_OverflowError, text);
  throw py::error_already_set();
}

// The other counts are no larger than n_total, and limbs but the last no larger than 32 bits.
void add_checked(const Partial& part, Partial* total) {
  constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();
  constexpr int kTop = Partial::kLimbs - 1;
  if (part.n_total > kLargest - total->n_total) {
    throw_overflow("parts: more than 2^63 - 1 elements in all");
  }
  total->add(part);
  if (total->limb[kTop] > kLargest / 2 || total->limb[kTop] < -(kLargest / 2)) {
    throw_overflow("parts: a sum beyond the range of Partial");
  }
}

// ---- Words ----

// What no sum of up to 2^30 parts has is refused, also so that no later addition overflows.
Partial checked(const std::int64_t* words) {
  constexpr std::int64_t kMostWords = std::int64_t(1) << 62;
  // 2^63 elements below 2^1024 each.
  constexpr std::int64_t kMostTop = std::int64_t(1) << 32;
  for (int i = 0; i < Partial::kWords; ++i) {
    if (words[i] > kMostWords || words[i] < -kMostWords) {
      throw py::value_error("words: expected sums of the words of up to 2^30 parts, got " +
                            std::to_string(words[i]) + " in word " + std::to_string(i));
    }
  }
  Partial partial;
  std::copy_n(words, Partial::kLimbs, partial.limb);
  const std::int64_t* count = words + Partial::kLimbs;
  for (int i = 0; i < 5; ++i) {
    if (count[i] < 0) {
      throw py::value_error("words: expected counts of 0 or more, got " + std::to_string(count[i]) +
                            " in word " + std::to_string(Partial::kLimbs + i));
    }
  }
  partial.n_nan = count[0];
  partial.n_posinf = count[1];
  partial.n_neginf = count[2];
  partial.n_valid = count[3];
  partial.n_total = count[4];
  partial.normalize();
  const std::int64_t rest = partial.n_total - partial.n_nan;
  if (partial.n_valid > partial.n_total || rest < 0 || partial.n_posinf > rest ||
      partial.n_neginf > rest - partial.n_posinf) {
    throw py::value_error(
        "words: expected n_valid and the number of sums that are not finite to be no more than "
        "n_total, got n_nan, n_posinf, n_neginf, n_valid, n_total = " +
        shape_text(count, 5));
  }
  const std::int64_t top = partial.limb[Partial::kLimbs - 1];
  if (top > kMostTop || top < -kMostTop) {
    throw py::value_error("words: expected a sum of fewer than 2^63 losses, got " +
                          std::to_string(top) + " in the last limb");
  }
  return partial;
}

void copy_words(const Partial& partial, std::int64_t* words) {
  const std::int64_t counts[] = {partial.n_nan, partial.n_posinf, partial.n_neginf, partial.n_valid,
                                 partial.n_total};
  std::copy_n(counts, 5, std::copy_n(partial.limb, Partial::kLimbs, words));
}

py::object to_words(const Partial& partial) {
  py::array_t<std::int64_t> words(Partial::kWords);
  copy_words(partial, words.mutable_data());
  return std::move(words);
}

Partial from_words(py::handle object) {
  const py::array array = read_array(object, "words");
  DType dtype;
  if (!find_dtype(array.dtype(), &dtype) || dtype != DType::kInt64 || array.ndim() != 1 ||
      array.size() != Partial::kWords) {
    throw py::value_error("words: expected an int64 array of shape (" +
                          std::to_string(Partial::kWords) + ",), got " +
                          std::string(py::str(array.dtype())) + " of shape " +
                          shape_text(array.shape(), array.ndim()));
  }
  const py::array_t<std::int64_t, py::array::c_style | py::array::forcecast> words(array);
  return checked(words.data());
}

// The words as bytes, least significant first: what a pickle holds.
constexpr int kBytes = 8 * Partial::kWords;

PyObject* to_bytes(const Partial& partial) {
  std::int64_t words[Partial::kWords];
  char bytes[kBytes];
  copy_words(partial, words);
  for (int i = 0; i < kBytes; ++i) {
    bytes[i] = static_cast<char>(static_cast<std::uint64_t>(words[i / 8]) >> (8 * (i % 8)));
  }
  return PyBytes_FromStringAndSize(bytes, kBytes);
}

Partial from_bytes(PyObject* object) {
  if (!PyBytes_Check(object) || PyBytes_GET_SIZE(object) != kBytes) {
    throw py::value_error("words: expected " + std::to_string(kBytes) + " bytes");
  }
  const char* bytes = PyBytes_AS_STRING(object);
  std::uint64_t words[Partial::kWords] = {};
  for (int i = 0; i < kBytes; ++i) {
    words[i / 8] |= static_cast<std::uint64_t>(static_cast<unsigned char>(bytes[i]))
                    << (8 * (i % 8));
  }
  std::int64_t signed_words[Partial::kWords];
  std::memcpy(signed_words, words, sizeof words);
  return checked(signed_words);
}

// ---- Division ----

// What a Partial lacks to be divided: the mode, and the number of rows.
struct Division {
  Division(const Partial& partial, py::handle normalization, py::handle batch_size)
      : rows_(partial.n_total) {
    const py::none off;
    read_normalization(normalization, off, &options, /*foreground=*/false);
    if (options.normalization == Normalization::kBatchSize) {
      if (batch_size.is_none()) {
        throw py::value_error(
            "batch_size: expected an int, since normalization \"batch_size\" divides by it, got "
            "None");
      }
      rows_ = read_integer(batch_size, "batch_size");
      if (rows_ < 0) {
        throw py::value_error("batch_size: expected an int >= 0, got " + std::to_string(rows_));
      }
    } else if (!batch_size.is_none()) {
      throw py::value_error(
          "batch_size: expected None unless normalization is \"batch_size\", got " +
          repr_text(batch_size));
    }
    // One axis, so that its length is the batch size and the number of elements in one.
    inputs.shape = &rows_;
    inputs.ndim = 1;
  }
  Division(const Division&) = delete;
  Division& operator=(const Division&) = delete;

  Options options;
  Inputs inputs;

 private:
  std::int64_t rows_;
};

template <class Function>
PyObject* divided(PyObject* self, PyObject* args, PyObject* keywords, const char* format,
                  Function function) {
  static const char* const names[] = {"normalization", "batch_size", nullptr};
  PyObject* normalization = Py_None;
  PyObject* batch_size = Py_None;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, format, const_cast<char**>(names),
                                   &normalization, &batch_size)) {
    return nullptr;
  }
  return guarded([&] {
    const Division by(value_of(self), normalization, batch_size);
    const double result = function(by.inputs, by.options, value_of(self));
    return py::reinterpret_steal<py::object>(PyFloat_FromDouble(result));
  });
}

// ---- The type ----

PyObject* make(PyTypeObject*, PyObject* args, PyObject* keywords) {
  if (PyTuple_GET_SIZE(args) != 0 || (keywords != nullptr && PyDict_GET_SIZE(keywords) != 0)) {
    PyErr_SetString(PyExc_TypeError, "Partial() takes no arguments; see partial and combine");
    return nullptr;
  }
  return guarded([] { return new_partial(Partial()); });
}

void dealloc(PyObject* self) {
  type->tp_free(self);
  Py_DECREF(type);  // as instances of heap types hold one
}

// sum() starts with the int 0.
bool is_zero(PyObject* object) { return PyLong_CheckExact(object) && PyObject_Not(object) == 1; }

PyObject* add(PyObject* left, PyObject* right) {
  if (is_partial(left) && is_partial(right)) {
    return guarded([&] {
      Partial total = value_of(left);
      add_checked(value_of(right), &total);
      return new_partial(total);
    });
  }
  if (is_zero(left)) {
    Py_INCREF(right);
    return right;
  }
  Py_RETURN_NOTIMPLEMENTED;
}

PyObject* compare(PyObject* left, PyObject* right, int operation) {
  if (!is_partial(left) || !is_partial(right) || (operation != Py_EQ && operation != Py_NE)) {
    Py_RETURN_NOTIMPLEMENTED;
  }
  return PyBool_FromLong((value_of(left) == value_of(right)) == (operation == Py_EQ));
}

PyObject* repr(PyObject* self) {
  PyObject* sum = PyFloat_FromDouble(value_of(self).sum());
  if (sum == nullptr) return nullptr;
  PyObject* text = PyUnicode_FromFormat("Partial(sum=%R, n_valid=%lld, n_total=%lld)", sum,
                                        static_cast<long long>(value_of(self).n_valid),
                                        static_cast<long long>(value_of(self).n_total));
  Py_DECREF(sum);
  return text;
}

PyObject* get_sum(PyObject* self, void*) { return PyFloat_FromDouble(value_of(self).sum()); }
PyObject* get_n_valid(PyObject* self, void*) { return PyLong_FromLongLong(value_of(self).n_valid); }
PyObject* get_n_total(PyObject* self, void*) { return PyLong_FromLongLong(value_of(self).n_total); }

PyObject* method_loss(PyObject* self, PyObject* args, PyObject* keywords) {
  return divided(self, args, keywords, "|OO:loss", &cpu::loss);
}

PyObject* method_divisor(PyObject* self, PyObject* args, PyObject* keywords) {
  return divided(self, args, keywords, "|OO:divisor", &cpu::divisor);
}

PyObject* method_to_words(PyObject* self, PyObject*) {
  return guarded([&] { return to_words(value_of(self)); });
}

PyObject* method_from_words(PyObject*, PyObject* args, PyObject* keywords) {
  static const char* const names[] = {"words", nullptr};
  PyObject* words = nullptr;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "O:from_words", const_cast<char**>(names),
                                   &words)) {
    return nullptr;
  }
  return guarded([&] { return new_partial(from_words(words)); });
}

PyObject* method_from_bytes(PyObject*, PyObject* bytes) {
  return guarded([&] { return new_partial(from_bytes(bytes)); });
}

PyObject* method_reduce(PyObject* self, PyObject*) {
  PyObject* function = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "_from_bytes");
  if (function == nullptr) return nullptr;
  return Py_BuildValue("N(N)", function, to_bytes(value_of(self)));  // takes both over
}

PyObject* method_copy(PyObject* self, PyObject*) {
  Py_INCREF(self);  // nothing changes an object of this type
  return self;
}

PyCFunction with_keywords(PyObject* (*function)(PyObject*, PyObject*, PyObject*)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"loss", with_keywords(method_loss), METH_VARARGS | METH_KEYWORDS,
     "loss($self, /, normalization=None, batch_size=None)\n--\n\n"
     "The sum over the divisor that `normalization` names (None: \"batch_size\", which needs "
     "`batch_size`)."},
    {"divisor", with_keywords(method_divisor), METH_VARARGS | METH_KEYWORDS,
     "divisor($self, /, normalization=None, batch_size=None)\n--\n\n"
     "What `loss` divides the sum by."},
    {"to_words", method_to_words, METH_NOARGS,
     "to_words($self, /)\n--\n\n"
     "The words as an int64 array of shape (73,). Words of up to 2**30 parts may be added word by "
     "word, as an all-reduce does."},
    {"from_words", with_keywords(method_from_words), METH_VARARGS | METH_KEYWORDS | METH_STATIC,
     "from_words(words)\n--\n\n"
     "The Partial of words, or of sums of words, that to_words gave."},
    {"_from_bytes", method_from_bytes, METH_O | METH_STATIC, "What a pickle calls."},
    {"__reduce__", method_reduce, METH_NOARGS, nullptr},
    {"__copy__", method_copy, METH_NOARGS, nullptr},
    {"__deepcopy__", method_copy, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyGetSetDef attributes[] = {
    {"sum", get_sum, nullptr,
     "The sum, rounded once to float64; NaN and infinities as in a plain sum.", nullptr},
    {"n_valid", get_n_valid, nullptr, "Number of elements that are not ignored.", nullptr},
    {"n_total", get_n_total, nullptr, "Number of elements.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

const char kDoc[] =
    "The exact sum of the losses of some elements, and their counts.\n\n"
    "Parts of one array add up (+, sum, combine) to the same bits in any order. Partial() is the "
    "part without elements.";

template <class Function>
void* slot(Function* function) {
  return reinterpret_cast<void*>(function);
}

PyType_Slot slots[] = {{Py_tp_doc, const_cast<char*>(kDoc)},
                       {Py_tp_new, slot(make)},
                       {Py_tp_dealloc, slot(dealloc)},
                       {Py_nb_add, slot(add)},
                       {Py_tp_richcompare, slot(compare)},
                       {Py_tp_hash, slot(PyObject_HashNotImplemented)},
                       {Py_tp_repr, slot(repr)},
                       {Py_tp_methods, methods},
                       {Py_tp_getset, attributes},
                       {0, nullptr}};

PyType_Spec spec = {"sigmoid_ce.Partial", sizeof(PartialObject), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, slots};

py::object combine(py::handle parts) {
  Partial total;
  for (const py::handle part : py::iter(parts)) {
    if (!is_partial(part.ptr())) {
      throw py::type_error("parts: expected Partial objects, got " + type_name(part));
    }
    add_checked(value_of(part.ptr()), &total);
  }
  return new_partial(total);
}

}  // namespace

py::object new_partial(const Partial& value) {
  auto object = py::reinterpret_steal<py::object>(PyType_GenericAlloc(type, 0));
  if (!object) throw py::error_already_set();
  Partial& place = reinterpret_cast<PartialObject*>(object.ptr())->value;
  place = value;
  place.normalize();
  return object;
}

void register_partial(py::module_& module) {
  if (type == nullptr) {
    type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
    if (type == nullptr) throw py::error_already_set();
  }
  module.attr("Partial") = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(type));
  module.def("combine", &combine, py::arg("parts"), "The sum of Partial objects.");
}

}  // namespace bindings
}  // namespace sigmoid_ce
