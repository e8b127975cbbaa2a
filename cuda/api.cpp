// The functions of sigmoid_ce/cuda.h: a plan, and its launch.
#include "launch.h"
#include "plan.h"
#include "sigmoid_ce/cuda.h"

namespace sigmoid_ce {
namespace cuda {
namespace {

Status execute(Operation operation, const Inputs& inputs, const Options& options,
               const Results* results, const MutableArray* out, void* workspace, Stream stream,
               const MutableArray* hessian = nullptr) {
  int multiprocessors = 0;
  Status status = find_multiprocessors(&multiprocessors);
  if (!status.ok()) return status;
  Plan plan;
  status = make_plan(operation, inputs, options, results, out, hessian, workspace, multiprocessors,
                     &plan);
  if (!status.ok()) return status;
  return launch(plan, stream);
}

}  // namespace

std::size_t workspace_size(const Inputs& inputs, const Options& options) {
  return bytes_of_workspace(inputs, options);
}

std::int64_t class_weight_groups(const Inputs& inputs, const Options& options) {
  return groups_of(inputs, options);
}

Status forward(const Inputs& inputs, const Options& options, const Results& results,
               void* workspace, Stream stream) {
  return execute(kForward, inputs, options, &results, nullptr, workspace, stream);
}

Status elementwise(const Inputs& inputs, const Options& options, const MutableArray& losses,
                   void* workspace, Stream stream) {
  return execute(kElementwise, inputs, options, nullptr, &losses, workspace, stream);
}

Status elementwise(const Inputs& inputs, const Options& options, const MutableArray& losses,
                   Stream stream) {
  return elementwise(inputs, options, losses, nullptr, stream);
}

Status backward(const Inputs& inputs, const Options& options, const MutableArray& gradient,
                void* workspace, Stream stream) {
  return execute(kBackward, inputs, options, nullptr, &gradient, workspace, stream);
}

Status forward_backward(const Inputs& inputs, const Options& options, const Results& results,
                        const MutableArray& gradient, void* workspace, Stream stream) {
  return execute(kForwardBackward, inputs, options, &results, &gradient, workspace, stream);
}

Status forward_backward(const Inputs& inputs, const Options& options, const Results& results,
                        const MutableArray& gradient, const MutableArray& hessian, void* workspace,
                        Stream stream) {
  return execute(kHessian, inputs, options, &results, &gradient, workspace, stream, &hessian);
}

Status backward_targets(const Inputs& inputs, const Options& options, const MutableArray& gradient,
                        void* workspace, Stream stream) {
  return execute(kTargetBackward, inputs, options, nullptr, &gradient, workspace, stream);
}

}  // namespace cuda
}  // namespace sigmoid_ce
