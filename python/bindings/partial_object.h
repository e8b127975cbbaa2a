// The Python type Partial.
#ifndef SIGMOID_CE_BINDINGS_PARTIAL_OBJECT_H_
#define SIGMOID_CE_BINDINGS_PARTIAL_OBJECT_H_

#include <pybind11/pybind11.h>

#include "sigmoid_ce/partial.h"

namespace sigmoid_ce {
namespace bindings {

// A new Partial object. Throws py::error_already_set.
pybind11::object new_partial(const Partial& value);

// Adds the type and combine() to the module.
void register_partial(pybind11::module_& module);

}  // namespace bindings
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_BINDINGS_PARTIAL_OBJECT_H_
