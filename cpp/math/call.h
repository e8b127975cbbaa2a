// The arguments of a call, checked: what is the same on every device.
#ifndef SIGMOID_CE_MATH_CALL_H_
#define SIGMOID_CE_MATH_CALL_H_

#include <cmath>
#include <cstdint>
#include <limits>

#include "math/semantics.h"
#include "math/view.h"
#include "sigmoid_ce/options.h"
#include "sigmoid_ce/status.h"

namespace sigmoid_ce {
namespace math {

inline std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kFloat16:
    case DType::kBfloat16:
      return 2;
    default:
      return 1;
  }
}

constexpr double kMaxGamma = 1e6;

inline bool is_integer(DType dtype) { return dtype >= DType::kBool && dtype <= DType::kInt64; }
inline bool is_half(DType dtype) { return dtype == DType::kFloat16 || dtype == DType::kBfloat16; }

inline Status invalid(const char* argument, const char* message) {
  return Status(Code::kInvalidArgument, argument, message);
}

struct Call {
  const Inputs& inputs;
  const Options& options;
  std::int64_t total = 1;  // of the whole shape
  std::int64_t first = 0, count = 0;
  std::int64_t batch_size = 1;
  std::int64_t itemsize = 4;

  Call(const Inputs& i, const Options& o) : inputs(i), options(o) {}

  // The types of the scores and the targets are the device's to check, before this.
  Status check() {
    itemsize = size_of(inputs.scores.dtype);
    if (inputs.ndim < 0 || inputs.ndim > kMaxDims) return invalid("shape", "expected 0 to 64 axes");
    bool empty = false;
    for (int d = 0; d < inputs.ndim; ++d) {
      const std::int64_t n = inputs.shape[d];
      if (n < 0) return invalid("shape", "expected lengths of 0 or more");
      empty = empty || n == 0;
      // A byte offset must fit 63 bits too.
      if (n != 0 && total > INT64_MAX / 8 / n) {
        return invalid("shape", "expected fewer than 2^60 elements");
      }
      if (n != 0) total *= n;
    }
    if (empty) total = 0;
    if (inputs.ndim > 0) batch_size = inputs.shape[0];
    first = inputs.first_index;
    if (first < 0 || first > total) return invalid("first_index", "expected an index of the shape");
    count = inputs.count < 0 ? total - first : inputs.count;
    if (count > total - first) return invalid("count", "expected elements inside the shape");
    if (count > 0 && inputs.scores.data == nullptr) return invalid("scores", "expected an array");
    if (count > 0 && inputs.targets.data == nullptr) return invalid("targets", "expected an array");
    return check_options();
  }

  // After check().
  View view(const ConstArray& a) const {
    return View(a.data, size_of(a.dtype), inputs.shape, inputs.ndim, a.strides, first);
  }

  // Of contiguous arrays. Whether strided ones share an element is a hard question, which the caller's
  // array library answers better: cpu.h leaves it to the caller.
  bool overlap(const View& a, const View& b) const {
    if (!a.contiguous() || !b.contiguous()) return false;
    std::uintptr_t a_low, a_high, b_low, b_high;
    a.bounds(first, count, &a_low, &a_high);
    b.bounds(first, count, &b_low, &b_high);
    return a_low < b_high && b_low < a_high;
  }

  // An array that is written, of `count` > 0 elements: not on itself, nor on an input but the scores in place.
  Status check_output(const MutableArray& out, const View& view, const View& scores,
                      const View& targets, const View& weight) const {
    if (out.data == nullptr) return invalid("out", "expected an array");
    if (view.overlaps_itself()) return invalid("out", "expected elements that do not overlap");
    if (!view.same_layout(scores) && overlap(view, scores)) {
      return invalid("out", "expected the scores themselves, or no overlap with them");
    }
    if (overlap(view, targets)) return invalid("out", "expected no overlap with targets");
    if (options.weight.data != nullptr && overlap(view, weight)) {
      return invalid("out", "expected no overlap with weight");
    }
    return Status();
  }

  bool fits_channels(std::int64_t count_of_values) const {
    return count_of_values <= 1 || (inputs.ndim >= 2 && count_of_values == inputs.shape[1]);
  }

