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
  kFloat16 = 7,  // as kBfloat16: computed in float32, rounded once
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
  bool as_float32;  // of float32, though the scores are float16 or bfloat16; on the CPU only

  MutableArray() : data(nullptr), strides(nullptr), as_float32(false) {}
  explicit MutableArray(void* d, const std::int64_t* s = nullptr)
      : data(d), strides(s), as_float32(false) {}
};

// Scores and targets of one shape. A call computes `count` elements in C order from `first_index` on, so
// that data may be cut: channels and broadcast weights go by the index in the whole shape.
struct Inputs {
  ConstArray scores;  // a floating type
  ConstArray
      targets;  // the scores' dtype, any integer type of DType, or kFloat32 beside 16-bit scores
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
  kForeground,  // the number of targets that are 1 and not ignored, among those of the call: one more read of
                // the targets
};

// Weights of the two classes by how many there are: P targets are 1, M are 0, ignored ones aside.
enum class Balance : std::uint8_t {
  kNone,       // 1 and 1
  kImage,      // M / (P + M) and P / (P + M), counted for each index of axis 0
  kBatch,      // the same, counted over the whole
  kBatchMean,  // V / (2 P) and V / (2 (V - P)), over the whole, with V = P + M and P kept in [1, V - 1]
};

// Targets other than 0 and 1.
enum class Uncertain : std::uint8_t {
  kSoft,    // between the classes: weights interpolate, and neither count has them
  kIgnore,  // ignored, like those of the label
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
  Uncertain uncertain;

  // t becomes t (1 - s) + s / 2, after what is ignored or counted has been found. In [0, 1).
  double label_smoothing;

  // Weights w+ and w- of the two classes: the element weight has the factor t w+ + (1 - t) w-. By `balance`, times
  // alpha and (1 - alpha) negative_scale. Counting takes one more read of the targets, and needs the whole array.
  Balance balance;
  bool balance_per_channel;  // counted for each index of axis 1 by itself
  double negative_scale;     // finite and >= 0
  bool has_alpha;
  double alpha;  // in [0, 1]
  // What cpu::class_weights gave, w+ and w- of each group, for a pass that is not to count, or for a piece of the array.
  // Null: off.
  const double* class_weights;

  // Focal loss: the factor r^gamma, r = 1 - p where p = t sigmoid(x) + (1 - t) sigmoid(-x). 0: off. In [0, 1e6]. Targets
  // outside [0, 1] give NaN.
  double gamma;

  Normalization normalization;
  double divisor;      // for kNumber
  double loss_weight;  // factor on the gradient (Caffe's top diff); the loss does not have it

  Options()
      : pos_weight(nullptr),
        pos_weight_count(0),
        has_ignore_label(false),
        ignore_label(0),
        uncertain(Uncertain::kSoft),
        label_smoothing(0.0),
        balance(Balance::kNone),
        balance_per_channel(false),
        negative_scale(1.0),
        has_alpha(false),
        alpha(0.5),
        class_weights(nullptr),
        gamma(0.0),
        normalization(Normalization::kBatchSize),
        divisor(1.0),
        loss_weight(1.0) {}
};

}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_OPTIONS_H_
