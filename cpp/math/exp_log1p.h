// exp(-a) for a >= 0 and log1p(z) for z in [0, 1], for any vector type.
//
// An Ops type O supplies the arithmetic (cpp/cpu/ops_*.h): O::T is float or double, O::V one or more lanes
// of it. Every step is one IEEE operation, so all Ops give the same bits.
//
//                 valid range        max error   special values
//   exp_neg(a)    [0, inf], NaN      0.9 ulp     inf -> +0, NaN -> NaN; subnormals right
//   log1p_01(z)   [0, 1], NaN        0.9 ulp     0 -> 0, NaN -> NaN
//   log_01(y)     (0, 2)             of 1        1 -> 0; anything else gives a number that means nothing
//
// Constants: tools/fit_polynomials.py prints them, with the error of each fit.
#ifndef SIGMOID_CE_MATH_EXP_LOG1P_H_
#define SIGMOID_CE_MATH_EXP_LOG1P_H_

#include "math/platform.h"

namespace sigmoid_ce {
namespace math {

// c0 + x (c1 + x (c2 + ...)), one fma per step.
template <class O>
SIGMOID_CE_INLINE typename O::V horner(typename O::V, typename O::T c) {
  return O::set(c);
}
template <class O, class... Rest>
SIGMOID_CE_INLINE typename O::V horner(typename O::V x, typename O::T c0, typename O::T c1,
                                       Rest... rest) {
  return O::fma(horner<O>(x, c1, rest...), x, O::set(c0));
}

template <class T>
struct ExpLog1p;

template <>
struct ExpLog1p<float> {
  // exp(-105) < 2^-150, half the smallest subnormal: from here on the result rounds to 0.
  static constexpr float kExpLimit = 105.0f;
  static constexpr float kLog2e = 1.442695f;
  // Adding 1.5 * 2^23 rounds to an integer N and leaves it in the low bits. The -kBias makes the low bits
  // N - kBias: 2^(kBias - N) is then a normal number for every N in [0, 152].
  static constexpr int kBias = 64;
  static constexpr float kRound = 1.2582912e+07f - kBias;
  static constexpr float kUnbias = 5.421011e-20f;
  // ln 2 in two parts: N * kLn2Hi is exact (15 bits, N < 2^8), so a - N * kLn2Hi is exact too.
  static constexpr float kLn2Hi = 0.69314575f;
  static constexpr float kLn2Lo = 1.4286068e-06f;
  // Makes a subnormal number normal: 2^kLift.
  static constexpr int kLift = 64;
  static constexpr float kLifted = 1.8446744e+19f;

  // E with exp(-r) = 1 + r E(r), |r| <= ln(2)/2: relative error 2^-28.0
  template <class O>
  static SIGMOID_CE_INLINE typename O::V exp_polynomial(typename O::V r) {
    return horner<O>(r, -1.0f, 0.49999988f, -0.16666518f, 0.04166965f, -0.008368947f,
                     0.0013745326f);
  }
  // L with log1p(z) = z + z L(z - 1/2), 0 <= z <= 1: relative error 2^-27.0
  template <class O>
  static SIGMOID_CE_INLINE typename O::V log_polynomial(typename O::V v) {
    return horner<O>(v, -0.18906978f, -0.2885271f, 0.13260889f, -0.06768819f, 0.036637034f,
                     -0.020563211f, 0.011568095f, -0.0067877984f, 0.005267309f, -0.0031765092f);
  }
};

template <>
struct ExpLog1p<double> {
  static constexpr double kExpLimit = 746.0;  // exp(-746) < 2^-1075
  static constexpr double kLog2e = 1.4426950408889634;
  static constexpr int kBias = 512;  // N in [0, 1077]
  static constexpr double kRound = 6755399441055744.0 - kBias;
  static constexpr double kUnbias = 7.458340731200207e-155;
  static constexpr double kLn2Hi = 0.6931471805582987;  // 36 bits, N < 2^11
  static constexpr double kLn2Lo = 1.6465949582897082e-12;
  static constexpr int kLift = 128;
  static constexpr double kLifted = 3.402823669209385e+38;

  template <class O>  // relative error 2^-57.7
  static SIGMOID_CE_INLINE typename O::V exp_polynomial(typename O::V r) {
    return horner<O>(r, -1.0, 0.5000000000000012, -0.16666666666666471, 0.04166666666651975,
                     -0.008333333333458665, 0.0013888888945921057, -0.00019841269581196487,
                     2.4801491030993337e-05, -2.755752164644174e-06, 2.763090755114223e-07,
                     -2.5020074850572813e-08);
  }
  template <class O>  // relative error 2^-56.0
  static SIGMOID_CE_INLINE typename O::V log_polynomial(typename O::V v) {
    return horner<O>(v, -0.18906978378367123, -0.2885270990993239, 0.13260975375420211,
                     -0.06768864331096505, 0.036611854523182094, -0.020548811919081696,
                     0.01183379211018376, -0.006945394975980343, 0.004136179082569997,
                     -0.0024918411803596025, 0.0015153836556083353, -0.0009288575551460796,
                     0.0005730562824454988, -0.00035481979441492103, 0.00022113224433550896,
                     -0.00014210230835083978, 8.951903417022319e-05, -4.4824268189796884e-05,
                     2.7952027808534836e-05, -3.836562023664898e-05, 2.4683225237993178e-05);
  }
};

template <class O>
SIGMOID_CE_INLINE typename O::V exp_neg(typename O::V a) {
  using V = typename O::V;
  using C = ExpLog1p<typename O::T>;
  const V b = O::min_or_nan(a, O::set(C::kExpLimit));
  const V n = O::fma(b, O::set(C::kLog2e), O::set(C::kRound));  // N + kRound
  const V k = O::sub(O::set(C::kRound), n);                     // -N
  const V r = O::fma(k, O::set(C::kLn2Lo), O::fma(k, O::set(C::kLn2Hi), b));
  const V p = O::fma(r, C::template exp_polynomial<O>(r), O::set(1));
  return O::scale(p, n, k);  // times 2^-N, rounded once
}

// Centred at 1/2, so that the powers are small and L, at most 0.31 in size, is rounded once before it is
// used: that error is what decides the accuracy of the loss near x = 0.
template <class O>
SIGMOID_CE_INLINE typename O::V log1p_01(typename O::V z) {
  using C = ExpLog1p<typename O::T>;
  return O::fma(z, C::template log_polynomial<O>(O::sub(z, O::set(0.5f))), z);
}

// y = 2^-N (1 + f): log1p(f) - N ln 2. The error is absolute, an ulp of the larger of 1 and |log y|.
template <class O>
SIGMOID_CE_INLINE typename O::V log_01(typename O::V y) {
  using V = typename O::V;
  using C = ExpLog1p<typename O::T>;
  V f;
  const V exponent = O::split(O::mul(y, O::set(C::kLifted)), &f);
  const V n = O::sub(O::set(C::kLift), exponent);
  const V l = log1p_01<O>(O::sub(f, O::set(1)));
  return O::fnma(n, O::set(C::kLn2Hi), O::fnma(n, O::set(C::kLn2Lo), l));
}

}  // namespace math
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_MATH_EXP_LOG1P_H_
