// Arrays and options of the loss. Semantics are Caffe's (SigmoidCrossEntropyLossLayer, LossParameter).
#ifndef SIGMOID_CE_OPTIONS_H_
#define SIGMOID_CE_OPTIONS_H_

#include <cstdint>

namespace sigmoid_ce {

enum class DType : std::uint8_t {
  kFloat32 = 0,
  kFloat64 = 1,
  kBool = 2,  // a byte; any value but 0 is true
  kUint8 = 3,
  kInt8 = 4,
  kInt32 = 5,
  kInt64 = 6,  // saturated to 32 bits before it becomes a float; ignore_label compares all 64 bits
  kFloat16 = 7,  // on the GPU only, as kBfloat16: computed in float32, rounded once
  kBfloat16 = 8,
};

// An array that is read. `strides` holds one stride in bytes per axis of Inputs::shape (0 broadcasts,
// negative is fine). Without strides the array is contiguous in C order and `data` points at the element
// of index Inputs::first_index; with strides `data` points at element 0 of the whole shape.
struct ConstArray {
  const void* data;
  DType dtype;
  const std::int64_t* strides;

  ConstArray() : data(nullptr), dtype(DType::kFloat32), strides(nullptr) {}
  ConstArray(const void* d, DType t, const std::int64_t* s = nullptr)
      : data(d), dtype(t), strides(s) {}
};

// An array that is written, of the scores' dtype. Same addressing as ConstArray.
struct MutableArray {
  void* data;
  const std::int64_t* strides;

  MutableArray() : data(nullptr), strides(nullptr) {}
  explicit MutableArray(void* d, const std::int64_t* s = nullptr) : data(d), strides(s) {}
};

// Scores and targets of one shape. A call computes `count` elements in C order from `first_index` on, so
// that data may be cut: channels and broadcast weights go by the index in the whole shape.
struct Inputs {
  ConstArray scores;   // kFloat32 or kFloat64
  ConstArray targets;  // the scores' dtype, or any integer type of DType
  const std::int64_t* shape;
  int ndim;  // 0..kMaxDims
  std::int64_t first_index;
  std::int64_t count;  // -1: all from first_index to the end

  Inputs() : shape(nullptr), ndim(0), first_index(0), count(-1) {}
};

constexpr int kMaxDims = 64;

// The divisor of the sum is max(1, d), with d by mode.
enum class Normalization : std::uint8_t {
  kFull,   // the number of elements of the whole shape
  kValid,  // the number of elements that are not ignored, among those of the call (or of a Partial):
           // a gradient in pieces needs the number of the whole, by kNumber
  kBatchSize,  // shape[0]; 1 for a 0-d score
  kNone,       // 1
  kNumber,     // Options::divisor itself, any finite number above 0: for shards and streams
};

struct Options {
  // Factor on the positive part of the loss. Count 0: off; 1: one number; otherwise one number per channel,
  // and then the count is shape[1]. Finite and >= 0; rounded to the scores' dtype.
  const double* pos_weight;
  std::int64_t pos_weight_count;

  // Factor per element, of the scores' dtype, kBool, kUint8 or kInt8; `data` null: off. Broadcasts by
  // zero strides. An element of weight 0 is masked: loss and gradient +0, counted as valid.
  ConstArray weight;

  // An element whose target, truncated to an integer, equals the label gives +0 and is not valid.
  bool has_ignore_label;
  std::int64_t ignore_label;

  Normalization normalization;
  double divisor;      // for kNumber
  double loss_weight;  // factor on the gradient (Caffe's top diff); the loss does not have it

  Options()
      : pos_weight(nullptr),
        pos_weight_count(0),
        has_ignore_label(false),
        ignore_label(0),
        normalization(Normalization::kBatchSize),
        divisor(1.0),
        loss_weight(1.0) {}
};

}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_OPTIONS_H_
