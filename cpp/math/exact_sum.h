// Exact addition of doubles: the fixed-point number behind Partial, value = sum of limb[k] 2^(32 k - 1088).
//
// Limbs are 64-bit integers that hold 32 bits each, so that 2^30 values can be added before a carry has to
// be passed on, and integer addition, in any order and on any device, merges two numbers.
#ifndef SIGMOID_CE_MATH_EXACT_SUM_H_
#define SIGMOID_CE_MATH_EXACT_SUM_H_

#include <cstdint>
#include <cstring>
#include <limits>

namespace sigmoid_ce {
namespace math {

constexpr int kLimbs = 68;
constexpr int kLimbBias =
    1088;  // limb[0] counts units of 2^-1088; a double's lowest bit is 2^-1074

// Adds a finite value.
inline void exact_add(std::int64_t* limb, double value) {
  std::uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const int exponent = static_cast<int>(bits >> 52) & 0x7ff;
  std::uint64_t mantissa = bits & ((std::uint64_t(1) << 52) - 1);
  if (exponent != 0) mantissa |= std::uint64_t(1) << 52;
  // value = +- mantissa * 2^(e - 1075), e = max(exponent, 1)
  const int shift = (exponent != 0 ? exponent : 1) - 1075 + kLimbBias;  // 14 .. 2059
  const int k = shift / 32;
  const int s = shift % 32;
  // 53 + 31 bits over three limbs.
  const std::uint64_t low = (mantissa << s) & 0xffffffffu;
  const std::uint64_t middle = (mantissa >> (32 - s)) & 0xffffffffu;
  const std::uint64_t high = s ? mantissa >> (64 - s) : 0;
  if (bits >> 63) {
    limb[k] -= static_cast<std::int64_t>(low);
    limb[k + 1] -= static_cast<std::int64_t>(middle);
    limb[k + 2] -= static_cast<std::int64_t>(high);
  } else {
    limb[k] += static_cast<std::int64_t>(low);
    limb[k + 1] += static_cast<std::int64_t>(middle);
    limb[k + 2] += static_cast<std::int64_t>(high);
  }
}

// Carries: every limb but the last into [0, 2^32); the last keeps the sign.
inline void exact_normalize(std::int64_t* limb) {
  std::int64_t carry = 0;
  for (int k = 0; k < kLimbs - 1; ++k) {
    const std::int64_t v = limb[k] + carry;
    carry = v >> 32;  // floor
    limb[k] = v & 0xffffffff;
  }
  limb[kLimbs - 1] += carry;
}

// The value of normalised limbs, rounded once to nearest, ties to even; overflow gives infinity.
inline double exact_round(const std::int64_t* normalized) {
  std::int64_t limb[kLimbs];
  std::memcpy(limb, normalized, sizeof limb);
  const bool negative = limb[kLimbs - 1] < 0;
  if (negative) {
    for (int k = 0; k < kLimbs; ++k) limb[k] = -limb[k];
    exact_normalize(limb);
  }
  int top = kLimbs - 1;
  while (top >= 0 && limb[top] == 0) --top;
  if (top < 0) return 0.0;

  int width = 0;  // bits of the top limb; the last limb may exceed 32
  while (width < 63 && (limb[top] >> width) != 0) ++width;
  // Position of the leading bit and of the lowest bit that the result keeps, in units of 2^-1088.
  const int lead = 32 * top + width - 1;
  const int lowest_double = kLimbBias - 1074;
  const int lowest = lead - 52 > lowest_double ? lead - 52 : lowest_double;
  if (lead >= kLimbBias + 1024) {
    const double infinity = std::numeric_limits<double>::infinity();
    return negative ? -infinity : infinity;
  }

  // Bits [lowest, lead] as an integer, the bit below for rounding, and whether anything is below that.
  std::uint64_t mantissa = 0;
  for (int bit = lead; bit >= lowest; --bit) {
    const int k = bit / 32 < kLimbs - 1 ? bit / 32 : kLimbs - 1;
    mantissa = 2 * mantissa + ((limb[k] >> (bit - 32 * k)) & 1);
  }
  const int half = lowest - 1;  // >= 13
  const bool half_set = (limb[half / 32] >> (half % 32)) & 1;
  bool sticky = (limb[half / 32] & ((std::int64_t(1) << (half % 32)) - 1)) != 0;
  for (int k = 0; !sticky && k < half / 32; ++k) sticky = limb[k] != 0;
  if (half_set && (sticky || (mantissa & 1))) ++mantissa;

  // mantissa * 2^(lowest - 1088): built from its fields, since 2^53 carries into the exponent by itself.
  std::uint64_t bits;
  if (mantissa >> 52 == 0) {
    bits = mantissa;  // subnormal, lowest == lowest_double
  } else {
    const std::uint64_t exponent = static_cast<std::uint64_t>(lowest - lowest_double + 1);
    bits = ((exponent - 1) << 52) +
           mantissa;  // the implicit bit adds 1 to the exponent, a carry 1 more
  }
  if (negative) bits |= std::uint64_t(1) << 63;
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace math
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_MATH_EXACT_SUM_H_
