// The formula: loss and gradient of one element (docs/numerics.md has the derivation).
//
// Score x, target t, pos_weight p, element weight w; every name as in docs/numerics.md:
//
//   a = |x|       z = exp(-a)       m = log1p(z)       q = z / (1 + z) = sigmoid(-a)
//   u = x >= 0 ? n : p t            c = 1, or n + p t with pos_weight, where n = 1 - t
//   loss = w (a u + c m)            gradient = w (x >= 0 ? u - c q : c q - u)
//                                   Hessian  = w c q (1 - q)
//
// which is w (p t softplus(-x) + n softplus(x)) without a cancellation. The focal loss is below. n comes with t, since
// a caller who smooths targets knows it better than 1 - t does.
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
  static SIGMOID_CE_INLINE Element plain(V x, V t, V n) {
    Element e;
    e.x = x;
    e.a = O::abs(x);
    e.z = exp_neg<O>(e.a);
    // 0 * t is NaN for an infinite t, which the formula would let pass.
    if (!kFinite) e.z = O::fma(t, O::set(0), e.z);
    e.u = O::by_sign(x, t, n);
    e.c = O::set(1);
    return e;
  }

  // pos_weight p. An infinite t makes c NaN.
  static SIGMOID_CE_INLINE Element weighted(V x, V t, V n, V p) {
    Element e;
    e.x = x;
    e.a = O::abs(x);
    e.z = exp_neg<O>(e.a);
    e.weigh(t, n, p);
    return e;
  }

  // An element that was plain gets the pos_weight p.
  SIGMOID_CE_INLINE void weigh(V t, V n, V p) {
    u = O::by_sign(x, O::mul(p, t), n);
    c = O::fma(p, t, n);
  }

  // w left out.
  SIGMOID_CE_INLINE V loss() const {
    return O::fma(O::zero_where_zero(u, a), u, O::mul(c, log1p_01<O>(z)));
  }

  SIGMOID_CE_INLINE V gradient() const { return O::flip_sign(O::fnma(c, sigmoid_neg(), u), x); }

  SIGMOID_CE_INLINE V hessian() const {
    const V q = sigmoid_neg();
    return O::mul(O::mul(c, q), O::sub(O::set(1), q));
  }

  // d loss / d t = p softplus(-x) - softplus(x), which is -x where p = 1.
  SIGMOID_CE_INLINE V target_gradient(V p) const {
    const V m = O::fma(c, O::set(0), log1p_01<O>(z));  // NaN for an infinite t
    const V n = O::sub(O::set(1), p);
    const V f = O::by_sign(x, p, O::set(1));
    const V far = O::mul(f, O::zero_where_zero(f, a));
    const V positive = O::sub(O::set(0), O::fma(n, m, far));
    return O::by_sign(x, O::fnma(n, m, far), positive);
  }

  // q: z / (1 + z) by itself misses 2 ulp, since 1 + z is rounded. z - z * that has the rounding times z.
  SIGMOID_CE_INLINE V sigmoid_neg() const { return O::fnma(z, O::div(z, O::add(O::set(1), z)), z); }
};

// The focal loss (Lin et al., Focal loss for dense object detection, 2017): the factor R = r^gamma, where r is what
// sigmoid(x) gives the wrong class, t (1 - sigmoid(x)) + (1 - t) sigmoid(x). With the names of Element, E its loss:
//
//   v = x >= 0 ? n : t         k = 1 - v     s = 1 - q        v is u without p
//   r = v s + k q = (v + k z) / (1 + z)
//   L = -log r = D + m, with D = -log(v + k z)                a where v = 0, and 0 where v = 1
//   R = exp(-gamma L)
//
// Hard targets need no logarithm, and keep their tails. As f = R E, and with h = q s / r, rho = (2 v - 1) h:
//
//   f'  = R (E' + gamma rho E)                                up to the sign of x, as E'
//   f'' = R (E'' + gamma (2 rho E' + rho E ((gamma - 1) rho + q - s)))
//   df/dt = R (dE/dt +- gamma (s - q) E / r)
//
//   valid range      t in [0, 1], else NaN; gamma in [0, 10^6]
//   max error        docs/numerics.md
template <class O>
struct Focal {
  using T = typename O::T;
  using V = typename O::V;

