// A vector of floats as wide as the instruction set this file is compiled for. Included by kernels_impl.hpp only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace mf::simd {
namespace {

inline void prefetch(const void * p) {
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch(p);
#else
    (void) p;  // MSVC has no portable one
#endif
}

inline float half_to_float(uint16_t h) {
    const uint32_t sign     = static_cast<uint32_t>(h & 0x8000U) << 16U;
    uint32_t       exponent = (h >> 10U) & 31U;
    uint32_t       mantissa = h & 1023U;
    uint32_t       bits;
    if (exponent == 31) {
        bits = sign | 0x7f800000U | (mantissa << 13U);
    } else if (exponent != 0) {
        bits = sign | ((exponent + 112U) << 23U) | (mantissa << 13U);
    } else if (mantissa == 0) {
        bits = sign;
    } else {
        exponent = 113;
        while ((mantissa & 1024U) == 0) {
            mantissa <<= 1U;
            --exponent;
        }
        bits = sign | (exponent << 23U) | ((mantissa & 1023U) << 13U);
    }
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

// x rounded to float16 and back, to nearest even; exact for halves, flushes below the smallest half.
inline float half_rounded(float x) {
    const float magnitude = std::fabs(x);
    if (magnitude < 6.103515625e-05F) {  // subnormal halves are multiples of 2^-24
        return std::nearbyint(x * 16777216.0F) / 16777216.0F;
    }
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits = (bits + 0xfffU + ((bits >> 13U) & 1U)) & ~0x1fffU;
    std::memcpy(&x, &bits, 4);
    return x;
}

// Of values within the range of float16.
inline uint16_t float_to_half(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const auto  sign      = static_cast<uint16_t>((bits >> 16U) & 0x8000U);
    const float magnitude = std::fabs(x);
    if (magnitude < 6.103515625e-05F) {
        return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(magnitude * 16777216.0F)));
    }
    bits &= 0x7fffffffU;
    bits += 0xfffU + ((bits >> 13U) & 1U);
    return static_cast<uint16_t>(sign | ((bits >> 13U) - (112U << 10U)));
}

#if defined(__AVX512F__)

