// From what sigmoid_ce.cuda describes with numbers and tuples to the structures of sigmoid_ce/cuda.h. Python has
// checked dtypes, shapes and devices; the numbers among the options are checked here, with the CPU's messages.
#ifndef SIGMOID_CE_BINDINGS_DEVICE_ARGS_H_
#define SIGMOID_CE_BINDINGS_DEVICE_ARGS_H_

#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "array_args.h"
#include "sigmoid_ce/cuda.h"

namespace sigmoid_ce {
namespace bindings {

inline void* read_address(py::handle object) {
  return reinterpret_cast<void*>(object.cast<std::uintptr_t>());
}

inline DType read_code(py::handle object) { return static_cast<DType>(object.cast<int>()); }

// Of one call. Points into itself, so it is neither copied nor kept beyond the call.
class DeviceArgs {
 public:
  Inputs inputs;
  cuda::Options options;
  cuda::Results results;
  MutableArray out, hessian;
  bool has_hessian = false;

  // inputs: (shape, scores, targets, first_index, count), arrays as (address, strides or None, dtype).
  // options: (pos_weight, channel_pos_weight, weight, ignore_label, normalization, normalize, loss_weight, divisor,
  // family), with numbers for pos_weight and weight; per channel (address, count); element weights like an array;
  // family None, or the members of Family in their order.
  DeviceArgs(const py::tuple& inputs_tuple, const py::tuple& options_tuple) {
    expect_size(inputs_tuple, 5);
    expect_size(options_tuple, 9);
    inputs.ndim = read_integers(inputs_tuple[0], shape_);
    inputs.shape = shape_;
    inputs.scores = read_array_tuple(inputs_tuple[1], scores_strides_);
    inputs.targets = read_array_tuple(inputs_tuple[2], targets_strides_);
    inputs.first_index = inputs_tuple[3].cast<std::int64_t>();
    inputs.count = inputs_tuple[4].cast<std::int64_t>();
    set_pos_weight(options_tuple[0], options_tuple[1]);
    set_weight(options_tuple[2]);
    if (!options_tuple[3].is_none()) {
      options.ignore_label = read_integer(options_tuple[3], "ignore_label");
      options.has_ignore_label = true;
    }
    read_normalization(options_tuple[4], options_tuple[5], &options);
    set_loss_weight(options_tuple[6]);
    set_divisor(options_tuple[7]);
    set_family(options_tuple[8]);
  }
  DeviceArgs(const DeviceArgs&) = delete;
  DeviceArgs& operator=(const DeviceArgs&) = delete;

  // (loss, its dtype, partial): addresses, 0 where a result is not wanted.
  void set_results(const py::tuple& tuple) {
    expect_size(tuple, 3);
    results.loss = read_address(tuple[0]);
    results.loss_dtype = read_code(tuple[1]);
    results.partial = static_cast<Partial*>(read_address(tuple[2]));
  }

  // (address, strides or None).
  void set_out(const py::tuple& tuple) {
    expect_size(tuple, 2);
    out = MutableArray(read_address(tuple[0]), read_strides(tuple[1], out_strides_));
  }

  // The same, or None.
  void set_hessian(py::handle object) {
    if (object.is_none()) return;
    const auto tuple = object.cast<py::tuple>();
    expect_size(tuple, 2);
    hessian = MutableArray(read_address(tuple[0]), read_strides(tuple[1], hessian_strides_));
    has_hessian = true;
  }

 private:
  static void expect_size(const py::tuple& tuple, std::size_t size) {
    if (tuple.size() != size) {
      throw py::type_error("expected a tuple of " + std::to_string(size) + " entries");
    }
  }

  static int read_integers(py::handle object, std::int64_t* values) {
    const auto tuple = object.cast<py::tuple>();
    if (tuple.size() > static_cast<std::size_t>(kMaxDims)) {
      throw py::value_error("scores: expected at most " + std::to_string(kMaxDims) + " axes, got " +
                            std::to_string(tuple.size()));
    }
    int n = 0;
    for (const py::handle value : tuple) values[n++] = value.cast<std::int64_t>();
    return n;
  }

