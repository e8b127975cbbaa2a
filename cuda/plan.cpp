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

// Bytes from one element to the next of a row, of an array whose last axis has one value for all, or one for each.
unsigned step_of(const DeviceView& view, std::int64_t itemsize) {
  return static_cast<unsigned>(view.n_axes == 0 ? itemsize : view.axes[view.n_axes - 1].stride);
}

// The options as the CPU has them; class weights in device memory count as given, and nobody here reads them.
sigmoid_ce::Options with_class_weights(const Options& options) {
  sigmoid_ce::Options common = options;
  common.class_weights = options.device_class_weights;
  return common;
}

math::Groups find_groups(const Inputs& inputs, const Options& options, std::int64_t total) {
  return math::groups_of(options, inputs.shape, inputs.ndim, total);
}

// Whether the class weights have a table in the workspace.
bool has_slots(const Options& options) {
  return options.device_class_weights != nullptr || options.balance != Balance::kNone;
}

bool is_scores_type(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 || math::is_half(dtype);
}

std::int64_t pieces_of(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit; }

}  // namespace

std::int64_t groups_of(const Inputs& inputs, const Options& options) {
  const sigmoid_ce::Options common = with_class_weights(options);
  Inputs shape = inputs;
  shape.scores.data = shape.targets.data = &shape;  // the arrays may come later
  Call call(shape, common);
  return call.check().ok() ? find_groups(inputs, options, call.total).count : 0;
}

std::size_t bytes_of_workspace(const Inputs& inputs, const Options& options) {
  // The same for a pass that counts and for one that gets its weights.
  const std::int64_t groups = options.balance == Balance::kNone ? 1 : groups_of(inputs, options);
  return sizeof(Workspace) + static_cast<std::size_t>(groups) * sizeof(ClassSlot);
}

