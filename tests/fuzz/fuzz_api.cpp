// Fuzzer of the C++ API (sigmoid_ce/cpu.h). The bytes of an input become one call: operation, types, shape,
// the layout of each array, a window of elements, options, the caller's floating-point mode, and in some
// inputs faults. Every array lies in an allocation of exactly its bytes, so that a sanitizer sees an access
// beside it. What each call is held to:
//
//   status      ok without faults, else the name of an argument at fault, and nothing written
//   memory      inputs as they were; of the output's bytes only its elements change; the mode put back
//   values      each loss and gradient against the formula in long double, within the bounds of
//               docs/numerics.md: an element that met another's target or weight is far outside
//   sum         that of the elementwise losses in the documented order of a block, bit for bit; counts
//   same bits   every instruction set; two calls, cut at a multiple of 4096 elements; the pass that gives the
//               Hessian too
//
// With -fsanitize=fuzzer the library drives it. With -DFUZZ_MAIN it is a program:
//   fuzz_api PATH...            runs the inputs in these files
//   fuzz_api --random N SEED    runs N made-up inputs
#include <algorithm>
#include <cfenv>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "sigmoid_ce/cpu.h"

namespace {

namespace cpu = sigmoid_ce::cpu;
using sigmoid_ce::Balance;
using sigmoid_ce::Code;
using sigmoid_ce::ConstArray;
using sigmoid_ce::DType;
using sigmoid_ce::Inputs;
using sigmoid_ce::MutableArray;
using sigmoid_ce::Normalization;
using sigmoid_ce::Options;
using sigmoid_ce::Partial;
using sigmoid_ce::Status;
using sigmoid_ce::Uncertain;
using Real = long double;

constexpr std::int64_t kBlock = 4096;
constexpr std::int64_t kMost = 3 * kBlock + 64;  // elements of ordinary cases
constexpr std::int64_t kMostThreads = 48000;     // of the few that several threads share
constexpr char kCanary = static_cast<char>(0xA5);
constexpr double kLossTermsEps = 4;      // LOSS_TERMS_EPS of docs/numerics.md
constexpr double kGradientTermsEps = 4;  // GRADIENT_TERMS_EPS

void fail(const std::string& what) {
  std::fprintf(stderr, "fuzz_api: %s\n", what.c_str());
  std::abort();
}

void require(bool good, const char* what) {
  if (!good) fail(what);
}

// ---- Where choices come from ----

class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : p_(data), end_(data + size) {}
  std::uint8_t byte() { return p_ < end_ ? *p_++ : 0; }
  int below(int n) { return byte() % n; }
  bool one_in(int n) { return below(n) == n - 1; }  // an exhausted input makes no exceptions
  std::int64_t word() {
    std::uint64_t v = 0;
    for (int i = 0; i < 8; ++i) v = v << 8 | byte();
    return static_cast<std::int64_t>(v);
  }

 private:
  const std::uint8_t* p_;
  const std::uint8_t* end_;
};

// Data of arrays: too many for the bytes of an input, so from a seed (splitmix64).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t word() {
    std::uint64_t v = state_ += 0x9E3779B97F4A7C15u;
    v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9u;
    v = (v ^ (v >> 27)) * 0x94D049BB133111EBu;
    return v ^ (v >> 31);
  }
  std::int64_t below(std::int64_t n) {
    return static_cast<std::int64_t>(word() % static_cast<std::uint64_t>(n));
  }
  double unit() { return static_cast<double>(word() >> 11) / 9007199254740992.0; }

 private:
  std::uint64_t state_;
};

// ---- Arrays ----

std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    default:
      return 1;
  }
}

