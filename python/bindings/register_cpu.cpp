// The functions of sigmoid_ce/cpu.h for NumPy arrays: check, release the GIL, one call.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <limits>
#include <string>

#include "array_args.h"
#include "partial_object.h"
#include "released_gil.h"
#include "sigmoid_ce/cpu.h"

namespace sigmoid_ce {
namespace bindings {
namespace {

double forward(py::handle scores, py::handle targets, py::handle pos_weight, py::handle weight,
               py::handle ignore_label, py::handle normalization, py::handle normalize) {
  CallArgs args(scores, targets);
  args.set_elements(pos_weight, weight, ignore_label);
  args.set_normalization(normalization, normalize);
  Partial partial;
  Status status;
  double loss = 0;
  {
    const ReleasedGil released;
    status = cpu::forward(args.inputs, args.options, &partial);
    if (status.ok()) loss = cpu::loss(args.inputs, args.options, partial);
  }
  raise_status(status);
  return loss;
}

py::array elementwise(py::handle scores, py::handle targets, py::handle pos_weight,
                      py::handle weight, py::handle ignore_label, py::handle out) {
  CallArgs args(scores, targets);
  args.set_elements(pos_weight, weight, ignore_label);
  MutableArray losses;
  py::array result = args.output(out, &losses);
  Status status;
  {
    const ReleasedGil released;
    status = cpu::elementwise(args.inputs, args.options, losses);
  }
  raise_status(status);
  return result;
}

py::array backward(py::handle scores, py::handle targets, py::handle pos_weight, py::handle weight,
                   py::handle ignore_label, py::handle normalization, py::handle normalize,
                   py::handle loss_weight, py::handle out) {
  CallArgs args(scores, targets);
  args.set_elements(pos_weight, weight, ignore_label);
  args.set_normalization(normalization, normalize);
  args.set_loss_weight(loss_weight);
  MutableArray gradient;
  py::array result = args.output(out, &gradient);
  Status status;
  {
    const ReleasedGil released;
    status = cpu::backward(args.inputs, args.options, gradient);
  }
  raise_status(status);
  return result;
}

py::tuple forward_backward(py::handle scores, py::handle targets, py::handle pos_weight,
                           py::handle weight, py::handle ignore_label, py::handle normalization,
                           py::handle normalize, py::handle loss_weight, py::handle out) {
  CallArgs args(scores, targets);
  args.set_elements(pos_weight, weight, ignore_label);
  args.set_normalization(normalization, normalize);
  args.set_loss_weight(loss_weight);
  MutableArray gradient;
  py::array result = args.output(out, &gradient);
  Partial partial;
  Status status;
  double loss = 0;
  {
    const ReleasedGil released;
    status = cpu::forward_backward(args.inputs, args.options, &partial, gradient);
    if (status.ok()) loss = cpu::loss(args.inputs, args.options, partial);
  }
  raise_status(status);
  return py::make_tuple(loss, result);
}

py::object partial(py::handle scores, py::handle targets, py::handle pos_weight, py::handle weight,
                   py::handle ignore_label, py::handle first_index, py::handle shape) {
  CallArgs args(scores, targets, first_index, shape);
  args.set_elements(pos_weight, weight, ignore_label);
  Partial result;
  Status status;
  {
    const ReleasedGil released;
    status = cpu::forward(args.inputs, args.options, &result);
  }
  raise_status(status);
  return new_partial(result);
}

py::tuple partial_backward(py::handle scores, py::handle targets, py::handle divisor,
                           py::handle pos_weight, py::handle weight, py::handle ignore_label,
                           py::handle loss_weight, py::handle first_index, py::handle shape,
                           py::handle out) {
  CallArgs args(scores, targets, first_index, shape);
  args.set_elements(pos_weight, weight, ignore_label);
  args.set_divisor(divisor);
  args.set_loss_weight(loss_weight);
  MutableArray gradient;
  py::array array = args.output(out, &gradient);
  Partial sum;
  Status status;
  {
    const ReleasedGil released;
    status = cpu::forward_backward(args.inputs, args.options, &sum, gradient);
  }
  raise_status(status);
  return py::make_tuple(new_partial(sum), array);
}

}  // namespace

void register_cpu(py::module_& module) {
  // Looked up here and not in the first call, which must not fail halfway where memory runs out.
  py::detail::npy_api::get();
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
  module.def("partial_backward", &partial_backward, py::arg("scores"), py::arg("targets"),
             py::arg("divisor"), py::arg("pos_weight") = off, py::arg("weight") = off,
             py::arg("ignore_label") = off, py::arg("loss_weight") = 1.0,
             py::arg("first_index") = 0, py::arg("shape") = off, py::arg("out") = off,
             "sigmoid_ce.partial_backward for NumPy arrays.");
  register_partial(module);
  // So that this thread has what the C and C++ libraries allocate for it at a first call and a first throw: where
  // that fails they end the process.
  module.attr("combine")(py::tuple());
  static_cast<void>(std::uncaught_exception());

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
        // No name either: a lone surrogate, which UTF-8 cannot hold, or a NUL inside.
        Py_ssize_t size = 0;
        const char* const text = PyUnicode_AsUTF8AndSize(name.ptr(), &size);
        if (text == nullptr) {
          PyErr_Clear();
        } else if (std::string(text).size() == static_cast<std::size_t>(size) &&
                   cpu::set_isa(text).ok()) {
          return;
        }
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
  module.def(
      "compiled_isas",
      [] {
        py::list names;
        for (int i = 0; i < cpu::compiled_isa_count(); ++i) {
          names.append(cpu::compiled_isa_name(i));
        }
        return names;
      },
      "The instruction sets that this build has, best first.");
}

}  // namespace bindings
}  // namespace sigmoid_ce
