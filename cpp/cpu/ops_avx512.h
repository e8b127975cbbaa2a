// Ops on 512-bit vectors: AVX-512 F, DQ, BW, VL. Included inside a target region (kernel_avx512.cpp).
#ifndef SIGMOID_CE_CPU_OPS_AVX512_H_
#define SIGMOID_CE_CPU_OPS_AVX512_H_

#include <immintrin.h>

#include <cstdint>

#include "math/half.h"
#include "math/platform.h"
#include "math/targets.h"

namespace sigmoid_ce {
namespace cpu {

// By the instruction itself: GCC 12, asked to widen a mask that it has spilled, reads 32 bits of which it wrote 8 or 16.
static SIGMOID_CE_INLINE int count_bits(__mmask8 m) {
  unsigned bits;
  __asm__("kmovb %1, %0" : "=r"(bits) : "k"(m));
  return __builtin_popcount(bits);
}
static SIGMOID_CE_INLINE int count_bits(__mmask16 m) {
  unsigned bits;
  __asm__("kmovw %1, %0" : "=r"(bits) : "k"(m));
  return __builtin_popcount(bits);
}

struct Avx512F32 {
  using T = float;
  using V = __m512;
  using M = __mmask16;
  using I = __m512i;
  struct D {
    __m512d a, b;
  };
  static constexpr int kLanes = 16;

  static SIGMOID_CE_INLINE V set(T v) { return _mm512_set1_ps(v); }
  static SIGMOID_CE_INLINE V load(const T* p) { return _mm512_loadu_ps(p); }
  static SIGMOID_CE_INLINE void store(T* p, V v) { _mm512_storeu_ps(p, v); }
  static SIGMOID_CE_INLINE void stream(T* p, V v) { _mm512_stream_ps(p, v); }

