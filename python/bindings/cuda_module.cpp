// The extension module sigmoid_ce._cuda.
#include <pybind11/pybind11.h>

namespace sigmoid_ce {
namespace bindings {
void register_cuda(pybind11::module_& module);
}  // namespace bindings
}  // namespace sigmoid_ce

PYBIND11_MODULE(_cuda, module, pybind11::mod_gil_not_used()) {
  module.doc() = "The native kernels on the GPU, for addresses in device memory.";
  sigmoid_ce::bindings::register_cuda(module);
}
