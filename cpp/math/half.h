// float16 and bfloat16: types of storage. Arithmetic is in float32, and a result is rounded once.
#ifndef SIGMOID_CE_MATH_HALF_H_
#define SIGMOID_CE_MATH_HALF_H_

#include <cstdint>
#include <cstring>

#include "math/platform.h"

namespace sigmoid_ce {
namespace math {

struct Float16 {
  std::uint16_t bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};

SIGMOID_CE_BOTH float float_of_bits(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
SIGMOID_CE_BOTH std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Exact.
SIGMOID_CE_BOTH float widen(Bfloat16 v) { return float_of_bits(std::uint32_t(v.bits) << 16); }
SIGMOID_CE_BOTH float widen(Float16 v) {
  const std::uint32_t sign = std::uint32_t(v.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (magnitude << 13));
  // The exponents' biases are 112 apart, and subnormals become normal: a product does both.
  const float scaled = float_of_bits(magnitude << 13) * 5.192296858534828e33f;  // 2^112
  return float_of_bits(bits_of_float(scaled) | sign);
}

// To nearest, ties to even; beyond the largest number infinity.
SIGMOID_CE_BOTH void narrow(float value, Bfloat16* result) {
  const std::uint32_t bits = bits_of_float(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  result->bits = static_cast<std::uint16_t>(nan ? (bits >> 16) | 0x40u : rounded);
}
SIGMOID_CE_BOTH void narrow(float value, Float16* result) {
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x47800000u) {  // 2^16
    half = 0x7c00u;
  } else if (
      magnitude <
      0x38800000u) {  // 2^-14: adding 1/2 leaves units of 2^-24, the subnormals', in the low bits
    half = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1)) >> 13;
  }
  result->bits = static_cast<std::uint16_t>(sign | half);
}

}  // namespace math
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_MATH_HALF_H_
