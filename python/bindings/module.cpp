// The extension module sigmoid_ce._cpu.
#include <pybind11/pybind11.h>

#include <string>

#include "sigmoid_ce/version.h"

namespace sigmoid_ce {
namespace bindings {
void register_cpu(pybind11::module_& module);
}  // namespace bindings
}  // namespace sigmoid_ce

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

}  // namespace

PYBIND11_MODULE(_cpu, module, pybind11::mod_gil_not_used()) {
  module.doc() = "The native kernels on the CPU, for NumPy arrays.";
  module.attr("version") = SIGMOID_CE_VERSION;
  module.attr("compiler") = compiler();
  sigmoid_ce::bindings::register_cpu(module);
}
