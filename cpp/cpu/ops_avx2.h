// Ops on 256-bit vectors: AVX2, FMA and F16C. Included inside a target region (kernel_avx2.cpp).
#ifndef SIGMOID_CE_CPU_OPS_AVX2_H_
#define SIGMOID_CE_CPU_OPS_AVX2_H_

#include <immintrin.h>

#include <cstdint>

#include "math/exp_log1p.h"
#include "math/half.h"
#include "math/targets.h"

namespace sigmoid_ce {
namespace cpu {

struct Avx2F32 {
  using T = float;
  using V = __m256;
  using M = __m256;
  using I = __m256i;
  struct D {
    __m256d a, b;
  };
  static constexpr int kLanes = 8;

  static SIGMOID_CE_INLINE V set(T v) { return _mm256_set1_ps(v); }
  static SIGMOID_CE_INLINE V load(const T* p) { return _mm256_loadu_ps(p); }
  static SIGMOID_CE_INLINE void store(T* p, V v) { _mm256_storeu_ps(p, v); }
  static SIGMOID_CE_INLINE void stream(T* p, V v) { _mm256_stream_ps(p, v); }

  static SIGMOID_CE_INLINE V add(V a, V b) { return _mm256_add_ps(a, b); }
  static SIGMOID_CE_INLINE V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static SIGMOID_CE_INLINE V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static SIGMOID_CE_INLINE V mul_rounded(V a, V b) {
    V v = mul(a, b);
    SIGMOID_CE_KEEP_ROUNDED(v);
    return v;
  }
  static SIGMOID_CE_INLINE V div(V a, V b) { return _mm256_div_ps(a, b); }
  static SIGMOID_CE_INLINE V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static SIGMOID_CE_INLINE V fnma(V a, V b, V c) { return _mm256_fnmadd_ps(a, b, c); }
  static SIGMOID_CE_INLINE V sign() { return _mm256_set1_ps(-0.0f); }
  static SIGMOID_CE_INLINE V abs(V v) { return _mm256_andnot_ps(sign(), v); }
  // vminps gives its second operand when one is NaN.
  static SIGMOID_CE_INLINE V min_or_nan(V v, V limit) { return _mm256_min_ps(limit, v); }
  // n has N - kBias in its low bits. The first product is exact, the second rounds once.
  static SIGMOID_CE_INLINE V scale(V p, V n, V) {
    const __m256i shifted = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    const V power = _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_set1_epi32(127 << 23), shifted));
    return mul_rounded(mul(p, power), set(math::ExpLog1p<T>::kUnbias));
  }
  static SIGMOID_CE_INLINE V by_sign(V x, V negative, V positive) {
    return _mm256_blendv_ps(positive, negative, x);
  }
  static SIGMOID_CE_INLINE V flip_sign(V v, V x) {
    return _mm256_xor_ps(v, _mm256_and_ps(sign(), x));
  }
  static SIGMOID_CE_INLINE V zero_where_zero(V u, V v) { return zero_if(is_zero(u), v); }
  static SIGMOID_CE_INLINE V if_zero(V u, V v, V w) { return _mm256_blendv_ps(w, v, is_zero(u)); }
  static SIGMOID_CE_INLINE V quotient(V a, V b) { return div(a, b); }
  // The exponent of a positive normal number, and the rest in [1, 2).
  static SIGMOID_CE_INLINE V split(V v, V* mantissa) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i one = _mm256_set1_epi32(127 << 23);
    const __m256i low = _mm256_and_si256(bits, _mm256_set1_epi32((1 << 23) - 1));
    *mantissa = _mm256_castsi256_ps(_mm256_or_si256(low, one));
    const __m256i exponent = _mm256_srli_epi32(bits, 23);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(exponent, _mm256_set1_epi32(127)));
  }

  static SIGMOID_CE_INLINE M is_zero(V v) {
    return _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_EQ_OQ);
  }
  static SIGMOID_CE_INLINE M none() { return _mm256_setzero_ps(); }
  static SIGMOID_CE_INLINE M either(M a, M b) { return _mm256_or_ps(a, b); }
  static SIGMOID_CE_INLINE M both(M a, M b) { return _mm256_and_ps(a, b); }
  static SIGMOID_CE_INLINE bool all(M m) { return _mm256_movemask_ps(m) == 0xff; }
  static SIGMOID_CE_INLINE M differs(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_NEQ_UQ); }
  static SIGMOID_CE_INLINE M in_range(V v, V low, V high) {
    return _mm256_and_ps(_mm256_cmp_ps(v, low, _CMP_GE_OQ), _mm256_cmp_ps(v, high, _CMP_LE_OQ));
  }
  static SIGMOID_CE_INLINE V zero_if(M m, V v) { return _mm256_andnot_ps(m, v); }
  static SIGMOID_CE_INLINE int count(M m) { return __builtin_popcount(_mm256_movemask_ps(m)); }

  static SIGMOID_CE_INLINE __m128i load_16(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
  }
  static SIGMOID_CE_INLINE V load_half(const math::Float16* p) {
    return _mm256_cvtph_ps(load_16(p));
  }
  static SIGMOID_CE_INLINE V load_half(const math::Bfloat16* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16(p)), 16));
  }
  static SIGMOID_CE_INLINE void store_half(math::Float16* p, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static SIGMOID_CE_INLINE void store_half(math::Bfloat16* p, V v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i rounded = _mm256_blendv_epi8(_mm256_add_epi32(bits, up), quiet, nan);
    rounded = _mm256_srli_epi32(rounded, 16);
    // Within each half of the vector, which the permutation puts right.
    const __m256i packed = _mm256_packus_epi32(rounded, rounded);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
  }

  static SIGMOID_CE_INLINE V from_int(I v) { return _mm256_cvtepi32_ps(v); }
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
  static SIGMOID_CE_INLINE __m256i load32(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int32_t* p) { return load32(p); }
  // Four 64-bit integers saturated to 32 bits, in the low halves of their lanes.
  static SIGMOID_CE_INLINE __m256i saturate(__m256i v) {
    const __m256i high = _mm256_set1_epi64x(INT32_MAX);
    const __m256i low = _mm256_set1_epi64x(INT32_MIN);
    v = _mm256_blendv_epi8(v, high, _mm256_cmpgt_epi64(v, high));
    return _mm256_blendv_epi8(v, low, _mm256_cmpgt_epi64(low, v));
  }
  // The low halves of the 64-bit lanes of two vectors, in order.
  static SIGMOID_CE_INLINE __m256i pack(__m256i low, __m256i high) {
    const __m256i halves = _mm256_castps_si256(
        _mm256_shuffle_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high), 0x88));
    return _mm256_permute4x64_epi64(halves, 0xd8);
  }
  static SIGMOID_CE_INLINE I load_int(const std::int64_t* p) {
    return pack(saturate(load32(p)), saturate(load32(p + 4)));
  }
  static SIGMOID_CE_INLINE M equal(I v, std::int32_t label) {
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(v, _mm256_set1_epi32(label)));
  }
  static SIGMOID_CE_INLINE M equal64(const std::int64_t* p, std::int64_t label) {
    const __m256i l = _mm256_set1_epi64x(label);
    return _mm256_castsi256_ps(
        pack(_mm256_cmpeq_epi64(load32(p), l), _mm256_cmpeq_epi64(load32(p + 4), l)));
  }

  static SIGMOID_CE_INLINE D widen(V v) {
    return D{_mm256_cvtps_pd(_mm256_castps256_ps128(v)),
             _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
  }
  static SIGMOID_CE_INLINE D add_wide(D x, D y) {
    return D{_mm256_add_pd(x.a, y.a), _mm256_add_pd(x.b, y.b)};
  }
  static SIGMOID_CE_INLINE D load_wide(const double* p) {
    return D{_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)};
  }
  static SIGMOID_CE_INLINE void store_wide(double* p, D v) {
    _mm256_storeu_pd(p, v.a);
    _mm256_storeu_pd(p + 4, v.b);
  }
};

