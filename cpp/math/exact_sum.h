// Exact addition of doubles: the fixed-point number behind Partial, value = sum of limb[k] 2^(32 k - 1088).
//
// Limbs are 64-bit integers that hold 32 bits each, so that 2^30 values can be added before a carry has to
// be passed on, and integer addition, in any order and on any device, merges two numbers.
#ifndef SIGMOID_CE_MATH_EXACT_SUM_H_
#define SIGMOID_CE_MATH_EXACT_SUM_H_

#include <cstdint>
#include <cstring>

#include "math/platform.h"

namespace sigmoid_ce {
namespace math {

constexpr int kLimbs = 68;
constexpr int kLimbBias =
    1088;  // limb[0] counts units of 2^-1088; a double's lowest bit is 2^-1074

// The words of a Partial: its limbs, then counts.
enum Word { kWordNan = kLimbs, kWordPosInf, kWordNegInf, kWordValid, kWordTotal, kWords };

constexpr std::uint64_t kSignBit = std::uint64_t(1) << 63;
constexpr std::uint64_t kInfinityBits = std::uint64_t(0x7ff) << 52;
constexpr std::uint64_t kNanBits = std::uint64_t(0xfff) << 51;

SIGMOID_CE_BOTH double from_bits(std::uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Adds a finite value, given as its bits.
SIGMOID_CE_BOTH void exact_add(std::int64_t* limb, std::uint64_t bits) {
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
  if (bits & kSignBit) {
    limb[k] -= static_cast<std::int64_t>(low);
    limb[k + 1] -= static_cast<std::int64_t>(middle);
    limb[k + 2] -= static_cast<std::int64_t>(high);
  } else {
    limb[k] += static_cast<std::int64_t>(low);
    limb[k + 1] += static_cast<std::int64_t>(middle);
    limb[k + 2] += static_cast<std::int64_t>(high);
  }
}

// Adds the sum of a block, which need not be finite, to the words of a Partial.
SIGMOID_CE_BOTH void add_block_sum(std::int64_t* words, double sum) {
  std::uint64_t bits;
  memcpy(&bits, &sum, sizeof bits);
  const std::uint64_t magnitude = bits & ~kSignBit;
  if (magnitude < kInfinityBits) {
    exact_add(words, bits);
  } else if (magnitude > kInfinityBits) {
    ++words[kWordNan];
  } else {
    ++words[bits == magnitude ? kWordPosInf : kWordNegInf];
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

// Digit k of the magnitude of normalised limbs, of which `lowest` is the first that is not 0. That of a
// negative number is its complement.
SIGMOID_CE_BOTH std::uint64_t exact_digit(const std::int64_t* limb, int lowest, int k) {
  const std::uint64_t v = static_cast<std::uint64_t>(limb[k]);
  if (limb[kLimbs - 1] >= 0 || k < lowest) return v;
  const std::uint64_t complement = (k == lowest ? 0 : ~std::uint64_t(0)) - v;
  return k == kLimbs - 1 ? complement : complement & 0xffffffffu;
}

// The value of normalised limbs, rounded once to nearest, ties to even; overflow gives infinity. `lowest` and
// `top` are the first and the last of their digits that are not 0, or kLimbs and -1.
SIGMOID_CE_BOTH double exact_round(const std::int64_t* limb, int lowest, int top) {
  if (top < 0) return 0.0;
  const std::uint64_t sign = limb[kLimbs - 1] < 0 ? kSignBit : 0;
  const std::uint64_t top_digit = exact_digit(limb, lowest, top);
  int width = 0;  // bits of the top digit; the last one may exceed 32
  while (width < 64 && (top_digit >> width) != 0) ++width;
  // Position of the leading bit and of the lowest bit that the result keeps, in units of 2^-1088.
  const int lead = 32 * top + width - 1;
  if (lead >= kLimbBias + 1024) return from_bits(kInfinityBits | sign);  // so that top < kLimbs - 2
  const int lowest_double = kLimbBias - 1074;
  const int last = lead - 52 > lowest_double ? lead - 52 : lowest_double;

  // Bits [last, lead] as an integer, out of three digits, the bit below for rounding, and whether anything
  // is below that.
  const int k = last / 32;
  const int s = last % 32;
  std::uint64_t mantissa = exact_digit(limb, lowest, k) >> s;
  mantissa |= exact_digit(limb, lowest, k + 1) << (32 - s);
  if (s > 0) mantissa |= exact_digit(limb, lowest, k + 2) << (64 - s);
  const int half = last - 1;  // >= 13
  const std::uint64_t below = exact_digit(limb, lowest, half / 32);
  const bool half_set = (below >> (half % 32)) & 1;
  const bool sticky = (below & ((std::uint64_t(1) << (half % 32)) - 1)) != 0 || lowest < half / 32;
  if (half_set && (sticky || (mantissa & 1))) ++mantissa;

  // mantissa * 2^(last - 1088): built from its fields, since 2^53 carries into the exponent by itself.
  if (mantissa >> 52 == 0) return from_bits(mantissa | sign);  // subnormal, last == lowest_double
  const std::uint64_t exponent = static_cast<std::uint64_t>(last - lowest_double + 1);
  // The implicit bit adds 1 to the exponent, a carry 1 more.
  return from_bits((((exponent - 1) << 52) + mantissa) | sign);
}

// The sum that the words of a Partial mean, given that of its limbs.
SIGMOID_CE_BOTH double sum_of_words(const std::int64_t* words, double finite) {
  const bool positive = words[kWordPosInf] > 0;
  const bool negative = words[kWordNegInf] > 0;
  if (words[kWordNan] > 0 || (positive && negative)) return from_bits(kNanBits);
  if (positive) return from_bits(kInfinityBits);
  if (negative) return from_bits(kInfinityBits | kSignBit);
  return finite;
}

}  // namespace math
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_MATH_EXACT_SUM_H_
