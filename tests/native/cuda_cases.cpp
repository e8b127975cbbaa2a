// Random calls of sigmoid_ce::cuda against sigmoid_ce::cpu on the same numbers: types of scores and targets, layouts
// (permuted axes, gaps, negative strides, broadcasts, any alignment), options, pieces, empty arrays, in place. The
// results must have the CPU's bits: those of the half types, the bits of the float32 results on the same numbers,
// rounded once, and the same sums. Memory that a pass has no business with must not change.
//
//   cuda_cases [SEED [CASES]]    so many cases per pair of types
//
// Exits with 1 and a message per case that differs, else prints the numbers of cases and of elements.
#include <cuda_runtime.h>

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "math/call.h"
#include "math/half.h"
#include "sigmoid_ce/cpu.h"
#include "sigmoid_ce/cuda.h"

namespace {

namespace cpu = sigmoid_ce::cpu;
namespace cuda = sigmoid_ce::cuda;
using sigmoid_ce::Balance;
using sigmoid_ce::ConstArray;
using sigmoid_ce::DType;
using sigmoid_ce::Inputs;
using sigmoid_ce::MutableArray;
using sigmoid_ce::Normalization;
using sigmoid_ce::Partial;
using sigmoid_ce::Status;
using sigmoid_ce::math::Bfloat16;
using sigmoid_ce::math::Float16;

constexpr int kAxes = 8;
constexpr int kGuard = 64;               // bytes before and after each array
constexpr unsigned char kPoison = 0xA5;  // no result has it all over

int cases = 0, failures = 0;
std::int64_t elements = 0;
std::mt19937_64 generator;

std::int64_t draw(std::int64_t n) {
  return static_cast<std::int64_t>(generator() % static_cast<std::uint64_t>(n));
}
bool chance(int in) { return draw(in) == 0; }
double unit() { return static_cast<double>(generator() >> 11) / 9007199254740992.0; }

void must(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(2);
}

// ---- Types ----

template <class T>
struct Type;
template <>
struct Type<float> {
  static constexpr DType kDType = DType::kFloat32;
};
template <>
struct Type<double> {
  static constexpr DType kDType = DType::kFloat64;
};
template <>
struct Type<Float16> {
  static constexpr DType kDType = DType::kFloat16;
};
template <>
struct Type<Bfloat16> {
  static constexpr DType kDType = DType::kBfloat16;
};
template <>
struct Type<bool> {
  static constexpr DType kDType = DType::kBool;
};
template <>
struct Type<std::uint8_t> {
  static constexpr DType kDType = DType::kUint8;
};
template <>
struct Type<std::int8_t> {
  static constexpr DType kDType = DType::kInt8;
};
template <>
struct Type<std::int32_t> {
  static constexpr DType kDType = DType::kInt32;
};
template <>
struct Type<std::int64_t> {
  static constexpr DType kDType = DType::kInt64;
};

// The CPU's type for scores of X, and for targets of T beside such scores.
template <class X>
using Computed = typename std::conditional<std::is_same<X, double>::value, double, float>::type;
template <class X, class T>
using Target = typename std::conditional<std::is_integral<T>::value, T, Computed<X>>::type;

template <class To>
void convert(Float16 v, To* to) {
  *to = sigmoid_ce::math::widen(v);
}
template <class To>
void convert(Bfloat16 v, To* to) {
  *to = sigmoid_ce::math::widen(v);
}
template <class From, class To>
void convert(From v, To* to) {
  *to = static_cast<To>(v);
}
void convert(float v, Float16* to) { sigmoid_ce::math::narrow(v, to); }
void convert(float v, Bfloat16* to) { sigmoid_ce::math::narrow(v, to); }

// Ordinary scores, and in one place of 8 any bits.
template <class X>
void make_score(X* out) {
  const Computed<X> v = static_cast<Computed<X>>((unit() - 0.5) * (chance(8) ? 256 : 24));
  convert(v, out);
  if (chance(8)) {
    const std::uint64_t bits = generator();
    std::memcpy(out, &bits, sizeof(X));
  }
}
template <class T, typename std::enable_if<!std::is_integral<T>::value, int>::type = 0>
void make_target(T* out) {
  const std::int64_t kind = draw(8);
  const Computed<T> v = kind < 2   ? 0
                        : kind < 4 ? 1
                                   : static_cast<Computed<T>>(kind == 4 ? draw(5) - 2 : unit());
  convert(v, out);
  if (chance(32)) {
    const std::uint64_t bits = generator();
    std::memcpy(out, &bits, sizeof(T));
  }
}
template <class T, typename std::enable_if<std::is_integral<T>::value, int>::type = 0>
void make_target(T* out) {
  std::uint64_t bits = generator();
  if (!chance(8)) {
    const T small = static_cast<T>(draw(4) - (std::is_signed<T>::value ? 1 : 0));
    std::memcpy(&bits, &small, sizeof small);
  }
  std::memcpy(out, &bits, sizeof(T));  // of bool too: any byte
}

template <class X>
bool is_nan(X v) {
  double wide;
  convert(v, &wide);
  return wide != wide;
}
template <class X>
bool same(X a, X b) {
  return std::memcmp(&a, &b, sizeof a) == 0 || (is_nan(a) && is_nan(b));
}

// ---- Arrays ----

// Where the elements of an array lie. Without strides it holds the elements of the call alone.
struct Layout {
  bool strided = false;
  std::int64_t strides[kAxes] = {};
  std::int64_t start = 0;  // bytes from the begin of the memory to `data`
  std::int64_t size = 0;   // bytes

