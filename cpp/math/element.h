// The formula: loss and gradient of one element (docs/numerics.md has the derivation).
//
// Score x, target t, pos_weight p, element weight w; every name as in docs/numerics.md:
//
//   a = |x|       z = exp(-a)       m = log1p(z)       q = z / (1 + z) = sigmoid(-a)
//   u = x >= 0 ? 1 - t : p t        c = 1, or (1 - t) + p t with pos_weight
//   loss = w (a u + c m)            gradient = w (x >= 0 ? u - c q : c q - u)
//
// which is w (p t softplus(-x) + (1 - t) softplus(x)) without a cancellation.
//
//   shapes, dtypes   lanes of float or double, O::T
//   valid range      every x; t finite; p finite and >= 0; every w
//   max error        t in {0, 1}, p = w = 1: 2 ulp. Otherwise see docs/numerics.md
//   special values   any of x, t NaN or t infinite: NaN. a u = +0 where u = 0, so x = +-inf gives +-inf or 0
//
// The sign of x is its sign bit: x = -0 takes the negative branch, whose exact values are the same.
#ifndef SIGMOID_CE_MATH_ELEMENT_H_
#define SIGMOID_CE_MATH_ELEMENT_H_

#include "math/exp_log1p.h"

namespace sigmoid_ce {
namespace math {

template <class O>
struct Element {
  using V = typename O::V;

  V x, a, z, u, c;

  // pos_weight off. kFinite: t came from an integer.
  template <bool kFinite>
  static SIGMOID_CE_INLINE Element plain(V x, V t) {
    Element e;
    e.x = x;
    e.a = O::abs(x);
    e.z = exp_neg<O>(e.a);
    // 0 * t is NaN for an infinite t, which the formula would let pass.
    if (!kFinite) e.z = O::fma(t, O::set(0), e.z);
    e.u = O::by_sign(x, t, O::sub(O::set(1), t));
    e.c = O::set(1);
    return e;
  }

  // pos_weight p. An infinite t makes c NaN.
  static SIGMOID_CE_INLINE Element weighted(V x, V t, V p) {
    Element e;
    e.x = x;
    e.a = O::abs(x);
    e.z = exp_neg<O>(e.a);
    e.weigh(t, p);
    return e;
  }

  // An element that was plain gets the pos_weight p.
  SIGMOID_CE_INLINE void weigh(V t, V p) {
    const V negative = O::sub(O::set(1), t);
    u = O::by_sign(x, O::mul(p, t), negative);
    c = O::fma(p, t, negative);
  }

  // w left out.
  SIGMOID_CE_INLINE V loss() const {
    return O::fma(O::zero_where_zero(u, a), u, O::mul(c, log1p_01<O>(z)));
  }

  SIGMOID_CE_INLINE V gradient() const {
    // z / (1 + z) by itself misses 2 ulp, since 1 + z is rounded. z - z * that has the rounding times z.
    const V q = O::fnma(z, O::div(z, O::add(O::set(1), z)), z);
    return O::flip_sign(O::fnma(c, q, u), x);
  }
};

}  // namespace math
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_MATH_ELEMENT_H_