template <class T>
T load(const char* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
void store(char* p, T v) {
  std::memcpy(p, &v, sizeof v);
}

struct Window {
  std::vector<std::int64_t> shape;
  std::int64_t total = 1;
  std::int64_t first = 0, count = 0;
};

// An array of a window: its own memory, and where each element lies.
struct Array {
  DType dtype = DType::kFloat32;
  bool strided = false;
  std::vector<std::int64_t> strides;  // exactly one per axis
  std::unique_ptr<char[]> memory;
  std::int64_t bytes = 0;
  char* data = nullptr;  // as the API wants it: see ConstArray
  std::int64_t first = 0;

  const std::int64_t* strides_or_null() const { return strided ? strides.data() : nullptr; }

  char* at(const Window& window, std::int64_t index) const {
    if (!strided) return data + (index - first) * size_of(dtype);
    std::int64_t offset = 0;
    for (std::size_t d = window.shape.size(); d-- > 0;) {
      offset += index % window.shape[d] * strides[d];
      index /= window.shape[d];
    }
    return data + offset;
  }

  std::vector<char> image() const { return std::vector<char>(memory.get(), memory.get() + bytes); }
  void restore(const std::vector<char>& image) {
    std::copy(image.begin(), image.end(), memory.get());
  }
};

enum Layout { kContiguous, kOrdered, kPermuted, kBroadcast };

Array make_array(Bytes* in, const Window& window, DType dtype, Layout layout) {
  Array array;
  array.dtype = dtype;
  array.strided = layout != kContiguous;
  array.first = window.first;
  const std::int64_t item = size_of(dtype);
  const std::int64_t misaligned = in->one_in(3) ? in->below(64) : 0;
  std::int64_t low = 0, high = 0;  // of the bytes, relative to `data`
  if (layout == kContiguous) {
    high = window.count * item;
  } else {
    const int ndim = static_cast<int>(window.shape.size());
    array.strides.assign(window.shape.size(), 0);
    std::vector<int> axes;  // innermost first
    for (int d = ndim - 1; d >= 0; --d) axes.push_back(d);
    const bool huge = window.total > kMostThreads;
    if (layout == kPermuted) {
      for (int d = ndim - 1; d > 0; --d) std::swap(axes[d], axes[in->below(d + 1)]);
    }
    std::int64_t step = item;
    for (const int d : axes) {
      const std::int64_t length = window.shape[d];
      if (length < 2) {
        // Never walked along: any stride is as good. Not so large that it could not be one.
        array.strides[d] = layout == kOrdered ? step : (in->word() >> 20);
        continue;
      }
      if (layout == kBroadcast && (huge || in->below(2) != 0)) continue;
      if (layout == kPermuted && in->one_in(3)) step += in->below(24);  // bytes, not elements
      array.strides[d] = layout == kPermuted && in->one_in(3) ? -step : step;
      step *= length;
    }
    if (window.total > 0) {
      for (int d = 0; d < ndim; ++d) {
        const std::int64_t reach =
            window.shape[d] > 1 ? (window.shape[d] - 1) * array.strides[d] : 0;
        (reach < 0 ? low : high) += reach;
      }
      high += item;
    }
  }
  array.bytes = misaligned + high - low;
  array.memory.reset(new char[static_cast<std::size_t>(array.bytes)]);
  std::fill(array.memory.get(), array.memory.get() + array.bytes, kCanary);
  array.data = array.memory.get() + misaligned - low;
  return array;
}

// ---- Values ----

template <class T>
T any_bits(Random* random) {
  const std::uint64_t v = random->word();
  T out;
  std::memcpy(&out, &v, sizeof out);
  return out;
}

template <class T>
T special(Random* random) {
  using L = std::numeric_limits<T>;
  const T values[] = {T(0),          T(-0.0),         T(1),     T(-1),         T(0.5),
                      T(2),          T(17),           T(-30),   T(88),         T(-104),
                      T(105),        T(-746),         T(1e4),   T(1e30),       L::max(),
                      -L::max(),     L::denorm_min(), L::min(), L::infinity(), -L::infinity(),
                      L::quiet_NaN()};
  return values[random->below(sizeof values / sizeof values[0])];
}

enum Role { kScores, kTargets, kWeights };

template <class T>
T real_value(Role role, int kind, std::int64_t label, Random* random) {
  switch (kind) {
    case 0:  // ordinary
      if (role == kScores) return static_cast<T>((random->unit() - 0.5) * 40);
      if (role == kTargets) return static_cast<T>(random->below(2));
      return static_cast<T>(random->unit() * 4);
    case 1:
      if (role == kTargets) return static_cast<T>(random->unit());
      if (role == kWeights) return static_cast<T>(random->below(3));
      return static_cast<T>((random->unit() - 0.5) * 2000);
    case 2:
      return any_bits<T>(random);
    case 3:  // about the label
      if (role == kTargets) {
        const T l = static_cast<T>(label);
        const T near[] = {
            l,          std::nextafter(l, T(-INFINITY)), std::nextafter(l, T(INFINITY)), l + T(0.5),
            l - T(0.5), std::nextafter(l + 1, l),        std::nextafter(l - 1, l),       l + 1,
            l - 1};
        return near[random->below(9)];
      }
      return special<T>(random);
    default:
      return special<T>(random);
  }
}

template <class T>
T integer_value(int kind, std::int64_t label, Random* random) {
  switch (kind) {
    case 0:
    case 1:
      return static_cast<T>(random->below(2));
    case 2:
      return any_bits<T>(random);
    default:  // about the label, wrapped to the type
      return static_cast<T>(static_cast<std::uint64_t>(label) +
                            static_cast<std::uint64_t>(random->below(3)) - 1);
  }
}

void set_value(char* p, DType dtype, Role role, int kind, std::int64_t label, Random* random) {
  switch (dtype) {
    case DType::kFloat32:
      return store(p, real_value<float>(role, kind, label, random));
    case DType::kFloat64:
      return store(p, real_value<double>(role, kind, label, random));
    case DType::kInt8:
      return store(p, integer_value<std::int8_t>(kind, label, random));
    case DType::kInt32:
      return store(p, integer_value<std::int32_t>(kind, label, random));
    case DType::kInt64:
      return store(p, integer_value<std::int64_t>(kind, label, random));
    default:
      return store(p, integer_value<std::uint8_t>(kind, label, random));
  }
}

void fill(Bytes* in, const Window& window, const Array& array, Role role, std::int64_t label) {
  const int kind = in->below(5);
  Random random(static_cast<std::uint64_t>(in->byte()) << 8 | in->byte());
  const bool whole = array.strided && window.total <= kMostThreads;
  const std::int64_t begin = whole ? 0 : window.first;
  const std::int64_t end = whole ? window.total : window.first + window.count;
  for (std::int64_t i = begin; i < end; ++i) {
    // One element in 16 of an otherwise ordinary array is out of the ordinary.
    const bool odd = kind == 1 && random.below(16) == 0;
    set_value(array.at(window, i), array.dtype, role, odd ? 4 : kind, label, &random);
  }
}

// ---- The case ----

enum Operation { kForward, kElementwise, kBackward, kForwardBackward };

struct Case {
  Operation operation = kForward;
  DType dtype = DType::kFloat32;  // of the scores
  Window window;
  Array scores, targets, weight, out;
  bool has_weight = false, in_place = false;
  std::vector<double> pos_weight;
  std::vector<double> class_weights;  // of each group, where the case has any
  std::int64_t groups = 1;            // that `balance` counts by
  Inputs inputs;
  Options options;
  MutableArray output;
  int ignore_label_kind = 0;
  int rounding = FE_TONEAREST;
  std::set<std::string> faults;  // names of the arguments at fault

  bool writes() const { return operation != kForward; }
  bool sums() const { return operation == kForward || operation == kForwardBackward; }
};

void make_window(Bytes* in, Window* window) {
  static const std::int64_t lengths[] = {1,  2, 3, 5,   7,   15,  16,   17,   31,   63,   64, 65,
                                         70, 1, 2, 100, 255, 256, 1000, 1023, 1025, 4096, 0};
  const bool large = in->one_in(24);
  const std::int64_t most = large ? kMostThreads : kMost;
  const int ndim = in->below(6);
  std::int64_t product = 1;  // empty axes aside: the API wants that to be below 2^60
  for (int d = 0; d < ndim; ++d) {
    std::int64_t n = lengths[in->below(sizeof lengths / sizeof lengths[0])];
    if (large && d == 0) n = 33000 + in->byte() * 50;
    if (product * n > most) n = std::max<std::int64_t>(1, most / product);
    product *= std::max<std::int64_t>(1, n);
    window->shape.push_back(n);
    window->total *= n;
  }
  if (in->one_in(8)) {  // far more elements than memory: a window of them
    window->shape.insert(window->shape.begin(),
                         (std::int64_t(1) << (in->below(44))) + in->below(3));
    window->total *= window->shape[0];
  }
  window->count = window->total;
  if (in->one_in(2) || window->total > kMostThreads) {
    if (window->total > 0) {
      window->first = static_cast<std::int64_t>(static_cast<std::uint64_t>(in->word()) %
                                                (static_cast<std::uint64_t>(window->total) + 1));
    }
    const std::int64_t left = std::min(window->total - window->first, most);
    window->count = static_cast<std::int64_t>(static_cast<std::uint64_t>(in->word()) %
                                              (static_cast<std::uint64_t>(left) + 1));
  }
}

Layout any_layout(Bytes* in, const Window& window) {
  if (window.total > kMostThreads) return in->below(2) ? kBroadcast : kContiguous;
  return static_cast<Layout>(in->below(4));
}

std::int64_t any_label(Bytes* in) {
  static const std::int64_t labels[] = {0,         1,         -1,        2,        255,
                                        256,       -128,      -129,      127,      INT32_MAX,
                                        INT32_MIN, INT64_MAX, INT64_MIN, 16777217, -16777217};
  const int choice = in->below(16);
  return choice < 15 ? labels[choice] : in->word();
}

double any_double(Bytes* in) {
  static const double values[] = {NAN, INFINITY, -INFINITY, -1, -0.0, 0, 1e39, 1e-320};
  const int choice = in->below(12);
  if (choice < 8) return values[choice];
  const std::int64_t bits = in->word();
  double v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

void make_options(Bytes* in, Case* c) {
  Options& o = c->options;
  const std::vector<std::int64_t>& shape = c->window.shape;
  switch (in->below(3)) {
    case 1:
      c->pos_weight.assign(1, in->below(8) / 4.0);
      break;
    case 2:
      if (shape.size() >= 2 && shape[1] > 0 && shape[1] <= kMostThreads) {
        Random random(in->byte());
        for (std::int64_t k = 0; k < shape[1]; ++k) c->pos_weight.push_back(random.unit() * 8);
      }
      break;
  }
  if (in->one_in(6)) {
    for (double& p : c->pos_weight) p = std::fabs(p * 1e30);
  }
  if (in->one_in(8) && !c->pos_weight.empty()) {
    double& p = c->pos_weight[static_cast<std::size_t>(in->byte()) % c->pos_weight.size()];
    p = any_double(in);
    const double most = c->dtype == DType::kFloat32 ? FLT_MAX : DBL_MAX;
    if (!(p >= 0 && p <= most)) c->faults.insert("pos_weight");
  }
  o.pos_weight = c->pos_weight.empty() ? nullptr : c->pos_weight.data();
  o.pos_weight_count = static_cast<std::int64_t>(c->pos_weight.size());
  o.normalization = static_cast<Normalization>(in->below(5));
  o.divisor = 1 + in->below(100) / 8.0;
  o.loss_weight = (in->below(64) - 16) / 8.0;
  if (in->one_in(16)) o.loss_weight = any_double(in);
  if (in->one_in(16)) {
    o.divisor = any_double(in);
    if (o.normalization == Normalization::kNumber && !(o.divisor > 0 && std::isfinite(o.divisor))) {
      c->faults.insert("normalization");
    }
  }
}

std::int64_t channels_of(const Window& window) {
  return window.shape.size() < 2 ? 1 : window.shape[1];
}

std::int64_t groups_of(const Window& window, const Options& o) {
  std::int64_t groups = o.balance == Balance::kImage ? window.shape[0] : 1;
  if (o.balance_per_channel) groups *= channels_of(window);
  return groups;
}

// Which of them an element counts in.
std::int64_t group_of(const Window& window, const Options& o, std::int64_t index) {
  if (o.balance == Balance::kNone || window.shape.empty()) return 0;
  std::int64_t inner = 1;
  for (std::size_t d = 2; d < window.shape.size(); ++d) inner *= window.shape[d];
  const std::int64_t channel = index / inner % channels_of(window);
  const std::int64_t image = index / inner / channels_of(window);
  if (o.balance != Balance::kImage) return o.balance_per_channel ? channel : 0;
  return o.balance_per_channel ? image * channels_of(window) + channel : image;
}

// The options for unbalanced and dense targets. They come last, so that saved inputs keep their meaning.
void make_family(Bytes* in, Case* c) {
  if (!c->faults.empty()) return;
  Options& o = c->options;
  const Window& window = c->window;
  const bool whole = window.count == window.total;
  if (in->one_in(3)) o.uncertain = Uncertain::kIgnore;
  if (in->one_in(3)) o.label_smoothing = in->below(32) / 32.0;
  if (in->one_in(3)) o.has_alpha = true, o.alpha = in->below(17) / 16.0;
  if (in->one_in(4)) o.negative_scale = in->below(40) / 16.0;
  if (in->one_in(3)) {
    static const double gammas[] = {0.5, 1, 2, 5, 1e-3, 20};
    o.gamma = gammas[in->below(6)];
  }
  if (in->one_in(6)) o.normalization = Normalization::kForeground;
  if (in->below(2)) {
    o.balance = static_cast<Balance>(in->below(4));
    if (o.balance == Balance::kImage && window.shape.size() < 2) o.balance = Balance::kBatch;
    o.balance_per_channel =
        o.balance != Balance::kNone && window.shape.size() >= 2 && in->below(2) != 0;
    const bool many = (o.balance == Balance::kImage && window.shape[0] > kMostThreads) ||
                      (o.balance_per_channel && window.shape[1] > kMostThreads);
    if (many || groups_of(window, o) > kMostThreads) {
      o.balance = Balance::kBatch;
      o.balance_per_channel = false;
    }
  }
  if (o.balance != Balance::kNone) {
    c->groups = groups_of(window, o);
    if (!whole || in->one_in(4)) {  // as a caller gives them, who has counted
      Random random(in->byte());
      for (std::int64_t k = 0; k < 2 * c->groups; ++k) {
        c->class_weights.push_back(static_cast<double>(random.below(9)) / 4);
      }
      if (c->class_weights.empty()) c->class_weights.assign(2, 1.0);
      o.class_weights = c->class_weights.data();
    }
  }
  if (!in->one_in(8)) return;
  const double odd = any_double(in);
  switch (in->below(8)) {
    case 0:
      o.label_smoothing = odd;
      if (!(odd >= 0 && odd < 1)) c->faults.insert("label_smoothing");
      break;
    case 1:
      o.gamma = odd;
      if (!(odd >= 0 && odd <= 1e6)) c->faults.insert("gamma");
      break;
    case 2:
      o.has_alpha = true;
      o.alpha = odd;
      if (!(odd >= 0 && odd <= 1)) c->faults.insert("alpha");
      break;
    case 3:
      o.negative_scale = odd;
      if (!(odd >= 0 && odd <= static_cast<double>(FLT_MAX))) c->faults.insert("negative_scale");
      break;
    case 4:
      o.uncertain = static_cast<Uncertain>(2 + in->below(254));
      c->faults.insert("uncertain");
      break;
    case 5:
      o.balance = static_cast<Balance>(4 + in->below(252));
      c->faults.insert("balance");
      break;
    case 6:
      o.balance = Balance::kNone;
      o.balance_per_channel = true;
      c->faults.insert("balance_per_channel");
      break;
    case 7:
      if (o.balance != Balance::kNone && !whole) {
        o.class_weights = nullptr;
        c->faults.insert("balance");
      }
      break;
  }
}

// One fault that the API promises to find.
void make_fault(Bytes* in, Case* c) {
  Inputs& inputs = c->inputs;
  Options& o = c->options;
  const bool some = c->window.count > 0;
  switch (in->below(16)) {
    case 0:
      inputs.scores.dtype =
          static_cast<DType>(in->below(2) ? 2 + in->below(5) : 9 + in->below(247));
      c->faults.insert("scores");
      c->faults.insert("targets");  // a type of its own, or none, with these scores
      c->faults.insert("weight");
      break;
    case 1:
      inputs.targets.dtype = c->dtype == DType::kFloat32 ? DType::kFloat64 : DType::kFloat32;
      c->faults.insert("targets");
      break;
    case 2:
      inputs.targets.dtype = static_cast<DType>(7 + in->below(249));
      c->faults.insert("targets");
      break;
    case 3:
      inputs.ndim = in->below(2) ? -1 - in->below(100) : sigmoid_ce::kMaxDims + 1 + in->below(100);
      c->faults.insert("shape");
      break;
    case 4:
      inputs.first_index =
          in->below(2) ? -1 - (in->word() & 0xffff) : c->window.total + 1 + in->below(9);
      c->faults.insert("first_index");
      break;
    case 5:
      inputs.count = c->window.total - c->window.first + 1 + (in->word() & 0xffff);
      c->faults.insert("count");
      break;
    case 6:
      if (some) inputs.scores.data = nullptr, c->faults.insert("scores");
      break;
    case 7:
      if (some) inputs.targets.data = nullptr, c->faults.insert("targets");
      break;
    case 8:
      o.pos_weight_count = -1 - (in->word() & INT64_MAX) / 2;
      c->faults.insert("pos_weight");
      break;
    case 9:
      o.pos_weight = nullptr;
      o.pos_weight_count = 1 + in->below(9);
      c->faults.insert("pos_weight");
      break;
    case 10: {
      const std::vector<std::int64_t>& shape = c->window.shape;
      o.pos_weight_count = 2 + in->below(100);
      c->pos_weight.assign(static_cast<std::size_t>(o.pos_weight_count), 1.0);
      o.pos_weight = c->pos_weight.data();
      const bool fits = shape.size() >= 2 && shape[1] == o.pos_weight_count;
      if (fits) {
        c->faults.erase("pos_weight");  // of the values that these replace
      } else {
        c->faults.insert("pos_weight");
      }
      break;
    }
    case 11:
      if (c->has_weight) {
        o.weight.dtype = in->below(2) ? DType::kInt32 : static_cast<DType>(7 + in->below(200));
        c->faults.insert("weight");
      }
      break;
    case 12:
      o.normalization = static_cast<Normalization>(6 + in->below(249));
      c->faults.insert("normalization");
      break;
    case 13:
      if (some && c->writes()) c->output.data = nullptr, c->faults.insert("out");
      break;
    case 14:
      if (!c->window.shape.empty()) {
        const std::size_t d = static_cast<std::size_t>(in->byte()) % c->window.shape.size();
        c->window.shape[d] = in->below(2) ? -1 - in->below(9) : INT64_MAX / 8 + 1 + in->below(9);
        c->faults.insert("shape");
      }
      break;
    case 15: {
      // An output that shares elements with an input without being the scores themselves.
      const Array* const inputs_of[] = {&c->scores, &c->targets, &c->weight};
      const Array& shared = *inputs_of[in->below(c->has_weight ? 3 : 2)];
      if (c->window.count >= 2 && c->writes() && !shared.strided) {
        c->output = MutableArray(shared.data + size_of(shared.dtype));
        c->faults.insert("out");
      }
      break;
    }
  }
}

void make_case(Bytes* in, Case* c) {
  c->operation = static_cast<Operation>(in->below(4));
  c->dtype = in->below(2) ? DType::kFloat64 : DType::kFloat32;
  const int target = in->below(6);
  const DType target_dtype = target == 0 ? c->dtype : static_cast<DType>(target + 1);
  make_window(in, &c->window);
  Window& window = c->window;
  const bool has_label = in->below(2) != 0;
  const std::int64_t label = has_label ? any_label(in) : 0;

  c->scores = make_array(in, window, c->dtype, any_layout(in, window));
  fill(in, window, c->scores, kScores, label);
  c->targets = make_array(in, window, target_dtype, any_layout(in, window));
  fill(in, window, c->targets, kTargets, label);
  c->has_weight = in->below(2) != 0;
  if (c->has_weight) {
    static const DType masks[] = {DType::kBool, DType::kUint8, DType::kInt8};
    const int choice = in->below(4);
    const DType dtype = choice == 0 ? c->dtype : masks[choice - 1];
    c->weight = make_array(in, window, dtype, any_layout(in, window));
    fill(in, window, c->weight, kWeights, label);
  }
  make_options(in, c);
  c->options.has_ignore_label = has_label;
  c->options.ignore_label = label;

  Inputs& inputs = c->inputs;
  inputs.scores = ConstArray(c->scores.data, c->dtype, c->scores.strides_or_null());
  inputs.targets = ConstArray(c->targets.data, target_dtype, c->targets.strides_or_null());
  inputs.shape = window.shape.data();
  inputs.ndim = static_cast<int>(window.shape.size());
  inputs.first_index = window.first;
  inputs.count = window.first + window.count == window.total && in->below(2) ? -1 : window.count;
  if (c->has_weight) {
    c->options.weight = ConstArray(c->weight.data, c->weight.dtype, c->weight.strides_or_null());
  }
  if (c->writes()) {
    c->in_place = in->one_in(4);
    const auto repeats = [&window](const Array& array) {
      for (std::size_t d = 0; array.strided && d < window.shape.size(); ++d) {
        if (window.shape[d] > 1 && array.strides[d] == 0) return true;
      }
      return false;
    };
    if (c->in_place) {
      c->output = MutableArray(c->scores.data, c->scores.strides_or_null());
      if (window.count > 0 && repeats(c->scores)) c->faults.insert("out");
    } else {
      Layout layout = any_layout(in, window);
      if (layout == kBroadcast && !in->one_in(8)) layout = kContiguous;
      c->out = make_array(in, window, c->dtype, layout);
      c->output = MutableArray(c->out.data, c->out.strides_or_null());
      if (window.count > 0 && repeats(c->out)) c->faults.insert("out");
    }
  }
  static const int modes[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
  c->rounding = modes[in->below(4)];
  cpu::set_num_threads(1 + in->below(3));
  if (in->one_in(4)) make_fault(in, c);
  make_family(in, c);
}

// ---- What is expected ----

struct Expected {
  bool ignored = false;
  bool zero = false, nan = false;
  bool known = true;  // false: an overflow on the way, or an infinite weight, decides
  Real loss = 0, gradient = 0, loss_error = 0, gradient_error = 0;
};

struct Element {
  Real x, t, p, w;
  Real negative;  // 1 - t, smoothed by itself
  bool ignored;
  int label;  // 1 or 0: what it counts as; -1: neither
};

template <class T>
Element read_element(const Case& c, std::int64_t index) {
  Element e;
  e.x = load<T>(c.scores.at(c.window, index));
  const char* t = c.targets.at(c.window, index);
  const std::int64_t label = c.options.ignore_label;
  std::int64_t integer = 0;
  bool is_integer = true;
  switch (c.targets.dtype) {
    case DType::kBool:
      integer = *t != 0;
      break;
    case DType::kUint8:
      integer = load<std::uint8_t>(t);
      break;
    case DType::kInt8:
      integer = load<std::int8_t>(t);
      break;
    case DType::kInt32:
      integer = load<std::int32_t>(t);
      break;
    case DType::kInt64:
      integer = load<std::int64_t>(t);
      break;
    default:
      is_integer = false;
  }
  if (is_integer) {
    e.ignored = integer == label;
    integer = std::max<std::int64_t>(INT32_MIN, std::min<std::int64_t>(INT32_MAX, integer));
    e.t = static_cast<T>(integer);
  } else {
    e.t = load<T>(t);
    e.ignored = std::trunc(e.t) == static_cast<Real>(label);
  }
  e.ignored = e.ignored && c.options.has_ignore_label;
  e.negative = 1 - e.t;
  e.label = e.t == 1 ? 1 : e.t == 0 ? 0 : -1;
  if (e.ignored) e.label = -1;
  if (c.options.uncertain == Uncertain::kIgnore && e.t != 0 && e.t != 1) e.ignored = true;
  e.p = 1;
  if (c.pos_weight.size() == 1) {
    e.p = static_cast<T>(c.pos_weight[0]);
  } else if (!c.pos_weight.empty()) {
    std::int64_t inner = 1;
    for (std::size_t d = 2; d < c.window.shape.size(); ++d) inner *= c.window.shape[d];
    e.p = static_cast<T>(c.pos_weight[static_cast<std::size_t>(index / inner % c.window.shape[1])]);
  }
  e.w = 1;
  if (c.has_weight) {
    const char* w = c.weight.at(c.window, index);
    switch (c.weight.dtype) {
      case DType::kBool:
        e.w = *w != 0;
        break;
      case DType::kUint8:
        e.w = load<std::uint8_t>(w);
        break;
      case DType::kInt8:
        e.w = load<std::int8_t>(w);
        break;
      default:
        e.w = load<T>(w);
    }
  }
  return e;
}

// w+ and w- of each group: those that the caller gave, or by what the elements count as.
template <class T>
std::vector<double> class_weights_of(const Case& c, const std::vector<Element>& elements) {
  const Options& o = c.options;
  if (o.class_weights != nullptr) return c.class_weights;
  std::vector<std::int64_t> counts(static_cast<std::size_t>(2 * c.groups));
  for (std::size_t i = 0; i < elements.size() && o.balance != Balance::kNone; ++i) {
    const std::int64_t group = group_of(c.window, o, c.window.first + static_cast<std::int64_t>(i));
    if (elements[i].label >= 0) {
      ++counts[static_cast<std::size_t>(2 * group + 1 - elements[i].label)];
    }
  }
  std::vector<double> weights;
  const double positive = o.has_alpha ? o.alpha : 1;
  const double negative = (o.has_alpha ? 1 - o.alpha : 1) * o.negative_scale;
  for (std::int64_t g = 0; g < c.groups; ++g) {
    const double p = static_cast<double>(counts[static_cast<std::size_t>(2 * g)]);
    const double m = static_cast<double>(counts[static_cast<std::size_t>(2 * g + 1)]);
    const double v = p + m;
    double of_positive = 1, of_negative = 1;
    if (o.balance == Balance::kBatchMean) {  // as if there were one of each class at least
      const double k = std::max(1.0, std::min(p, v - 1));
      of_positive = v / (2 * k);
      of_negative = v / (2 * std::max(1.0, v - k));
    } else if (o.balance != Balance::kNone) {
      of_positive = m / std::max(1.0, v);
      of_negative = p / std::max(1.0, v);
    }
    weights.push_back(of_positive * positive);
    weights.push_back(of_negative * negative);
  }
  return weights;
}

bool has_class_weights(const Options& o) {
  return o.balance != Balance::kNone || o.has_alpha || o.negative_scale != 1;
}

// The element as the formula has it: smoothed, and its weight times that of its class, both rounded as documented.
template <class T>
void weigh(const Case& c, const std::vector<double>& class_weights, std::int64_t index,
           Element* e) {
  const Options& o = c.options;
  T t = static_cast<T>(e->t), rest = 1 - t;
  if (o.label_smoothing != 0) {
    const T factor = static_cast<T>(1 - o.label_smoothing);
    const T term = static_cast<T>(o.label_smoothing / 2);
    e->t = t = std::fma(t, factor, term);
    e->negative = rest = std::fma(rest, factor, term);
  }
  if (has_class_weights(o) && e->w != 0) {
    const std::size_t g = static_cast<std::size_t>(group_of(c.window, o, index));
    const T positive = static_cast<T>(class_weights[2 * g]);
    const volatile T negative = rest * static_cast<T>(class_weights[2 * g + 1]);
    const T by_class = std::fma(t, positive, negative);
    e->w = c.has_weight ? static_cast<T>(e->w) * by_class : by_class;
  }
}

template <class T>
Expected expect(const Element& e, bool has_p, T scale, double gamma) {
  Expected r;
  r.ignored = e.ignored;
  r.zero = e.ignored || e.w == 0;
  if (r.zero) return r;
  if (gamma != 0 && !(e.t >= 0 && e.t <= 1)) {
    r.nan = true;
    return r;
  }
  r.nan = std::isnan(e.x) || std::isnan(e.t) || std::isnan(e.w) || std::isinf(e.t);
  if (r.nan) return r;
  const Real eps = std::numeric_limits<T>::epsilon(), tiny = std::numeric_limits<T>::denorm_min();
  const Real most = static_cast<Real>(std::numeric_limits<T>::max()) / 8;
  const Real a = std::fabs(e.x), w = std::fabs(e.w), s = std::fabs(static_cast<Real>(scale));
  const Real z = std::exp(-a), m = std::log1p(z), q = z / (1 + z);
  const Real positive = e.p * e.t, negative = e.negative;
  const Real u = std::signbit(e.x) ? positive : negative;
  const Real sum = std::fabs(negative) + std::fabs(positive);
  const Real c = has_p ? negative + positive : 1;
  const Real au = u == 0 ? 0 : a * u;
  Real loss = au + c * m;
  Real gradient = std::signbit(e.x) ? c * q - u : u - c * q;
  Real loss_terms = w * (std::fabs(au) + sum * m);
  Real gradient_terms = w * (std::fabs(u) + sum * q);
  if (gamma != 0) {
    const Real g = static_cast<T>(gamma);
    const Real v = std::signbit(e.x) ? e.t : e.negative, k = 1 - v;
    const Real y = v + k * z, wrong = y / (1 + z);         // r
    const Real length = v == 0 ? a + m : m - std::log(y);  // L = -log r
    const Real slope = (2 * v - 1) * (v == 0 ? 1 / (1 + z) : q / (1 + z) / wrong);
    // q and r are multiples of tiny, which quotients of a soft target show.
    const Real lost = v != 0 && k != 0 ? tiny / (eps * wrong) : 0;
    const Real factor = std::exp(-g * length), room = 1 + g * (1 + length + lost);
    const Real steep = std::signbit(e.x) ? -slope : slope;
    gradient = factor * (gradient + g * steep * loss);
    gradient_terms = factor * room * (gradient_terms + g * (std::fabs(slope) + lost) * loss_terms);
    loss *= factor;
    loss_terms *= factor * room;
    if (!std::isfinite(e.x)) {  // another limit than the formula's
      r.known = false;
      return r;
    }
  }
  r.loss = e.w * loss;
  r.gradient = e.w * gradient * scale;
  r.loss_error =
      kLossTermsEps * (eps * loss_terms + tiny * (1 + w * sum + (has_p ? w * (1 + a) : 0)));
  r.gradient_error =
      kGradientTermsEps * s * (eps * gradient_terms + tiny * (1 + w * sum + (has_p ? w : 0))) +
      2 * eps * std::fabs(r.gradient) + 2 * tiny;  // the product with the scale
  if (gamma != 0) {
    // What is rounded to a multiple of tiny is multiplied by (1 + gamma)^2 (1 + |x|) at most.
    const Real least = tiny * (1 + static_cast<Real>(gamma)) * (1 + static_cast<Real>(gamma)) *
                       (1 + a) * (1 + w) * (1 + sum) * 4;
    r.loss_error += least;
    r.gradient_error += least * (1 + s);
  }
  // An infinite score decides by itself, as long as the rest is ordinary.
  const bool ordinary = sum < most && w < most && w * sum < most;
  const bool finite = std::isfinite(e.x);
  r.known = ordinary && std::isfinite(scale) && gradient_terms * std::max<Real>(s, 1) < most &&
            (finite ? loss_terms < most && std::fabs(au) + sum < most : true);
  if (!finite) {
    r.loss_error = 0;
    // p t may have been rounded to 0, and then nothing is left to be infinite.
    if (u != 0 && std::fabs(u) < std::numeric_limits<T>::min()) r.known = false;
  }
  return r;
}

template <class T>
void check_value(T got, const Expected& e, Real value, Real error, const char* what) {
  if (e.zero) {
    if (got != 0 || std::signbit(got)) fail(std::string(what) + ": expected +0");
  } else if (e.nan) {
    if (!std::isnan(got)) fail(std::string(what) + ": expected NaN");
  } else if (e.known) {
    const bool good = std::isinf(value) ? got == value : std::fabs(got - value) <= error;
    if (good) return;
    char text[160];
    std::snprintf(text, sizeof text, "%s: got %.17g, expected %.17Lg +- %.3Lg", what,
                  static_cast<double>(got), value, error);
    fail(text);
  }
}

// The sum of losses in the order that docs/numerics.md states.
template <class T>
Partial sum_in_order(const std::vector<T>& losses) {
  Partial partial;
  for (std::size_t begin = 0; begin < losses.size(); begin += kBlock) {
    const auto loss = [&](int k) {
      const std::size_t i = begin + static_cast<std::size_t>(k);
      return i < losses.size() ? static_cast<double>(losses[i]) : 0.0;
    };
    double acc[64];
    for (int h = 0; h < 4; ++h) {
      for (int r = 0; r < 16; ++r) {
        double sum = 0;
        for (int g = 0; g < 16; ++g) {
          const int k = 1024 * h + 64 * g + r;
          sum += ((loss(k) + loss(k + 16)) + loss(k + 32)) + loss(k + 48);
        }
        acc[16 * h + r] = sum;
      }
    }
    for (int k = 32; k > 0; k /= 2) {
      for (int i = 0; i < k; ++i) acc[i] += acc[i + k];
    }
    partial.add(acc[0]);
  }
  partial.n_total = static_cast<std::int64_t>(losses.size());
  partial.n_valid = partial.n_total;
  return partial;
}

// ---- Calls ----

Status call(Operation operation, const Inputs& inputs, const Options& options,
            const MutableArray& output, Partial* partial) {
  switch (operation) {
    case kForward:
      return cpu::forward(inputs, options, partial);
    case kElementwise:
      return cpu::elementwise(inputs, options, output);
    case kBackward:
      return cpu::backward(inputs, options, output);
    default:
      return cpu::forward_backward(inputs, options, partial, output);
  }
}

struct Result {
  Status status;
  Partial partial;
};

// The case's own call, in the caller's rounding mode.
Result call(const Case& c, const Inputs& inputs, const Options& options, const MutableArray& out) {
  Result result;
  require(std::fesetround(c.rounding) == 0, "no such rounding mode");
  result.status = call(c.operation, inputs, options, out, &result.partial);
  const int after = std::fegetround();
  std::fesetround(FE_TONEAREST);
  require(after == c.rounding, "the caller's rounding mode has changed");
  return result;
}

// Elements in C order, any NaN as one NaN.
template <class T>
std::vector<T> read_output(const Case& c) {
  std::vector<T> values;
  const Array& array = c.in_place ? c.scores : c.out;
  for (std::int64_t i = 0; i < c.window.count; ++i) {
    const T v = load<T>(array.at(c.window, c.window.first + i));
    values.push_back(std::isnan(v) ? std::numeric_limits<T>::quiet_NaN() : v);
  }
  return values;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

struct Images {
  std::vector<char> scores, targets, weight, out;
  explicit Images(const Case& c)
      : scores(c.scores.image()),
        targets(c.targets.image()),
        weight(c.weight.image()),
        out(c.out.image()) {}

  void restore(Case* c) const {
    c->scores.restore(scores);
    c->out.restore(out);
  }
};

// Nothing but the elements of the output has changed.
void check_memory(const Case& c, const Images& before, bool written) {
  Images allowed = before;
  if (written) {
    const Array& array = c.in_place ? c.scores : c.out;
    std::vector<char>& image = c.in_place ? allowed.scores : allowed.out;
    const std::int64_t item = size_of(c.dtype);
    for (std::int64_t i = 0; i < c.window.count; ++i) {
      const char* p = array.at(c.window, c.window.first + i);
      std::copy(p, p + item, image.begin() + (p - array.memory.get()));
    }
  }
  const Images after(c);
  require(after.scores == allowed.scores, "scores, or bytes between them, have changed");
  require(after.targets == allowed.targets, "targets have changed");
  require(after.weight == allowed.weight, "weight has changed");
  require(after.out == allowed.out, "bytes that are no element of out have changed");
}

template <class T>
void check_case(Case* c) {
  const Window& window = c->window;
  const Images before(*c);
  std::vector<Element> elements;
  for (std::int64_t i = 0; i < window.count; ++i) {
    elements.push_back(read_element<T>(*c, window.first + i));
  }
  std::int64_t n_valid = 0, n_foreground = 0;
  for (const Element& e : elements) {
    n_valid += !e.ignored;
    n_foreground += e.label == 1;
  }
  const std::vector<double> class_weights = class_weights_of<T>(*c, elements);
  for (std::size_t i = 0; i < elements.size(); ++i) {
    weigh<T>(*c, class_weights, window.first + static_cast<std::int64_t>(i), &elements[i]);
  }

  // The divisor and the scale of the gradient.
  double divisor = 1;
  switch (c->options.normalization) {
    case Normalization::kFull:
      divisor = static_cast<double>(window.total);
      break;
    case Normalization::kValid:
      divisor = static_cast<double>(n_valid);
      break;
    case Normalization::kBatchSize:
      divisor = window.shape.empty() ? 1 : static_cast<double>(window.shape[0]);
      break;
    case Normalization::kForeground:
      divisor = static_cast<double>(n_foreground);
      break;
    default:
      break;
  }
  divisor = c->options.normalization == Normalization::kNumber ? c->options.divisor
                                                               : std::max(1.0, divisor);
  const T scale = static_cast<T>(c->options.loss_weight / divisor);

  const Result whole = call(*c, c->inputs, c->options, c->output);
  if (!whole.status.ok()) {
    fail(std::string("no fault, but ") + whole.status.argument + ": " + whole.status.message);
  }
  require(whole.status.argument[0] == '\0', "ok with an argument at fault");
  check_memory(*c, before, c->writes());
  const std::vector<T> output = c->writes() ? read_output<T>(*c) : std::vector<T>();

  const bool has_p = !c->pos_weight.empty();
  for (std::size_t i = 0; i < output.size(); ++i) {
    const Expected e = expect<T>(elements[i], has_p, scale, c->options.gamma);
    if (c->operation == kElementwise) {
      check_value(output[i], e, e.loss, e.loss_error, "loss");
    } else {
      check_value(output[i], e, e.gradient, e.gradient_error, "gradient");
    }
  }

  if (c->sums()) {
    before.restore(c);
    std::vector<T> losses(static_cast<std::size_t>(window.count) + 1);
    const Status status = cpu::elementwise(c->inputs, c->options, MutableArray(losses.data()));
    require(status.ok(), "elementwise is not ok where the sum is");
    losses.pop_back();
    for (std::size_t i = 0; i < losses.size(); ++i) {
      const Expected e = expect<T>(elements[i], has_p, scale, c->options.gamma);
      check_value(losses[i], e, e.loss, e.loss_error, "loss");
    }
    Partial sum = sum_in_order(losses);
    sum.n_valid = n_valid;
    require(whole.partial == sum, "the sum is not that of the losses");
    const double d = cpu::divisor(c->inputs, c->options, whole.partial);
    // Of a window, "full" is the window's own number of elements; a partial has no foreground.
    if (c->options.normalization != Normalization::kFull &&
        c->options.normalization != Normalization::kForeground) {
      require(d == divisor, "the divisor");
    }
    const volatile double wanted = sum.sum() / d;  // before the mode changes
    std::fesetround(c->rounding);
    const volatile double loss = cpu::loss(c->inputs, c->options, whole.partial);
    std::fesetround(FE_TONEAREST);
    require(loss == wanted || (std::isnan(loss) && std::isnan(wanted)), "the loss");
  }

  // The class weights, counted by themselves.
  const std::int64_t groups = cpu::class_weight_groups(c->inputs, c->options);
  require(groups == c->groups, "number of groups");
  std::vector<double> counted(static_cast<std::size_t>(2 * groups));
  if (groups > 0) {
    const Status status = cpu::class_weights(c->inputs, c->options, counted.data());
    require(status.ok(), "class_weights is not ok");
    if (has_class_weights(c->options)) require(counted == class_weights, "class weights");
  }

  // The derivatives that no Case has: same bits, and the loss and the gradient of forward_backward.
  before.restore(c);
  std::vector<T> derivatives[3];  // gradient, Hessian, with respect to the targets
  for (std::vector<T>& d : derivatives) d.assign(static_cast<std::size_t>(window.count) + 1, T(7));
  for (int k = cpu::isa_count(); k >= 0; --k) {
    require(cpu::set_isa(k < cpu::isa_count() ? cpu::isa_name(k) : nullptr).ok(), "set_isa");
    std::vector<T> got[3];
    for (std::vector<T>& d : got) d.assign(static_cast<std::size_t>(window.count) + 1, T(7));
    Partial partial;
    require(cpu::forward_backward(c->inputs, c->options, &partial, MutableArray(got[0].data()),
                                  MutableArray(got[1].data()))
                .ok(),
            "not ok with a Hessian");
    require(cpu::backward_targets(c->inputs, c->options, MutableArray(got[2].data())).ok(),
            "backward_targets is not ok");
    for (int d = 0; d < 3; ++d) {
      require(got[d].back() == 7, "wrote behind its elements");
      for (T& v : got[d]) v = std::isnan(v) ? std::numeric_limits<T>::quiet_NaN() : v;
      if (k == cpu::isa_count()) derivatives[d] = got[d];
      require(same_bits(got[d], derivatives[d]), "bits of a derivative");
    }
    got[0].pop_back();
    if (c->operation == kBackward || c->operation == kForwardBackward) {
      require(same_bits(got[0], output), "the gradient beside a Hessian");
    }
    if (c->sums()) require(partial == whole.partial, "the sum beside a Hessian");
  }
  for (std::size_t i = 0; i < elements.size(); ++i) {
    const Element& e = elements[i];
    if (!e.ignored && !(c->has_weight && e.w == 0 && !has_class_weights(c->options))) continue;
    for (int d = 1; d < 3; ++d) {
      require(derivatives[d][i] == 0 && !std::signbit(derivatives[d][i]), "expected +0");
    }
  }
  check_memory(*c, before, false);

  for (int k = cpu::isa_count() - 1; k >= 0; --k) {
    before.restore(c);
    require(cpu::set_isa(cpu::isa_name(k)).ok(), "an instruction set is gone");
    const Result other = call(*c, c->inputs, c->options, c->output);
    require(other.status.ok(), "not ok with another instruction set");
    if (c->writes()) require(same_bits(read_output<T>(*c), output), "bits of an instruction set");
    if (c->sums()) require(other.partial == whole.partial, "sum of an instruction set");
  }
  cpu::set_isa(nullptr);

  if (window.count > kBlock) {
    before.restore(c);
    const std::int64_t blocks = (window.count - 1) / kBlock;
    const std::int64_t cut = kBlock * (1 + (window.first + window.count) % blocks);
    Options options = c->options;
    options.normalization = Normalization::kNumber;
    options.divisor = divisor;
    if (options.balance != Balance::kNone) options.class_weights = class_weights.data();
    Partial sum;
    for (const std::int64_t begin : {std::int64_t(0), cut}) {
      Inputs part = c->inputs;
      Options part_options = options;
      MutableArray out = c->output;
      part.first_index = window.first + begin;
      part.count = begin == 0 ? cut : window.count - cut;
      const auto shift = [begin](const ConstArray& a) {
        return a.strides || !a.data ? a.data
                                    : static_cast<const char*>(a.data) + begin * size_of(a.dtype);
      };
      part.scores.data = shift(part.scores);
      part.targets.data = shift(part.targets);
      part_options.weight.data = shift(options.weight);
      if (out.data != nullptr && out.strides == nullptr) {
        out.data = static_cast<char*>(out.data) + begin * size_of(c->dtype);
      }
      const Result result = call(*c, part, part_options, out);
      require(result.status.ok(), "not ok in pieces");
      sum.add(result.partial);
    }
    if (c->writes()) require(same_bits(read_output<T>(*c), output), "bits of pieces");
    if (c->sums()) require(sum == whole.partial, "sum of pieces");
    check_memory(*c, before, c->writes());
  }
}

void check_faults(const Case& c) {
  const Images before(c);
  const Result result = call(c, c.inputs, c.options, c.output);
  if (result.status.ok()) fail("ok in spite of a fault in " + *c.faults.begin());
  require(result.status.code == Code::kInvalidArgument, "another code than kInvalidArgument");
  if (c.faults.count(result.status.argument) == 0) {
    fail(std::string("the status names ") + result.status.argument + " and not " +
         *c.faults.begin());
  }
  require(result.status.message[0] != '\0', "no message");
  require(result.partial == Partial(), "a partial in spite of a fault");
  check_memory(c, before, false);
}

void run(const std::uint8_t* data, std::size_t size) {
  Bytes in(data, size);
  Case c;
  make_case(&in, &c);
  if (!c.faults.empty()) {
    check_faults(c);
  } else if (c.dtype == DType::kFloat32) {
    check_case<float>(&c);
  } else {
    check_case<double>(&c);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  run(data, size);
  return 0;
}

#if defined(FUZZ_MAIN)
int main(int argc, char** argv) {
  int inputs = 0;
  if (argc == 4 && std::strcmp(argv[1], "--random") == 0) {
    Random random(std::strtoull(argv[3], nullptr, 10));
    for (; inputs < std::atoi(argv[2]); ++inputs) {
      std::vector<std::uint8_t> data(static_cast<std::size_t>(random.below(256)));
      for (std::uint8_t& byte : data) byte = static_cast<std::uint8_t>(random.word());
      run(data.data(), data.size());
    }
  } else {
    for (int i = 1; i < argc; ++i, ++inputs) {
      std::FILE* f = std::fopen(argv[i], "rb");
      if (f == nullptr) fail(std::string("cannot read ") + argv[i]);
      std::vector<std::uint8_t> data(1 << 16);
      data.resize(std::fread(data.data(), 1, data.size(), f));
      std::fclose(f);
      std::printf("%s\n", argv[i]);
      std::fflush(stdout);
      run(data.data(), data.size());
    }
  }
  std::printf("%d inputs\n", inputs);
  return 0;
}
#endif