struct Avx2F64 {
  using T = double;
  using V = __m256d;
  using M = __m256d;
  using I = __m128i;
  using D = __m256d;
  static constexpr int kLanes = 4;

  static SIGMOID_CE_INLINE V set(T v) { return _mm256_set1_pd(v); }
  static SIGMOID_CE_INLINE V load(const T* p) { return _mm256_loadu_pd(p); }
  static SIGMOID_CE_INLINE void store(T* p, V v) { _mm256_storeu_pd(p, v); }
  static SIGMOID_CE_INLINE void stream(T* p, V v) { _mm256_stream_pd(p, v); }

  static SIGMOID_CE_INLINE V add(V a, V b) { return _mm256_add_pd(a, b); }
  static SIGMOID_CE_INLINE V sub(V a, V b) { return _mm256_sub_pd(a, b); }
  static SIGMOID_CE_INLINE V mul(V a, V b) { return _mm256_mul_pd(a, b); }
  static SIGMOID_CE_INLINE V mul_rounded(V a, V b) {
    V v = mul(a, b);
    SIGMOID_CE_KEEP_ROUNDED(v);
    return v;
  }
  static SIGMOID_CE_INLINE V div(V a, V b) { return _mm256_div_pd(a, b); }
  static SIGMOID_CE_INLINE V fma(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
  static SIGMOID_CE_INLINE V fnma(V a, V b, V c) { return _mm256_fnmadd_pd(a, b, c); }
  static SIGMOID_CE_INLINE V sign() { return _mm256_set1_pd(-0.0); }
  static SIGMOID_CE_INLINE V abs(V v) { return _mm256_andnot_pd(sign(), v); }
  static SIGMOID_CE_INLINE V min_or_nan(V v, V limit) { return _mm256_min_pd(limit, v); }
  static SIGMOID_CE_INLINE V scale(V p, V n, V) {
    const __m256i shifted = _mm256_slli_epi64(_mm256_castpd_si256(n), 52);
    const __m256i one = _mm256_set1_epi64x(INT64_C(1023) << 52);
    const V power = _mm256_castsi256_pd(_mm256_sub_epi64(one, shifted));
    return mul_rounded(mul(p, power), set(math::ExpLog1p<T>::kUnbias));
  }
  static SIGMOID_CE_INLINE V by_sign(V x, V negative, V positive) {
    return _mm256_blendv_pd(positive, negative, x);
  }
  static SIGMOID_CE_INLINE V flip_sign(V v, V x) {
    return _mm256_xor_pd(v, _mm256_and_pd(sign(), x));
  }
  static SIGMOID_CE_INLINE V zero_where_zero(V u, V v) { return zero_if(is_zero(u), v); }
  static SIGMOID_CE_INLINE V if_zero(V u, V v, V w) { return _mm256_blendv_pd(w, v, is_zero(u)); }
  static SIGMOID_CE_INLINE V quotient(V a, V b) { return div(a, b); }
  // The exponent of a positive normal number, and the rest in [1, 2).
  static SIGMOID_CE_INLINE V split(V v, V* mantissa) {
    const __m256i bits = _mm256_castpd_si256(v);
    const __m256i one = _mm256_set1_epi64x(INT64_C(1023) << 52);
    const __m256i low = _mm256_and_si256(bits, _mm256_set1_epi64x((INT64_C(1) << 52) - 1));
    *mantissa = _mm256_castsi256_pd(_mm256_or_si256(low, one));
    // In the low bits of 2^52.
    const __m256i magic = _mm256_set1_epi64x(INT64_C(0x4330000000000000));
    const __m256i exponent = _mm256_or_si256(_mm256_srli_epi64(bits, 52), magic);
    return sub(_mm256_castsi256_pd(exponent), set(4503599627370496.0 + 1023));
  }

  static SIGMOID_CE_INLINE M is_zero(V v) {
    return _mm256_cmp_pd(v, _mm256_setzero_pd(), _CMP_EQ_OQ);
  }
  static SIGMOID_CE_INLINE M none() { return _mm256_setzero_pd(); }
  static SIGMOID_CE_INLINE M either(M a, M b) { return _mm256_or_pd(a, b); }
  static SIGMOID_CE_INLINE M both(M a, M b) { return _mm256_and_pd(a, b); }
  static SIGMOID_CE_INLINE bool all(M m) { return _mm256_movemask_pd(m) == 0xf; }
  static SIGMOID_CE_INLINE M differs(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_NEQ_UQ); }
  static SIGMOID_CE_INLINE M in_range(V v, V low, V high) {
    return _mm256_and_pd(_mm256_cmp_pd(v, low, _CMP_GE_OQ), _mm256_cmp_pd(v, high, _CMP_LE_OQ));
  }
  static SIGMOID_CE_INLINE V zero_if(M m, V v) { return _mm256_andnot_pd(m, v); }
  static SIGMOID_CE_INLINE int count(M m) { return __builtin_popcount(_mm256_movemask_pd(m)); }

