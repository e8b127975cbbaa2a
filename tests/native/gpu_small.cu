// Every kernel on small inputs, for compute-sanitizer and for machines without Python: all types of scores and
// targets, the plain and the general variant, contiguous and strided. Results are compared with the CPU's, bit by
// bit: of the half types with those of the same numbers in float32, rounded once. Prints "ok" and the number of
// passes. With --few: one integer type, and one size. Compiles with a C++ compiler and tests/native/emulation too.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "digest_cuda.h"

namespace {

using sigmoid_ce::ConstArray;
using sigmoid_ce::DType;
using sigmoid_ce::Inputs;
using sigmoid_ce::MutableArray;
using sigmoid_ce::Partial;
using sigmoid_ce::Status;

int passes = 0;

void must_be_ok(const Status& status, const std::string& name) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s: %s\n", name.c_str(), status.argument, status.message);
  std::exit(2);
}

void fail(const std::string& name, const char* what) {
  std::fprintf(stderr, "%s: %s\n", name.c_str(), what);
  std::exit(1);
}

// ---- Half types, by arithmetic ----

struct Format {
  int mantissa;  // bits that are stored
  int smallest;  // exponent of the smallest normal number
  int bias;
};
constexpr Format kHalf = {10, -14, 15};
constexpr Format kBrain = {7, -126, 127};

const Format& format_of(DType dtype) { return dtype == DType::kFloat16 ? kHalf : kBrain; }

double value_of(std::uint16_t bits, const Format& f) {
  const int fraction = bits & ((1 << f.mantissa) - 1);
  const int exponent = (bits & 0x7FFF) >> f.mantissa;
  const double size =
      exponent == 0 ? std::ldexp(fraction, f.smallest - f.mantissa)
                    : std::ldexp(fraction + (1 << f.mantissa), exponent - f.bias - f.mantissa);
  return bits & 0x8000 ? -size : size;
}

// To the nearest, ties to even, of a number whose result is finite.
std::uint16_t bits_of(double value, const Format& f) {
  const double size = std::fabs(value);
  int exponent = f.smallest;
  if (size > 0) {
    std::frexp(size, &exponent);
    exponent = exponent - 1 < f.smallest ? f.smallest : exponent - 1;
  }
  // In units of the last place; a carry goes into the exponent by itself.
  const long units = std::lrint(std::ldexp(size, f.mantissa - exponent));
  const long bits = (static_cast<long>(exponent - f.smallest) << f.mantissa) + units;
  return static_cast<std::uint16_t>((std::signbit(value) ? 0x8000 : 0) | bits);
}

// ---- Arrays ----

// The same numbers as the device and as the CPU take them.
struct Array {
  DType dtype = DType::kFloat32, wide_dtype = DType::kFloat32;
  std::vector<std::int64_t> bytes, wide;  // in words, which are aligned

  template <class T>
  static void set(std::vector<std::int64_t>* to, std::size_t i, T value) {
    std::memcpy(reinterpret_cast<char*>(to->data()) + i * sizeof(T), &value, sizeof(T));
  }
};

void set_value(std::vector<std::int64_t>* to, DType dtype, std::size_t i, double value) {
  switch (dtype) {
    case DType::kFloat32:
      return Array::set(to, i, static_cast<float>(value));
    case DType::kFloat64:
      return Array::set(to, i, value);
    case DType::kInt32:
      return Array::set(to, i, static_cast<std::int32_t>(value));
    case DType::kInt64:
      return Array::set(to, i, static_cast<std::int64_t>(value));
    case DType::kFloat16:
    case DType::kBfloat16:
      return Array::set(to, i, bits_of(value, format_of(dtype)));
    default:
      return Array::set(to, i, static_cast<std::int8_t>(value));
  }
}

DType wide_of(DType scores) { return sigmoid_ce::math::is_half(scores) ? DType::kFloat32 : scores; }

// `stride` elements apart. Values are those that the array's type holds.
Array make(DType dtype, DType scores, std::size_t count, std::size_t stride,
           double (*draw)(std::mt19937*), unsigned seed) {
  Array array;
  array.dtype = dtype;
  array.wide_dtype = sigmoid_ce::math::is_integer(dtype) ? dtype : wide_of(scores);
  array.bytes.resize(count * stride + 1);
  array.wide.resize(count * stride + 1);
  std::mt19937 random(seed);
  for (std::size_t i = 0; i < count; ++i) {
    double value = draw(&random);
    if (sigmoid_ce::math::is_half(dtype)) {
      value = value_of(bits_of(value, format_of(dtype)), format_of(dtype));
    } else if (dtype == DType::kFloat32) {
      value = static_cast<float>(value);
    }
    set_value(&array.bytes, dtype, i * stride, value);
    set_value(&array.wide, array.wide_dtype, i * stride, value);
  }
  return array;
}

double draw_score(std::mt19937* random) {
  return (static_cast<double>((*random)()) / 4294967296.0 - 0.5) * ((*random)() % 8 ? 16 : 160);
}
double draw_target(std::mt19937* random) {
  const unsigned u = (*random)();
  return u % 4 < 2 ? u % 2 : static_cast<double>((*random)()) / 4294967296.0;
}
double draw_integer(std::mt19937* random) { return (*random)() % 2; }
double draw_weight(std::mt19937* random) {
  const unsigned u = (*random)();
  return u % 8 == 0 ? 0 : static_cast<double>((*random)()) / 1073741824.0;
}

// ---- One case ----

