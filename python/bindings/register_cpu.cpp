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

double forward(const Family& family, py::handle scores, py::handle targets, py::handle pos_weight,
               py::handle weight, py::handle ignore_label, py::handle normalization,
               py::handle normalize) {
  CallArgs args(scores, targets);
  args.set_elements(pos_weight, weight, ignore_label, family);
  args.set_normalization(normalization, normalize);
  Partial partial;
  Status status;
  double loss = 0;
  {
    const ReleasedGil released;
    double divisor = 1;
    status = cpu::forward(args.inputs, args.options, &partial, &divisor);
    if (status.ok()) loss = cpu::divide(partial, divisor);
  }
  raise_status(status);
  return loss;
}

py::array elementwise(const Family& family, py::handle scores, py::handle targets,
                      py::handle pos_weight, py::handle weight, py::handle ignore_label,
                      py::handle out) {
  CallArgs args(scores, targets);
  args.set_elements(pos_weight, weight, ignore_label, family);
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

// backward and backward_targets.
template <Status (*kFunction)(const Inputs&, const Options&, const MutableArray&)>
py::array derivative(const Family& family, py::handle scores, py::handle targets,
                     py::handle pos_weight, py::handle weight, py::handle ignore_label,
                     py::handle normalization, py::handle normalize, py::handle loss_weight,
                     py::handle out) {
  CallArgs args(scores, targets);
  args.set_elements(pos_weight, weight, ignore_label, family);
  args.set_normalization(normalization, normalize);
  args.set_loss_weight(loss_weight);
  MutableArray gradient;
  py::array result = args.output(out, &gradient);
  Status status;
  {
    const ReleasedGil released;
    status = kFunction(args.inputs, args.options, gradient);
  }
  raise_status(status);
  return result;
}

py::tuple forward_backward(const Family& family, py::handle scores, py::handle targets,
                           py::handle pos_weight, py::handle weight, py::handle ignore_label,
                           py::handle normalization, py::handle normalize, py::handle loss_weight,
                           py::handle out, py::handle hessian) {
  CallArgs args(scores, targets);
  args.set_elements(pos_weight, weight, ignore_label, family);
  args.set_normalization(normalization, normalize);
  args.set_loss_weight(loss_weight);
  MutableArray gradient, second;
  py::array result = args.output(out, &gradient);
  const py::object second_result = args.hessian(hessian, result, &second);
  Partial partial;
  Status status;
  double loss = 0;
  {
    const ReleasedGil released;
    double divisor = 1;
    status =
        second_result
            ? cpu::forward_backward(args.inputs, args.options, &partial, gradient, second, &divisor)
            : cpu::forward_backward(args.inputs, args.options, &partial, gradient, &divisor);
    if (status.ok()) loss = cpu::divide(partial, divisor);
  }
  raise_status(status);
  if (second_result) return py::make_tuple(loss, result, second_result);
  return py::make_tuple(loss, result);
}

py::object partial(const Family& family, py::handle scores, py::handle targets,
                   py::handle pos_weight, py::handle weight, py::handle ignore_label,
                   py::handle first_index, py::handle shape) {
  CallArgs args(scores, targets, first_index, shape);
  args.set_elements(pos_weight, weight, ignore_label, family);
  Partial result;
  Status status;
  {
    const ReleasedGil released;
    status = cpu::forward(args.inputs, args.options, &result);
  }
  raise_status(status);
  return new_partial(result);
}

py::tuple partial_backward(const Family& family, py::handle scores, py::handle targets,
                           py::handle divisor, py::handle pos_weight, py::handle weight,
                           py::handle ignore_label, py::handle loss_weight, py::handle first_index,
                           py::handle shape, py::handle out) {
  CallArgs args(scores, targets, first_index, shape);
  args.set_elements(pos_weight, weight, ignore_label, family);
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

constexpr Family kPlain = {};

// Two overloads of the function: without the options of the family, since a small call would take a seventh more
// time to hand them over, and with them, last.
template <class Result, class... Handles, class... Names>
void define(py::module_& module, const char* name, const char* doc,
            Result (*function)(const Family&, Handles...), const Names&... names) {
  const py::none off;
  module.def(
      name, [function](Handles... handles) { return function(kPlain, handles...); }, names..., doc);
  module.def(
      name,
      [function](Handles... handles, py::handle uncertain, py::handle label_smoothing,
                 py::handle balance, py::handle balance_per_channel, py::handle negative_scale,
                 py::handle gamma, py::handle alpha) {
        const Family family = {uncertain,      label_smoothing, balance, balance_per_channel,
                               negative_scale, gamma,           alpha};
        return function(family, handles...);
      },
      names..., py::arg("uncertain") = "soft", py::arg("label_smoothing") = 0.0,
      py::arg("balance") = "none", py::arg("balance_per_channel") = false,
      py::arg("negative_scale") = 1.0, py::arg("gamma") = 0.0, py::arg("alpha") = off);
}

// For a part of an array, which has no balance.
template <class Result, class... Handles, class... Names>
void define_part(py::module_& module, const char* name, const char* doc,
                 Result (*function)(const Family&, Handles...), const Names&... names) {
  const py::none off;
  module.def(
      name, [function](Handles... handles) { return function(kPlain, handles...); }, names..., doc);
  module.def(
      name,
      [function](Handles... handles, py::handle uncertain, py::handle label_smoothing,
                 py::handle negative_scale, py::handle gamma, py::handle alpha) {
        const Family family = {uncertain,      label_smoothing, py::handle(), py::handle(),
                               negative_scale, gamma,           alpha};
        return function(family, handles...);
      },
      names..., py::arg("uncertain") = "soft", py::arg("label_smoothing") = 0.0,
      py::arg("negative_scale") = 1.0, py::arg("gamma") = 0.0, py::arg("alpha") = off);
}

}  // namespace

void register_cpu(py::module_& module) {
  // Looked up here and not in the first call, which must not fail halfway where memory runs out.
  py::detail::npy_api::get();
  const py::none off;
  define(module, "forward", "sigmoid_ce.forward for NumPy arrays.", &forward, py::arg("scores"),
         py::arg("targets"), py::arg("pos_weight") = off, py::arg("weight") = off,
         py::arg("ignore_label") = off, py::arg("normalization") = off, py::arg("normalize") = off);
  define(module, "elementwise", "sigmoid_ce.elementwise for NumPy arrays.", &elementwise,
         py::arg("scores"), py::arg("targets"), py::arg("pos_weight") = off,
         py::arg("weight") = off, py::arg("ignore_label") = off, py::arg("out") = off);
  define(module, "backward", "sigmoid_ce.backward for NumPy arrays.", &derivative<&cpu::backward>,
         py::arg("scores"), py::arg("targets"), py::arg("pos_weight") = off,
         py::arg("weight") = off, py::arg("ignore_label") = off, py::arg("normalization") = off,
         py::arg("normalize") = off, py::arg("loss_weight") = 1.0, py::arg("out") = off);
  define(module, "backward_targets", "sigmoid_ce.backward_targets for NumPy arrays.",
         &derivative<&cpu::backward_targets>, py::arg("scores"), py::arg("targets"),
         py::arg("pos_weight") = off, py::arg("weight") = off, py::arg("ignore_label") = off,
         py::arg("normalization") = off, py::arg("normalize") = off, py::arg("loss_weight") = 1.0,
         py::arg("out") = off);
  define(module, "forward_backward", "sigmoid_ce.forward_backward for NumPy arrays.",
         &forward_backward, py::arg("scores"), py::arg("targets"), py::arg("pos_weight") = off,
         py::arg("weight") = off, py::arg("ignore_label") = off, py::arg("normalization") = off,
         py::arg("normalize") = off, py::arg("loss_weight") = 1.0, py::arg("out") = off,
         py::arg("hessian") = false);
  define_part(module, "partial", "sigmoid_ce.partial for NumPy arrays.", &partial,
              py::arg("scores"), py::arg("targets"), py::arg("pos_weight") = off,
              py::arg("weight") = off, py::arg("ignore_label") = off, py::arg("first_index") = 0,
              py::arg("shape") = off);
  define_part(module, "partial_backward", "sigmoid_ce.partial_backward for NumPy arrays.",
              &partial_backward, py::arg("scores"), py::arg("targets"), py::arg("divisor"),
              py::arg("pos_weight") = off, py::arg("weight") = off, py::arg("ignore_label") = off,
              py::arg("loss_weight") = 1.0, py::arg("first_index") = 0, py::arg("shape") = off,
              py::arg("out") = off);
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