  static SIGMOID_CE_INLINE V from_int(I v) { return _mm256_cvtepi32_pd(v); }
  static SIGMOID_CE_INLINE __m128i load4(const void* p) {
    std::int32_t v;
    __builtin_memcpy(&v, p, sizeof v);
    return _mm_cvtsi32_si128(v);
  }
  static SIGMOID_CE_INLINE I load_int(const math::Bool* p) {
    return _mm_cvtepu8_epi32(_mm_min_epu8(load4(p), _mm_set1_epi8(1)));
  }
  static SIGMOID_CE_INLINE I load_int(const std::uint8_t* p) { return _mm_cvtepu8_epi32(load4(p)); }
  static SIGMOID_CE_INLINE I load_int(const std::int8_t* p) { return _mm_cvtepi8_epi32(load4(p)); }
  static SIGMOID_CE_INLINE I load_int(const std::int32_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  static SIGMOID_CE_INLINE I load_int(const std::int64_t* p) {
    const __m256i v = Avx2F32::saturate(Avx2F32::load32(p));
    return _mm256_castsi256_si128(Avx2F32::pack(v, v));
  }
  static SIGMOID_CE_INLINE M equal(I v, std::int32_t label) {
    return _mm256_castsi256_pd(_mm256_cvtepi32_epi64(_mm_cmpeq_epi32(v, _mm_set1_epi32(label))));
  }
  static SIGMOID_CE_INLINE M equal64(const std::int64_t* p, std::int64_t label) {
    return _mm256_castsi256_pd(_mm256_cmpeq_epi64(Avx2F32::load32(p), _mm256_set1_epi64x(label)));
  }

  static SIGMOID_CE_INLINE D widen(V v) { return v; }
  static SIGMOID_CE_INLINE D add_wide(D x, D y) { return _mm256_add_pd(x, y); }
  static SIGMOID_CE_INLINE D load_wide(const double* p) { return _mm256_loadu_pd(p); }
  static SIGMOID_CE_INLINE void store_wide(double* p, D v) { _mm256_storeu_pd(p, v); }
};

}  // namespace cpu
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CPU_OPS_AVX2_H_