  const std::int64_t* read_strides(py::handle object, std::int64_t* strides) const {
    if (object.is_none()) return nullptr;
    if (read_integers(object, strides) != inputs.ndim) {
      throw py::type_error("expected one stride per axis");
    }
    return strides;
  }

  ConstArray read_array_tuple(py::handle object, std::int64_t* strides) const {
    const auto tuple = object.cast<py::tuple>();
    expect_size(tuple, 3);
    return ConstArray(read_address(tuple[0]), read_code(tuple[2]), read_strides(tuple[1], strides));
  }

  void set_pos_weight(py::handle number, py::handle channels) {
    if (!number.is_none()) {
      if (!read_number(number, "pos_weight", &pos_weight_)) {
        throw py::type_error("pos_weight: expected a number, got " + type_name(number));
      }
      if (!is_weight(pos_weight_)) {
        throw py::value_error("pos_weight: expected finite values >= 0" + of_dtype() + ", got " +
                              repr_text(py::float_(pos_weight_)));
      }
      options.pos_weight = &pos_weight_;
      options.pos_weight_count = 1;
    } else if (!channels.is_none()) {
      const auto tuple = channels.cast<py::tuple>();
      expect_size(tuple, 2);
      options.channel_pos_weight = read_address(tuple[0]);
      options.channel_pos_weight_count = tuple[1].cast<std::int64_t>();
    }
  }

  void set_weight(py::handle object) {
    if (object.is_none()) return;
    if (PyTuple_Check(object.ptr())) {
      options.weight = read_array_tuple(object, weight_strides_);
      return;
    }
    if (!read_number(object, "weight", &weight_)) {
      throw py::type_error("weight: expected an array on the GPU or a number, got " +
                           type_name(object));
    }
    if (!is_weight(weight_)) {
      throw py::value_error("weight: expected a finite number >= 0" + of_dtype() + ", got " +
                            repr_text(object));
    }
    options.uniform_weight = &weight_;
  }

  void set_loss_weight(py::handle object) {
    if (!read_number(object, "loss_weight", &options.loss_weight)) {
      throw py::type_error("loss_weight: expected a number, got " + type_name(object));
    }
    if (!std::isfinite(options.loss_weight)) {
      throw py::value_error("loss_weight: expected a finite number, got " + repr_text(object));
    }
  }

  void set_divisor(py::handle object) {
    if (object.is_none()) return;
    double number = 0;
    if (PyBool_Check(object.ptr()) || !read_number(object, "divisor", &number)) {
      throw py::type_error("divisor: expected a positive number, got " + type_name(object));
    }
    if (!(number > 0) || !std::isfinite(number)) {
      throw py::value_error("divisor: expected a positive number, got " + repr_text(object));
    }
    options.normalization = Normalization::kNumber;
    options.divisor = number;
  }

  void set_family(py::handle object) {
    if (object.is_none()) return;
    const auto tuple = object.cast<py::tuple>();
    expect_size(tuple, 7);
    const Family family = {tuple[0], tuple[1], tuple[2], tuple[3], tuple[4], tuple[5], tuple[6]};
    read_family(family, inputs.shape, inputs.ndim, &options);
  }

  bool is_float64() const { return inputs.scores.dtype == DType::kFloat64; }

  // Finite in the type that is computed in.
  bool is_weight(double value) const {
    const double largest =
        is_float64() ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
    return value >= 0 && value <= largest;  // false for NaN
  }

  std::string of_dtype() const { return is_float64() ? "" : " in float32"; }

  double pos_weight_ = 1;
  double weight_ = 1;
  std::int64_t shape_[kMaxDims];
  std::int64_t scores_strides_[kMaxDims];
  std::int64_t targets_strides_[kMaxDims];
  std::int64_t weight_strides_[kMaxDims];
  std::int64_t out_strides_[kMaxDims];
  std::int64_t hessian_strides_[kMaxDims];
};

}  // namespace bindings
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_BINDINGS_DEVICE_ARGS_H_
