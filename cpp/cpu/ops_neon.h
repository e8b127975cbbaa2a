// Ops on 128-bit vectors of AArch64: NEON.
#ifndef SIGMOID_CE_CPU_OPS_NEON_H_
#define SIGMOID_CE_CPU_OPS_NEON_H_

#include <arm_neon.h>

#include <cstdint>

#include "math/exp_log1p.h"
#include "math/half.h"
#include "math/targets.h"

namespace sigmoid_ce {
namespace cpu {

struct NeonF32 {
  using T = float;
  using V = float32x4_t;
  using M = uint32x4_t;
  using I = int32x4_t;
  struct D {
    float64x2_t a, b;
  };
  static constexpr int kLanes = 4;

  static SIGMOID_CE_INLINE V set(T v) { return vdupq_n_f32(v); }
  static SIGMOID_CE_INLINE V load(const T* p) {
    return vreinterpretq_f32_u8(vld1q_u8(reinterpret_cast<const std::uint8_t*>(p)));
  }
  static SIGMOID_CE_INLINE void store(T* p, V v) {
    vst1q_u8(reinterpret_cast<std::uint8_t*>(p), vreinterpretq_u8_f32(v));
  }
  static SIGMOID_CE_INLINE void stream(T* p, V v) { store(p, v); }

