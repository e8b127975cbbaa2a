// What a kernel gets, and the tables through which launch.cu finds it. No CUDA in here.
#ifndef SIGMOID_CE_CUDA_ARGUMENTS_H_
#define SIGMOID_CE_CUDA_ARGUMENTS_H_

#include <cstdint>

#include "math/exact_sum.h"
#include "sigmoid_ce/options.h"

namespace sigmoid_ce {
namespace cuda {

enum Operation { kForward, kElementwise, kBackward, kForwardBackward, kOperations };

// Types of targets beside the scores' own.
enum Target {
  kTargetScores,
  kTargetFloat32,  // with scores of another type
  kTargetInteger,
  kTargets
};

// An axis of an array. An index below 2^63 is divided by its extent as (high 64 bits of n * magic, plus n) >> shift
// (Granlund and Montgomery, Division by invariant integers using multiplication, 1994).
struct Axis {
  std::uint64_t extent;
  std::uint64_t magic;
  std::int64_t stride;  // bytes
  int shift;
};

constexpr int kMaxAxes = 8;

// An array in device memory. `data` is the element of index 0 of the call where the array is contiguous, else
// that of the whole shape.
struct DeviceView {
  char* data;
  int n_axes;  // 0: contiguous
  Axis axes[kMaxAxes];
};

// A number in both types, so that float32 kernels need not convert.
struct Number {
  double f64;
  float f32;

  Number() : f64(0), f32(0) {}
  explicit Number(double v) : f64(v), f32(static_cast<float>(v)) {}
};

// In device memory; the caller's. Zero before a pass of several blocks that adds to it.
struct Workspace {
  std::int64_t words[math::kWords];  // a Partial, not normalised
  std::uint64_t ignored;             // of the pass that counts
  std::uint32_t blocks_done;
  std::uint32_t count_blocks_done;
  double divisor;  // max(1, number of elements that are not ignored)
};

struct Arguments {
  DeviceView scores, targets, out;
  std::int64_t first;  // index of the first element in the whole shape
  std::int64_t count;  // elements of the call
  unsigned tiles;      // pieces of work of the kernel
  bool vector;         // every array fits wide loads, wherever a tile has all its elements
  DType target_dtype;

  // Factor on the gradient: `scale`, or loss_weight / *divisor.
  Number scale;
  double loss_weight;
  const double* divisor;

  // General kernels only.
  bool has_pos_weight;
  bool pos_weight_per_channel;  // else `pos_weight`
  Number pos_weight;
  DeviceView pos_weights;  // of the type that is computed in
  bool has_weights;        // else `weight`
  bool wide_weights;       // of the scores' type, and side by side
  Number weight;
  DType weight_dtype;
  int weight_itemsize;
  DeviceView weights;
  bool has_ignore_label;
  Number ignore_low, ignore_high;  // float targets: ignored when low <= t <= high
  std::int64_t ignore_label;       // integer targets

  // Results of the passes that add: device memory, or null.
  Workspace* workspace;
  void* loss;
  bool loss_is_float64;
  double* loss_divisor;
  std::int64_t* partial;
  bool divide_by_valid;  // by max(1, number of elements not ignored), else by:
  double sum_divisor;
};

// The kernels for one type of scores: addresses to launch, of functions that take one Arguments.
struct KernelTable {
  const void* run[kTargets][kOperations][2];
};

const KernelTable* float16_kernels();
const KernelTable* bfloat16_kernels();
const KernelTable* float32_kernels();
const KernelTable* float64_kernels();
// By DType, of functions that take one Arguments; null where there is none.
const void* valid_kernel(DType targets);

}  // namespace cuda
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CUDA_ARGUMENTS_H_
