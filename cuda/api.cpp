// The functions of sigmoid_ce/cuda.h: a plan, and its launch.
#include "launch.h"
#include "plan.h"
#include "sigmoid_ce/cuda.h"

namespace sigmoid_ce {
namespace cuda {
namespace {

Status execute(Operation operation, const Inputs& inputs, const Options& options,
               const Results* results, const MutableArray* out, void* workspace, Stream stream) {
  int multiprocessors = 0;
  Status status = find_multiprocessors(&multiprocessors);
  if (!status.ok()) return status;
  Plan plan;
  status = make_plan(operation, inputs, options, results, out, workspace, multiprocessors, &plan);
  if (!status.ok()) return status;
  return launch(plan, stream);
}

}  // namespace

std::size_t workspace_size(const Inputs&, const Options&) { return sizeof(Workspace); }

Status forward(const Inputs& inputs, const Options& options, const Results& results,
               void* workspace, Stream stream) {
  return execute(kForward, inputs, options, &results, nullptr, workspace, stream);
}

Status elementwise(const Inputs& inputs, const Options& options, const MutableArray& losses,
                   Stream stream) {
  return execute(kElementwise, inputs, options, nullptr, &losses, nullptr, stream);
}

Status backward(const Inputs& inputs, const Options& options, const MutableArray& gradient,
                void* workspace, Stream stream) {
  return execute(kBackward, inputs, options, nullptr, &gradient, workspace, stream);
}

Status forward_backward(const Inputs& inputs, const Options& options, const Results& results,
                        const MutableArray& gradient, void* workspace, Stream stream) {
  return execute(kForwardBackward, inputs, options, &results, &gradient, workspace, stream);
}

}  // namespace cuda
}  // namespace sigmoid_ce