  static SIGMOID_CE_INLINE V add(V a, V b) { return vaddq_f32(a, b); }
  static SIGMOID_CE_INLINE V sub(V a, V b) { return vsubq_f32(a, b); }
  static SIGMOID_CE_INLINE V mul(V a, V b) { return vmulq_f32(a, b); }
  static SIGMOID_CE_INLINE V mul_rounded(V a, V b) {
    V v = mul(a, b);
    SIGMOID_CE_KEEP_ROUNDED(v);
    return v;
  }
  static SIGMOID_CE_INLINE V div(V a, V b) { return vdivq_f32(a, b); }
  static SIGMOID_CE_INLINE V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
  static SIGMOID_CE_INLINE V fnma(V a, V b, V c) { return vfmsq_f32(c, a, b); }
  static SIGMOID_CE_INLINE V abs(V v) { return vabsq_f32(v); }
  static SIGMOID_CE_INLINE V min_or_nan(V v, V limit) { return vminq_f32(limit, v); }
  // n has N - kBias in its low bits. The first product is exact, the second rounds once.
  static SIGMOID_CE_INLINE V scale(V p, V n, V) {
    const uint32x4_t shifted = vshlq_n_u32(vreinterpretq_u32_f32(n), 23);
    const V power = vreinterpretq_f32_u32(vsubq_u32(vdupq_n_u32(127u << 23), shifted));
    return mul_rounded(mul(p, power), set(math::ExpLog1p<T>::kUnbias));
  }
  static SIGMOID_CE_INLINE M negative_sign(V x) {
    return vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_f32(x), 31));
  }
  static SIGMOID_CE_INLINE V by_sign(V x, V negative, V positive) {
    return vbslq_f32(negative_sign(x), negative, positive);
  }
  static SIGMOID_CE_INLINE V flip_sign(V v, V x) {
    const uint32x4_t sign = vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x80000000u));
    return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(v), sign));
  }
  static SIGMOID_CE_INLINE V zero_where_zero(V u, V v) { return zero_if(is_zero(u), v); }
  static SIGMOID_CE_INLINE V if_zero(V u, V v, V w) { return vbslq_f32(is_zero(u), v, w); }
  static SIGMOID_CE_INLINE V quotient(V a, V b) { return div(a, b); }
  // The exponent of a positive normal number, and the rest in [1, 2).
  static SIGMOID_CE_INLINE V split(V v, V* mantissa) {
    const M bits = vreinterpretq_u32_f32(v);
    const M low = vandq_u32(bits, vdupq_n_u32((1u << 23) - 1));
    *mantissa = vreinterpretq_f32_u32(vorrq_u32(low, vdupq_n_u32(127u << 23)));
    const int32x4_t exponent = vreinterpretq_s32_u32(vshrq_n_u32(bits, 23));
    return vcvtq_f32_s32(vsubq_s32(exponent, vdupq_n_s32(127)));
  }

  static SIGMOID_CE_INLINE M is_zero(V v) { return vceqzq_f32(v); }
  static SIGMOID_CE_INLINE M none() { return vdupq_n_u32(0); }
  static SIGMOID_CE_INLINE M either(M a, M b) { return vorrq_u32(a, b); }
  static SIGMOID_CE_INLINE M both(M a, M b) { return vandq_u32(a, b); }
  static SIGMOID_CE_INLINE bool all(M m) { return vminvq_u32(m) != 0; }
  static SIGMOID_CE_INLINE M differs(V a, V b) {
    return veorq_u32(vceqq_f32(a, b), vdupq_n_u32(~UINT32_C(0)));
  }
  static SIGMOID_CE_INLINE M in_range(V v, V low, V high) {
    return vandq_u32(vcgeq_f32(v, low), vcleq_f32(v, high));
  }
  static SIGMOID_CE_INLINE V zero_if(M m, V v) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), m));
  }
  static SIGMOID_CE_INLINE int count(M m) {
    return static_cast<int>(vaddvq_u32(vshrq_n_u32(m, 31)));
  }

  static SIGMOID_CE_INLINE uint16x4_t load_16(const void* p) {
    return vreinterpret_u16_u8(vld1_u8(static_cast<const std::uint8_t*>(p)));
  }
  static SIGMOID_CE_INLINE V load_half(const math::Float16* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(load_16(p)));
  }
  static SIGMOID_CE_INLINE V load_half(const math::Bfloat16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(load_16(p), 16));
  }
  static SIGMOID_CE_INLINE void store_16(void* p, uint16x4_t v) {
    vst1_u8(static_cast<std::uint8_t*>(p), vreinterpret_u8_u16(v));
  }
  static SIGMOID_CE_INLINE void store_half(math::Float16* p, V v) {
    store_16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
  }
  static SIGMOID_CE_INLINE void store_half(math::Bfloat16* p, V v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(odd, vdupq_n_u32(0x7fff));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    const uint32x4_t rounded = vbslq_u32(vceqq_f32(v, v), vaddq_u32(bits, up), quiet);
    store_16(p, vshrn_n_u32(rounded, 16));
  }

  static SIGMOID_CE_INLINE V from_int(I v) { return vcvtq_f32_s32(v); }
  static SIGMOID_CE_INLINE uint8x8_t load4(const void* p) {
    std::uint32_t v;
    __builtin_memcpy(&v, p, sizeof v);
    return vcreate_u8(v);
  }
  static SIGMOID_CE_INLINE I widen_u8(uint8x8_t v) {
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(v))));
  }
  static SIGMOID_CE_INLINE I load_int(const math::Bool* p) {
    return widen_u8(vmin_u8(load4(p), vdup_n_u8(1)));
  }
  static SIGMOID_CE_INLINE I load_int(const std::uint8_t* p) { return widen_u8(load4(p)); }
  static SIGMOID_CE_INLINE I load_int(const std::int8_t* p) {
    return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load4(p)))));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int32_t* p) {
    return vreinterpretq_s32_u8(vld1q_u8(reinterpret_cast<const std::uint8_t*>(p)));
  }
  static SIGMOID_CE_INLINE int64x2_t load2(const std::int64_t* p) {
    return vreinterpretq_s64_u8(vld1q_u8(reinterpret_cast<const std::uint8_t*>(p)));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int64_t* p) {
    return vcombine_s32(vqmovn_s64(load2(p)), vqmovn_s64(load2(p + 2)));
  }
  static SIGMOID_CE_INLINE M equal(I v, std::int32_t label) {
    return vceqq_s32(v, vdupq_n_s32(label));
  }
  static SIGMOID_CE_INLINE M equal64(const std::int64_t* p, std::int64_t label) {
    const int64x2_t l = vdupq_n_s64(label);
    return vcombine_u32(vmovn_u64(vceqq_s64(load2(p), l)), vmovn_u64(vceqq_s64(load2(p + 2), l)));
  }

  static SIGMOID_CE_INLINE D widen(V v) {
    return D{vcvt_f64_f32(vget_low_f32(v)), vcvt_high_f64_f32(v)};
  }
  static SIGMOID_CE_INLINE D add_wide(D x, D y) {
    return D{vaddq_f64(x.a, y.a), vaddq_f64(x.b, y.b)};
  }
  static SIGMOID_CE_INLINE D load_wide(const double* p) {
    return D{vld1q_f64(p), vld1q_f64(p + 2)};
  }
  static SIGMOID_CE_INLINE void store_wide(double* p, D v) {
    vst1q_f64(p, v.a);
    vst1q_f64(p + 2, v.b);
  }
};