  static SIGMOID_CE_INLINE V add(V a, V b) { return _mm512_add_ps(a, b); }
  static SIGMOID_CE_INLINE V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static SIGMOID_CE_INLINE V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  // There is no sum of floats that a product could be contracted with: losses are added as doubles.
  static SIGMOID_CE_INLINE V mul_rounded(V a, V b) { return mul(a, b); }
  static SIGMOID_CE_INLINE V div(V a, V b) { return _mm512_div_ps(a, b); }
  static SIGMOID_CE_INLINE V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static SIGMOID_CE_INLINE V fnma(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }
  static SIGMOID_CE_INLINE V abs(V v) { return _mm512_abs_ps(v); }
  // vminps gives its second operand when one is NaN.
  static SIGMOID_CE_INLINE V min_or_nan(V v, V limit) { return _mm512_min_ps(limit, v); }
  static SIGMOID_CE_INLINE V scale(V p, V, V k) { return _mm512_scalef_ps(p, k); }
  static SIGMOID_CE_INLINE V by_sign(V x, V negative, V positive) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), positive, negative);
  }
  static SIGMOID_CE_INLINE V flip_sign(V v, V x) {  // 0x6c: v ^ (x & sign)
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
        _mm512_castps_si512(x), _mm512_castps_si512(v), _mm512_set1_epi32(INT32_MIN), 0x6c));
  }
  static SIGMOID_CE_INLINE V zero_where_zero(V u, V v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(u, _mm512_setzero_ps(), _CMP_NEQ_UQ), v);
  }
  static SIGMOID_CE_INLINE V if_zero(V u, V v, V w) {
    return _mm512_mask_blend_ps(is_zero(u), w, v);
  }
  static SIGMOID_CE_INLINE V quotient(V a, V b) { return div(a, b); }
  // The exponent of a positive normal number, and the rest in [1, 2).
  static SIGMOID_CE_INLINE V split(V v, V* mantissa) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i one = _mm512_set1_epi32(127 << 23);
    const __m512i low = _mm512_and_si512(bits, _mm512_set1_epi32((1 << 23) - 1));
    *mantissa = _mm512_castsi512_ps(_mm512_or_si512(low, one));
    const __m512i exponent = _mm512_srli_epi32(bits, 23);
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(exponent, _mm512_set1_epi32(127)));
  }

  static SIGMOID_CE_INLINE M is_zero(V v) {
    return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_EQ_OQ);
  }
  static SIGMOID_CE_INLINE M none() { return 0; }
  static SIGMOID_CE_INLINE M either(M a, M b) { return static_cast<M>(a | b); }
  static SIGMOID_CE_INLINE M both(M a, M b) { return static_cast<M>(a & b); }
  static SIGMOID_CE_INLINE bool all(M m) { return m == 0xffff; }
  static SIGMOID_CE_INLINE M differs(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
  static SIGMOID_CE_INLINE M in_range(V v, V low, V high) {
    return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(v, low, _CMP_GE_OQ), v, high, _CMP_LE_OQ);
  }
  static SIGMOID_CE_INLINE V zero_if(M m, V v) {
    return _mm512_maskz_mov_ps(static_cast<M>(~m), v);
  }
  static SIGMOID_CE_INLINE int count(M m) { return count_bits(m); }

  static SIGMOID_CE_INLINE __m256i load_16(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static SIGMOID_CE_INLINE V load_half(const math::Float16* p) {
    return _mm512_cvtph_ps(load_16(p));
  }
  static SIGMOID_CE_INLINE V load_half(const math::Bfloat16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_16(p)), 16));
  }
  static SIGMOID_CE_INLINE void store_half(math::Float16* p, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static SIGMOID_CE_INLINE void store_half(math::Bfloat16* p, V v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const M nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __m512i rounded = _mm512_mask_mov_epi32(_mm512_add_epi32(bits, up), nan, quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }

  static SIGMOID_CE_INLINE V from_int(I v) { return _mm512_cvtepi32_ps(v); }
  static SIGMOID_CE_INLINE __m128i load16(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
  }
  static SIGMOID_CE_INLINE I load_int(const math::Bool* p) {
    return _mm512_cvtepu8_epi32(_mm_min_epu8(load16(p), _mm_set1_epi8(1)));
  }
  static SIGMOID_CE_INLINE I load_int(const std::uint8_t* p) {
    return _mm512_cvtepu8_epi32(load16(p));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int8_t* p) {
    return _mm512_cvtepi8_epi32(load16(p));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  static SIGMOID_CE_INLINE I load_int(const std::int64_t* p) {
    const __m256i low = _mm512_cvtsepi64_epi32(_mm512_loadu_si512(p));
    const __m256i high = _mm512_cvtsepi64_epi32(_mm512_loadu_si512(p + 8));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  static SIGMOID_CE_INLINE M equal(I v, std::int32_t label) {
    return _mm512_cmpeq_epi32_mask(v, _mm512_set1_epi32(label));
  }
  static SIGMOID_CE_INLINE M equal64(const std::int64_t* p, std::int64_t label) {
    const __m512i l = _mm512_set1_epi64(label);
    return _mm512_kunpackb(_mm512_cmpeq_epi64_mask(_mm512_loadu_si512(p + 8), l),
                           _mm512_cmpeq_epi64_mask(_mm512_loadu_si512(p), l));
  }

  static SIGMOID_CE_INLINE D widen(V v) {
    return D{_mm512_cvtps_pd(_mm512_castps512_ps256(v)),
             _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))};
  }
  static SIGMOID_CE_INLINE D add_wide(D x, D y) {
    return D{_mm512_add_pd(x.a, y.a), _mm512_add_pd(x.b, y.b)};
  }
  static SIGMOID_CE_INLINE D load_wide(const double* p) {
    return D{_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8)};
  }
  static SIGMOID_CE_INLINE void store_wide(double* p, D v) {
    _mm512_storeu_pd(p, v.a);
    _mm512_storeu_pd(p + 8, v.b);
  }
};

struct Avx512F64 {
  using T = double;
  using V = __m512d;
  using M = __mmask8;
  using I = __m256i;
  using D = __m512d;
  static constexpr int kLanes = 8;

  static SIGMOID_CE_INLINE V set(T v) { return _mm512_set1_pd(v); }
  static SIGMOID_CE_INLINE V load(const T* p) { return _mm512_loadu_pd(p); }
  static SIGMOID_CE_INLINE void store(T* p, V v) { _mm512_storeu_pd(p, v); }
  static SIGMOID_CE_INLINE void stream(T* p, V v) { _mm512_stream_pd(p, v); }