 private:
  Status check_options() const {
    const Options& o = options;
    if (o.pos_weight_count < 0 || (o.pos_weight_count > 0 && o.pos_weight == nullptr)) {
      return invalid("pos_weight", "expected one number, or one per channel");
    }
    if (!fits_channels(o.pos_weight_count)) {
      return invalid("pos_weight", "expected one number, or one per channel (axis 1)");
    }
    for (std::int64_t i = 0; i < o.pos_weight_count; ++i) {
      // !(a <= b): NaN too.
      if (!(o.pos_weight[i] >= 0) || std::isinf(o.pos_weight[i])) {
        return invalid("pos_weight", "expected finite values of 0 or more");
      }
      if (inputs.scores.dtype != DType::kFloat64 &&
          o.pos_weight[i] > std::numeric_limits<float>::max()) {
        return invalid("pos_weight", "expected values that are finite as float32");
      }
    }
    if (o.weight.data != nullptr && o.weight.dtype != inputs.scores.dtype &&
        !(o.weight.dtype == DType::kFloat32 && is_half(inputs.scores.dtype)) &&
        o.weight.dtype != DType::kBool && o.weight.dtype != DType::kUint8 &&
        o.weight.dtype != DType::kInt8) {
      return invalid("weight",
                     "expected the scores' dtype (or float32 beside 16 bits), bool, uint8 or int8");
    }
    // !(a <= b) and the like: NaN too.
    if (!(o.label_smoothing >= 0 && o.label_smoothing < 1)) {
      return invalid("label_smoothing", "expected a number of 0 or more and below 1");
    }
    if (!(o.gamma >= 0 && o.gamma <= kMaxGamma)) {
      return invalid("gamma", "expected a number from 0 to 1e6");
    }
    if (o.has_alpha && !(o.alpha >= 0 && o.alpha <= 1)) {
      return invalid("alpha", "expected a number from 0 to 1");
    }
    if (!(o.negative_scale >= 0 && o.negative_scale <= std::numeric_limits<float>::max())) {
      return invalid("negative_scale", "expected a finite number of 0 or more");
    }
    if (o.uncertain > Uncertain::kIgnore) {
      return invalid("uncertain", "expected one of the enumeration");
    }
    if (o.balance > Balance::kBatchMean) {
      return invalid("balance", "expected one of the enumeration");
    }
    if (o.balance == Balance::kImage && inputs.ndim < 2) {
      return invalid("balance", "by image expects scores with an axis of images and another one");
    }
    if (o.balance_per_channel && o.balance == Balance::kNone) {
      return invalid("balance_per_channel", "expected a balance that it is for");
    }
    if (o.balance_per_channel && inputs.ndim < 2) {
      return invalid("balance_per_channel", "expected scores with channels (axis 1)");
    }
    if (o.balance != Balance::kNone && o.class_weights == nullptr && count != total) {
      return invalid("balance", "expected the whole array, or the class_weights for a piece of it");
    }
    if (o.normalization > Normalization::kForeground) {
      return invalid("normalization", "expected one of the enumeration");
    }
    if (o.normalization == Normalization::kNumber && !(o.divisor > 0 && std::isfinite(o.divisor))) {
      return invalid("normalization", "expected a finite number above 0");
    }
    return Status();
  }
};

// ignore_label as the kernels want it; off when no target of the type can match.
struct IgnoreRule {
  bool on = false;
  double low = 0, high = 0;  // float targets: ignored when low <= t <= high
  std::int64_t label = 0;    // integer targets

  IgnoreRule(DType targets, const Options& options) : label(options.ignore_label) {
    if (!options.has_ignore_label) return;
    std::int64_t least = INT64_MIN, most = INT64_MAX;
    switch (targets) {
      case DType::kFloat64:
        ignore_range(label, &low, &high);
        break;
      case DType::kBool:
        least = 0, most = 1;
        break;
      case DType::kUint8:
        least = 0, most = UINT8_MAX;
        break;
      case DType::kInt8:
        least = INT8_MIN, most = INT8_MAX;
        break;
      case DType::kInt32:
        least = INT32_MIN, most = INT32_MAX;
        break;
      case DType::kInt64:
        break;
      default: {
        float l, h;
        ignore_range(label, &l, &h);
        low = l;
        high = h;
      }
    }
    on = label >= least && label <= most;
  }

  // Whether a target of this value, which every type has, is ignored.
  bool matches(int value, bool integers) const {
    return on && (integers ? label == value : low <= value && value <= high);
  }
};

}  // namespace math
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_MATH_CALL_H_
