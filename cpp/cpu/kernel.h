// What the dispatcher asks of an instruction set: a table of kernels, each for a run of elements.
#ifndef SIGMOID_CE_CPU_KERNEL_H_
#define SIGMOID_CE_CPU_KERNEL_H_

#include <cstdint>

namespace sigmoid_ce {
namespace cpu {

enum Operation { kForward, kElementwise, kBackward, kForwardBackward, kOperations };

// A run starts at a block boundary. Arrays are contiguous, of any alignment; T is the scores' type.
struct Run {
  const void* scores;   // T
  const void* targets;  // the target type of the kernel
  void* out;            // T: losses or gradients; unused in kForward
  std::int64_t n;
  bool stream;   // write `out` past the caches; it is aligned to 64 bytes then
  double scale;  // factor on the gradient, a value of T

  // General kernels only.
  bool has_pos_weight;
  double pos_weight;        // a value of T, where pos_weights is null
  const void* pos_weights;  // T per element, or null
  double weight;            // a value of T, where weights is null
  const void* weights;      // T per element, or null
  bool has_ignore_label;
  double ignore_low, ignore_high;  // float targets: ignored when low <= t <= high
  std::int64_t ignore_label;       // integer targets; in the range of the target type

  // Results: one sum per block (kForward, kForwardBackward), and how many elements were ignored.
  double* block_sums;
  std::int64_t ignored;
};

using Kernel = void (*)(Run* run);
// How many of n targets are ignored.
using CountKernel = std::int64_t (*)(const Run& run);

// Indices: scores float32, float64; targets by kTarget*; plain or general.
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
  Kernel run[2][kTargets][kOperations][2];
  CountKernel count[2][kTargets];
};

// Null where the instruction set does not exist on this architecture.
const KernelTable* scalar_kernels();
const KernelTable* avx2_kernels();
const KernelTable* avx512_kernels();
const KernelTable* neon_kernels();

}  // namespace cpu
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CPU_KERNEL_H_
