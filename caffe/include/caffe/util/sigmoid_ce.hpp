// sigmoid_ce 0.1.0, made from its sources by tools/make_overlay.py.
// (c) 2026, the sigmoid_ce developers. BSD 2-Clause License.
#ifndef CAFFE_UTIL_SIGMOID_CE_HPP_
#define CAFFE_UTIL_SIGMOID_CE_HPP_

#include <cstddef>
#include <cstdint>
// The version: the only place that states it. CMake and the Python package read
// it from here.

#define SIGMOID_CE_VERSION "0.1.0"

// What every function of the C++ API returns: a code, the argument at fault and
// one sentence.

namespace sigmoid_ce {

enum class Code {
  kOk = 0,
  kInvalidArgument,  // an argument has a wrong value; `argument` names it
  kUnsupported,  // the machine lacks what was asked for (an instruction set,
                 // say)
  kOutOfMemory,  // the staging buffers, or memory of a device, could not be
                 // had; nothing was computed
  kNoDevice,     // no GPU, no driver for it, or one that is too old
  kDeviceError,  // CUDA reported an error, perhaps of work that was started
                 // before
};

// No allocation and no exception: both strings have static storage.
struct Status {
  Code code;
  const char* argument;  // name of the argument at fault, "" when there is none
  const char* message;   // what was expected, "" when ok
  int cuda_error;  // the cudaError_t behind the code, 0 when there is none

  Status() : code(Code::kOk), argument(""), message(""), cuda_error(0) {}
  Status(Code c, const char* arg, const char* text, int error = 0)
      : code(c), argument(arg), message(text), cuda_error(error) {}
  bool ok() const { return code == Code::kOk; }
};

}  // namespace sigmoid_ce

// Arrays and options of the loss. Semantics are Caffe's
// (SigmoidCrossEntropyLossLayer, LossParameter).

namespace sigmoid_ce {

enum class DType : std::uint8_t {
  kFloat32 = 0,
  kFloat64 = 1,
  kBool = 2,  // a byte; any value but 0 is true
  kUint8 = 3,
  kInt8 = 4,
  kInt32 = 5,
  kInt64 = 6,    // saturated to 32 bits before it becomes a float; ignore_label
                 // compares all 64 bits
  kFloat16 = 7,  // as kBfloat16: computed in float32, rounded once
  kBfloat16 = 8,
};

// An array that is read. `strides` holds one stride in bytes per axis of
// Inputs::shape (0 broadcasts, negative is fine). Without strides the array is
// contiguous in C order and `data` points at the element of index
// Inputs::first_index; with strides `data` points at element 0 of the whole
// shape.
struct ConstArray {
  const void* data;
  DType dtype;
  const std::int64_t* strides;

  ConstArray() : data(nullptr), dtype(DType::kFloat32), strides(nullptr) {}
  ConstArray(const void* d, DType t, const std::int64_t* s = nullptr)
      : data(d), dtype(t), strides(s) {}
};

// An array that is written, of the scores' dtype. Same addressing as
// ConstArray.
struct MutableArray {
  void* data;
  const std::int64_t* strides;
  bool as_float32;  // of float32, though the scores are float16 or bfloat16; on
                    // the CPU only

  MutableArray() : data(nullptr), strides(nullptr), as_float32(false) {}
  explicit MutableArray(void* d, const std::int64_t* s = nullptr)
      : data(d), strides(s), as_float32(false) {}
};

// Scores and targets of one shape. A call computes `count` elements in C order
// from `first_index` on, so that data may be cut: channels and broadcast
// weights go by the index in the whole shape.
struct Inputs {
  ConstArray scores;   // a floating type
  ConstArray targets;  // the scores' dtype, any integer type of DType, or
                       // kFloat32 beside 16-bit scores
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
  kValid,  // the number of elements that are not ignored, among those of the
           // call (or of a Partial): a gradient in pieces needs the number of
           // the whole, by kNumber
  kBatchSize,  // shape[0]; 1 for a 0-d score
  kNone,       // 1
  kNumber,     // Options::divisor itself, any finite number above 0: for shards
               // and streams
  kForeground,  // the number of targets that are 1 and not ignored, among those
                // of the call: one more read of the targets
};

// Weights of the two classes by how many there are: P targets are 1, M are 0,
// ignored ones aside.
enum class Balance : std::uint8_t {
  kNone,       // 1 and 1
  kImage,      // M / (P + M) and P / (P + M), counted for each index of axis 0
  kBatch,      // the same, counted over the whole
  kBatchMean,  // V / (2 P) and V / (2 (V - P)), over the whole, with V = P + M
               // and P kept in [1, V - 1]
};

// Targets other than 0 and 1.
enum class Uncertain : std::uint8_t {
  kSoft,    // between the classes: weights interpolate, and neither count has
            // them
  kIgnore,  // ignored, like those of the label
};

struct Options {
  // Factor on the positive part of the loss. Count 0: off; 1: one number;
  // otherwise one number per channel, and then the count is shape[1]. Finite
  // and >= 0; rounded to the scores' dtype.
  const double* pos_weight;
  std::int64_t pos_weight_count;

