// Prints one line `name digest` per case: every operation, dtype, target dtype and option on inputs made
// from integers. tests/digests.txt holds the lines; every instruction set (SIGMOID_CE_ISA), compiler and
// thread count must print the same. tests/digest.py makes the same lines through the Python package, so
// the inputs and the digest are defined by integer operations that both languages share. With --isa it
// prints the instruction set in use instead. Compiled with SIGMOID_CE_DIGEST_CUDA it computes on the GPU.
//
// Digest of 64-bit words v[i]: sum of mix(v[i] ^ mix(i)) modulo 2^64, with mix the finaliser of splitmix64.
// A NaN counts as the quiet NaN of its type without sign and payload.
#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "sigmoid_ce/cpu.h"
#if defined(SIGMOID_CE_DIGEST_CUDA)
#include "digest_cuda.h"
namespace device = digest_cuda;
#else
namespace device = sigmoid_ce::cpu;
#endif

namespace {

namespace cpu = sigmoid_ce::cpu;
using sigmoid_ce::ConstArray;
using sigmoid_ce::DType;

std::uint64_t mix(std::uint64_t v) {
  v += 0x9E3779B97F4A7C15u;
  v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9u;
  v = (v ^ (v >> 27)) * 0x94D049BB133111EBu;
  return v ^ (v >> 31);
}

// The i-th integer of a stream.
std::uint64_t draw(std::uint64_t stream, std::int64_t i) {
  return mix((stream << 40) + static_cast<std::uint64_t>(i));
}

template <typename To, typename From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

std::uint64_t word(float v) { return std::isnan(v) ? 0x7FC00000u : bit_cast<std::uint32_t>(v); }
std::uint64_t word(double v) {
  return std::isnan(v) ? 0x7FF8000000000000u : bit_cast<std::uint64_t>(v);
}

std::uint64_t digest(const std::vector<std::uint64_t>& words) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < words.size(); ++i) sum += mix(words[i] ^ mix(i));
  return sum;
}

template <typename T>
std::uint64_t digest(const std::vector<T>& values, std::int64_t count) {
  std::vector<std::uint64_t> words(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) words[i] = word(values[i]);
  return digest(words);
}

// Signed 24 (53) random bits: exact in the type, in [-1, 1).
float signed_unit(std::uint64_t u, float) {
  return static_cast<float>(static_cast<std::int64_t>(u) >> 40) / 8388608.0f;
}
double signed_unit(std::uint64_t u, double) {
  return static_cast<double>(static_cast<std::int64_t>(u) >> 11) / 4503599627370496.0;
}

template <typename T>
T any_bits(std::uint64_t u) {
  return bit_cast<T>(
      static_cast<typename std::conditional<sizeof(T) == 4, std::uint32_t, std::uint64_t>::type>(
          u));
}

enum Stream : std::uint64_t { kScores = 1, kTargets = 2, kWeights = 3 };

// Ordinary scores lie in [-16, 16), one in eight in [-128, 128); the others are any bit pattern.
template <typename T>
T score(std::int64_t i, bool any) {
  const std::uint64_t u = draw(kScores, i);
  if (any) return any_bits<T>(u);
  return signed_unit(u, T()) * ((u & 7) == 0 ? T(128) : T(16));
}