bool same(const void* found, const void* wanted, DType dtype, std::size_t count,
          std::size_t stride) {
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t at = i * stride;
    if (dtype == DType::kFloat64) {
      if (std::memcmp(static_cast<const double*>(found) + at,
                      static_cast<const double*>(wanted) + at, 8) != 0) {
        return false;
      }
      continue;
    }
    const float value = static_cast<const float*>(wanted)[at];
    if (dtype == DType::kFloat32) {
      if (std::memcmp(static_cast<const float*>(found) + at, &value, 4) != 0) return false;
    } else if (static_cast<const std::uint16_t*>(found)[at] != bits_of(value, format_of(dtype))) {
      return false;
    }
  }
  return true;
}

void one_case(DType scores, DType targets, bool general, std::int64_t length, std::size_t stride) {
  const std::int64_t shape[3] = {3, 5, length};
  const std::size_t count = static_cast<std::size_t>(15 * length);
  const std::string name = "scores " + std::to_string(static_cast<int>(scores)) + ", targets " +
                           std::to_string(static_cast<int>(targets)) +
                           (general ? ", general, " : ", plain, ") + std::to_string(length) +
                           (stride > 1 ? ", strided" : "");
  const bool integer = sigmoid_ce::math::is_integer(targets);
  const Array x = make(scores, scores, count, stride, draw_score, 1);
  const Array t = make(targets, scores, count, stride, integer ? draw_integer : draw_target, 2);
  const Array w = make(scores, scores, count, 1, draw_weight, 3);

  const auto strides = [&](DType dtype, std::int64_t* to) -> const std::int64_t* {
    const std::int64_t step = sigmoid_ce::math::size_of(dtype) * static_cast<std::int64_t>(stride);
    to[0] = 5 * length * step;
    to[1] = length * step;
    to[2] = step;
    return stride > 1 ? to : nullptr;
  };
  std::int64_t s[4][3];
  const auto inputs_of = [&](const std::vector<std::int64_t>& a, DType a_type,
                             const std::vector<std::int64_t>& b, DType b_type, int at) {
    Inputs inputs;
    inputs.scores = ConstArray(a.data(), a_type, strides(a_type, s[at]));
    inputs.targets = ConstArray(b.data(), b_type, strides(b_type, s[at + 1]));
    inputs.shape = shape;
    inputs.ndim = 3;
    return inputs;
  };
  const Inputs device = inputs_of(x.bytes, x.dtype, t.bytes, t.dtype, 0);
  const Inputs host = inputs_of(x.wide, x.wide_dtype, t.wide, t.wide_dtype, 2);

  const double pos_weights[5] = {0.25, 1, 2.5, 7, 0};
  sigmoid_ce::Options on_device, on_host;
  if (general) {
    on_device.pos_weight = pos_weights;
    on_device.pos_weight_count = 5;
    on_device.has_ignore_label = true;
    on_device.ignore_label = 1;
    on_device.normalization = sigmoid_ce::Normalization::kValid;
    on_host = on_device;
    on_device.weight = ConstArray(w.bytes.data(), w.dtype);
    on_host.weight = ConstArray(w.wide.data(), w.wide_dtype);
  }

  std::vector<std::int64_t> found(count * stride + 1), wanted(count * stride + 1);
  const MutableArray to(found.data(), device.scores.strides);
  const MutableArray expected(wanted.data(), host.scores.strides);
  Partial part, both, exact;
  must_be_ok(sigmoid_ce::cpu::forward(host, on_host, &exact), name);
  must_be_ok(digest_cuda::forward(device, on_device, &part), name);
  if (!(part == exact)) fail(name, "another sum");

  must_be_ok(sigmoid_ce::cpu::elementwise(host, on_host, expected), name);
  must_be_ok(digest_cuda::elementwise(device, on_device, to), name);
  if (!same(found.data(), wanted.data(), scores, count, stride)) fail(name, "another loss");

  must_be_ok(sigmoid_ce::cpu::backward(host, on_host, expected), name);
  must_be_ok(digest_cuda::backward(device, on_device, to), name);
  if (!same(found.data(), wanted.data(), scores, count, stride)) fail(name, "another gradient");

  std::memset(found.data(), 1, found.size() * sizeof found[0]);
  must_be_ok(digest_cuda::forward_backward(device, on_device, &both, to), name);
  if (!(both == exact)) fail(name, "another sum in one pass");
  if (!same(found.data(), wanted.data(), scores, count, stride)) {
    fail(name, "another gradient in one pass");
  }
  passes += 4;
}

}  // namespace

int main(int argc, char** argv) {
  const bool few = argc > 1 && std::strcmp(argv[1], "--few") == 0;
  int devices = 0;
  const Status status = sigmoid_ce::cuda::device_count(&devices);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.message);
    return 3;
  }
  std::vector<DType> integers = {DType::kUint8};
  // Not whole vectors, and more than two tiles of each type.
  std::vector<std::int64_t> lengths = {1117};
  if (!few) {
    integers = {DType::kBool, DType::kUint8, DType::kInt8, DType::kInt32, DType::kInt64};
    lengths = {1, 1117, 2048};
  }
  for (DType scores : {DType::kFloat16, DType::kBfloat16, DType::kFloat32, DType::kFloat64}) {
    std::vector<DType> targets = integers;
    targets.push_back(DType::kFloat32);
    if (scores != DType::kFloat32) targets.push_back(scores);
    for (DType target : targets) {
      for (bool general : {false, true}) {
        for (std::int64_t length : lengths) one_case(scores, target, general, length, 1);
        one_case(scores, target, general, 101, 3);
      }
    }
  }
  std::printf("ok %d\n", passes);
  return 0;
}
