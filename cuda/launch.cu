#include <cuda_runtime.h>

#include <cstring>

#include "arguments.h"
#include "launch.h"
#include "tuning.h"

namespace sigmoid_ce {
namespace cuda {

Status status_of(int number) {
  const cudaError_t error = static_cast<cudaError_t>(number);
  if (error != cudaSuccess) cudaGetLastError();
  switch (error) {
    case cudaSuccess:
      return Status();
    case cudaErrorMemoryAllocation:
      return Status(Code::kOutOfMemory, "", "no memory left on the device", number);
    case cudaErrorNoDevice:
      return Status(Code::kNoDevice, "", "no GPU that CUDA can use", number);
    case cudaErrorInsufficientDriver: {
      // The same error for no driver and for one that is too old.
      int version = 0;
      const bool driver = cudaDriverGetVersion(&version) == cudaSuccess && version > 0;
      cudaGetLastError();
      return Status(Code::kNoDevice, "",
                    driver
                        ? "the driver of the GPU is too old for the CUDA that this was built with"
                        : "no driver for GPUs on this machine",
                    number);
    }
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      return Status(Code::kUnsupported, "", "this was not built for the GPU of this machine",
                    number);
    default:
      return Status(Code::kDeviceError, "", cudaGetErrorString(error), number);
  }
}

namespace {

const KernelTable* table_of(DType scores) {
  switch (scores) {
#if !defined(SIGMOID_CE_TARGETS_OF_SCORES_ONLY)
    case DType::kFloat16:
      return float16_kernels();
    case DType::kBfloat16:
      return bfloat16_kernels();
#endif
    case DType::kFloat32:
      return float32_kernels();
    default:
      return float64_kernels();
  }
}

const void* kernel_of(const Plan& plan) {
  const KernelTable& table = *table_of(plan.scores);
  if (plan.kind == kFocal) return table.focal[plan.operation];
  return table.run[plan.target][plan.operation][plan.kind == kGeneral];
}

Status launch_kernel(const void* kernel, unsigned grid, const Arguments& arguments, Stream stream) {
  if (kernel == nullptr) {
    return Status(Code::kUnsupported, "targets", "this build has no kernel for their dtype");
  }
  void* parameters[] = {const_cast<Arguments*>(&arguments)};
  return status_of(cudaLaunchKernel(kernel, dim3(grid), dim3(kThreads), parameters, 0, stream));
}

}  // namespace

Status find_multiprocessors(int* count) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
  }
  return status_of(error);
}

Status launch(const Plan& plan, Stream stream) {
  if (plan.grid == 0) return Status();
  Status status;
  if (plan.clears > 0) {
    status = status_of(cudaMemsetAsync(plan.arguments.workspace, 0, plan.clears, stream));
  }
  if (status.ok() && plan.counts) {
    status = launch_kernel(count_kernel(plan.arguments.target_dtype), plan.count_grid,
                           plan.arguments, stream);
  }
  if (status.ok() && plan.weighs) {
    status = launch_kernel(class_weights_kernel(), plan.weigh_grid, plan.arguments, stream);
  }
  if (status.ok()) status = launch_kernel(kernel_of(plan), plan.grid, plan.arguments, stream);
  return status;
}

Status device_count(int* count) {
  *count = 0;
  return status_of(cudaGetDeviceCount(count));
}

Status device_info(int device, DeviceInfo* info) {
  std::memset(info, 0, sizeof *info);
  cudaDeviceProp properties;
  Status status = status_of(cudaGetDeviceProperties(&properties, device));
  if (!status.ok()) return status;
  std::memcpy(info->name, properties.name, sizeof info->name);
  info->major = properties.major;
  info->minor = properties.minor;
  info->multiprocessors = properties.multiProcessorCount;
  info->memory = properties.totalGlobalMem;
  status = status_of(cudaDriverGetVersion(&info->driver_version));
  if (status.ok()) status = status_of(cudaRuntimeGetVersion(&info->runtime_version));
  return status;
}

}  // namespace cuda
}  // namespace sigmoid_ce
