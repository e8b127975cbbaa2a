// The functions of cpp/math/exp_log1p.h against the C library in more precision.
//
//   functions [--every K]
//
// float32: every K-th bit pattern of the valid range (97 by default) against double. float64: two million
// samples, half of them uniform, half spread over the exponents, against long double. Prints a line
// `name error argument` per function and type, the error in ulp as bounds.py defines it; that of log_01 ("logy") in
// ulp of the larger of 1 and the result.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cpu/ops_scalar.h"
#include "math/exp_log1p.h"

namespace {

namespace math = sigmoid_ce::math;
using F32 = sigmoid_ce::cpu::ScalarOps<float>;
using F64 = sigmoid_ce::cpu::ScalarOps<double>;

// Spacing of the numbers with `digits` bits in the binade of `exact`, 2^least at the least.
template <class Real>
Real spacing(Real exact, int digits, int least) {
  int exponent;
  std::frexp(exact, &exponent);
  return std::ldexp(Real(1), std::max(exponent - digits, least));
}

struct Worst {
  long double error = 0;
  double argument = 0;

  void add(long double e, double x) {
    if (e <= error) return;
    error = e;
    argument = x;
  }
  void print(const char* name) const { std::printf("%s %.4Lf %.17g\n", name, error, argument); }
};

// Half of the numbers uniform in [0, 1), half with exponents spread evenly over [-60, 0).
double sample(std::uint64_t i) {
  std::uint64_t v = (i + 1) * 0x9E3779B97F4A7C15u;  // splitmix64
  v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9u;
  v = (v ^ (v >> 27)) * 0x94D049BB133111EBu;
  v ^= v >> 31;
  const double uniform = std::ldexp(static_cast<double>(v >> 11), -53);
  return i % 2 ? uniform : std::ldexp(1 + uniform, -1 - static_cast<int>(i / 2 % 60));
}

}  // namespace

int main(int argc, char** argv) {
  std::uint32_t every = 97;
  if (argc == 3 && std::strcmp(argv[1], "--every") == 0) {
    every = static_cast<std::uint32_t>(std::strtoul(argv[2], nullptr, 10));
  }
  if ((argc != 1 && argc != 3) || every == 0) {
    std::fprintf(stderr, "usage: functions [--every K]\n");
    return 2;
  }

  Worst exp32, log32, logy32, exp64, log64, logy64;
  constexpr std::uint32_t kLast = 0x42d20000;  // 105: exp(-105) rounds to 0
  constexpr std::uint32_t kOne = 0x3f800000;
  for (std::uint32_t bits = 0; bits <= kLast; bits += every) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    double exact = std::exp(-static_cast<double>(x));
    exp32.add(std::fabs(math::exp_neg<F32>(x) - exact) / spacing(exact, 24, -149), x);
    if (bits > kOne) continue;
    exact = std::log1p(static_cast<double>(x));
    log32.add(std::fabs(math::log1p_01<F32>(x) - exact) / spacing(exact, 24, -149), x);
    if (bits == 0) continue;
    exact = std::log(static_cast<double>(x));
    logy32.add(std::fabs(math::log_01<F32>(x) - exact) / spacing(std::max(1.0, -exact), 24, -149),
               x);
  }
  for (std::uint64_t i = 0; i < 2000000; ++i) {
    const double z = sample(i);
    long double exact = std::log1p(static_cast<long double>(z));
    log64.add(std::fabs(math::log1p_01<F64>(z) - exact) / spacing(exact, 53, -1074), z);
    const double y = i % 2 ? z : std::ldexp(z, -1000);
    exact = std::log(static_cast<long double>(y));
    logy64.add(std::fabs(math::log_01<F64>(y) - exact) / spacing(std::max(1.0L, -exact), 53, -1074),
               y);
    const double a = 746 * z;
    exact = std::exp(-static_cast<long double>(a));
    exp64.add(std::fabs(math::exp_neg<F64>(a) - exact) / spacing(exact, 53, -1074), a);
  }
  exp32.print("exp32");
  log32.print("log32");
  logy32.print("logy32");
  exp64.print("exp64");
  log64.print("log64");
  logy64.print("logy64");
  return 0;
}