Status make_plan(Operation operation, const Inputs& inputs, const Options& options,
                 const Results* results, const MutableArray* out, const MutableArray* hessian,
                 void* workspace, int multiprocessors, Plan* plan) {
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
  if (options.class_weights != nullptr) {
    return invalid("class_weights",
                   "expected none; those in device memory go into device_class_weights");
  }
  const sigmoid_ce::Options common = with_class_weights(options);
  Call call(inputs, common);
  Status status = call.check();
  if (!status.ok()) return status;
  const std::int64_t channels = options.channel_pos_weight_count;
  if (channels < 0 || (channels > 0 && options.channel_pos_weight == nullptr)) {
    return invalid("channel_pos_weight", "expected one value per channel");
  }
  if (!call.fits_channels(channels)) {
    return invalid("channel_pos_weight", "expected one value, or one per channel (axis 1)");
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
  const bool gradient = operation != kForward && operation != kElementwise;
  const bool adds = results != nullptr;

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
  args.vector_targets =
      args.targets.n_axes == 0 && fits_wide(args.targets, math::size_of(target),
                                            kVectorBytes / static_cast<int>(math::size_of(target)));
  const View weight = call.view(options.weight);
  const struct {
    const char* name;
    const MutableArray* array;
    DeviceView* view;
  } outputs[] = {{"out", out, &args.out}, {"hessian", hessian, &args.hessian}};
  for (const auto& output : outputs) {
    if (output.array == nullptr || call.count == 0) continue;
    if (output.array->as_float32) {
      return invalid(output.name,
                     "expected an array of the scores' dtype; as_float32 is for the CPU");
    }
    const View view = call.view(ConstArray(output.array->data, dtype, output.array->strides));
    status = call.check_output(*output.array, view, scores, targets, weight);
    if (status.ok() && output.array == hessian) {
      const View first = call.view(ConstArray(out->data, dtype, out->strides));
      if (view.same_layout(first) || call.overlap(view, first)) {
        status = invalid("out", "expected no overlap with the gradient");
      }
    }
    if (!status.ok()) return Status(status.code, output.name, status.message);
    if (!make_view(view, call.first, output.view)) return too_many_axes(output.name);
    strided = strided || output.view->n_axes > 0;
    args.vector =
        args.vector && output.view->n_axes == 0 && fits_wide(*output.view, itemsize, lanes);
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
    if (channels > 1) strides[1] = size;
    const View view(options.channel_pos_weight, size, inputs.shape, inputs.ndim, strides, 0);
    if (!make_view(view, call.first, &args.pos_weights)) return too_many_axes("pos_weight");
    args.vector = args.vector && has_whole_rows(args.pos_weights, call.first, lanes) &&
                  channels * size <= INT32_MAX;
    args.pos_weight_step = step_of(args.pos_weights, size);
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
  args.ignores_uncertain = options.uncertain == Uncertain::kIgnore;
  args.smoothing_factor = Number(1);
  if (options.label_smoothing != 0) {
    args.has_smoothing = true;
    args.smoothing_factor = Number(1 - options.label_smoothing);
    args.smoothing_term = Number(options.label_smoothing / 2);
  }
  args.has_gamma = options.gamma != 0;
  args.gamma = Number(options.gamma);

  // ---- Class weights ----
  args.workspace = static_cast<Workspace*>(workspace);
  const math::Groups groups = find_groups(inputs, options, call.total);
  const bool given_weights = options.device_class_weights != nullptr;
  args.has_class_weights = math::has_class_weights(common);
  args.balance = options.balance;
  args.positive_factor = options.has_alpha ? options.alpha : 1.0;
  args.negative_factor = (options.has_alpha ? 1.0 - options.alpha : 1.0) * options.negative_scale;
  args.class_weight[0] = Number(args.positive_factor);
  args.class_weight[1] = Number(args.negative_factor);
  args.given_weights = options.device_class_weights;
  args.weight_count = static_cast<std::uint64_t>(groups.count);
  args.class_weights_out = adds ? results->class_weights : nullptr;
  args.counts_groups = options.balance != Balance::kNone && !given_weights && groups.count > 0;
  args.slots_of_float64 = dtype == DType::kFloat64;
  if (has_slots(options)) {
    args.class_weights_by_group = true;
    args.class_slots =
        workspace == nullptr ? nullptr : reinterpret_cast<ClassSlot*>(args.workspace + 1);
    constexpr std::int64_t kSlot = sizeof(ClassSlot);
    std::int64_t strides[kMaxDims] = {};
    if (groups.count > 1) {
      if (options.balance_per_channel) strides[1] = kSlot;
      if (options.balance == Balance::kImage) {
        strides[0] = options.balance_per_channel ? inputs.shape[1] * kSlot : kSlot;
      }
    }
    const View view(args.class_slots, kSlot, inputs.shape, inputs.ndim, strides, 0);
    if (!make_view(view, call.first, &args.class_weights)) return too_many_axes("balance");
    args.vector = args.vector && has_whole_rows(args.class_weights, call.first, lanes) &&
                  groups.count <= INT32_MAX / kSlot;
    args.class_weight_step = step_of(args.class_weights, kSlot);
  }
  if (operation >= kOperations || args.has_gamma) {
    plan->kind = kFocal;
  } else if (strided || args.has_pos_weight || weighted || args.has_ignore_label ||
             args.ignores_uncertain || args.has_smoothing || args.has_class_weights) {
    plan->kind = kGeneral;
  }

  // ---- Scale and results ----
  const bool foreground = options.normalization == Normalization::kForeground;
  const bool finds_divisor = gradient && options.gradient_divisor == nullptr &&
                             (foreground || (options.normalization == Normalization::kValid &&
                                             (args.has_ignore_label || args.ignores_uncertain)));
  const bool divides_by_foreground =
      adds && foreground && (results->loss != nullptr || results->divisor != nullptr);
  plan->counts = args.counts_groups || finds_divisor || divides_by_foreground;
  args.counts_foreground = foreground;
  const math::Groups counted =
      args.counts_groups ? groups : math::Groups{call.total > 0 ? call.total : 1, 1};
  args.group_length = make_axis(counted.length, 0);
  args.groups = make_axis(counted.count, 0);
  plan->weighs = given_weights || (args.class_weights_out != nullptr && !args.counts_groups);
  if (gradient) {
    args.loss_weight = options.loss_weight;
    args.divisor = options.gradient_divisor;
    if (args.divisor == nullptr && !finds_divisor) {
      args.scale = Number(options.loss_weight /
                          math::divisor(options, call.batch_size, call.count, call.total));
    }
  }
  if (adds) {
    args.loss = results->loss;
    args.loss_is_float64 = results->loss_dtype == DType::kFloat64;
    args.loss_divisor = results->divisor;
    args.partial = reinterpret_cast<std::int64_t*>(results->partial);
    args.divide_by_valid = options.normalization == Normalization::kValid;
    args.divide_by_foreground = divides_by_foreground;
    args.sum_divisor = math::divisor(options, call.batch_size, call.count, call.total);
  }

  // ---- Grid ----
  const std::int64_t most = static_cast<std::int64_t>(kBlocksPerMultiprocessor) *
                            (multiprocessors > 0 ? multiprocessors : 1);
  std::int64_t tiles = pieces_of(call.count, tile_of(itemsize));
  if (tiles > INT32_MAX) {
    return Status(Code::kUnsupported, "scores", "expected fewer than 2^43 elements");
  }
  // A pass without elements has results all the same.
  if (tiles == 0 && adds) tiles = 1;
  args.tiles = static_cast<unsigned>(tiles);
  plan->grid = static_cast<unsigned>(tiles < most ? tiles : most);
  if (plan->counts) {
    const std::int64_t tile = count_tile_of(static_cast<int>(math::size_of(target)));
    const std::int64_t blocks = pieces_of(call.count, tile);
    // A block counts fewer than 2^31 targets.
    const std::int64_t least = pieces_of(blocks, INT32_MAX / tile);
    const std::int64_t wanted = blocks < most ? blocks : most > least ? most : least;
    plan->count_grid = static_cast<unsigned>(wanted == 0 ? 1 : wanted);
  }
  if (plan->weighs) {
    const std::int64_t blocks = pieces_of(groups.count, kThreads);
    plan->weigh_grid = static_cast<unsigned>(blocks == 0 ? 1 : blocks < most ? blocks : most);
  }
  const bool has_table = has_slots(options);
  if (plan->counts) {
    plan->clears =
        sizeof(Workspace) +
        (args.counts_groups ? static_cast<std::size_t>(groups.count) : 0) * sizeof(ClassSlot);
  } else if (adds && plan->grid > 1) {
    plan->clears = sizeof(Workspace);
  }
  if ((plan->clears > 0 || adds || has_table) && workspace == nullptr) {
    return invalid("workspace", "expected workspace_size() bytes of device memory");
  }
  if (reinterpret_cast<std::uintptr_t>(workspace) % alignof(Workspace) != 0) {
    return invalid("workspace", "expected an address that is a multiple of 8");
  }
  if (finds_divisor) args.divisor = &args.workspace->divisor;
  return Status();
}

}  // namespace cuda
}  // namespace sigmoid_ce
