// The table of the kernels for one type of scores.
#ifndef SIGMOID_CE_CUDA_TABLE_CUH_
#define SIGMOID_CE_CUDA_TABLE_CUH_

#include "kernels.cuh"

namespace sigmoid_ce {
namespace cuda {

template <class X, class S, int kOperation>
void fill_operation(const void* (&run)[kOperations][2]) {
  run[kOperation][0] = reinterpret_cast<const void*>(&pass_kernel<X, S, kOperation, kPlain>);
  run[kOperation][1] = reinterpret_cast<const void*>(&pass_kernel<X, S, kOperation, kGeneral>);
}

template <class X, class S>
void fill_target(const void* (&run)[kOperations][2]) {
  fill_operation<X, S, kForward>(run);
  fill_operation<X, S, kElementwise>(run);
  fill_operation<X, S, kBackward>(run);
  fill_operation<X, S, kForwardBackward>(run);
}

template <class X, int kOperation>
void fill_focal(const void* (&focal)[kFocalOperations]) {
  focal[kOperation] = reinterpret_cast<const void*>(&pass_kernel<X, Any, kOperation, kFocal>);
}

template <class X>
KernelTable make_table() {
  KernelTable table = {};
  static_assert(Pass<X, X, kForward, kPlain>::kTile == tile_of(sizeof(X)), "the plan counts tiles");
  fill_target<X, X>(table.run[kTargetScores]);
#if !defined(SIGMOID_CE_TARGETS_OF_SCORES_ONLY)
  if (sizeof(X) != sizeof(float)) fill_target<X, float>(table.run[kTargetFloat32]);
  fill_target<X, Integer>(table.run[kTargetInteger]);
#endif
  fill_focal<X, kForward>(table.focal);
  fill_focal<X, kElementwise>(table.focal);
  fill_focal<X, kBackward>(table.focal);
  fill_focal<X, kForwardBackward>(table.focal);
  fill_focal<X, kHessian>(table.focal);
  fill_focal<X, kTargetBackward>(table.focal);
  return table;
}

}  // namespace cuda
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CUDA_TABLE_CUH_
