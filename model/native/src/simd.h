/* Vectors of eight in AVX2, NEON or plain C, so that every other file is written once.
 *
 * Each operation is one that IEEE 754 defines to the last bit (add, multiply, fma, divide, round to nearest even), so
 * all three give the same bits. Nothing here may be replaced by an approximation (rcpps, vrecpe).
 *
 *   vf  8 floats      vi  8 int32      vs  16 int16
 */
#ifndef LONGHAND_SIMD_H
#define LONGHAND_SIMD_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 8

/* vf_fma_in and vi_dot2_in update the sums of a tile in place, in the order written; KEEP(x) holds x in its register.
 * Without them gcc 12 and clang reorder the operations until the sums no longer fit the registers, and the tile runs at
 * half the speed. */

#if defined(__AVX2__) && defined(__FMA__) && !defined(LONGHAND_PLAIN)
#include <immintrin.h>
typedef __m256 vf;
typedef __m256i vi;
typedef __m256i vs;
#define KEEP(a) __asm__ volatile("" : "+x"(a))

INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
INLINE vf vf_all(float x) { return _mm256_set1_ps(x); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_clamp(vf a, vf low, vf high) { return _mm256_min_ps(_mm256_max_ps(a, low), high); }

INLINE vi vi_load(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void vi_store(int32_t *p, vi a) { _mm256_storeu_si256((__m256i *)p, a); }
INLINE vi vi_zero(void) { return _mm256_setzero_si256(); }
INLINE vf vi_to_float(vi a) { return _mm256_cvtepi32_ps(a); }
INLINE vs vs_load(const int16_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void vs_store(int16_t *p, vs a) { _mm256_storeu_si256((__m256i *)p, a); }
/* 16 int8 -> 16 int16 */
INLINE vs vs_widen(const int8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }
/* two neighbouring int16, repeated eight times */
INLINE vs vs_pair(const int16_t *p)
{
    int32_t both;
    memcpy(&both, p, 4);
    return _mm256_set1_epi32(both);
}
/* c[j] += a[2j] b[2j] + a[2j+1] b[2j+1] */
#define vi_dot2_in(c, a, b) __asm__ volatile("vpaddd %1, %0, %0" : "+x"(c) : "x"(_mm256_madd_epi16(a, b)))
/* c[j] = a[j] b[j] + c[j], rounded once */
#define vf_fma_in(c, a, b) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(c) : "x"(a), "x"(b))
/* 8 floats, rounded to nearest even, -> 8 int16; the caller keeps them in range */
INLINE void vf_to_int16(int16_t *p, vf a)
{
    __m256i n = _mm256_cvtps_epi32(a);
    __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
    _mm_storeu_si128((__m128i *)p, packed);
}

#elif defined(__ARM_NEON) && defined(__aarch64__) && !defined(LONGHAND_PLAIN)
#include <arm_neon.h>
typedef struct { float32x4_t a, b; } vf;
typedef struct { int32x4_t a, b; } vi;
typedef struct { int16x8_t a, b; } vs;
#define KEEP(x) __asm__ volatile("" : "+w"((x).a), "+w"((x).b))

INLINE vf vf_load(const float *p) { return (vf){vld1q_f32(p), vld1q_f32(p + 4)}; }
INLINE void vf_store(float *p, vf x) { vst1q_f32(p, x.a), vst1q_f32(p + 4, x.b); }
INLINE vf vf_all(float x) { return (vf){vdupq_n_f32(x), vdupq_n_f32(x)}; }
INLINE vf vf_mul(vf x, vf y) { return (vf){vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b)}; }
INLINE vf vf_div(vf x, vf y) { return (vf){vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b)}; }
INLINE vf vf_fma(vf x, vf y, vf z) { return (vf){vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b)}; }
INLINE vf vf_clamp(vf x, vf low, vf high)
{
    return (vf){vminq_f32(vmaxq_f32(x.a, low.a), high.a), vminq_f32(vmaxq_f32(x.b, low.b), high.b)};
}

INLINE vi vi_load(const int32_t *p) { return (vi){vld1q_s32(p), vld1q_s32(p + 4)}; }
INLINE void vi_store(int32_t *p, vi x) { vst1q_s32(p, x.a), vst1q_s32(p + 4, x.b); }
INLINE vi vi_zero(void) { return (vi){vdupq_n_s32(0), vdupq_n_s32(0)}; }
INLINE vf vi_to_float(vi x) { return (vf){vcvtq_f32_s32(x.a), vcvtq_f32_s32(x.b)}; }
INLINE vs vs_load(const int16_t *p) { return (vs){vld1q_s16(p), vld1q_s16(p + 8)}; }
INLINE void vs_store(int16_t *p, vs x) { vst1q_s16(p, x.a), vst1q_s16(p + 8, x.b); }
INLINE vs vs_widen(const int8_t *p)
{
    int8x16_t x = vld1q_s8(p);
    return (vs){vmovl_s8(vget_low_s8(x)), vmovl_s8(vget_high_s8(x))};
}
INLINE vs vs_pair(const int16_t *p)
{
    int32_t both;
    memcpy(&both, p, 4);
    int16x8_t x = vreinterpretq_s16_s32(vdupq_n_s32(both));
    return (vs){x, x};
}
INLINE int32x4_t dot2_half(int16x8_t x, int16x8_t y)
{
    return vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
}
#define vi_dot2_in(c, x, y)                        \
    do {                                           \
        (c).a = vaddq_s32((c).a, dot2_half((x).a, (y).a)); \
        (c).b = vaddq_s32((c).b, dot2_half((x).b, (y).b)); \
    } while (0)