// Targets: a quarter 0, a quarter 1, else in [0, 1); or, in one place of 16, any bit pattern.
void set_target(std::int64_t i, bool any, float* out) {
  const std::uint64_t u = draw(kTargets, i);
  *out = (u & 3) == 0 ? 0.0f : (u & 3) == 1 ? 1.0f : std::fabs(signed_unit(u, 0.0f));
  if (any && (u & 0xF0) == 0) *out = any_bits<float>(mix(u));
}
void set_target(std::int64_t i, bool any, double* out) {
  const std::uint64_t u = draw(kTargets, i);
  *out = (u & 3) == 0 ? 0.0 : (u & 3) == 1 ? 1.0 : std::fabs(signed_unit(u, 0.0));
  if (any && (u & 0xF0) == 0) *out = any_bits<double>(mix(u));
}
// bool: half of the bytes 0, the others anything (0 among them).
void set_target(std::int64_t i, bool, bool* out) {
  const std::uint64_t u = draw(kTargets, i);
  const std::uint8_t byte = (u & 1) ? static_cast<std::uint8_t>(u >> 16) : 0;
  std::memcpy(out, &byte, 1);
}
void set_target(std::int64_t i, bool, std::uint8_t* out) {
  *out = static_cast<std::uint8_t>((draw(kTargets, i) >> 8) & 3);
}
void set_target(std::int64_t i, bool, std::int8_t* out) {
  *out = static_cast<std::int8_t>(static_cast<int>((draw(kTargets, i) >> 8) & 3) - 1);
}
// Wide integers: one place in 16 holds any value of the type, the others -1, 0, 1, 2.
void set_target(std::int64_t i, bool, std::int32_t* out) {
  const std::uint64_t u = draw(kTargets, i);
  *out = (u & 0xF0) == 0 ? static_cast<std::int32_t>(static_cast<std::uint32_t>(u >> 32))
                         : static_cast<std::int32_t>((u >> 8) & 3) - 1;
}
void set_target(std::int64_t i, bool, std::int64_t* out) {
  const std::uint64_t u = draw(kTargets, i);
  *out = (u & 0xF0) == 0 ? static_cast<std::int64_t>(mix(u))
                         : static_cast<std::int64_t>((u >> 8) & 3) - 1;
}

// Weights in [0, 4), one in eight 0.
template <typename T>
T weight(std::int64_t i) {
  const std::uint64_t u = draw(kWeights, i);
  return (u & 7) == 0 ? T(0) : std::fabs(signed_unit(u, T())) * T(4);
}

DType dtype_of(float) { return DType::kFloat32; }
DType dtype_of(double) { return DType::kFloat64; }
DType dtype_of(bool) { return DType::kBool; }
DType dtype_of(std::uint8_t) { return DType::kUint8; }
DType dtype_of(std::int8_t) { return DType::kInt8; }
DType dtype_of(std::int32_t) { return DType::kInt32; }
DType dtype_of(std::int64_t) { return DType::kInt64; }

void check(const sigmoid_ce::Status& status, const std::string& name) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s: %s\n", name.c_str(), status.argument, status.message);
  std::exit(2);
}

void print(const std::string& name, std::uint64_t value) {
  std::printf("%s %016" PRIx64 "\n", name.c_str(), value);
}

// Runs the operations; forward and forward_backward must agree, as must the gradients of all passes. More: the Hessian
// and the gradient with respect to the targets too.
template <typename T>
void operations(const std::string& name, const sigmoid_ce::Inputs& inputs,
                const sigmoid_ce::Options& options, std::int64_t count, bool more = false) {
  std::vector<T> out(static_cast<std::size_t>(count) +
                     1);  // never an empty vector: data() is valid
  const sigmoid_ce::MutableArray array(out.data());
  check(device::elementwise(inputs, options, array), name);
  print(name + "/elementwise", digest(out, count));

  check(device::backward(inputs, options, array), name);
  const std::uint64_t gradient = digest(out, count);
  print(name + "/backward", gradient);

  sigmoid_ce::Partial partial;
  double divisor = 0;
  check(device::forward(inputs, options, &partial, &divisor), name);
  print(name + "/forward",
        digest({word(partial.sum()), static_cast<std::uint64_t>(partial.n_valid),
                static_cast<std::uint64_t>(partial.n_total), word(cpu::divide(partial, divisor))}));

  sigmoid_ce::Partial both;
  check(device::forward_backward(inputs, options, &both, array), name);
  if (digest(out, count) != gradient || !(both == partial)) {
    std::fprintf(stderr, "%s: forward_backward differs from forward and backward\n", name.c_str());
    std::exit(1);
  }
  if (!more) return;

  std::vector<T> curve(out.size());
  const sigmoid_ce::MutableArray curve_array(curve.data());
  check(device::forward_backward(inputs, options, &both, array, curve_array), name);
  if (digest(out, count) != gradient || !(both == partial)) {
    std::fprintf(stderr, "%s: the pass with the Hessian differs\n", name.c_str());
    std::exit(1);
  }
  print(name + "/hessian", digest(curve, count));
  check(device::backward_targets(inputs, options, array), name);
  print(name + "/targets", digest(out, count));
}

constexpr std::int64_t kShape[3] = {3, 5,
                                    1117};  // five blocks; rows that are no multiple of any vector
constexpr std::int64_t kCount = 3 * 5 * 1117;
const double kPosWeights[5] = {0.001, 0.5, 1.0, 2.5, 1000.0};