struct NeonF64 {
  using T = double;
  using V = float64x2_t;
  using M = uint64x2_t;
  using I = int32x2_t;
  using D = float64x2_t;
  static constexpr int kLanes = 2;

  static SIGMOID_CE_INLINE V set(T v) { return vdupq_n_f64(v); }
  static SIGMOID_CE_INLINE V load(const T* p) {
    return vreinterpretq_f64_u8(vld1q_u8(reinterpret_cast<const std::uint8_t*>(p)));
  }
  static SIGMOID_CE_INLINE void store(T* p, V v) {
    vst1q_u8(reinterpret_cast<std::uint8_t*>(p), vreinterpretq_u8_f64(v));
  }
  static SIGMOID_CE_INLINE void stream(T* p, V v) { store(p, v); }

  static SIGMOID_CE_INLINE V add(V a, V b) { return vaddq_f64(a, b); }
  static SIGMOID_CE_INLINE V sub(V a, V b) { return vsubq_f64(a, b); }
  static SIGMOID_CE_INLINE V mul(V a, V b) { return vmulq_f64(a, b); }
  static SIGMOID_CE_INLINE V mul_rounded(V a, V b) {
    V v = mul(a, b);
    SIGMOID_CE_KEEP_ROUNDED(v);
    return v;
  }
  static SIGMOID_CE_INLINE V div(V a, V b) { return vdivq_f64(a, b); }
  static SIGMOID_CE_INLINE V fma(V a, V b, V c) { return vfmaq_f64(c, a, b); }
  static SIGMOID_CE_INLINE V fnma(V a, V b, V c) { return vfmsq_f64(c, a, b); }
  static SIGMOID_CE_INLINE V abs(V v) { return vabsq_f64(v); }
  static SIGMOID_CE_INLINE V min_or_nan(V v, V limit) { return vminq_f64(limit, v); }
  static SIGMOID_CE_INLINE V scale(V p, V n, V) {
    const uint64x2_t shifted = vshlq_n_u64(vreinterpretq_u64_f64(n), 52);
    const V power = vreinterpretq_f64_u64(vsubq_u64(vdupq_n_u64(UINT64_C(1023) << 52), shifted));
    return mul_rounded(mul(p, power), set(math::ExpLog1p<T>::kUnbias));
  }
  static SIGMOID_CE_INLINE V by_sign(V x, V negative, V positive) {
    const int64x2_t sign = vshrq_n_s64(vreinterpretq_s64_f64(x), 63);
    return vbslq_f64(vreinterpretq_u64_s64(sign), negative, positive);
  }
  static SIGMOID_CE_INLINE V flip_sign(V v, V x) {
    const uint64x2_t sign = vandq_u64(vreinterpretq_u64_f64(x), vdupq_n_u64(UINT64_C(1) << 63));
    return vreinterpretq_f64_u64(veorq_u64(vreinterpretq_u64_f64(v), sign));
  }
  static SIGMOID_CE_INLINE V zero_where_zero(V u, V v) { return zero_if(is_zero(u), v); }
  static SIGMOID_CE_INLINE V if_zero(V u, V v, V w) { return vbslq_f64(is_zero(u), v, w); }
  static SIGMOID_CE_INLINE V quotient(V a, V b) { return div(a, b); }
  // The exponent of a positive normal number, and the rest in [1, 2).
  static SIGMOID_CE_INLINE V split(V v, V* mantissa) {
    const M bits = vreinterpretq_u64_f64(v);
    const M low = vandq_u64(bits, vdupq_n_u64((UINT64_C(1) << 52) - 1));
    *mantissa = vreinterpretq_f64_u64(vorrq_u64(low, vdupq_n_u64(UINT64_C(1023) << 52)));
    const int64x2_t exponent = vreinterpretq_s64_u64(vshrq_n_u64(bits, 52));
    return vcvtq_f64_s64(vsubq_s64(exponent, vdupq_n_s64(1023)));
  }