#define vf_fma_in(c, x, y) ((c) = vf_fma(x, y, c))
INLINE void vf_to_int16(int16_t *p, vf x)
{
    vst1_s16(p, vqmovn_s32(vcvtnq_s32_f32(x.a))), vst1_s16(p + 4, vqmovn_s32(vcvtnq_s32_f32(x.b)));
}

#else
/* Any CPU; slow without an fma instruction. A test checks that it gives the bits of the others. */
typedef struct { float x[8]; } vf;
typedef struct { int32_t x[8]; } vi;
typedef struct { int16_t x[16]; } vs;
#define KEEP(a) (void)(a)
#define EACH(n) for (int j = 0; j < (n); j++)

INLINE vf vf_load(const float *p) { vf r; memcpy(&r, p, sizeof r); return r; }
INLINE void vf_store(float *p, vf a) { memcpy(p, &a, sizeof a); }
INLINE vf vf_all(float x) { vf r; EACH(8) r.x[j] = x; return r; }
INLINE vf vf_mul(vf a, vf b) { EACH(8) a.x[j] *= b.x[j]; return a; }
INLINE vf vf_div(vf a, vf b) { EACH(8) a.x[j] /= b.x[j]; return a; }
INLINE vf vf_fma(vf a, vf b, vf c) { EACH(8) a.x[j] = __builtin_fmaf(a.x[j], b.x[j], c.x[j]); return a; }
INLINE vf vf_clamp(vf a, vf low, vf high)
{
    EACH(8) a.x[j] = a.x[j] > low.x[j] ? a.x[j] : low.x[j];
    EACH(8) a.x[j] = a.x[j] < high.x[j] ? a.x[j] : high.x[j];
    return a;
}

INLINE vi vi_load(const int32_t *p) { vi r; memcpy(&r, p, sizeof r); return r; }
INLINE void vi_store(int32_t *p, vi a) { memcpy(p, &a, sizeof a); }
INLINE vi vi_zero(void) { vi r; EACH(8) r.x[j] = 0; return r; }
INLINE vf vi_to_float(vi a) { vf r; EACH(8) r.x[j] = (float)a.x[j]; return r; }
INLINE vs vs_load(const int16_t *p) { vs r; memcpy(&r, p, sizeof r); return r; }
INLINE void vs_store(int16_t *p, vs a) { memcpy(p, &a, sizeof a); }
INLINE vs vs_widen(const int8_t *p) { vs r; EACH(16) r.x[j] = p[j]; return r; }
INLINE vs vs_pair(const int16_t *p) { vs r; EACH(16) r.x[j] = p[j & 1]; return r; }
INLINE vi vi_dot2(vi c, vs a, vs b)
{
    EACH(8) c.x[j] += a.x[2 * j] * b.x[2 * j] + a.x[2 * j + 1] * b.x[2 * j + 1];
    return c;
}
#define vi_dot2_in(c, a, b) ((c) = vi_dot2(c, a, b))
#define vf_fma_in(c, a, b) ((c) = vf_fma(a, b, c))
INLINE void vf_to_int16(int16_t *p, vf a)
{
    /* adding 1.5 * 2^23 rounds to a whole number */
    EACH(8)
    {
        volatile float shifted = a.x[j] + 12582912.0f;
        p[j] = (int16_t)(shifted - 12582912.0f);
    }
}
#undef EACH
#endif

/* The bits must not depend on a mode that another library set in this thread: round to nearest, keep denormals. */
#if defined(__x86_64__)
#include <xmmintrin.h>
INLINE uint64_t float_mode_enter(void)
{
    uint64_t before = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return before;
}
INLINE void float_mode_leave(uint64_t before) { _mm_setcsr((unsigned)before); }
INLINE void relax(void) { _mm_pause(); }
#elif defined(__aarch64__)
INLINE uint64_t float_mode_enter(void)
{
    uint64_t before, plain = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(plain));
    return before;
}
INLINE void float_mode_leave(uint64_t before) { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
INLINE void relax(void) { __asm__ volatile("yield"); }
#else
INLINE uint64_t float_mode_enter(void) { return 0; }
INLINE void float_mode_leave(uint64_t before) { (void)before; }
INLINE void relax(void) {}
#endif

#endif
