#include "kernels.cuh"

namespace sigmoid_ce {
namespace cuda {

namespace {
template <class S>
const void* address() {
  return reinterpret_cast<const void*>(&count_targets<S>);
}
}  // namespace

const void* count_kernel(DType targets) {
  switch (targets) {
    case DType::kFloat32:
      return address<float>();
    case DType::kFloat64:
      return address<double>();
#if !defined(SIGMOID_CE_TARGETS_OF_SCORES_ONLY)
    case DType::kFloat16:
      return address<math::Float16>();
    case DType::kBfloat16:
      return address<math::Bfloat16>();
    case DType::kBool:
      return address<math::Bool>();
    case DType::kUint8:
      return address<std::uint8_t>();
    case DType::kInt8:
      return address<std::int8_t>();
    case DType::kInt32:
      return address<std::int32_t>();
    case DType::kInt64:
      return address<std::int64_t>();
#endif
    default:
      return nullptr;
  }
}

namespace {
__global__ void __launch_bounds__(kThreads, kMinBlocks) class_weights(const Arguments args) {
  class_weights_of_call(args);
}
}  // namespace

const void* class_weights_kernel() { return reinterpret_cast<const void*>(&class_weights); }

}  // namespace cuda
}  // namespace sigmoid_ce