inline constexpr int W = 16;
using V                = __m512;
inline V    load(const float * p) { return _mm512_loadu_ps(p); }
inline V    load_half(const uint16_t * p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))); }
inline void store(float * p, V v) { _mm512_storeu_ps(p, v); }
inline void store_half(uint16_t * p, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline V     set1(float x) { return _mm512_set1_ps(x); }
inline V     zero() { return _mm512_setzero_ps(); }
inline V     add(V a, V b) { return _mm512_add_ps(a, b); }
inline V     sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V     mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V     max(V a, V b) { return _mm512_max_ps(a, b); }
inline V     fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline float sum(V v) { return _mm512_reduce_add_ps(v); }
inline float max_of(V v) { return _mm512_reduce_max_ps(v); }
inline V     abs(V a) { return _mm512_abs_ps(a); }
inline V     round(V v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V     scale_by_power(V v, V n) { return _mm512_scalef_ps(v, n); }

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

inline constexpr int W = 8;
using V = __m256;
inline V load(const float * p) { return _mm256_loadu_ps(p); }
inline V load_half(const uint16_t * p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))); }
inline void store(float * p, V v) { _mm256_storeu_ps(p, v); }
inline void store_half(uint16_t * p, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline V set1(float x) { return _mm256_set1_ps(x); }
inline V zero() { return _mm256_setzero_ps(); }
inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V max(V a, V b) { return _mm256_max_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline float sum(V v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float max_of(V v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
inline V abs(V a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), a); }
inline V round(V v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V scale_by_power(V v, V n) {
    const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(v, _mm256_castsi256_ps(bits));
}

#elif defined(__ARM_NEON)

inline constexpr int W = 4;
using V                = float32x4_t;
inline V     load(const float * p) { return vld1q_f32(p); }
inline V     load_half(const uint16_t * p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline void  store(float * p, V v) { vst1q_f32(p, v); }
inline void  store_half(uint16_t * p, V v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
inline V     set1(float x) { return vdupq_n_f32(x); }
inline V     zero() { return vdupq_n_f32(0); }
inline V     add(V a, V b) { return vaddq_f32(a, b); }
inline V     sub(V a, V b) { return vsubq_f32(a, b); }
inline V     mul(V a, V b) { return vmulq_f32(a, b); }
inline V     max(V a, V b) { return vmaxq_f32(a, b); }
inline V     fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
inline float sum(V v) { return vaddvq_f32(v); }
inline float max_of(V v) { return vmaxvq_f32(v); }
inline V     abs(V a) { return vabsq_f32(a); }
inline V     round(V v) { return vrndnq_f32(v); }
inline V     scale_by_power(V v, V n) {
        const int32x4_t bits = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
        return vmulq_f32(v, vreinterpretq_f32_s32(bits));
}

#else  // plain C++: four lanes the compiler may vectorise as it can

inline constexpr int W = 4;
struct V {
    float f[4];
};
template <typename F> inline V each(F f) { return V{ { f(0), f(1), f(2), f(3) } }; }
inline V                       load(const float * p) {
                          return each([&](int i) { return p[i]; });
}
inline V load_half(const uint16_t * p) {
    return each([&](int i) { return half_to_float(p[i]); });
}
inline void store(float * p, V v) { std::memcpy(p, v.f, sizeof v.f); }
inline void store_half(uint16_t * p, V v) {
    for (int i = 0; i < W; ++i) {
        p[i] = float_to_half(v.f[i]);
    }
}
inline V set1(float x) { return V{ { x, x, x, x } }; }
inline V zero() { return set1(0); }
inline V add(V a, V b) {
    return each([&](int i) { return a.f[i] + b.f[i]; });
}
inline V sub(V a, V b) {
    return each([&](int i) { return a.f[i] - b.f[i]; });
}
inline V mul(V a, V b) {
    return each([&](int i) { return a.f[i] * b.f[i]; });
}
inline V max(V a, V b) {
    return each([&](int i) { return a.f[i] > b.f[i] ? a.f[i] : b.f[i]; });
}
inline V fma(V a, V b, V c) {
    return each([&](int i) { return a.f[i] * b.f[i] + c.f[i]; });
}
inline float sum(V v) { return (v.f[0] + v.f[1]) + (v.f[2] + v.f[3]); }
inline float max_of(V v) { return std::fmax(std::fmax(v.f[0], v.f[1]), std::fmax(v.f[2], v.f[3])); }
inline V     abs(V a) {
        return each([&](int i) { return std::fabs(a.f[i]); });
}
inline V round(V v) {
    return each([&](int i) { return std::nearbyint(v.f[i]); });
}
inline V scale_by_power(V v, V n) {
    return each([&](int i) { return std::ldexp(v.f[i], static_cast<int>(n.f[i])); });
}

#endif

// e^x to about 2 ulp for x <= 0 (Cephes polynomial); 0 below the smallest normal number.
inline V exp(V x) {
    const V clamped = max(x, set1(-87.3F));
    const V n       = round(mul(clamped, set1(1.44269504088896341F)));
    V       r       = fma(n, set1(-0.693359375F), clamped);
    r               = fma(n, set1(2.12194440e-4F), r);
    V p             = set1(1.9875691500e-4F);
    p               = fma(p, r, set1(1.3981999507e-3F));
    p               = fma(p, r, set1(8.3334519073e-3F));
    p               = fma(p, r, set1(4.1665795894e-2F));
    p               = fma(p, r, set1(1.6666665459e-1F));
    p               = fma(p, r, set1(5.0000001201e-1F));
    p               = add(fma(mul(r, r), p, r), set1(1.0F));
    return scale_by_power(p, n);
}

}  // namespace
}  // namespace mf::simd