  // Factor per element, of the scores' dtype, kBool, kUint8 or kInt8; `data`
  // null: off. Broadcasts by zero strides. An element of weight 0 is masked:
  // loss and gradient +0, counted as valid.
  ConstArray weight;

  // An element whose target, truncated to an integer, equals the label gives +0
  // and is not valid.
  bool has_ignore_label;
  std::int64_t ignore_label;
  Uncertain uncertain;

  // t becomes t (1 - s) + s / 2, after what is ignored or counted has been
  // found. In [0, 1).
  double label_smoothing;

  // Weights w+ and w- of the two classes: the element weight has the factor t
  // w+ + (1 - t) w-. By `balance`, times alpha and (1 - alpha) negative_scale.
  // Counting takes one more read of the targets, and needs the whole array.
  Balance balance;
  bool balance_per_channel;  // counted for each index of axis 1 by itself
  double negative_scale;     // finite and >= 0
  bool has_alpha;
  double alpha;  // in [0, 1]
  // What cpu::class_weights gave, w+ and w- of each group, for a pass that is
  // not to count, or for a piece of the array. Null: off.
  const double* class_weights;

  // Focal loss: the factor r^gamma, r = 1 - p where p = t sigmoid(x) + (1 - t)
  // sigmoid(-x). 0: off. In [0, 1e6]. Targets outside [0, 1] give NaN.
  double gamma;

  Normalization normalization;
  double divisor;      // for kNumber
  double loss_weight;  // factor on the gradient (Caffe's top diff); the loss
                       // does not have it

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

// The result of a forward pass over some elements: an exact sum and counts.
// Every word is additive.

namespace sigmoid_ce {

// The sum of block sums as a fixed-point number, value = sum of limb[k] * 2^(32
// k - 1088): no rounding, so the order of addition does not matter, and integer
// addition of all words (an all-reduce with SUM, at most 2^30 normalised parts)
// merges two partials. A double of any exponent fits, 2^63 of them too.
struct Partial {
  static constexpr int kLimbs = 68;
  static constexpr int kWords = kLimbs + 5;

  std::int64_t limb[kLimbs];
  std::int64_t n_nan;     // blocks of 4096 elements whose sum was NaN
  std::int64_t n_posinf;  // ... was +inf
  std::int64_t n_neginf;  // ... was -inf
  std::int64_t n_valid;   // elements not ignored
  std::int64_t n_total;   // all elements

