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
  // Options::pos_weight is a number in host memory, and pos_weight_count at most 1. One value per channel (axis 1), or one
  // for all, stands here, in device memory: float64 for float64 scores, else float32. Finite and >= 0, which nobody
  // checks.
  const void* channel_pos_weight = nullptr;
  std::int64_t channel_pos_weight_count = 0;

  // One weight for all elements, in host memory, instead of Options::weight. Null: off.
  const double* uniform_weight = nullptr;

  // The divisor of the gradient in device memory, such as Results::divisor of a forward pass, instead of the one that
  // `normalization` asks for. Null: off.
  const double* gradient_divisor = nullptr;

  // As Options::class_weights, which is null here, in device memory: what Results::class_weights of another pass got. With
  // a divisor nothing needs to be counted then.
  const double* device_class_weights = nullptr;

  Options() = default;
};

// What a pass leaves in device memory. Null where it is not wanted.
struct Results {
  void* loss = nullptr;                // sum / divisor, computed in float64, of loss_dtype
  DType loss_dtype = DType::kFloat64;  // or kFloat32
  // max(1, d), as `normalization` asks for. For a piece of an array d is that of the whole shape with kFull and
  // kBatchSize, as for the gradient (cpu::divisor of a Partial counts its elements), and that of the piece with kValid
  // and kForeground.
  double* divisor = nullptr;
  Partial* partial = nullptr;       // the exact sum, normalised, and the counts
  double* class_weights = nullptr;  // w+ and w- of each group: 2 class_weight_groups() numbers

  Results() = default;
};

// Bytes of device memory that a call needs, aligned to 8: `workspace` below. 16 for each group of `balance`, and some
// hundreds. A call may use those of another that went into the same stream before; calls in different streams need
// their own.
std::size_t workspace_size(const Inputs& inputs, const Options& options);

// As on the CPU. 0: bad arguments.
std::int64_t class_weight_groups(const Inputs& inputs, const Options& options);

// The sum of the losses.
Status forward(const Inputs& inputs, const Options& options, const Results& results,
               void* workspace, Stream stream);

// The loss of each element: reduction "none", no divisor. The workspace is for `balance` alone, and may be null without.
Status elementwise(const Inputs& inputs, const Options& options, const MutableArray& losses,
                   void* workspace, Stream stream);
Status elementwise(const Inputs& inputs, const Options& options, const MutableArray& losses,
                   Stream stream);

// d loss / d scores, times loss_weight / divisor. Balance, kForeground, and kValid where targets may be ignored, read the
// targets once more, to count. Outputs are of the scores' dtype: MutableArray::as_float32 is for the CPU.
// The output may be the scores array itself; other overlaps are as on the CPU.
Status backward(const Inputs& inputs, const Options& options, const MutableArray& gradient,
                void* workspace, Stream stream);

// Both in one pass over memory.
Status forward_backward(const Inputs& inputs, const Options& options, const Results& results,
                        const MutableArray& gradient, void* workspace, Stream stream);

// And the second derivatives, as on the CPU.
Status forward_backward(const Inputs& inputs, const Options& options, const Results& results,
                        const MutableArray& gradient, const MutableArray& hessian, void* workspace,
                        Stream stream);

// d loss / d targets, as on the CPU.
Status backward_targets(const Inputs& inputs, const Options& options, const MutableArray& gradient,
                        void* workspace, Stream stream);

// What a number of CUDA's type cudaError_t means. The runtime forgets the error, which it would report again.
Status status_of(int cuda_error);

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
