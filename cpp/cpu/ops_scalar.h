// Ops on one element: the portable instruction set, and the reference for what the others must give.
#ifndef SIGMOID_CE_CPU_OPS_SCALAR_H_
#define SIGMOID_CE_CPU_OPS_SCALAR_H_

#include <cstdint>

#include "math/exp_log1p.h"
#include "math/half.h"
#include "math/targets.h"

namespace sigmoid_ce {
namespace cpu {

template <class Real>
struct ScalarBits;
template <>
struct ScalarBits<float> {
  using Int = std::uint32_t;
  static constexpr int kMantissa = 23;
};
template <>
struct ScalarBits<double> {
  using Int = std::uint64_t;
  static constexpr int kMantissa = 52;
};

static SIGMOID_CE_INLINE float scalar_fma(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
static SIGMOID_CE_INLINE double scalar_fma(double a, double b, double c) {
  return __builtin_fma(a, b, c);
}

template <class Real>
struct ScalarOps {
  using T = Real;
  using V = Real;
  using M = bool;
  using I = std::int32_t;
  using D = double;
  using Bits = typename ScalarBits<Real>::Int;
  static constexpr int kLanes = 1;
  static constexpr Bits kSign = Bits(1) << (8 * sizeof(Real) - 1);

  static SIGMOID_CE_INLINE Bits bits(V v) {
    Bits b;
    __builtin_memcpy(&b, &v, sizeof b);
    return b;
  }
  static SIGMOID_CE_INLINE V from_bits(Bits b) {
    V v;
    __builtin_memcpy(&v, &b, sizeof v);
    return v;
  }

  static SIGMOID_CE_INLINE V set(T v) { return v; }
  static SIGMOID_CE_INLINE V load(const T* p) {
    V v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static SIGMOID_CE_INLINE void store(T* p, V v) { __builtin_memcpy(p, &v, sizeof v); }
  static SIGMOID_CE_INLINE void stream(T* p, V v) { store(p, v); }

  static SIGMOID_CE_INLINE V add(V a, V b) { return a + b; }
  static SIGMOID_CE_INLINE V sub(V a, V b) { return a - b; }
  static SIGMOID_CE_INLINE V mul(V a, V b) { return a * b; }
  static SIGMOID_CE_INLINE V mul_rounded(V a, V b) {
    V v = a * b;
    SIGMOID_CE_KEEP_ROUNDED(v);
    return v;
  }
  static SIGMOID_CE_INLINE V div(V a, V b) { return a / b; }
  static SIGMOID_CE_INLINE V fma(V a, V b, V c) { return scalar_fma(a, b, c); }
  static SIGMOID_CE_INLINE V fnma(V a, V b, V c) { return scalar_fma(-a, b, c); }
  static SIGMOID_CE_INLINE V abs(V v) { return from_bits(bits(v) & ~kSign); }
  static SIGMOID_CE_INLINE V min_or_nan(V v, V limit) { return limit < v ? limit : v; }
  // p * 2^-N: n has N - kBias in its low bits. The first product is exact, the second rounds once.
  static SIGMOID_CE_INLINE V scale(V p, V n, V) {
    using C = math::ExpLog1p<T>;
    const Bits one = Bits(sizeof(T) == 4 ? 127 : 1023) << ScalarBits<T>::kMantissa;
    const V power = from_bits(one - (bits(n) << ScalarBits<T>::kMantissa));
    return mul_rounded(p * power, C::kUnbias);
  }
  static SIGMOID_CE_INLINE V by_sign(V x, V negative, V positive) {
    return (bits(x) & kSign) ? negative : positive;
  }
  static SIGMOID_CE_INLINE V flip_sign(V v, V x) { return from_bits(bits(v) ^ (bits(x) & kSign)); }
  static SIGMOID_CE_INLINE V zero_where_zero(V u, V v) { return u == 0 ? V(0) : v; }
  static SIGMOID_CE_INLINE V if_zero(V u, V v, V w) { return u == 0 ? v : w; }
  static SIGMOID_CE_INLINE V quotient(V a, V b) { return a / b; }
  // The exponent of a positive normal number, and the rest in [1, 2).
  static SIGMOID_CE_INLINE V split(V v, V* mantissa) {
    const int bias = sizeof(T) == 4 ? 127 : 1023;
    const Bits one = Bits(bias) << ScalarBits<T>::kMantissa;
    const Bits low = (Bits(1) << ScalarBits<T>::kMantissa) - 1;
    *mantissa = from_bits((bits(v) & low) | one);
    return static_cast<T>(static_cast<int>(bits(v) >> ScalarBits<T>::kMantissa) - bias);
  }

  static SIGMOID_CE_INLINE M is_zero(V v) { return v == 0; }
  static SIGMOID_CE_INLINE M none() { return false; }
  static SIGMOID_CE_INLINE M either(M a, M b) { return a | b; }
  static SIGMOID_CE_INLINE M both(M a, M b) { return a & b; }
  static SIGMOID_CE_INLINE bool all(M m) { return m; }
  static SIGMOID_CE_INLINE M differs(V a, V b) { return !(a == b); }
  static SIGMOID_CE_INLINE M in_range(V v, V low, V high) { return v >= low && v <= high; }
  static SIGMOID_CE_INLINE V zero_if(M m, V v) { return m ? V(0) : v; }
  static SIGMOID_CE_INLINE int count(M m) { return m; }

  // 16-bit numbers, by the Ops of float32.
  template <class H>
  static SIGMOID_CE_INLINE V load_half(const H* p) {
    return math::widen(*p);
  }
  template <class H>
  static SIGMOID_CE_INLINE void store_half(H* p, V v) {
    math::narrow(v, p);
  }

  static SIGMOID_CE_INLINE V from_int(I v) { return static_cast<T>(v); }
  template <class S>
  static SIGMOID_CE_INLINE S read(const S* p) {
    S v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static SIGMOID_CE_INLINE I load_int(const math::Bool* p) { return p->byte != 0; }
  static SIGMOID_CE_INLINE I load_int(const std::uint8_t* p) { return *p; }
  static SIGMOID_CE_INLINE I load_int(const std::int8_t* p) { return *p; }
  static SIGMOID_CE_INLINE I load_int(const std::int32_t* p) { return read(p); }
  static SIGMOID_CE_INLINE I load_int(const std::int64_t* p) {
    const std::int64_t v = read(p);
    return v > INT32_MAX ? INT32_MAX : v < INT32_MIN ? INT32_MIN : static_cast<I>(v);
  }
  static SIGMOID_CE_INLINE M equal(I v, std::int32_t label) { return v == label; }
  static SIGMOID_CE_INLINE M equal64(const std::int64_t* p, std::int64_t label) {
    return read(p) == label;
  }

  static SIGMOID_CE_INLINE D widen(V v) { return v; }
  static SIGMOID_CE_INLINE D add_wide(D a, D b) { return a + b; }
  static SIGMOID_CE_INLINE D load_wide(const double* p) { return *p; }
  static SIGMOID_CE_INLINE void store_wide(double* p, D v) { *p = v; }
};

}  // namespace cpu
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CPU_OPS_SCALAR_H_
