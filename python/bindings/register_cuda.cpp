// The functions of sigmoid_ce/cuda.h for addresses: read the arguments, release the GIL, one call; and what
// sigmoid_ce.cuda needs of the CUDA runtime for arrays whose library does not allocate for us.
#include <cuda_runtime.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "array_args.h"
#include "device_args.h"
#include "device_dlpack.h"
#include "device_runtime.h"
#include "released_gil.h"
#include "sigmoid_ce/cuda.h"

namespace sigmoid_ce {
namespace bindings {
namespace {

PyObject* cuda_error = nullptr;  // the class sigmoid_ce.cuda.CudaError

[[noreturn]] void raise(PyObject* type, const std::string& text) {
  PyErr_SetString(type, text.c_str());
  throw py::error_already_set();
}

void raise_device_status(const Status& status) {
  switch (status.code) {
    case Code::kNoDevice:
      raise(cuda_error, status.message);
    case Code::kDeviceError:
      raise(cuda_error, std::string(status.message) + " (CUDA error " +
                            std::to_string(status.cuda_error) + ")");
    case Code::kOutOfMemory:
      raise(PyExc_MemoryError, status.message);
    default:
      raise_status(status);
  }
}

cuda::Stream to_stream(std::uintptr_t address) { return reinterpret_cast<cuda::Stream>(address); }

// Where a call runs: (device, stream, workspace, its size).
struct Place {
  int device;
  cuda::Stream stream;
  void* workspace;
  std::size_t size;