  Partial();  // zero
  void add(
      double block_sum);  // exact; at most 2^30 calls between two normalize()
  void add(const Partial& other);  // exact; normalises both
  void
  normalize();  // carries: limbs 0..66 into [0, 2^32), the sign in the last
  double sum()
      const;  // rounded once, to nearest even; NaN and infinities by the counts
  bool operator==(const Partial& other) const;  // after normalising
};

// 73 additive words, in the order of the members: what an all-reduce carries.
static_assert(sizeof(Partial) == Partial::kWords * sizeof(std::int64_t),
              "Partial is its words");

}  // namespace sigmoid_ce

// The loss on the CPU. Formula, bounds and the guarantee of equal bits:
// docs/numerics.md.
//
//   loss = w (p t log(1 + exp(-x)) + (1 - t) log(1 + exp(x)))     score x,
//   target t, pos_weight p, weight w for p = w = 1: max(x, 0) - x t +
//   log1p(exp(-|x|))
//
// Thread-safe and fork-safe. Inputs are never written. No exception leaves
// these functions. Memory: where an array is strided, broadcast or converted,
// 288 KiB per thread of the call, kept for the next call; 32 bytes for each
// group of `balance`, for the call; else none.

namespace sigmoid_ce {
namespace cpu {

// The sum of the losses and the counts; and the divisor max(1, d) that
// `options` asks for, where it is wanted.
Status forward(const Inputs& inputs, const Options& options, Partial* partial,
               double* divisor = nullptr);

// The loss of each element: reduction "none", no divisor.
Status elementwise(const Inputs& inputs, const Options& options,
                   const MutableArray& losses);

// d loss / d scores, times loss_weight / divisor. The output may be the scores
// array itself; any other overlap with an input is refused where the arrays are
// contiguous, and not allowed where they are strided.
Status backward(const Inputs& inputs, const Options& options,
                const MutableArray& gradient);

// Both in one pass over memory.
Status forward_backward(const Inputs& inputs, const Options& options,
                        Partial* partial, const MutableArray& gradient,
                        double* divisor = nullptr);

// And the second derivatives, with the same factors: the diagonal of the
// Hessian, beside which there is nothing.
Status forward_backward(const Inputs& inputs, const Options& options,
                        Partial* partial, const MutableArray& gradient,
                        const MutableArray& hessian, double* divisor = nullptr);

// d loss / d targets, times loss_weight / divisor; 0 where they are ignored or
// masked. Counts of `balance` and of the divisor are taken for constants. In
// the scores' dtype; the output may be the scores array itself.
Status backward_targets(const Inputs& inputs, const Options& options,
                        const MutableArray& gradient);

// w+ and w- of each group of `balance`, for Options::class_weights, so that a
// second pass need not count: 2 class_weight_groups() numbers. A group is an
// image, a channel, a channel of an image (images first), or all.
std::int64_t class_weight_groups(const Inputs& inputs,
                                 const Options& options);  // 0: bad arguments
Status class_weights(const Inputs& inputs, const Options& options,
                     double* weights);

// sum / divisor in float64; and the divisor by the counts of a Partial, of any
// normalization but kForeground.
double divide(const Partial& partial, double divisor);
double divisor(const Inputs& inputs, const Options& options,
               const Partial& partial);
double loss(const Inputs& inputs, const Options& options,
            const Partial& partial);

// Instruction sets: "scalar", "avx2", "avx512", "neon". The best that the
// machine has is used, unless the environment variable SIGMOID_CE_ISA or
// set_isa names another. The result's bits do not depend on it. A variable that
// names none makes calls return an error, as does SIGMOID_CE_NUM_THREADS below.
Status set_isa(const char* name);  // nullptr: back to the default
const char* isa();  // the one in use, "" when SIGMOID_CE_ISA names none
int isa_count();    // compiled in and supported here
const char* isa_name(int index);  // best first, nullptr outside of the range
int compiled_isa_count();  // compiled in, whether this machine has them or not
const char* compiled_isa_name(int index);

// Threads: by default as many as the process may use (affinity, cgroup quota),
// or SIGMOID_CE_NUM_THREADS.
Status set_num_threads(int n);  // 0: back to the default
int num_threads();              // 0 when SIGMOID_CE_NUM_THREADS is no number

}  // namespace cpu
}  // namespace sigmoid_ce

// The loss on a CUDA device. The same formula, semantics and, for float32 and
// float64 scores, the same bits as on the CPU (cpu.h), for every device and
// grid: docs/numerics.md.
//
// All functions only put work into a stream and return: no allocation, no wait
// for the device, no default stream but where the caller passes it. They may be
// captured into a graph (after a first call outside of one, which loads the
// kernels), and called from any number of threads. Pointers are of device
// memory unless they say otherwise, on the device that is current in the
// calling thread. Inputs are never written.

struct CUstream_st;

namespace sigmoid_ce {
namespace cuda {

using Stream = CUstream_st*;  // cudaStream_t

// Inputs: scores float16, bfloat16 (computed in float32, results rounded once),
// float32 or float64; targets of the scores' dtype, float32, or any integer
// type. An array with strides may have up to 8 axes that cannot be merged.
using sigmoid_ce::Inputs;

// As on the CPU, with these differences:
struct Options : sigmoid_ce::Options {
  // Options::pos_weight is a number in host memory, and pos_weight_count at
  // most 1. One value per channel (axis 1), or one for all, stands here, in
  // device memory: float64 for float64 scores, else float32. Finite and >= 0,
  // which nobody checks.
  const void* channel_pos_weight = nullptr;
  std::int64_t channel_pos_weight_count = 0;