  const Element<O>& e;
  V v, k, m, q, s, h, gamma, factor;

  // t, n: those that `element` was made with.
  SIGMOID_CE_INLINE Focal(const Element<O>& element, V t, V n, V power) : e(element), gamma(power) {
    const V one = O::set(1);
    v = O::by_sign(e.x, t, n);
    k = O::sub(one, v);
    m = log1p_01<O>(e.z);
    q = e.sigmoid_neg();
    s = O::sub(one, q);
    const V a = O::min_or_nan(e.a, O::set(1e12f));  // finite, and far beyond where R is 0
    V d = O::zero_where_zero(k, a);
    h = O::if_zero(v, s, q);
    // Whether t is 0 or 1. Of t itself and not of k where x >= 0: 1 - t is 1 for a tiny t below 0 too.
    if (!O::all(O::either(O::is_zero(t), O::is_zero(O::by_sign(e.x, k, v))))) {
      // A hard target among soft ones gets the bits that it gets among hard ones.
      const V log_y = log_01<O>(O::fma(k, e.z, v));
      d = O::if_zero(v, a, O::sub(O::set(0), log_y));
      const V soft = O::quotient(O::mul(q, s), r());
      h = O::if_zero(v, s, O::if_zero(k, q, soft));
      const V nan = O::quotient(O::set(0), O::set(0));
      d = O::add(d, O::zero_if(O::in_range(t, O::set(0), one), nan));
    }
    // gamma L as g + (a rest): exp has the absolute error of its argument, which is large in the tails.
    const V high = O::add(d, m);
    const V low = O::sub(m, O::sub(high, d));
    const V g = O::mul(gamma, high);
    const V minus_rest = O::fnma(gamma, low, O::fnma(gamma, high, g));
    const V power_of_r = exp_neg<O>(g);
    factor = O::fma(power_of_r, minus_rest, power_of_r);
  }

  SIGMOID_CE_INLINE V loss(V plain) const { return scaled(plain); }

  SIGMOID_CE_INLINE V gradient() const {
    return O::flip_sign(O::mul(factor, O::fma(O::mul(gamma, rho()), near_loss(), slope())), e.x);
  }

  SIGMOID_CE_INLINE V hessian() const {
    const V p = rho();
    const V curve = O::fma(O::sub(gamma, O::set(1)), p, O::sub(q, s));
    const V change = O::fma(O::add(p, p), slope(), O::mul(O::mul(p, near_loss()), curve));
    return O::mul(factor, O::fma(gamma, change, O::mul(O::mul(e.c, q), s)));
  }

  // plain: of the element, and its loss.
  SIGMOID_CE_INLINE V target_gradient(V plain, V loss) const {
    // A hard target has E / r = c m / q, which goes to c. The small term hides the steps of subnormal numbers.
    const V small = O::set(1 / ExpLog1p<T>::kLifted);
    const V hard = O::mul(e.c, O::quotient(O::add(m, small), O::add(q, small)));
    const V ratio = O::if_zero(v, hard, O::quotient(loss, r()));
    const V change = O::mul(gamma, O::sub(s, q));
    return scaled(O::by_sign(e.x, O::fma(change, ratio, plain), O::fnma(change, ratio, plain)));
  }

 private:
  // Nothing where R is 0, as it can be at infinite scores.
  SIGMOID_CE_INLINE V scaled(V v) const { return O::mul(factor, O::zero_where_zero(factor, v)); }
  SIGMOID_CE_INLINE V limited() const { return O::min_or_nan(e.a, O::set(ExpLog1p<T>::kExpLimit)); }
  SIGMOID_CE_INLINE V r() const { return O::fma(k, q, O::mul(v, s)); }
  SIGMOID_CE_INLINE V rho() const { return O::mul(O::fma(O::set(2), v, O::set(-1)), h); }
  SIGMOID_CE_INLINE V slope() const { return O::fnma(e.c, q, e.u); }
  // E, but finite where x is infinite: beyond the limit h is 0.
  SIGMOID_CE_INLINE V near_loss() const { return O::fma(limited(), e.u, O::mul(e.c, m)); }
};

}  // namespace math
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_MATH_ELEMENT_H_
