// Device memory as a DLPack capsule ("dltensor", the layout of DLPack before 1.0, which all consumers take).
#ifndef SIGMOID_CE_BINDINGS_DEVICE_DLPACK_H_
#define SIGMOID_CE_BINDINGS_DEVICE_DLPACK_H_

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "device_runtime.h"
#include "sigmoid_ce/options.h"

namespace sigmoid_ce {
namespace bindings {

namespace dlpack {

// The structures of the DLPack specification, by their documented layout.
struct Tensor {
  void* data;
  std::int32_t device_type;
  std::int32_t device_id;
  std::int32_t ndim;
  std::uint8_t type_code;
  std::uint8_t type_bits;
  std::uint16_t type_lanes;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements
  std::uint64_t byte_offset;
};
struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};
static_assert(sizeof(Tensor) == 48 && sizeof(ManagedTensor) == 64, "the layout of 64-bit systems");

constexpr std::int32_t kCuda = 2;
constexpr std::uint8_t kFloat = 2, kBfloat = 4;
constexpr char kName[] = "dltensor";

struct Owner {
  ManagedTensor managed;
  std::shared_ptr<Allocation> memory;
  std::vector<std::int64_t> shape, strides;
};

// No Python: a consumer may call it on any thread.
inline void release(ManagedTensor* managed) { delete static_cast<Owner*>(managed->context); }

// Of a capsule that nobody has consumed; a consumer renames it.
inline void release_capsule(PyObject* capsule) {
  if (!PyCapsule_IsValid(capsule, kName)) return;
  release(static_cast<ManagedTensor*>(PyCapsule_GetPointer(capsule, kName)));
}

}  // namespace dlpack

// `dtype` is one of the floating types.
inline pybind11::object make_capsule(std::shared_ptr<Allocation> memory,
                                     std::vector<std::int64_t> shape, DType dtype) {
  std::unique_ptr<dlpack::Owner> owner(new dlpack::Owner);
  owner->strides.resize(shape.size());
  std::int64_t step = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    owner->strides[i] = step;
    step *= shape[i];
  }
  owner->shape = std::move(shape);
  owner->memory = std::move(memory);
  dlpack::Tensor& tensor = owner->managed.tensor;
  tensor.data = owner->memory->data();
  tensor.device_type = dlpack::kCuda;
  tensor.device_id = owner->memory->device();
  tensor.ndim = static_cast<std::int32_t>(owner->shape.size());
  tensor.type_code = dtype == DType::kBfloat16 ? dlpack::kBfloat : dlpack::kFloat;
  tensor.type_bits = dtype == DType::kFloat64 ? 64 : dtype == DType::kFloat32 ? 32 : 16;
  tensor.type_lanes = 1;
  tensor.shape = owner->shape.data();
  tensor.strides = owner->strides.data();
  tensor.byte_offset = 0;
  owner->managed.context = owner.get();
  owner->managed.deleter = dlpack::release;
  PyObject* const capsule = PyCapsule_New(&owner->managed, dlpack::kName, dlpack::release_capsule);
  if (capsule == nullptr) throw pybind11::error_already_set();
  owner.release();
  return pybind11::reinterpret_steal<pybind11::object>(capsule);
}

}  // namespace bindings
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_BINDINGS_DEVICE_DLPACK_H_
