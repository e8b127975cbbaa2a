// What the dispatcher asks of an instruction set: a table of kernels, each for a run of elements.
#ifndef SIGMOID_CE_CPU_KERNEL_H_
#define SIGMOID_CE_CPU_KERNEL_H_

#include <cstdint>

namespace sigmoid_ce {
namespace cpu {

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

// What a call has beside scores and targets.
enum : unsigned {
  kIgnoreLabel = 1,
  kUncertain = 2,  // targets other than 0 and 1 are ignored
  kSmoothing = 4,
  kElementWeight = 8,
  kClassWeight = 16,
  kPosWeight = 32,
  kGamma = 64,

  kWeights = kElementWeight | kClassWeight,
  kZeros = kWeights | kIgnoreLabel | kUncertain,  // elements that are ignored or may have weight 0

  kArrays = 128,  // pos_weight or class weights differ between elements

  // Of a kernel: it looks which of its options are on. Others have all of theirs.
  kAtRunTime = 256,
  kGeneral = kAtRunTime | kIgnoreLabel | kUncertain | kSmoothing | kWeights | kPosWeight | kArrays,
  kEverything = kGeneral | kGamma
};

// The kernels of an operation, by their options. Those with few take less time than the general one.
enum {
  kPlainKernel,
  kGeneralKernel,
  // For float32 scores with float32 or uint8 targets:
  kIgnoreKernel,
  kPosWeightKernel,
  kSmoothingKernel,
  kClassKernel,
  kFocalKernel,
  kFocalClassKernel,
  kKernels
};
constexpr unsigned kKernelOptions[kKernels] = {
    0, kGeneral, kIgnoreLabel, kPosWeight, kSmoothing, kClassWeight, kGamma, kGamma | kClassWeight};

// A run starts at a block boundary. Arrays are contiguous, of any alignment; T is the scores' type.
struct Run {
  const void* scores;   // T
  const void* targets;  // the target type of the kernel
  void* out;            // T: losses or gradients; unused in kForward
  void* hessian;        // T
  std::int64_t n;
  bool stream;   // write `out` past the caches; it is aligned to 64 bytes then
  double scale;  // factor on the gradient, a value of T

  // Those that the kernel does not have are off.
  unsigned options;
  double pos_weight;                        // a value of T, where pos_weights is null
  const void* pos_weights;                  // T per element, or null
  double weight;                            // a value of T, where weights is null
  const void* weights;                      // T per element, or null
  double ignore_low, ignore_high;           // float targets: ignored when low <= t <= high
  std::int64_t ignore_label;                // integer targets; in the range of the target type
  double smoothing_factor, smoothing_term;  // t becomes t factor + term; values of T
  double class_weight[2];                   // w+ and w-, values of T, where class_weights are null
  const void* class_weights[2];             // T per element, or null
  double gamma;

  // Results: one sum per block (kForward, kForwardBackward), and how many elements were ignored.
  double* block_sums;
  std::int64_t ignored;
};

using Kernel = void (*)(Run* run);
// How many of n targets have the label that is ignored; and how many are 1, and how many 0, whatever is ignored.
struct Counts {
  std::int64_t ignored, positive, negative;
};
using CountKernel = void (*)(const Run& run, Counts* counts);
// n numbers of another type as T, from `targets` to `out`. Integers with the label that is ignored become kIgnored.
using ConvertKernel = void (*)(const Run& run);
constexpr double kIgnored =
    1099511627776.0;  // 2^40: no integer target, which are saturated to 32 bits

// Indices: scores float32, float64; targets by kTarget*; operation; k*Kernel.
enum Target {
  kTargetScores,
  kTargetBool,
  kTargetUint8,
  kTargetInt8,
  kTargetInt32,
  kTargetInt64,
  kTargets
};

struct KernelTable {
  const char* name;
  Kernel run[2][kTargets][kOperations][kKernels];  // null where there is none
  Kernel focal[2][kFocalOperations];               // all options; for targets of the scores' type
  CountKernel count_ignored[2][kTargets], count_classes[2][kTargets];
  ConvertKernel convert[2][kTargets];  // integers to T
  // float16, bfloat16 to float32 and back.
  ConvertKernel widen[2], narrow[2];
};

// Null where the instruction set does not exist on this architecture.
const KernelTable* scalar_kernels();
const KernelTable* avx2_kernels();
const KernelTable* avx512_kernels();
const KernelTable* neon_kernels();

}  // namespace cpu
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CPU_KERNEL_H_