  const std::int64_t* pointer() const { return strided ? strides : nullptr; }
};

struct Shape {
  std::int64_t lengths[kAxes];
  int ndim;
  std::int64_t total;
  std::int64_t first, count;
};

// The byte of an element, from the begin of the memory.
std::int64_t place(const Layout& layout, const Shape& shape, std::int64_t itemsize,
                   std::int64_t index) {
  if (!layout.strided) return layout.start + (index - shape.first) * itemsize;
  std::int64_t offset = layout.start;
  for (int d = shape.ndim - 1; d >= 0; --d) {
    offset += index % shape.lengths[d] * layout.strides[d];
    index /= shape.lengths[d];
  }
  return offset;
}

// Whether elements share memory.
bool broadcasts(const Layout& layout, const Shape& shape) {
  for (int d = 0; layout.strided && d < shape.ndim; ++d) {
    if (layout.strides[d] == 0 && shape.lengths[d] > 1) return true;
  }
  return false;
}

Layout contiguous(const Shape& shape, std::int64_t itemsize) {
  Layout layout;
  layout.start = kGuard + (chance(2) ? 0 : draw(5) * itemsize);
  layout.size = layout.start + shape.count * itemsize + kGuard;
  return layout;
}

// Axes in any order and direction, with gaps; those of `mask` broadcast.
Layout scattered(const Shape& shape, std::int64_t itemsize, unsigned mask, bool plain) {
  Layout layout;
  layout.strided = true;
  int order[kAxes];
  for (int d = 0; d < shape.ndim; ++d) order[d] = shape.ndim - 1 - d;
  if (!plain && chance(2)) std::shuffle(order, order + shape.ndim, generator);
  std::int64_t step = itemsize * (plain || chance(2) ? 1 : 1 + draw(3));
  std::int64_t back = 0, reach = 0;
  for (int k = 0; k < shape.ndim; ++k) {
    const int d = order[k];
    if (mask >> d & 1) continue;
    const std::int64_t span = (shape.lengths[d] - 1) * step;
    reach += span;
    layout.strides[d] = step;
    if (!plain && chance(3)) {
      layout.strides[d] = -step;
      back += span;
    }
    step *= shape.lengths[d];
    if (!plain && chance(4)) step += itemsize * draw(4);
  }
  layout.start = kGuard + back + (chance(2) ? 0 : draw(5) * itemsize);
  layout.size = layout.start - back + reach + itemsize + kGuard;
  return layout;
}

Layout any_layout(const Shape& shape, std::int64_t itemsize, bool broadcasts) {
  if (shape.total == 0 || chance(2)) return contiguous(shape, itemsize);
  if (chance(4)) return scattered(shape, itemsize, 0, true);
  const unsigned mask = broadcasts && chance(4) ? static_cast<unsigned>(draw(256)) : 0;
  return scattered(shape, itemsize, mask, false);
}

// Memory of the device with what it held at first.
class Memory {
 public:
  explicit Memory(std::vector<unsigned char> content) : content_(std::move(content)) {
    must(cudaMalloc(&data_, content_.size() + 1));
    if (content_.empty()) return;
    must(cudaMemcpy(data_, content_.data(), content_.size(), cudaMemcpyHostToDevice));
  }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* at(std::int64_t offset) const { return static_cast<char*>(data_) + offset; }
  const std::vector<unsigned char>& before() const { return content_; }
  std::vector<unsigned char> now() const {
    std::vector<unsigned char> content(content_.size());
    if (!content.empty()) {
      must(cudaMemcpy(content.data(), data_, content.size(), cudaMemcpyDeviceToHost));
    }
    return content;
  }

