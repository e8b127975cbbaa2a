// The loss on a CUDA device. The same formula, semantics and, for float32 and float64 scores, the same bits as on the
// CPU (cpu.h), for every device and grid: docs/numerics.md.
//
// All functions only put work into a stream and return: no allocation, no wait for the device, no default stream but
// where the caller passes it. They may be captured into a graph (after a first call outside of one, which loads the
// kernels), and called from any number of threads. Pointers are of device memory unless they say otherwise, on the
// device that is current in the calling thread. Inputs are never written.
#ifndef SIGMOID_CE_CUDA_H_
#define SIGMOID_CE_CUDA_H_

#include <cstddef>
#include <cstdint>

#include "sigmoid_ce/options.h"
#include "sigmoid_ce/partial.h"
#include "sigmoid_ce/status.h"

struct CUstream_st;

namespace sigmoid_ce {
namespace cuda {

using Stream = CUstream_st*;  // cudaStream_t

// Inputs: scores float16, bfloat16 (computed in float32, results rounded once), float32 or float64; targets of the
// scores' dtype, float32, or any integer type. An array with strides may have up to 8 axes that cannot be merged.
using sigmoid_ce::Inputs;

// As on the CPU, with these differences:
struct Options : sigmoid_ce::Options {
  // Options::pos_weight is a number in host memory, and pos_weight_count at most 1. One value per channel (axis 1)
  // stands here, in device memory: float64 for float64 scores, else float32. Finite and >= 0, which nobody checks.
  const void* channel_pos_weight = nullptr;
  std::int64_t channel_pos_weight_count = 0;

  // One weight for all elements, in host memory, instead of Options::weight. Null: off.
  const double* uniform_weight = nullptr;

  // The divisor of the gradient in device memory, such as Results::divisor of a forward pass, instead of the one that
  // `normalization` asks for. Null: off.
  const double* gradient_divisor = nullptr;

  Options() = default;
};

// What a pass leaves in device memory. Null where it is not wanted.
struct Results {
  void* loss = nullptr;                // sum / divisor, computed in float64, of loss_dtype
  DType loss_dtype = DType::kFloat64;  // or kFloat32
  double* divisor = nullptr;           // max(1, d), as `normalization` asks for
  Partial* partial = nullptr;          // the exact sum, normalised, and the counts

  Results() = default;
};

// Bytes of device memory that a call needs, aligned to 8: `workspace` below. A call may use those of another that went
// into the same stream before; calls in different streams need their own.
std::size_t workspace_size(const Inputs& inputs, const Options& options);

// The sum of the losses.
Status forward(const Inputs& inputs, const Options& options, const Results& results,
               void* workspace, Stream stream);

// The loss of each element: reduction "none", no divisor. Needs no workspace.
Status elementwise(const Inputs& inputs, const Options& options, const MutableArray& losses,
                   Stream stream);

// d loss / d scores, times loss_weight / divisor. kValid with an ignore_label reads the targets once more, to count.
// The output may be the scores array itself; other overlaps are as on the CPU.
Status backward(const Inputs& inputs, const Options& options, const MutableArray& gradient,
                void* workspace, Stream stream);

// Both in one pass over memory.
Status forward_backward(const Inputs& inputs, const Options& options, const Results& results,
                        const MutableArray& gradient, void* workspace, Stream stream);

// What there is. Not kOk: no GPU, no driver, one that is too old; the message says which.
Status device_count(int* count);

struct DeviceInfo {
  char name[256];
  int major, minor;  // compute capability
  int multiprocessors;
  std::size_t memory;  // bytes
  int driver_version;  // of CUDA, 1000 major + 10 minor
  int runtime_version;
};
Status device_info(int device, DeviceInfo* info);

}  // namespace cuda
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CUDA_H_
