// What a call will launch, worked out on the host from its arguments alone. No CUDA in here.
#ifndef SIGMOID_CE_CUDA_PLAN_H_
#define SIGMOID_CE_CUDA_PLAN_H_

#include <cstdint>

#include "arguments.h"
#include "sigmoid_ce/cuda.h"

namespace sigmoid_ce {
namespace cuda {

struct Plan {
  DType scores;
  Operation operation;
  Target target;
  bool general;
  bool clears;    // the workspace must be 0 before the first kernel
  bool counts;    // the targets are counted first, by a kernel of their own
  unsigned grid;  // blocks; 0: nothing to launch
  unsigned count_grid;
  Arguments arguments;
};

// `results` of the passes that add, `out` of those that write; else null.
Status make_plan(Operation operation, const Inputs& inputs, const Options& options,
                 const Results* results, const MutableArray* out, void* workspace,
                 int multiprocessors, Plan* plan);

}  // namespace cuda
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CUDA_PLAN_H_