 private:
  std::vector<unsigned char> content_;
  void* data_ = nullptr;
};

template <class T>
std::vector<T> read(const std::vector<unsigned char>& memory, const Layout& layout,
                    const Shape& shape) {
  std::vector<T> values(static_cast<std::size_t>(shape.count) + 1);
  for (std::int64_t i = 0; i < shape.count; ++i) {
    std::memcpy(reinterpret_cast<char*>(values.data()) + i * static_cast<std::int64_t>(sizeof(T)),
                &memory[place(layout, shape, sizeof(T), shape.first + i)], sizeof(T));
  }
  return values;
}

std::vector<unsigned char> poisoned(std::int64_t size) {
  return std::vector<unsigned char>(static_cast<std::size_t>(size), kPoison);
}

template <class T, class Make>
std::vector<unsigned char> filled(const Layout& layout, const Shape& shape, Make make) {
  std::vector<unsigned char> memory = poisoned(layout.size);
  for (std::int64_t i = 0; i < shape.count; ++i) {
    unsigned char bytes[sizeof(T)];
    make(reinterpret_cast<T*>(bytes));
    std::memcpy(&memory[place(layout, shape, sizeof(T), shape.first + i)], bytes, sizeof(T));
  }
  return memory;
}

// ---- One case ----

Shape any_shape() {
  Shape shape;
  const bool large = chance(4);
  shape.ndim = static_cast<int>(large ? 1 + draw(4) : draw(kAxes + 1));
  const std::int64_t most = large ? 20000 : 3000;
  shape.total = 1;
  for (int d = 0; d < shape.ndim; ++d) {
    std::int64_t length = 1 + draw(shape.ndim > 4 ? 4 : 40);
    if (d == shape.ndim - 1 && chance(2)) length = 16 * (1 + draw(40));
    if (shape.ndim == 1) length = 1 + draw(most);
    if (shape.total * length > most) length = 1;
    shape.lengths[d] = length;
    shape.total *= length;
  }
  if (shape.ndim > 0 && chance(40)) {
    shape.lengths[draw(shape.ndim)] = 0;
    shape.total = 0;
  }
  shape.first = 0;
  shape.count = shape.total;
  if (shape.total > 0 && chance(3)) {
    shape.first = draw(shape.total);
    shape.count = chance(20) ? 0 : 1 + draw(shape.total - shape.first);
  }
  return shape;
}

// Channels and weights go by an index that no memory of a machine has.
Shape far_shape() {
  Shape shape;
  shape.ndim = 3;
  shape.lengths[0] = std::int64_t(1) << 21;
  shape.lengths[1] = 3;
  shape.lengths[2] = (std::int64_t(1) << 20) + draw(2) * 5;
  shape.total = shape.lengths[0] * shape.lengths[1] * shape.lengths[2];
  shape.count = 1 + draw(9000);
  shape.first = (std::int64_t(1) << 41) + draw(std::int64_t(1) << 40);
  if (chance(2)) shape.first &= -16;
  return shape;
}

// More pieces of work than the blocks of a small GPU: a block has several in turn.
Shape long_shape() {
  Shape shape;
  shape.ndim = 3;
  shape.lengths[0] = 5;
  shape.lengths[1] = 1 + draw(3);
  shape.lengths[2] = 900000 / (5 * shape.lengths[1]) + draw(40);
  shape.total = shape.lengths[0] * shape.lengths[1] * shape.lengths[2];
  shape.first = 0;
  shape.count = shape.total;
  return shape;
}

enum Kind { kAny, kFar, kLong };

struct Report {
  std::string text;
  bool wrong = false;