  static SIGMOID_CE_INLINE V add(V a, V b) { return _mm512_add_pd(a, b); }
  static SIGMOID_CE_INLINE V sub(V a, V b) { return _mm512_sub_pd(a, b); }
  static SIGMOID_CE_INLINE V mul(V a, V b) { return _mm512_mul_pd(a, b); }
  static SIGMOID_CE_INLINE V mul_rounded(V a, V b) {
    V v = mul(a, b);
    __asm__("" : "+v"(v));
    return v;
  }
  static SIGMOID_CE_INLINE V div(V a, V b) { return _mm512_div_pd(a, b); }
  static SIGMOID_CE_INLINE V fma(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
  static SIGMOID_CE_INLINE V fnma(V a, V b, V c) { return _mm512_fnmadd_pd(a, b, c); }
  static SIGMOID_CE_INLINE V abs(V v) { return _mm512_abs_pd(v); }
  static SIGMOID_CE_INLINE V min_or_nan(V v, V limit) { return _mm512_min_pd(limit, v); }
  static SIGMOID_CE_INLINE V scale(V p, V, V k) { return _mm512_scalef_pd(p, k); }
  static SIGMOID_CE_INLINE V by_sign(V x, V negative, V positive) {
    return _mm512_mask_blend_pd(_mm512_movepi64_mask(_mm512_castpd_si512(x)), positive, negative);
  }
  static SIGMOID_CE_INLINE V flip_sign(V v, V x) {
    return _mm512_castsi512_pd(_mm512_ternarylogic_epi64(
        _mm512_castpd_si512(x), _mm512_castpd_si512(v), _mm512_set1_epi64(INT64_MIN), 0x6c));
  }
  static SIGMOID_CE_INLINE V zero_where_zero(V u, V v) {
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(u, _mm512_setzero_pd(), _CMP_NEQ_UQ), v);
  }
  static SIGMOID_CE_INLINE V if_zero(V u, V v, V w) {
    return _mm512_mask_blend_pd(is_zero(u), w, v);
  }
  static SIGMOID_CE_INLINE V quotient(V a, V b) { return div(a, b); }
  // The exponent of a positive normal number, and the rest in [1, 2).
  static SIGMOID_CE_INLINE V split(V v, V* mantissa) {
    const __m512i bits = _mm512_castpd_si512(v);
    const __m512i one = _mm512_set1_epi64(INT64_C(1023) << 52);
    const __m512i low = _mm512_and_si512(bits, _mm512_set1_epi64((INT64_C(1) << 52) - 1));
    *mantissa = _mm512_castsi512_pd(_mm512_or_si512(low, one));
    const __m512i exponent = _mm512_srli_epi64(bits, 52);
    return _mm512_cvtepi64_pd(_mm512_sub_epi64(exponent, _mm512_set1_epi64(1023)));
  }

  static SIGMOID_CE_INLINE M is_zero(V v) {
    return _mm512_cmp_pd_mask(v, _mm512_setzero_pd(), _CMP_EQ_OQ);
  }
  static SIGMOID_CE_INLINE M none() { return 0; }
  static SIGMOID_CE_INLINE M either(M a, M b) { return static_cast<M>(a | b); }
  static SIGMOID_CE_INLINE M both(M a, M b) { return static_cast<M>(a & b); }
  static SIGMOID_CE_INLINE bool all(M m) { return m == 0xff; }
  static SIGMOID_CE_INLINE M differs(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_NEQ_UQ); }
  static SIGMOID_CE_INLINE M in_range(V v, V low, V high) {
    return _mm512_mask_cmp_pd_mask(_mm512_cmp_pd_mask(v, low, _CMP_GE_OQ), v, high, _CMP_LE_OQ);
  }
  static SIGMOID_CE_INLINE V zero_if(M m, V v) {
    return _mm512_maskz_mov_pd(static_cast<M>(~m), v);
  }
  static SIGMOID_CE_INLINE int count(M m) { return count_bits(m); }

  static SIGMOID_CE_INLINE V from_int(I v) { return _mm512_cvtepi32_pd(v); }
  static SIGMOID_CE_INLINE __m128i load8(const void* p) {
    return _mm_loadl_epi64(static_cast<const __m128i*>(p));
  }
  static SIGMOID_CE_INLINE I load_int(const math::Bool* p) {
    return _mm256_cvtepu8_epi32(_mm_min_epu8(load8(p), _mm_set1_epi8(1)));
  }
  static SIGMOID_CE_INLINE I load_int(const std::uint8_t* p) {
    return _mm256_cvtepu8_epi32(load8(p));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int8_t* p) {
    return _mm256_cvtepi8_epi32(load8(p));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int64_t* p) {
    return _mm512_cvtsepi64_epi32(_mm512_loadu_si512(p));
  }
  static SIGMOID_CE_INLINE M equal(I v, std::int32_t label) {
    return _mm256_cmpeq_epi32_mask(v, _mm256_set1_epi32(label));
  }
  static SIGMOID_CE_INLINE M equal64(const std::int64_t* p, std::int64_t label) {
    return _mm512_cmpeq_epi64_mask(_mm512_loadu_si512(p), _mm512_set1_epi64(label));
  }

  static SIGMOID_CE_INLINE D widen(V v) { return v; }
  static SIGMOID_CE_INLINE D add_wide(D x, D y) { return _mm512_add_pd(x, y); }
  static SIGMOID_CE_INLINE D load_wide(const double* p) { return _mm512_loadu_pd(p); }
  static SIGMOID_CE_INLINE void store_wide(double* p, D v) { _mm512_storeu_pd(p, v); }
};

}  // namespace cpu
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CPU_OPS_AVX512_H_