template <typename T, typename Target>
void option_cases(const std::string& name, bool any) {
  std::vector<T> scores(kCount), full(kCount);
  std::vector<std::uint8_t> bytes(kCount);
  std::vector<std::int8_t> signs(kCount);
  std::vector<unsigned char> target_bytes(kCount * sizeof(Target));  // vector<bool> has no data()
  Target* targets = reinterpret_cast<Target*>(target_bytes.data());
  for (std::int64_t i = 0; i < kCount; ++i) {
    scores[i] = score<T>(i, any);
    full[i] = weight<T>(i);
    bytes[i] = static_cast<std::uint8_t>(draw(kWeights, i) >> 13 & 3);
    signs[i] = static_cast<std::int8_t>(bytes[i]);
    set_target(i, any, &targets[i]);
  }
  sigmoid_ce::Inputs inputs;
  inputs.scores = ConstArray(scores.data(), dtype_of(T()));
  inputs.targets = ConstArray(targets, dtype_of(Target()));
  inputs.shape = kShape;
  inputs.ndim = 3;
  const sigmoid_ce::Options plain;
  const std::int64_t per_sample[3] = {sizeof(T), 0, 0}, per_channel[3] = {0, sizeof(T), 0};
  const std::int64_t byte_row[3] = {0, 0, 1};

  operations<T>(name + "/plain", inputs, plain, kCount);
  sigmoid_ce::Options o = plain;
  o.pos_weight = &kPosWeights[3];
  o.pos_weight_count = 1;
  o.normalization = sigmoid_ce::Normalization::kFull;
  operations<T>(name + "/pos_weight", inputs, o, kCount);
  o.pos_weight = kPosWeights;
  o.pos_weight_count = 5;
  operations<T>(name + "/pos_weight_channel", inputs, o, kCount);

  o = plain;
  o.normalization = sigmoid_ce::Normalization::kNumber;
  o.divisor = 0.3;
  o.weight = ConstArray(full.data(), dtype_of(T()));
  operations<T>(name + "/weight_full", inputs, o, kCount);
  o.weight = ConstArray(full.data(), dtype_of(T()), per_sample);
  operations<T>(name + "/weight_sample", inputs, o, kCount);
  o.weight = ConstArray(full.data(), dtype_of(T()), per_channel);
  operations<T>(name + "/weight_channel", inputs, o, kCount);
  o.weight = ConstArray(bytes.data(), DType::kBool, byte_row);
  operations<T>(name + "/weight_bool", inputs, o, kCount);
  o.weight = ConstArray(bytes.data(), DType::kUint8);
  operations<T>(name + "/weight_uint8", inputs, o, kCount);
  o.weight = ConstArray(signs.data(), DType::kInt8);
  operations<T>(name + "/weight_int8", inputs, o, kCount);

  for (int label = -1; label <= 1; ++label) {
    o = plain;
    o.has_ignore_label = true;
    o.ignore_label = label;
    o.normalization = label ? sigmoid_ce::Normalization::kValid : sigmoid_ce::Normalization::kNone;
    operations<T>(name + "/ignore" + std::to_string(label), inputs, o, kCount);
  }
  o.pos_weight = kPosWeights;
  o.pos_weight_count = 5;
  o.weight = ConstArray(full.data(), dtype_of(T()), per_channel);
  o.loss_weight = 0.37;
  operations<T>(name + "/all", inputs, o, kCount);
}