  explicit Place(const py::tuple& tuple)
      : device(tuple[0].cast<int>()),
        stream(to_stream(tuple[1].cast<std::uintptr_t>())),
        workspace(read_address(tuple[2])),
        size(tuple[3].cast<std::size_t>()) {}
};

// Runs one function of cuda.h without the GIL, on its device.
template <class Function>
void run(const Place& place, const DeviceArgs& args, Function function) {
  if (place.workspace != nullptr && cuda::workspace_size(args.inputs, args.options) > place.size) {
    throw std::logic_error("workspace: expected workspace_bytes() of the call");
  }
  Status status;
  {
    const ReleasedGil released;
    const CurrentDevice current(place.device);
    status = current.status();
    if (status.ok()) status = function();
  }
  raise_device_status(status);
}

void forward(const py::tuple& place_tuple, const py::tuple& inputs, const py::tuple& options,
             const py::tuple& results) {
  const Place place(place_tuple);
  DeviceArgs args(inputs, options);
  args.set_results(results);
  run(place, args, [&] {
    return cuda::forward(args.inputs, args.options, args.results, place.workspace, place.stream);
  });
}

void elementwise(const py::tuple& place_tuple, const py::tuple& inputs, const py::tuple& options,
                 const py::tuple& out) {
  const Place place(place_tuple);
  DeviceArgs args(inputs, options);
  args.set_out(out);
  run(place, args, [&] {
    return cuda::elementwise(args.inputs, args.options, args.out, place.workspace, place.stream);
  });
}

// backward and backward_targets.
template <Status (*kFunction)(const Inputs&, const cuda::Options&, const MutableArray&, void*,
                              cuda::Stream)>
void derivative(const py::tuple& place_tuple, const py::tuple& inputs, const py::tuple& options,
                const py::tuple& out) {
  const Place place(place_tuple);
  DeviceArgs args(inputs, options);
  args.set_out(out);
  run(place, args, [&] {
    return kFunction(args.inputs, args.options, args.out, place.workspace, place.stream);
  });
}

void forward_backward(const py::tuple& place_tuple, const py::tuple& inputs,
                      const py::tuple& options, const py::tuple& results, const py::tuple& out,
                      py::handle hessian) {
  const Place place(place_tuple);
  DeviceArgs args(inputs, options);
  args.set_results(results);
  args.set_out(out);
  args.set_hessian(hessian);
  run(place, args, [&] {
    if (args.has_hessian) {
      return cuda::forward_backward(args.inputs, args.options, args.results, args.out, args.hessian,
                                    place.workspace, place.stream);
    }
    return cuda::forward_backward(args.inputs, args.options, args.results, args.out,
                                  place.workspace, place.stream);
  });
}

// Without the GIL, since the runtime may wait.
template <class Function>
auto released(Function function) -> decltype(function()) {
  const ReleasedGil no_gil;
  return function();
}

std::shared_ptr<Allocation> allocate(int device, std::uintptr_t stream, std::size_t size) {
  auto memory = std::make_shared<Allocation>(device);
  raise_device_status(released([&] { return memory->allocate(size, to_stream(stream)); }));
  return memory;
}

struct DeviceEvent {
  int device;
  Event event;
};

std::unique_ptr<DeviceEvent> record(int device, std::uintptr_t stream) {
  std::unique_ptr<DeviceEvent> result(new DeviceEvent{device, {}});
  raise_device_status(released([&] {
    const CurrentDevice current(device);
    return current.status().ok() ? result->event.record(to_stream(stream)) : current.status();
  }));
  return result;
}

bool is_pending(const DeviceEvent& self) {
  return released([&] {
    const CurrentDevice current(self.device);
    return current.status().ok() && self.event.pending();
  });
}

void to_host(int device, std::uintptr_t stream, std::uintptr_t from, py::array to) {
  void* const data = to.mutable_data();
  const auto size = static_cast<std::size_t>(to.nbytes());
  if (!is_contiguous(to)) throw py::type_error("to: expected a contiguous array");
  raise_device_status(released([&] {
    return copy_to_host(device, to_stream(stream), data, reinterpret_cast<void*>(from), size);
  }));
}

void to_device(int device, std::uintptr_t stream, std::uintptr_t to, const py::array& from) {
  const void* const data = from.data();
  const auto size = static_cast<std::size_t>(from.nbytes());
  if (!is_contiguous(from)) throw py::type_error("from: expected a contiguous array");
  raise_device_status(released([&] {
    return copy_to_device(device, to_stream(stream), reinterpret_cast<void*>(to), data, size);
  }));
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

py::dict device_info(int device) {
  cuda::DeviceInfo info;
  raise_device_status(cuda::device_info(device, &info));
  py::dict result;
  result["name"] = std::string(info.name);
  result["compute_capability"] = std::to_string(info.major) + "." + std::to_string(info.minor);
  result["multiprocessors"] = info.multiprocessors;
  result["memory"] = info.memory;
  return result;
}

int device_count() {
  int count = 0;
  raise_device_status(released([&] { return cuda::device_count(&count); }));
  return count;
}

std::string runtime_version() {
  int version = 0;
  raise_device_status(status_of(cudaRuntimeGetVersion(&version)));
  return version_text(version);
}

// The newest CUDA that the driver knows; None without a driver.
py::object driver_version() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess) cudaGetLastError();
  if (version == 0) return py::none();
  return py::str(version_text(version));
}

}  // namespace

void register_cuda(py::module_& module) {
  py::detail::npy_api::get();
  py::object error = py::module_::import("sigmoid_ce.cuda").attr("CudaError");
  cuda_error = error.release().ptr();

  module.def("forward", &forward, py::arg("place"), py::arg("inputs"), py::arg("options"),
             py::arg("results"), "sigmoid_ce.forward for addresses.");
  module.def("elementwise", &elementwise, py::arg("place"), py::arg("inputs"), py::arg("options"),
             py::arg("out"), "sigmoid_ce.elementwise for addresses.");
  module.def("backward", &derivative<&cuda::backward>, py::arg("place"), py::arg("inputs"),
             py::arg("options"), py::arg("out"), "sigmoid_ce.backward for addresses.");
  module.def("backward_targets", &derivative<&cuda::backward_targets>, py::arg("place"),
             py::arg("inputs"), py::arg("options"), py::arg("out"),
             "sigmoid_ce.backward_targets for addresses.");
  module.def("forward_backward", &forward_backward, py::arg("place"), py::arg("inputs"),
             py::arg("options"), py::arg("results"), py::arg("out"),
             py::arg("hessian") = py::none(), "sigmoid_ce.forward_backward for addresses.");
  module.attr("workspace_size") = cuda::workspace_size(Inputs(), cuda::Options());
  module.def(
      "workspace_bytes",
      [](const py::tuple& inputs, const py::tuple& options) {
        const DeviceArgs args(inputs, options);
        return cuda::workspace_size(args.inputs, args.options);
      },
      py::arg("inputs"), py::arg("options"),
      "Bytes of the workspace of a call with a balance; `workspace_size` without one.");

  py::class_<Allocation, std::shared_ptr<Allocation>>(
      module, "Memory", "Device memory, had and given back in the order of a stream.")
      .def(py::init(&allocate), py::arg("device"), py::arg("stream"), py::arg("size"))
      .def_property_readonly(
          "address",
          [](const Allocation& self) { return reinterpret_cast<std::uintptr_t>(self.data()); })
      .def(
          "record",
          [](Allocation& self, std::uintptr_t stream) {
            raise_device_status(released([&] { return self.record(to_stream(stream)); }));
          },
          py::arg("stream"), "The contents are there after what is in the stream now.")
      .def(
          "make_wait",
          [](const Allocation& self, std::uintptr_t stream) {
            raise_device_status(released([&] { return self.make_wait(to_stream(stream)); }));
          },
          py::arg("stream"), "What is put into the stream from now on finds the contents.")
      .def(
          "capsule",
          [](const std::shared_ptr<Allocation>& self, std::vector<std::int64_t> shape, int dtype) {
            return make_capsule(self, std::move(shape), static_cast<DType>(dtype));
          },
          py::arg("shape"), py::arg("dtype"), "A DLPack capsule of a contiguous array.");

  py::class_<DeviceEvent>(module, "Event", "A moment in a stream.")
      .def(py::init(&record), py::arg("device"), py::arg("stream"))
      .def("is_pending", &is_pending, "Whether work from before it is still to be done.");

  module.def(
      "order_streams",
      [](int device, std::uintptr_t stream, std::uintptr_t before) {
        raise_device_status(
            released([&] { return order_streams(device, to_stream(stream), to_stream(before)); }));
      },
      py::arg("device"), py::arg("stream"), py::arg("before"),
      "What is put into `stream` from now on runs after all that is in `before`.");
  module.def("to_host", &to_host, py::arg("device"), py::arg("stream"), py::arg("address"),
             py::arg("array"), "Fills an array; waits for the stream.");
  module.def("to_device", &to_device, py::arg("device"), py::arg("stream"), py::arg("address"),
             py::arg("array"), "Copies an array into the stream. It may change afterwards.");

  module.def("device_count", &device_count, "Number of GPUs; CudaError where there is none.");
  module.def("device_info", &device_info, py::arg("device"), "Facts about a GPU.");
  module.def("runtime_version", &runtime_version, "The CUDA that this was built with.");
  module.def("driver_version", &driver_version,
             "The newest CUDA that the driver knows, or None without a driver.");
}

}  // namespace bindings
}  // namespace sigmoid_ce
