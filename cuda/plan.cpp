#include "plan.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "math/call.h"
#include "math/float_environment.h"
#include "tuning.h"

namespace sigmoid_ce {
namespace cuda {
namespace {

using math::Call;
using math::invalid;
using math::View;

// n / d for every n below 2^63 as (high 64 bits of n * magic, plus n) >> shift.
Axis make_axis(std::int64_t extent, std::int64_t stride) {
  Axis axis;
  axis.extent = static_cast<std::uint64_t>(extent);
  axis.stride = stride;
  axis.shift = 0;
  while (axis.shift < 63 && (std::uint64_t(1) << axis.shift) < axis.extent) ++axis.shift;
  // floor(2^64 (2^shift - extent) / extent) + 1, by long division in base 2.
  std::uint64_t rest = (std::uint64_t(1) << axis.shift) - axis.extent;  // < extent
  std::uint64_t quotient = 0;
  for (int bit = 0; bit < 64; ++bit) {
    rest *= 2;  // < 2^64, since extents are below 2^60
    quotient *= 2;
    if (rest >= axis.extent) {
      rest -= axis.extent;
      ++quotient;
    }
  }
  axis.magic = quotient + 1;
  return axis;
}

bool make_view(const View& view, std::int64_t first, DeviceView* result) {
  std::memset(result, 0, sizeof *result);
  if (view.contiguous()) {
    result->data = static_cast<char*>(view.at(first));
    return true;
  }
  if (view.ndim() > kMaxAxes) return false;
  result->data = reinterpret_cast<char*>(view.base());
  result->n_axes = view.ndim();
  for (int d = 0; d < view.ndim(); ++d) {
    result->axes[d] = make_axis(view.extent(d), view.stride(d));
  }
  return true;
}

Status too_many_axes(const char* argument) {
  return Status(Code::kUnsupported, argument,
                "expected at most 8 axes that cannot be merged; pass a contiguous copy");
}

// Whether one wide load reads `lanes` elements that are side by side wherever a row begins.
bool fits_wide(const DeviceView& view, std::int64_t itemsize, int lanes) {
  const std::int64_t bytes = lanes * itemsize < kVectorBytes ? lanes * itemsize : kVectorBytes;
  if (reinterpret_cast<std::uintptr_t>(view.data) % static_cast<std::uintptr_t>(bytes) != 0) {
    return false;
  }
  if (view.n_axes == 0) return true;
  if (view.axes[view.n_axes - 1].stride != itemsize) return false;
  for (int d = 0; d < view.n_axes - 1; ++d) {
    if (view.axes[d].stride % bytes != 0) return false;
  }
  return true;
}

// Whether a row of `lanes` elements stays within one run of the last axis.
bool has_whole_rows(const DeviceView& view, std::int64_t first, int lanes) {
  if (view.n_axes <= 1) return true;
  return first % lanes == 0 && view.axes[view.n_axes - 1].extent % lanes == 0;
}

bool is_scores_type(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 || math::is_half(dtype);
}

std::int64_t round_up(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit; }

}  // namespace

Status make_plan(Operation operation, const Inputs& inputs, const Options& options,
                 const Results* results, const MutableArray* out, void* workspace,
                 int multiprocessors, Plan* plan) {
  const math::FloatEnvironment environment;  // options are rounded here
  const DType dtype = inputs.scores.dtype;
  const DType target = inputs.targets.dtype;
  if (!is_scores_type(dtype)) {
    return invalid("scores", "expected float16, bfloat16, float32 or float64");
  }
  if (target != dtype && target != DType::kFloat32 && !math::is_integer(target)) {
    return invalid("targets",
                   "expected the scores' dtype, float32, bool, uint8, int8, int32 or int64");
  }
  if (options.pos_weight_count > 1) {
    return invalid("pos_weight",
                   "expected one number; values per channel go into "
                   "channel_pos_weight, in device memory");
  }
  Call call(inputs, options);
  Status status = call.check();
  if (!status.ok()) return status;
  const std::int64_t channels = options.channel_pos_weight_count;
  if (channels < 0 || (channels > 0 && options.channel_pos_weight == nullptr)) {
    return invalid("channel_pos_weight", "expected one value per channel");
  }
  if (channels > 0 && (inputs.ndim < 2 || channels != inputs.shape[1])) {
    return invalid("channel_pos_weight", "expected one value per channel (axis 1)");
  }
  if (channels > 0 && options.pos_weight_count > 0) {
    return invalid("channel_pos_weight", "expected none beside pos_weight");
  }
  if (options.uniform_weight != nullptr && options.weight.data != nullptr) {
    return invalid("uniform_weight", "expected none beside weight");
  }
  if (results != nullptr && results->loss != nullptr && results->loss_dtype != DType::kFloat32 &&
      results->loss_dtype != DType::kFloat64) {
    return invalid("loss_dtype", "expected float32 or float64");
  }
  const bool gradient = operation == kBackward || operation == kForwardBackward;
  const bool counts = gradient && options.gradient_divisor == nullptr &&
                      options.normalization == Normalization::kValid;

  std::memset(static_cast<void*>(plan), 0, sizeof *plan);
  Arguments& args = plan->arguments;
  plan->scores = dtype;
  plan->operation = operation;
  plan->target = target == dtype             ? kTargetScores
                 : target == DType::kFloat32 ? kTargetFloat32
                                             : kTargetInteger;
  args.first = call.first;
  args.count = call.count;
  args.target_dtype = target;
  const int itemsize = static_cast<int>(call.itemsize);
  const int lanes = kVectorBytes / itemsize;

  // ---- Arrays ----
  const View scores = call.view(inputs.scores);
  const View targets = call.view(inputs.targets);
  if (!make_view(scores, call.first, &args.scores)) return too_many_axes("scores");
  if (!make_view(targets, call.first, &args.targets)) return too_many_axes("targets");
  bool strided = args.scores.n_axes > 0 || args.targets.n_axes > 0;
  args.vector = !strided && fits_wide(args.scores, itemsize, lanes) &&
                fits_wide(args.targets, math::size_of(target), lanes);
  const View weight = call.view(options.weight);
  if (out != nullptr && call.count > 0) {
    const View view = call.view(ConstArray(out->data, dtype, out->strides));
    status = call.check_output(*out, view, scores, targets, weight);
    if (!status.ok()) return status;
    if (!make_view(view, call.first, &args.out)) return too_many_axes("out");
    strided = strided || args.out.n_axes > 0;
    args.vector = args.vector && args.out.n_axes == 0 && fits_wide(args.out, itemsize, lanes);
  }

  // ---- Options ----
  args.pos_weight = Number(1);
  if (options.pos_weight_count > 0) {
    args.has_pos_weight = true;
    args.pos_weight = Number(options.pos_weight[0]);
  } else if (channels > 0) {
    args.has_pos_weight = args.pos_weight_per_channel = true;
    const std::int64_t size = dtype == DType::kFloat64 ? 8 : 4;
    std::int64_t strides[kMaxDims] = {};
    strides[1] = size;
    const View view(options.channel_pos_weight, size, inputs.shape, inputs.ndim, strides, 0);
    if (!make_view(view, call.first, &args.pos_weights)) return too_many_axes("pos_weight");
    args.vector = args.vector && has_whole_rows(args.pos_weights, call.first, lanes);
  }
  args.weight = Number(1);
  bool weighted = false;
  if (options.uniform_weight != nullptr) {
    weighted = true;
    args.weight = Number(*options.uniform_weight);
  } else if (options.weight.data != nullptr && call.count > 0) {
    weighted = args.has_weights = true;
    args.weight_dtype = options.weight.dtype;
    args.weight_itemsize = static_cast<int>(math::size_of(options.weight.dtype));
    if (!make_view(weight, call.first, &args.weights)) return too_many_axes("weight");
    args.vector = args.vector && has_whole_rows(args.weights, call.first, lanes);
    args.wide_weights = options.weight.dtype == dtype && fits_wide(args.weights, itemsize, lanes);
  }
  const math::IgnoreRule ignore(target, options);
  args.has_ignore_label = ignore.on;
  args.ignore_low = Number(ignore.low);
  args.ignore_high = Number(ignore.high);
  args.ignore_label = ignore.label;
  plan->general = strided || args.has_pos_weight || weighted || args.has_ignore_label;

  // ---- Scale and results ----
  plan->counts = counts && args.has_ignore_label;
  if (gradient) {
    args.loss_weight = options.loss_weight;
    args.divisor = options.gradient_divisor;
    if (args.divisor == nullptr && !plan->counts) {
      args.scale = Number(options.loss_weight /
                          math::divisor(options, call.batch_size, call.count, call.total));
    }
  }
  args.workspace = static_cast<Workspace*>(workspace);
  if (plan->counts) args.divisor = &args.workspace->divisor;
  const bool adds = results != nullptr;
  if (adds) {
    args.loss = results->loss;
    args.loss_is_float64 = results->loss_dtype == DType::kFloat64;
    args.loss_divisor = results->divisor;
    args.partial = reinterpret_cast<std::int64_t*>(results->partial);
    args.divide_by_valid = options.normalization == Normalization::kValid;
    args.sum_divisor = math::divisor(options, call.batch_size, call.count, call.total);
  }

  // ---- Grid ----
  const std::int64_t most = static_cast<std::int64_t>(kBlocksPerMultiprocessor) *
                            (multiprocessors > 0 ? multiprocessors : 1);
  std::int64_t tiles = round_up(call.count, tile_of(itemsize));
  if (tiles > INT32_MAX) {
    return Status(Code::kUnsupported, "scores", "expected fewer than 2^43 elements");
  }
  // A pass without elements has results all the same.
  if (tiles == 0 && adds) tiles = 1;
  args.tiles = static_cast<unsigned>(tiles);
  plan->grid = static_cast<unsigned>(tiles < most ? tiles : most);
  if (plan->counts) {
    const std::int64_t blocks = round_up(call.count, std::int64_t(kThreads) * kVectorBytes);
    plan->count_grid = static_cast<unsigned>(blocks == 0 ? 1 : blocks < most ? blocks : most);
  }
  plan->clears = plan->counts || (adds && plan->grid > 1);
  if ((plan->clears || adds) && workspace == nullptr) {
    return invalid("workspace", "expected workspace_size() bytes of device memory");
  }
  if (reinterpret_cast<std::uintptr_t>(workspace) % alignof(Workspace) != 0) {
    return invalid("workspace", "expected an address that is a multiple of 8");
  }
  return Status();
}

}  // namespace cuda
}  // namespace sigmoid_ce
