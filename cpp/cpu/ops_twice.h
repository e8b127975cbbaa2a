// Two vectors handled as one, `kStride` elements apart in memory. Independent operations side by side hide
// the latency of the polynomials, and keep the formula free of it.
#ifndef SIGMOID_CE_CPU_OPS_TWICE_H_
#define SIGMOID_CE_CPU_OPS_TWICE_H_

#include <cstdint>

#include "math/platform.h"

namespace sigmoid_ce {
namespace cpu {

template <class O, int kStride>
struct Twice {
  using T = typename O::T;
  struct V {
    typename O::V a, b;
  };
  struct M {
    typename O::M a, b;
  };
  struct I {
    typename O::I a, b;
  };
  static constexpr int kLanes = O::kLanes;

#define SIGMOID_CE_TWICE_1(name) \
  static SIGMOID_CE_INLINE V name(V v) { return V{O::name(v.a), O::name(v.b)}; }
#define SIGMOID_CE_TWICE_2(name) \
  static SIGMOID_CE_INLINE V name(V v, V w) { return V{O::name(v.a, w.a), O::name(v.b, w.b)}; }
#define SIGMOID_CE_TWICE_3(name)                              \
  static SIGMOID_CE_INLINE V name(V u, V v, V w) {            \
    return V{O::name(u.a, v.a, w.a), O::name(u.b, v.b, w.b)}; \
  }
  SIGMOID_CE_TWICE_1(abs)
  SIGMOID_CE_TWICE_2(add)
  SIGMOID_CE_TWICE_2(sub)
  SIGMOID_CE_TWICE_2(mul)
  SIGMOID_CE_TWICE_2(mul_rounded)
  SIGMOID_CE_TWICE_2(div)
  SIGMOID_CE_TWICE_2(quotient)
  SIGMOID_CE_TWICE_2(min_or_nan)
  SIGMOID_CE_TWICE_2(flip_sign)
  SIGMOID_CE_TWICE_2(zero_where_zero)
  SIGMOID_CE_TWICE_3(fma)
  SIGMOID_CE_TWICE_3(fnma)
  SIGMOID_CE_TWICE_3(scale)
  SIGMOID_CE_TWICE_3(by_sign)
  SIGMOID_CE_TWICE_3(if_zero)
#undef SIGMOID_CE_TWICE_1
#undef SIGMOID_CE_TWICE_2
#undef SIGMOID_CE_TWICE_3

  static SIGMOID_CE_INLINE V split(V v, V* mantissa) {
    return V{O::split(v.a, &mantissa->a), O::split(v.b, &mantissa->b)};
  }

  static SIGMOID_CE_INLINE V set(T v) { return V{O::set(v), O::set(v)}; }
  static SIGMOID_CE_INLINE V load(const T* p) { return V{O::load(p), O::load(p + kStride)}; }
  static SIGMOID_CE_INLINE void store(T* p, V v) {
    O::store(p, v.a);
    O::store(p + kStride, v.b);
  }
  static SIGMOID_CE_INLINE void stream(T* p, V v) {
    O::stream(p, v.a);
    O::stream(p + kStride, v.b);
  }

  static SIGMOID_CE_INLINE M is_zero(V v) { return M{O::is_zero(v.a), O::is_zero(v.b)}; }
  static SIGMOID_CE_INLINE M none() { return M{O::none(), O::none()}; }
  static SIGMOID_CE_INLINE M either(M m, M n) {
    return M{O::either(m.a, n.a), O::either(m.b, n.b)};
  }
  static SIGMOID_CE_INLINE M both(M m, M n) { return M{O::both(m.a, n.a), O::both(m.b, n.b)}; }
  static SIGMOID_CE_INLINE bool all(M m) { return O::all(m.a) && O::all(m.b); }
  static SIGMOID_CE_INLINE M differs(V v, V w) {
    return M{O::differs(v.a, w.a), O::differs(v.b, w.b)};
  }
  static SIGMOID_CE_INLINE M in_range(V v, V low, V high) {
    return M{O::in_range(v.a, low.a, high.a), O::in_range(v.b, low.b, high.b)};
  }
  static SIGMOID_CE_INLINE V zero_if(M m, V v) {
    return V{O::zero_if(m.a, v.a), O::zero_if(m.b, v.b)};
  }
  static SIGMOID_CE_INLINE int count(M m) { return O::count(m.a) + O::count(m.b); }

  static SIGMOID_CE_INLINE V from_int(I v) { return V{O::from_int(v.a), O::from_int(v.b)}; }
  template <class S>
  static SIGMOID_CE_INLINE I load_int(const S* p) {
    return I{O::load_int(p), O::load_int(p + kStride)};
  }
  static SIGMOID_CE_INLINE M equal(I v, std::int32_t label) {
    return M{O::equal(v.a, label), O::equal(v.b, label)};
  }
  static SIGMOID_CE_INLINE M equal64(const std::int64_t* p, std::int64_t label) {
    return M{O::equal64(p, label), O::equal64(p + kStride, label)};
  }
};

}  // namespace cpu
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CPU_OPS_TWICE_H_