  // One weight for all elements, in host memory, instead of Options::weight.
  // Null: off.
  const double* uniform_weight = nullptr;

  // The divisor of the gradient in device memory, such as Results::divisor of a
  // forward pass, instead of the one that `normalization` asks for. Null: off.
  const double* gradient_divisor = nullptr;

  // As Options::class_weights, which is null here, in device memory: what
  // Results::class_weights of another pass got. With a divisor nothing needs to
  // be counted then.
  const double* device_class_weights = nullptr;

  Options() = default;
};

// What a pass leaves in device memory. Null where it is not wanted.
struct Results {
  void* loss = nullptr;  // sum / divisor, computed in float64, of loss_dtype
  DType loss_dtype = DType::kFloat64;  // or kFloat32
  // max(1, d), as `normalization` asks for. For a piece of an array d is that
  // of the whole shape with kFull and kBatchSize, as for the gradient
  // (cpu::divisor of a Partial counts its elements), and that of the piece with
  // kValid and kForeground.
  double* divisor = nullptr;
  Partial* partial = nullptr;  // the exact sum, normalised, and the counts
  double* class_weights =
      nullptr;  // w+ and w- of each group: 2 class_weight_groups() numbers

  Results() = default;
};

// Bytes of device memory that a call needs, aligned to 8: `workspace` below. 16
// for each group of `balance`, and some hundreds. A call may use those of
// another that went into the same stream before; calls in different streams
// need their own.
std::size_t workspace_size(const Inputs& inputs, const Options& options);

// As on the CPU. 0: bad arguments.
std::int64_t class_weight_groups(const Inputs& inputs, const Options& options);

// The sum of the losses.
Status forward(const Inputs& inputs, const Options& options,
               const Results& results, void* workspace, Stream stream);

// The loss of each element: reduction "none", no divisor. The workspace is for
// `balance` alone, and may be null without.
Status elementwise(const Inputs& inputs, const Options& options,
                   const MutableArray& losses, void* workspace, Stream stream);
Status elementwise(const Inputs& inputs, const Options& options,
                   const MutableArray& losses, Stream stream);

// d loss / d scores, times loss_weight / divisor. Balance, kForeground, and
// kValid where targets may be ignored, read the targets once more, to count.
// Outputs are of the scores' dtype: MutableArray::as_float32 is for the CPU.
// The output may be the scores array itself; other overlaps are as on the CPU.
Status backward(const Inputs& inputs, const Options& options,
                const MutableArray& gradient, void* workspace, Stream stream);

// Both in one pass over memory.
Status forward_backward(const Inputs& inputs, const Options& options,
                        const Results& results, const MutableArray& gradient,
                        void* workspace, Stream stream);

// And the second derivatives, as on the CPU.
Status forward_backward(const Inputs& inputs, const Options& options,
                        const Results& results, const MutableArray& gradient,
                        const MutableArray& hessian, void* workspace,
                        Stream stream);

// d loss / d targets, as on the CPU.
Status backward_targets(const Inputs& inputs, const Options& options,
                        const MutableArray& gradient, void* workspace,
                        Stream stream);

// What a number of CUDA's type cudaError_t means. The runtime forgets the
// error, which it would report again.
Status status_of(int cuda_error);

// What there is. Not kOk: no GPU, no driver, one that is too old; the message
// says which.
Status device_count(int* count);

struct DeviceInfo {
  char name[256];
  int major, minor;  // compute capability
  int multiprocessors;
  std::size_t memory;  // bytes
  int driver_version;  // of CUDA, 1000 major + 10 minor
  int runtime_version;
};
Status device_info(int device, DeviceInfo* info);

}  // namespace cuda
}  // namespace sigmoid_ce

#endif  // CAFFE_UTIL_SIGMOID_CE_HPP_