// Options for unbalanced and dense targets.
template <typename T, typename Target>
void family_cases(const std::string& name) {
  std::vector<T> scores(kCount), weights(kCount);
  std::vector<Target> targets(kCount);
  for (std::int64_t i = 0; i < kCount; ++i) {
    scores[i] = score<T>(i, false);
    weights[i] = weight<T>(i);
    set_target(i, false, &targets[i]);
  }
  sigmoid_ce::Inputs inputs;
  inputs.scores = ConstArray(scores.data(), dtype_of(T()));
  inputs.targets = ConstArray(targets.data(), dtype_of(Target()));
  inputs.shape = kShape;
  inputs.ndim = 3;
  const sigmoid_ce::Options plain;
  const auto run = [&](const char* option, const sigmoid_ce::Options& o) {
    operations<T>(name + "/" + option, inputs, o, kCount, true);
  };
  run("none", plain);
  sigmoid_ce::Options o = plain;
  o.label_smoothing = 0.1;
  run("smoothing", o);
  o = plain;
  o.uncertain = sigmoid_ce::Uncertain::kIgnore;
  o.normalization = sigmoid_ce::Normalization::kValid;
  run("uncertain", o);
  o.has_ignore_label = true;
  o.ignore_label = 1;
  run("uncertain_ignore1", o);
  o = plain;
  o.has_alpha = true;
  o.alpha = 0.25;
  o.negative_scale = 1.1;
  o.normalization = sigmoid_ce::Normalization::kForeground;
  run("alpha", o);
  const sigmoid_ce::Balance balances[] = {sigmoid_ce::Balance::kImage, sigmoid_ce::Balance::kBatch,
                                          sigmoid_ce::Balance::kBatchMean};
  const char* const names[] = {"image", "batch", "batch_mean"};
  for (int k = 0; k < 3; ++k) {
    o = plain;
    o.balance = balances[k];
    run(names[k], o);
    o.balance_per_channel = true;
    o.has_ignore_label = true;
    o.ignore_label = 2;
    o.normalization = sigmoid_ce::Normalization::kValid;
    run((std::string(names[k]) + "_channel").c_str(), o);
  }
  const double gammas[] = {0.5, 1, 2, 5};
  for (const double gamma : gammas) {
    o = plain;
    o.gamma = gamma;
    run(("gamma" + std::to_string(gamma).substr(0, 3)).c_str(), o);
  }
  o.gamma = 1.5;
  o.has_alpha = true;
  o.alpha = 0.75;
  o.negative_scale = 0.9;
  o.balance = sigmoid_ce::Balance::kImage;
  o.balance_per_channel = true;
  o.label_smoothing = 0.2;
  o.has_ignore_label = true;
  o.ignore_label = 2;
  o.pos_weight = kPosWeights;
  o.pos_weight_count = 5;
  o.weight = ConstArray(weights.data(), dtype_of(T()));
  o.loss_weight = 0.37;
  o.normalization = sigmoid_ce::Normalization::kForeground;
  run("family", o);
}

// Lengths around the steps of a block: 64, 256, 4096.
template <typename T>
void size_cases(const std::string& name) {
  const std::int64_t sizes[] = {0, 1, 2, 63, 64, 65, 255, 256, 257, 4095, 4096, 4097, 40961};
  for (const std::int64_t size : sizes) {
    std::vector<T> scores(static_cast<std::size_t>(size) + 1), targets(scores.size());
    for (std::int64_t i = 0; i < size; ++i) {
      scores[i] = score<T>(i, false);
      set_target(i, false, &targets[i]);
    }
    sigmoid_ce::Inputs inputs;
    inputs.scores = ConstArray(scores.data(), dtype_of(T()));
    inputs.targets = ConstArray(targets.data(), dtype_of(T()));
    inputs.shape = &size;
    inputs.ndim = 1;
    operations<T>(name + "/size" + std::to_string(size), inputs, sigmoid_ce::Options(), size);
  }
}

template <typename T>
void all_cases(const std::string& name) {
  option_cases<T, T>(name + "/float", false);
  option_cases<T, T>(name + "/anybits", true);
  option_cases<T, bool>(name + "/bool", false);
  option_cases<T, std::uint8_t>(name + "/uint8", false);
  option_cases<T, std::int8_t>(name + "/int8", false);
  option_cases<T, std::int32_t>(name + "/int32", false);
  option_cases<T, std::int64_t>(name + "/int64", false);
  size_cases<T>(name);
  family_cases<T, T>(name + "/family/float");
  family_cases<T, std::uint8_t>(name + "/family/uint8");
  family_cases<T, std::int64_t>(name + "/family/int64");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--isa") == 0) {
    std::printf("%s\n", cpu::isa());
    return 0;
  }
  // An unknown or unsupported SIGMOID_CE_ISA must not pass as another instruction set.
  const char* wanted = std::getenv("SIGMOID_CE_ISA");
  if (wanted && std::strcmp(wanted, cpu::isa()) != 0) {
    std::fprintf(stderr, "SIGMOID_CE_ISA=%s, but %s is in use\n", wanted, cpu::isa());
    return 3;
  }
  all_cases<float>("float32");
  all_cases<double>("float64");
  return 0;
}