  void add(const char* what) {
    if (!wrong) std::fprintf(stderr, "%s:", text.c_str());
    std::fprintf(stderr, " %s;", what);
    wrong = true;
  }
  void check(bool right, const char* what) {
    if (!right) add(what);
  }
  void check(const Status& status, const char* what) {
    if (status.ok()) return;
    add(what);
    std::fprintf(stderr, " %s: %s;", status.argument, status.message);
  }
};

// The elements of a result, and that nothing beside them was written.
template <class X, class R>
void compare(Report* report, const Memory& memory, const Layout& layout, const Shape& shape,
             const std::vector<R>& wanted, const char* what) {
  const std::vector<unsigned char> now = memory.now();
  const std::vector<X> got = read<X>(now, layout, shape);
  std::int64_t differ = 0;
  std::vector<unsigned char> restored = now;
  for (std::int64_t i = 0; i < shape.count; ++i) {
    X rounded;
    convert(wanted[i], &rounded);
    differ += same(got[i], rounded) ? 0 : 1;
    const std::int64_t p = place(layout, shape, sizeof(X), shape.first + i);
    std::copy_n(&memory.before()[p], sizeof(X), &restored[p]);
  }
  report->check(differ == 0, what);
  report->check(restored == memory.before(), "memory beside a result was written");
}

template <class X, class T>
void run_case(const std::string& name, Kind kind) {
  using C = Computed<X>;
  using S = Target<X, T>;
  ++cases;
  Report report;
  const bool far = kind == kFar;
  const Shape shape = far ? far_shape() : kind == kLong ? long_shape() : any_shape();
  const bool empty = shape.total == 0;
  elements += shape.count;
  report.text = name + " case " + std::to_string(cases) + ", shape";
  for (int d = 0; d < shape.ndim; ++d) report.text += " " + std::to_string(shape.lengths[d]);
  report.text += ", " + std::to_string(shape.count) + " from " + std::to_string(shape.first);

  // ---- Arrays, there and here ----
  const auto layout = [&](std::int64_t itemsize, bool broadcasts) {
    return far ? contiguous(shape, itemsize) : any_layout(shape, itemsize, broadcasts);
  };
  const Layout score_layout = layout(sizeof(X), true), target_layout = layout(sizeof(T), true);
  const Layout out_layout = layout(sizeof(X), false), hessian_layout = layout(sizeof(X), false);
  const Memory scores(filled<X>(score_layout, shape, [](X* p) { make_score(p); }));
  const Memory targets(filled<T>(target_layout, shape, [](T* p) { make_target(p); }));
  const std::vector<X> score_values = read<X>(scores.before(), score_layout, shape);
  std::vector<C> plain_scores(score_values.size());
  for (std::size_t i = 0; i < score_values.size(); ++i) convert(score_values[i], &plain_scores[i]);
  std::vector<unsigned char> plain_targets((static_cast<std::size_t>(shape.count) + 1) * sizeof(S));
  for (std::int64_t i = 0; i < shape.count; ++i) {
    const unsigned char* const from =
        &targets.before()[place(target_layout, shape, sizeof(T), shape.first + i)];
    unsigned char* const to = &plain_targets[static_cast<std::size_t>(i) * sizeof(S)];
    if (std::is_integral<T>::value) {
      std::copy_n(from, sizeof(T), to);
    } else {
      T t;
      S converted;
      std::memcpy(&t, from, sizeof t);
      convert(t, &converted);
      std::memcpy(to, &converted, sizeof converted);
    }
  }

  Inputs inputs;
  inputs.scores =
      ConstArray(scores.at(score_layout.start), Type<X>::kDType, score_layout.pointer());
  inputs.targets =
      ConstArray(targets.at(target_layout.start), Type<T>::kDType, target_layout.pointer());
  inputs.shape = shape.lengths;
  inputs.ndim = shape.ndim;
  inputs.first_index = shape.first;
  inputs.count = shape.count;
  Inputs plain = inputs;
  plain.scores = ConstArray(plain_scores.data(), Type<C>::kDType);
  plain.targets = ConstArray(plain_targets.data(), Type<S>::kDType);

  // ---- Options ----
  cuda::Options options;
  sigmoid_ce::Options wanted_options;
  double pos_weight = 2.5;
  std::vector<double> pos_weights;
  std::vector<unsigned char> channel_values;
  const std::int64_t pos_weight_kind = draw(3);
  if (pos_weight_kind == 1) {
    pos_weight = chance(8) ? 0 : unit() * 4;
    options.pos_weight = &pos_weight;
    options.pos_weight_count = 1;
    wanted_options.pos_weight = &pos_weight;
    wanted_options.pos_weight_count = 1;
  } else if (pos_weight_kind == 2 && shape.ndim >= 2 && shape.lengths[1] > 0) {
    for (std::int64_t k = 0; k < shape.lengths[1]; ++k) {
      const C value = static_cast<C>(unit() * 4);
      pos_weights.push_back(value);
      const unsigned char* const bytes = reinterpret_cast<const unsigned char*>(&value);
      channel_values.insert(channel_values.end(), bytes, bytes + sizeof value);
    }
    options.channel_pos_weight_count = shape.lengths[1];
    wanted_options.pos_weight = pos_weights.data();
    wanted_options.pos_weight_count = shape.lengths[1];
  }
  const Memory channels(channel_values);
  if (!channel_values.empty()) options.channel_pos_weight = channels.at(0);

  // Weights: of the scores' type, or bytes; of some axes or all.
  const std::int64_t weight_kind = draw(6);
  double uniform = chance(8) ? 0 : unit() * 4;
  C uniform_value = static_cast<C>(uniform);
  const std::int64_t nowhere[kAxes] = {};
  Layout weight_layout;
  std::vector<unsigned char> weight_bytes;
  const DType byte_types[] = {DType::kBool, DType::kUint8, DType::kInt8};
  const DType weight_type = weight_kind == 4 ? byte_types[draw(3)] : Type<X>::kDType;
  const std::int64_t weight_size = weight_kind == 4 ? 1 : static_cast<std::int64_t>(sizeof(X));
  std::vector<unsigned char> plain_weight;
  if (weight_kind == 1) {
    options.uniform_weight = &uniform;
    wanted_options.weight = ConstArray(&uniform_value, Type<C>::kDType, nowhere);
  } else if (weight_kind >= 2 && !empty) {
    // Broadcast as NumPy would, or an array of its own layout.
    if (chance(3) && !far) {
      weight_layout = any_layout(shape, weight_size, false);
    } else {
      const unsigned mask = far ? (chance(2) ? 5 : 7) : static_cast<unsigned>(draw(256));
      weight_layout = scattered(shape, weight_size, mask, true);
    }
    weight_bytes = poisoned(weight_layout.size);
    plain_weight.resize((static_cast<std::size_t>(shape.count) + 1) * sizeof(C));
    const bool ones = chance(8);
    for (std::int64_t i = 0; i < shape.count; ++i) {
      const std::int64_t p = place(weight_layout, shape, weight_size, shape.first + i);
      // Drawn by the place: elements that share one have one weight.
      std::uint64_t u = static_cast<std::uint64_t>(p) * 0x9E3779B97F4A7C15u;
      u ^= u >> 29;
      if (weight_kind == 4) {
        const unsigned char byte = ones ? 1 : static_cast<unsigned char>(u % 4);
        weight_bytes[p] = byte;
        plain_weight[i] = byte;
      } else {
        X value;
        convert(static_cast<C>(ones ? 1 : static_cast<double>(u % 64) / 16), &value);
        std::memcpy(&weight_bytes[p], &value, sizeof value);
        C wide;
        convert(value, &wide);
        std::memcpy(&plain_weight[static_cast<std::size_t>(i) * sizeof(C)], &wide, sizeof wide);
      }
    }
    wanted_options.weight =
        ConstArray(plain_weight.data(), weight_kind == 4 ? weight_type : Type<C>::kDType);
  }
  const Memory weights(weight_bytes);
  if (weight_kind >= 2 && !empty) {
    options.weight =
        ConstArray(weights.at(weight_layout.start), weight_type, weight_layout.pointer());
  }

  if (chance(2)) {
    const std::int64_t labels[] = {-2, -1, 0, 1, 2, 255};
    options.has_ignore_label = wanted_options.has_ignore_label = true;
    options.ignore_label = wanted_options.ignore_label = labels[draw(6)];
  }
  if (chance(4)) options.uncertain = sigmoid_ce::Uncertain::kIgnore;
  if (chance(4)) options.label_smoothing = unit() * (chance(4) ? 1e-3 : 0.99);
  if (chance(4)) options.negative_scale = chance(4) ? 0 : unit() * 3;
  if (chance(4)) {
    options.has_alpha = true;
    options.alpha = chance(4) ? static_cast<double>(draw(2)) : unit();
  }
  if (chance(3)) options.gamma = chance(2) ? static_cast<double>(1 + draw(4)) : unit() * 8;
  // Groups are counted in the whole array, which is none of these.
  const bool balances = chance(3) && !far && shape.count == shape.total;
  if (balances && shape.ndim >= 2) {
    options.balance = static_cast<Balance>(1 + draw(3));
    options.balance_per_channel = chance(2);
  } else if (balances) {
    options.balance = chance(2) ? Balance::kBatch : Balance::kBatchMean;
  }
  const Normalization modes[] = {Normalization::kFull,      Normalization::kValid,
                                 Normalization::kBatchSize, Normalization::kNone,
                                 Normalization::kNumber,    Normalization::kForeground};
  options.normalization = modes[draw(6)];
  wanted_options.uncertain = options.uncertain;
  wanted_options.label_smoothing = options.label_smoothing;
  wanted_options.negative_scale = options.negative_scale;
  wanted_options.has_alpha = options.has_alpha;
  wanted_options.alpha = options.alpha;
  wanted_options.gamma = options.gamma;
  wanted_options.balance = options.balance;
  wanted_options.balance_per_channel = options.balance_per_channel;
  options.divisor = 0.3 + unit();
  options.loss_weight = chance(3) ? 1 : unit() * 2 - 1;
  wanted_options.normalization = options.normalization;
  wanted_options.divisor = options.divisor;
  wanted_options.loss_weight = options.loss_weight;
  sigmoid_ce::Options gradient_options = wanted_options;
  double divisor = 0.1 + unit();
  const unsigned char* const divisor_bytes = reinterpret_cast<const unsigned char*>(&divisor);
  const Memory given(std::vector<unsigned char>(divisor_bytes, divisor_bytes + sizeof divisor));
  if (chance(4)) {
    options.gradient_divisor = reinterpret_cast<const double*>(given.at(0));
    gradient_options.normalization = Normalization::kNumber;
    gradient_options.divisor = divisor;
  }

  report.text += ", normalization " + std::to_string(static_cast<int>(options.normalization)) +
                 ", balance " + std::to_string(static_cast<int>(options.balance)) +
                 (options.balance_per_channel ? " per channel" : "") + ", gamma " +
                 std::to_string(options.gamma) + ", smoothing " +
                 std::to_string(options.label_smoothing) + ", uncertain " +
                 std::to_string(static_cast<int>(options.uncertain));

  // Class weights: the ones of the options, or others in their place.
  const std::int64_t groups = cpu::class_weight_groups(plain, wanted_options);
  report.check(cuda::class_weight_groups(inputs, options) == groups && (groups > 0 || empty),
               "number of groups");
  std::vector<double> class_weights(static_cast<std::size_t>(2 * groups));
  report.check(cpu::class_weights(plain, wanted_options, class_weights.data()),
               "class weights on the CPU");
  const bool gives_weights = groups > 0 && chance(4);
  if (gives_weights) {
    for (double& w : class_weights) w = chance(8) ? 0 : unit() * 3;
  }
  const unsigned char* const pairs = reinterpret_cast<const unsigned char*>(class_weights.data());
  const Memory given_weights(
      std::vector<unsigned char>(pairs, pairs + class_weights.size() * sizeof(double)));
  if (gives_weights) {
    options.device_class_weights = reinterpret_cast<const double*>(given_weights.at(0));
    wanted_options.class_weights = gradient_options.class_weights = class_weights.data();
  }

  // ---- The CPU ----
  const std::size_t room = static_cast<std::size_t>(shape.count) + 1;
  std::vector<C> wanted_losses(room), wanted_gradient(room), wanted_hessian(room),
      wanted_targets(room);
  Partial wanted;
  double foreground = 1;
  report.check(cpu::elementwise(plain, wanted_options, MutableArray(wanted_losses.data())),
               "elementwise on the CPU");
  report.check(cpu::backward(plain, gradient_options, MutableArray(wanted_gradient.data())),
               "backward on the CPU");
  report.check(cpu::forward(plain, wanted_options, &wanted, &foreground), "forward on the CPU");
  std::vector<C> again(room);
  Partial unused;
  report.check(cpu::forward_backward(plain, gradient_options, &unused, MutableArray(again.data()),
                                     MutableArray(wanted_hessian.data())),
               "Hessian on the CPU");
  report.check(cpu::backward_targets(plain, gradient_options, MutableArray(wanted_targets.data())),
               "backward_targets on the CPU");
  // kFull means the whole shape, of which cpu::loss expects the whole sum; a piece here is divided by the same number.
  Partial counted = wanted;
  counted.n_total = shape.total;
  const double wanted_divisor = options.normalization == Normalization::kForeground
                                    ? foreground
                                    : cpu::divisor(plain, wanted_options, counted);
  const double wanted_loss = cpu::divide(counted, wanted_divisor);

  // ---- The device ----
  struct Left {
    double loss, divisor;
    Partial partial;
  };
  const std::size_t workspace_bytes = cuda::workspace_size(inputs, options);
  for (int pass = 0; pass < 6; ++pass) {
    const char* const names[] = {"elementwise",      "backward", "forward",
                                 "forward_backward", "hessian",  "backward_targets"};
    const bool writes = pass != 2, adds = pass >= 2 && pass <= 4;
    const std::vector<C>& wanted_out = pass == 0   ? wanted_losses
                                       : pass == 5 ? wanted_targets
                                                   : wanted_gradient;
    // In place: another copy of the scores, which the results replace.
    const bool own = writes && chance(4) && !broadcasts(score_layout, shape);
    const Layout& written = own ? score_layout : out_layout;
    const Memory out(own ? scores.before() : poisoned(out_layout.size));
    Inputs given_inputs = inputs;
    if (own) given_inputs.scores.data = out.at(score_layout.start);
    const MutableArray array(out.at(written.start), written.pointer());
    const Memory workspace(poisoned(static_cast<std::int64_t>(workspace_bytes) + kGuard));
    const Memory results(poisoned(sizeof(Left)));
    const Memory hessian(poisoned(hessian_layout.size));
    const MutableArray hessian_array(hessian.at(hessian_layout.start), hessian_layout.pointer());
    const Memory weights_out(poisoned(groups * 16));
    cuda::Results r;
    const unsigned kept = chance(4) ? static_cast<unsigned>(draw(16)) : chance(2) ? 15 : 7;
    if (kept & 8) r.class_weights = reinterpret_cast<double*>(weights_out.at(0));
    if (kept & 1) r.loss = results.at(offsetof(Left, loss));
    if (kept & 2) r.divisor = reinterpret_cast<double*>(results.at(offsetof(Left, divisor)));
    if (kept & 4) r.partial = reinterpret_cast<Partial*>(results.at(offsetof(Left, partial)));
    Status status;
    if (pass == 0) {
      status = cuda::elementwise(given_inputs, options, array, workspace.at(0), nullptr);
    }
    if (pass == 1) {
      status = cuda::backward(given_inputs, options, array, workspace.at(0), nullptr);
    }
    if (pass == 2) status = cuda::forward(given_inputs, options, r, workspace.at(0), nullptr);
    if (pass == 3) {
      status = cuda::forward_backward(given_inputs, options, r, array, workspace.at(0), nullptr);
    }
    if (pass == 4) {
      status = cuda::forward_backward(given_inputs, options, r, array, hessian_array,
                                      workspace.at(0), nullptr);
    }
    if (pass == 5) {
      status = cuda::backward_targets(given_inputs, options, array, workspace.at(0), nullptr);
    }
    report.check(status, names[pass]);
    if (!status.ok()) continue;
    must(cudaDeviceSynchronize());
    if (writes) {
      compare<X>(&report, out, written, shape, wanted_out, names[pass]);
    }
    if (pass == 4) {
      compare<X>(&report, hessian, hessian_layout, shape, wanted_hessian, "the Hessian");
    } else {
      report.check(hessian.now() == hessian.before(), "a Hessian was written");
    }
    if (adds) {
      const std::vector<unsigned char> bytes = results.now();
      Left left;
      std::memcpy(static_cast<void*>(&left), bytes.data(), sizeof left);
      const auto untouched = [&](std::size_t from, std::size_t size) {
        return std::all_of(bytes.begin() + static_cast<std::ptrdiff_t>(from),
                           bytes.begin() + static_cast<std::ptrdiff_t>(from + size),
                           [](unsigned char b) { return b == kPoison; });
      };
      report.check(kept & 1 ? same(left.loss, wanted_loss) : untouched(0, 8), "loss");
      report.check(kept & 2 ? left.divisor == wanted_divisor : untouched(8, 8), "divisor");
      report.check(kept & 4 ? left.partial == wanted : untouched(16, sizeof(Partial)), "partial");
      const std::vector<unsigned char> out_weights = weights_out.now();
      report.check(
          kept & 8 ? out_weights == given_weights.before() : out_weights == weights_out.before(),
          "class weights");
    }
    const std::vector<unsigned char> after = workspace.now();
    report.check(std::all_of(after.end() - kGuard, after.end(),
                             [](unsigned char b) { return b == kPoison; }),
                 "memory beside the workspace was written");
  }
  for (const Memory* memory : {&scores, &targets, &channels, &weights, &given, &given_weights}) {
    report.check(memory->now() == memory->before(), "an input was written");
  }
  if (report.wrong) {
    std::fprintf(stderr, "\n");
    ++failures;
  }
}

template <class X, class T>
void pair(const char* scores, const char* targets, int n) {
  const std::string name = std::string(scores) + ", " + targets;
  for (int i = 0; i < n; ++i) run_case<X, T>(name, i % 16 == 15 ? kFar : kAny);
}

template <class X, class T>
void long_cases(const char* scores, const char* targets) {
  const std::string name = std::string(scores) + ", " + targets + ", long";
  for (int i = 0; i < 2; ++i) run_case<X, T>(name, kLong);
}

template <class X>
void integers(const char* scores, int n) {
  pair<X, bool>(scores, "bool", n);
  pair<X, std::uint8_t>(scores, "uint8", n);
  pair<X, std::int8_t>(scores, "int8", n);
  pair<X, std::int32_t>(scores, "int32", n);
  pair<X, std::int64_t>(scores, "int64", n);
}

}  // namespace

int main(int argc, char** argv) {
  generator.seed(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1);
  const int n = argc > 2 ? std::atoi(argv[2]) : 32;
  pair<float, float>("float32", "float32", n);
  integers<float>("float32", n);
  pair<double, double>("float64", "float64", n);
  pair<double, float>("float64", "float32", n);
  integers<double>("float64", n);
  pair<Float16, Float16>("float16", "float16", n);
  pair<Float16, float>("float16", "float32", n);
  integers<Float16>("float16", n);
  pair<Bfloat16, Bfloat16>("bfloat16", "bfloat16", n);
  pair<Bfloat16, float>("bfloat16", "float32", n);
  integers<Bfloat16>("bfloat16", n);
  long_cases<float, float>("float32", "float32");
  long_cases<double, std::uint8_t>("float64", "uint8");
  long_cases<Float16, Float16>("float16", "float16");
  long_cases<Bfloat16, float>("bfloat16", "float32");
  if (failures > 0) {
    std::fprintf(stderr, "%d of %d cases\n", failures, cases);
    return 1;
  }
  std::printf("%d cases, %" PRId64 " elements\n", cases, elements);
  return 0;
}
