// Ops on one element of a CUDA thread, for cpp/math/element.h. Every addition is an intrinsic that rounds to nearest
// and that the compiler never contracts with a product before it, so that no flag changes the bits.
#ifndef SIGMOID_CE_CUDA_OPS_CUH_
#define SIGMOID_CE_CUDA_OPS_CUH_

#include <cstdint>

#include "arguments.h"
#include "division.h"
#include "math/exp_log1p.h"

namespace sigmoid_ce {
namespace cuda {

#define SIGMOID_CE_DEVICE_INLINE static __device__ __forceinline__

template <class Real>
struct Arithmetic;

template <>
struct Arithmetic<float> {
  using Bits = std::uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr int kBias = 127;
  static constexpr Bits kOne = Bits(kBias) << kMantissa;
  SIGMOID_CE_DEVICE_INLINE Bits bits(float v) { return __float_as_uint(v); }
  SIGMOID_CE_DEVICE_INLINE float from_bits(Bits b) { return __uint_as_float(b); }
  SIGMOID_CE_DEVICE_INLINE float add(float a, float b) { return __fadd_rn(a, b); }
  SIGMOID_CE_DEVICE_INLINE float mul(float a, float b) { return __fmul_rn(a, b); }
  // b = fl(1 + a).
  SIGMOID_CE_DEVICE_INLINE float div(float a, float b) {
#if defined(__CUDA_ARCH__)
    float approximate;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(approximate) : "f"(b));
    return divide(a, b, approximate);
#else
    return divide(a, b, 1.0f / b);
#endif
  }
  SIGMOID_CE_DEVICE_INLINE float quotient(float a, float b) { return __fdiv_rn(a, b); }
  SIGMOID_CE_DEVICE_INLINE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
  SIGMOID_CE_DEVICE_INLINE float from_int(int v) { return __int2float_rn(v); }
  SIGMOID_CE_DEVICE_INLINE float from_double(double v) { return __double2float_rn(v); }
  SIGMOID_CE_DEVICE_INLINE float number(const Number& v) { return v.f32; }
};

template <>
struct Arithmetic<double> {
  using Bits = unsigned long long;
  static constexpr int kMantissa = 52;
  static constexpr int kBias = 1023;
  static constexpr Bits kOne = Bits(kBias) << kMantissa;
  SIGMOID_CE_DEVICE_INLINE Bits bits(double v) {
    return static_cast<Bits>(__double_as_longlong(v));
  }
  SIGMOID_CE_DEVICE_INLINE double from_bits(Bits b) {
    return __longlong_as_double(static_cast<long long>(b));
  }
  SIGMOID_CE_DEVICE_INLINE double add(double a, double b) { return __dadd_rn(a, b); }
  SIGMOID_CE_DEVICE_INLINE double mul(double a, double b) { return __dmul_rn(a, b); }
  SIGMOID_CE_DEVICE_INLINE double div(double a, double b) { return __ddiv_rn(a, b); }
  SIGMOID_CE_DEVICE_INLINE double quotient(double a, double b) { return __ddiv_rn(a, b); }
  SIGMOID_CE_DEVICE_INLINE double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
  SIGMOID_CE_DEVICE_INLINE double from_int(int v) { return __int2double_rn(v); }
  SIGMOID_CE_DEVICE_INLINE double from_double(double v) { return v; }
  SIGMOID_CE_DEVICE_INLINE double number(const Number& v) { return v.f64; }
};

template <class Real>
struct Ops {
  using T = Real;
  using V = Real;
  using M = bool;
  using A = Arithmetic<Real>;
  using Bits = typename A::Bits;
  static constexpr Bits kSign = Bits(1) << (8 * sizeof(Real) - 1);

  SIGMOID_CE_DEVICE_INLINE V set(T v) { return v; }
  SIGMOID_CE_DEVICE_INLINE V add(V a, V b) { return A::add(a, b); }
  SIGMOID_CE_DEVICE_INLINE V sub(V a, V b) { return A::add(a, -b); }
  // Not the intrinsic, which keeps a factor of 1. Nothing is fused: every addition is an intrinsic.
  SIGMOID_CE_DEVICE_INLINE V mul(V a, V b) { return a * b; }
  SIGMOID_CE_DEVICE_INLINE V div(V a, V b) { return A::div(a, b); }
  SIGMOID_CE_DEVICE_INLINE V fma(V a, V b, V c) { return A::fma(a, b, c); }
  SIGMOID_CE_DEVICE_INLINE V fnma(V a, V b, V c) { return A::fma(-a, b, c); }
  SIGMOID_CE_DEVICE_INLINE V abs(V v) { return A::from_bits(A::bits(v) & ~kSign); }
  SIGMOID_CE_DEVICE_INLINE V min_or_nan(V v, V limit) { return limit < v ? limit : v; }
  // p * 2^-N: n has N - kBias in its low bits. The first product is exact, the second rounds once.
  SIGMOID_CE_DEVICE_INLINE V scale(V p, V n, V) {
    const V power = A::from_bits(A::kOne - (A::bits(n) << A::kMantissa));
    return A::mul(A::mul(p, power), math::ExpLog1p<T>::kUnbias);
  }
  SIGMOID_CE_DEVICE_INLINE V by_sign(V x, V negative, V positive) {
    return (A::bits(x) & kSign) ? negative : positive;
  }
  SIGMOID_CE_DEVICE_INLINE V flip_sign(V v, V x) {
    return A::from_bits(A::bits(v) ^ (A::bits(x) & kSign));
  }
  SIGMOID_CE_DEVICE_INLINE V zero_where_zero(V u, V v) { return u == 0 ? V(0) : v; }
  SIGMOID_CE_DEVICE_INLINE V if_zero(V u, V v, V w) { return u == 0 ? v : w; }
  // Of any two numbers; `div` is for z / (1 + z).
  SIGMOID_CE_DEVICE_INLINE V quotient(V a, V b) { return A::quotient(a, b); }
  // The exponent of a positive normal number, and the rest in [1, 2).
  SIGMOID_CE_DEVICE_INLINE V split(V v, V* mantissa) {
    constexpr Bits kLow = (Bits(1) << A::kMantissa) - 1;
    *mantissa = A::from_bits((A::bits(v) & kLow) | A::kOne);
    return A::from_int(static_cast<int>(A::bits(v) >> A::kMantissa) - A::kBias);
  }

  SIGMOID_CE_DEVICE_INLINE M is_zero(V v) { return v == 0; }
  SIGMOID_CE_DEVICE_INLINE M either(M a, M b) { return a | b; }
  SIGMOID_CE_DEVICE_INLINE bool all(M m) { return m; }
  SIGMOID_CE_DEVICE_INLINE M in_range(V v, V low, V high) { return v >= low && v <= high; }
  SIGMOID_CE_DEVICE_INLINE V zero_if(M m, V v) { return m ? V(0) : v; }
};

}  // namespace cuda
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CUDA_OPS_CUH_
