// The functions of sigmoid_ce/cpu.h for NumPy arrays: check, release the GIL, one call.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "array_args.h"
#include "sigmoid_ce/cpu.h"

namespace sigmoid_ce {
namespace bindings {
namespace {

double forward(py::handle scores, py::handle targets, py::handle pos_weight, py::handle weight,
               py::handle ignore_label, py::handle normalization, py::handle normalize) {
  CallArgs args(scores, targets);
  args.set_pos_weight(pos_weight);
  args.set_weight(weight);
  args.set_ignore_label(ignore_label);
  args.set_normalization(normalization, normalize);
  Partial partial;
  Status status;
  double loss = 0;
  {
    py::gil_scoped_release release;
    status = cpu::forward(args.inputs, args.options, &partial);
    if (status.ok()) loss = cpu::loss(args.inputs, args.options, partial);
  }
  raise_status(status);
  return loss;
}

py::array elementwise(py::handle scores, py::handle targets, py::handle pos_weight,
                      py::handle weight, py::handle ignore_label, py::handle out) {
  CallArgs args(scores, targets);
  args.set_pos_weight(pos_weight);
  args.set_weight(weight);
  args.set_ignore_label(ignore_label);
  MutableArray losses;
  py::array result = args.output(out, &losses);
  Status status;
  {
    py::gil_scoped_release release;
    status = cpu::elementwise(args.inputs, args.options, losses);
  }
  raise_status(status);
  return result;
}

py::array backward(py::handle scores, py::handle targets, py::handle pos_weight, py::handle weight,
                   py::handle ignore_label, py::handle normalization, py::handle normalize,
                   py::handle loss_weight, py::handle out) {
  CallArgs args(scores, targets);
  args.set_pos_weight(pos_weight);
  args.set_weight(weight);
  args.set_ignore_label(ignore_label);
  args.set_normalization(normalization, normalize);
  args.set_loss_weight(loss_weight);
  MutableArray gradient;
  py::array result = args.output(out, &gradient);
  Status status;
  {
    py::gil_scoped_release release;
    status = cpu::backward(args.inputs, args.options, gradient);
  }
  raise_status(status);
  return result;
}

py::tuple forward_backward(py::handle scores, py::handle targets, py::handle pos_weight,
                           py::handle weight, py::handle ignore_label, py::handle normalization,
                           py::handle normalize, py::handle loss_weight, py::handle out) {
  CallArgs args(scores, targets);
  args.set_pos_weight(pos_weight);
  args.set_weight(weight);
  args.set_ignore_label(ignore_label);
  args.set_normalization(normalization, normalize);
  args.set_loss_weight(loss_weight);
  MutableArray gradient;
  py::array result = args.output(out, &gradient);
  Partial partial;
  Status status;
  double loss = 0;
  {
    py::gil_scoped_release release;
    status = cpu::forward_backward(args.inputs, args.options, &partial, gradient);
    if (status.ok()) loss = cpu::loss(args.inputs, args.options, partial);
  }
  raise_status(status);
  return py::make_tuple(loss, result);
}

Partial partial(py::handle scores, py::handle targets, py::handle pos_weight, py::handle weight,
                py::handle ignore_label, py::handle first_index, py::handle shape) {
  CallArgs args(scores, targets, first_index, shape);
  args.set_pos_weight(pos_weight);
  args.set_weight(weight);
  args.set_ignore_label(ignore_label);
  Partial result;
  Status status;
  {
    py::gil_scoped_release release;
    status = cpu::forward(args.inputs, args.options, &result);
  }
  raise_status(status);
  return result;
}

// ---- Partial ----

py::array_t<std::int64_t> to_words(const Partial& partial) {
  Partial normal = partial;
  normal.normalize();
  const std::int64_t tail[] = {normal.n_nan, normal.n_posinf, normal.n_neginf, normal.n_valid,
                               normal.n_total};
  py::array_t<std::int64_t> words(Partial::kWords);
  std::int64_t* end = std::copy(normal.limb, normal.limb + Partial::kLimbs, words.mutable_data());
  std::copy(tail, tail + 5, end);
  return words;
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
  const auto words =
      py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>::ensure(array);
  if (!words) throw py::error_already_set();
  const std::int64_t* word = words.data();
  Partial partial;
  std::copy(word, word + Partial::kLimbs, partial.limb);
  word += Partial::kLimbs;
  partial.n_nan = word[0];
  partial.n_posinf = word[1];
  partial.n_neginf = word[2];
  partial.n_valid = word[3];
  partial.n_total = word[4];
  partial.normalize();
  return partial;
}

double partial_loss(const Partial& partial, py::handle normalization, py::handle batch_size) {
  Options options;
  const py::none off;
  read_normalization(normalization, off, &options);
  std::int64_t rows = partial.n_total;
  if (options.normalization == Normalization::kBatchSize) {
    if (batch_size.is_none()) {
      throw py::value_error(
          "batch_size: expected an int, since normalization \"batch_size\" divides by it, got "
          "None");
    }
    rows = read_integer(batch_size, "batch_size");
    if (rows < 0) {
      throw py::value_error("batch_size: expected an int >= 0, got " + std::to_string(rows));
    }
  } else if (!batch_size.is_none()) {
    throw py::value_error("batch_size: expected None unless normalization is \"batch_size\", got " +
                          repr_text(batch_size));
  }
  // One axis, so that its length is the batch size and the number of elements in one.
  Inputs inputs;
  inputs.shape = &rows;
  inputs.ndim = 1;
  return cpu::loss(inputs, options, partial);
}

Partial combine(py::handle parts) {
  Partial total;
  for (const py::handle part : py::iter(parts)) {
    if (!py::isinstance<Partial>(part)) {
      throw py::type_error("parts: expected Partial objects, got " + type_name(part));
    }
    total.add(part.cast<const Partial&>());
  }
  return total;
}

std::string partial_repr(const Partial& partial) {
  return "Partial(sum=" + repr_text(py::float_(partial.sum())) +
         ", n_valid=" + std::to_string(partial.n_valid) +
         ", n_total=" + std::to_string(partial.n_total) + ")";
}

void register_partial(py::module_& module) {
  py::class_<Partial> cls(module, "Partial",
                          "The exact sum of the losses of some elements, and their counts.\n\n"
                          "Parts of one array add up (+, combine) to the same bits in any order. "
                          "Partial() is the part without elements.");
  cls.def(py::init<>())
      .def_property_readonly(
          "sum", &Partial::sum,
          "The sum, rounded once to float64; NaN and infinities as in a plain sum.")
      .def_property_readonly(
          "n_valid", [](const Partial& self) { return self.n_valid; },
          "Number of elements that are not ignored.")
      .def_property_readonly(
          "n_total", [](const Partial& self) { return self.n_total; }, "Number of elements.")
      .def("loss", &partial_loss, py::arg("normalization") = py::none(),
           py::arg("batch_size") = py::none(),
           "The sum over the divisor that `normalization` names (None: \"batch_size\", which needs "
           "`batch_size`).")
      .def("to_words", &to_words,
           "The words as an int64 array of shape (73,). Words of up to 2**30 parts may be added "
           "word "
           "by word, as an all-reduce does.")
      .def_static("from_words", &from_words, py::arg("words"),
                  "The Partial of words, or of sums of words, that to_words gave.")
      .def(
          "__add__",
          [](const Partial& self, const Partial& other) {
            Partial total = self;
            total.add(other);
            return total;
          },
          py::is_operator())
      .def(
          "__eq__", [](const Partial& self, const Partial& other) { return self == other; },
          py::is_operator())
      .def("__repr__", &partial_repr)
      .def(py::pickle([](const Partial& self) { return to_words(self); },
                      [](const py::array& words) { return from_words(words); }));
  cls.attr("__module__") = "sigmoid_ce";
  module.def("combine", &combine, py::arg("parts"), "The sum of Partial objects.");
}

}  // namespace

void register_cpu(py::module_& module) {
  const py::none off;
  module.def("forward", &forward, py::arg("scores"), py::arg("targets"),
             py::arg("pos_weight") = off, py::arg("weight") = off, py::arg("ignore_label") = off,
             py::arg("normalization") = off, py::arg("normalize") = off,
             "sigmoid_ce.forward for NumPy arrays.");
  module.def("elementwise", &elementwise, py::arg("scores"), py::arg("targets"),
             py::arg("pos_weight") = off, py::arg("weight") = off, py::arg("ignore_label") = off,
             py::arg("out") = off, "sigmoid_ce.elementwise for NumPy arrays.");
  module.def("backward", &backward, py::arg("scores"), py::arg("targets"),
             py::arg("pos_weight") = off, py::arg("weight") = off, py::arg("ignore_label") = off,
             py::arg("normalization") = off, py::arg("normalize") = off,
             py::arg("loss_weight") = 1.0, py::arg("out") = off,
             "sigmoid_ce.backward for NumPy arrays.");
  module.def("forward_backward", &forward_backward, py::arg("scores"), py::arg("targets"),
             py::arg("pos_weight") = off, py::arg("weight") = off, py::arg("ignore_label") = off,
             py::arg("normalization") = off, py::arg("normalize") = off,
             py::arg("loss_weight") = 1.0, py::arg("out") = off,
             "sigmoid_ce.forward_backward for NumPy arrays.");
  module.def("partial", &partial, py::arg("scores"), py::arg("targets"),
             py::arg("pos_weight") = off, py::arg("weight") = off, py::arg("ignore_label") = off,
             py::arg("first_index") = 0, py::arg("shape") = off,
             "sigmoid_ce.partial for NumPy arrays.");
  register_partial(module);

  module.def(
      "set_num_threads",
      [](py::handle n) {
        const std::int64_t count = n.is_none() ? 0 : read_integer(n, "n");
        const bool is_int = count >= 0 && count <= std::numeric_limits<int>::max();
        const Status status = cpu::set_num_threads(is_int ? static_cast<int>(count) : -1);
        if (!status.ok()) {
          throw py::value_error("n: " + std::string(status.message) + ", got " +
                                std::to_string(count));
        }
      },
      py::arg("n"), "Number of threads from now on, for every caller. 0 or None: the default.");
  module.def("get_num_threads", &cpu::num_threads, "Number of threads that large arrays use.");
  module.def(
      "set_isa",
      [](py::handle name) {
        if (name.is_none()) return raise_status(cpu::set_isa(nullptr));
        if (!PyUnicode_Check(name.ptr())) {
          throw py::type_error("name: expected a str or None, got " + type_name(name));
        }
        const Status status = cpu::set_isa(name.cast<std::string>().c_str());
        if (status.ok()) return;
        std::string available;
        for (int i = 0; i < cpu::isa_count(); ++i) {
          available += (i > 0 ? ", \"" : "\"") + std::string(cpu::isa_name(i)) + "\"";
        }
        throw py::value_error("name: expected one of " + available + " or None, got " +
                              repr_text(name));
      },
      py::arg("name"),
      "Use this instruction set from now on, for every caller. None: the default.");
  module.def("get_isa", [] { return std::string(cpu::isa()); }, "The instruction set in use.");
  module.def(
      "available_isas",
      [] {
        py::list names;
        for (int i = 0; i < cpu::isa_count(); ++i) names.append(cpu::isa_name(i));
        return names;
      },
      "The instruction sets that this machine and this build have, best first.");
}

}  // namespace bindings
}  // namespace sigmoid_ce
