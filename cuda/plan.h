// What a call will launch, worked out on the host from its arguments alone. No CUDA in here.
#ifndef SIGMOID_CE_CUDA_PLAN_H_
#define SIGMOID_CE_CUDA_PLAN_H_

#include <cstddef>
#include <cstdint>

#include "arguments.h"
#include "sigmoid_ce/cuda.h"

namespace sigmoid_ce {
namespace cuda {

struct Plan {
  DType scores;
  Operation operation;
  Target target;
  Kind kind;
  std::size_t clears;  // bytes of the workspace that must be 0 before the first kernel
  bool counts;         // the targets are counted first, by a kernel of their own
  bool weighs;         // class weights that need no counts are put into the workspace first
  unsigned grid;       // blocks; 0: nothing to launch
  unsigned count_grid, weigh_grid;
  Arguments arguments;
};

// `results` of the passes that add, `out` of those that write, `hessian` of kHessian; else null.
Status make_plan(Operation operation, const Inputs& inputs, const Options& options,
                 const Results* results, const MutableArray* out, const MutableArray* hessian,
                 void* workspace, int multiprocessors, Plan* plan);

// What the functions of cuda.h say of these.
std::size_t bytes_of_workspace(const Inputs& inputs, const Options& options);
std::int64_t groups_of(const Inputs& inputs, const Options& options);

}  // namespace cuda
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CUDA_PLAN_H_
