// What a kernel gets, and the tables through which launch.cu finds it. No CUDA in here.
#ifndef SIGMOID_CE_CUDA_ARGUMENTS_H_
#define SIGMOID_CE_CUDA_ARGUMENTS_H_

#include <cstdint>

#include "math/exact_sum.h"
#include "sigmoid_ce/options.h"

namespace sigmoid_ce {
namespace cuda {

enum Operation {
  kForward,
  kElementwise,
  kBackward,
  kForwardBackward,
  kOperations,
  // Of the focal kernels only, which do without a focal loss too:
  kHessian = kOperations,  // forward, backward and the Hessian
  kTargetBackward,         // the gradient with respect to the targets
  kFocalOperations
};

// Kernels without options, with those that are branches taken by all alike, and with the focal loss as well.
enum Kind { kPlain, kGeneral, kFocal };

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

// How many targets of a group are 1, and how many 0; then the weights w+ and w- of the two classes, in the same place and in
// the type that is computed in.
struct ClassSlot {
  std::uint64_t counts[2];
};

// In device memory; the caller's. Zero before a pass of several blocks that adds to it, and before one that counts. The
// slots of the groups of `balance` follow.
struct Workspace {
  std::int64_t words[math::kWords];  // a Partial, not normalised
  std::uint32_t blocks_done;
  std::uint32_t count_blocks_done;
  // Of the pass that counts.
  std::uint64_t ignored;  // by their label
  ClassSlot all;          // where there are no groups
  double divisor;         // max(1, d)
};

struct Arguments {
  DeviceView scores, targets, out, hessian;
  std::int64_t first;   // index of the first element in the whole shape
  std::int64_t count;   // elements of the call
  unsigned tiles;       // pieces of work of the kernel
  bool vector;          // every array fits wide loads, wherever a tile has all its elements
  bool vector_targets;  // the targets by themselves do, 16 bytes at a time
  DType target_dtype;

  // Factor on the gradient: `scale`, or loss_weight / *divisor.
  Number scale;
  double loss_weight;
  const double* divisor;

  // General kernels only.
  bool has_pos_weight;
  bool pos_weight_per_channel;  // else `pos_weight`
  Number pos_weight;
  DeviceView pos_weights;    // of the type that is computed in
  unsigned pos_weight_step;  // bytes from one to the next in a row: of one value, or 0
  bool has_weights;          // else `weight`
  bool wide_weights;         // of the scores' type, and side by side
  Number weight;
  DType weight_dtype;
  int weight_itemsize;
  DeviceView weights;
  bool has_ignore_label;
  bool ignores_uncertain;          // targets other than 0 and 1
  Number ignore_low, ignore_high;  // float targets: ignored when low <= t <= high
  std::int64_t ignore_label;       // integer targets
  bool has_smoothing;
  Number smoothing_factor, smoothing_term;  // t becomes t factor + term
  bool has_class_weights;
  bool class_weights_by_group;  // else `class_weight`
  Number class_weight[2];       // w+ and w-
  DeviceView class_weights;     // pairs of the type that is computed in, a ClassSlot apart
  unsigned class_weight_step;

  // Of focal kernels.
  bool has_gamma;
  Number gamma;

  // Counting, and the table of the class weights.
  bool counts_groups;           // into class_slots, whose weights follow; else Workspace::all
  Axis group_length, groups;    // counted together: those of one index / length % count
  ClassSlot* class_slots;       // of each group that has weights; or null
  bool slots_of_float64;        // the weights there are
  std::uint64_t weight_count;   // groups that have weights
  const double* given_weights;  // pairs, instead of those that follow from the counts; or null
  double* class_weights_out;    // pairs, for the caller; or null
  Balance balance;
  double positive_factor, negative_factor;
  bool counts_foreground;  // for the divisor: targets that are 1, else those that are not ignored

  // Results of the passes that add: device memory, or null.
  Workspace* workspace;
  void* loss;
  bool loss_is_float64;
  double* loss_divisor;
  std::int64_t* partial;
  bool divide_by_valid;       // by max(1, number of elements not ignored),
  bool divide_by_foreground;  // or by what was counted before; else by:
  double sum_divisor;
};

// The kernels for one type of scores: addresses to launch, of functions that take one Arguments.
struct KernelTable {
  const void* run[kTargets][kOperations][2];
  const void* focal[kFocalOperations];  // for targets of any type
};

const KernelTable* float16_kernels();
const KernelTable* bfloat16_kernels();
const KernelTable* float32_kernels();
const KernelTable* float64_kernels();
// Of functions that take one Arguments. By DType, null where there is none: counts the targets.
const void* count_kernel(DType targets);
// Class weights where nothing is counted.
const void* class_weights_kernel();

}  // namespace cuda
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CUDA_ARGUMENTS_H_