  static SIGMOID_CE_INLINE M is_zero(V v) { return vceqzq_f64(v); }
  static SIGMOID_CE_INLINE M none() { return vdupq_n_u64(0); }
  static SIGMOID_CE_INLINE M either(M a, M b) { return vorrq_u64(a, b); }
  static SIGMOID_CE_INLINE M both(M a, M b) { return vandq_u64(a, b); }
  static SIGMOID_CE_INLINE bool all(M m) {
    return (vgetq_lane_u64(m, 0) & vgetq_lane_u64(m, 1)) != 0;
  }
  static SIGMOID_CE_INLINE M differs(V a, V b) {
    return veorq_u64(vceqq_f64(a, b), vdupq_n_u64(~UINT64_C(0)));
  }
  static SIGMOID_CE_INLINE M in_range(V v, V low, V high) {
    return vandq_u64(vcgeq_f64(v, low), vcleq_f64(v, high));
  }
  static SIGMOID_CE_INLINE V zero_if(M m, V v) {
    return vreinterpretq_f64_u64(vbicq_u64(vreinterpretq_u64_f64(v), m));
  }
  static SIGMOID_CE_INLINE int count(M m) {
    return static_cast<int>(vaddvq_u64(vshrq_n_u64(m, 63)));
  }

  static SIGMOID_CE_INLINE V from_int(I v) { return vcvtq_f64_s64(vmovl_s32(v)); }
  static SIGMOID_CE_INLINE uint8x8_t load2(const void* p) {
    std::uint16_t v;
    __builtin_memcpy(&v, p, sizeof v);
    return vcreate_u8(v);
  }
  static SIGMOID_CE_INLINE I load_int(const math::Bool* p) {
    return vget_low_s32(NeonF32::widen_u8(vmin_u8(load2(p), vdup_n_u8(1))));
  }
  static SIGMOID_CE_INLINE I load_int(const std::uint8_t* p) {
    return vget_low_s32(NeonF32::widen_u8(load2(p)));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int8_t* p) {
    return vget_low_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load2(p))))));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int32_t* p) {
    return vreinterpret_s32_u8(vld1_u8(reinterpret_cast<const std::uint8_t*>(p)));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int64_t* p) {
    return vqmovn_s64(NeonF32::load2(p));
  }
  static SIGMOID_CE_INLINE M equal(I v, std::int32_t label) {
    return vreinterpretq_u64_s64(vmovl_s32(vreinterpret_s32_u32(vceq_s32(v, vdup_n_s32(label)))));
  }
  static SIGMOID_CE_INLINE M equal64(const std::int64_t* p, std::int64_t label) {
    return vceqq_s64(NeonF32::load2(p), vdupq_n_s64(label));
  }

  static SIGMOID_CE_INLINE D widen(V v) { return v; }
  static SIGMOID_CE_INLINE D add_wide(D x, D y) { return vaddq_f64(x, y); }
  static SIGMOID_CE_INLINE D load_wide(const double* p) { return vld1q_f64(p); }
  static SIGMOID_CE_INLINE void store_wide(double* p, D v) { vst1q_f64(p, v); }
};

}  // namespace cpu
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CPU_OPS_NEON_H_
