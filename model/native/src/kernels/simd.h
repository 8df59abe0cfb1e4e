/* Vectors in AVX-512, AVX2, NEON or plain C, so that every other file is written once.
 *
 * Each operation is one that IEEE 754 defines to the last bit (add, multiply, fma, divide, round to nearest even) or an
 * exact integer operation, so all of them give the same bits. Nothing here may be replaced by an approximation (rcpps,
 * vrecpe).
 *
 *   vf  LANES floats      vi  LANES int32      vb  4 LANES int8, or 2 LANES bfloat16
 *
 * vf_dot2_in multiplies pairs of bfloat16: an fma for the second of a pair, then one for the first, each rounded to
 * nearest even, with denormals as zero (float_mode_flush). That is what vdpbf16ps does, so sets without that
 * instruction (no HAS_BF16) give its bits with two fma.
 *
 * An activation of int8 is a byte: 127 h rounded, plus ACTIVATION_OFFSET. vpdpbusd takes one signed and one unsigned
 * factor, so there the offset is 128, and sums begin with what it adds to them, negated (layer_t.offset).
 * With HAS_WIDE, the int8 activations of a row are followed by the same as int16, the order in each four being 0 2 1 3:
 * AVX2 multiplies many rows in int16 (two operations for 16 products; in int8 it takes four for 32, of which three need
 * the two multipliers).
 */
#ifndef LONGHAND_SIMD_H
#define LONGHAND_SIMD_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define ACTIVATION_SCALE 127.0f

/* vf_fma_in and vi_dot4_in update the sums of a tile in place, in the order written; KEEP(x) holds x in its register.
 * Without them gcc 12 and clang reorder the operations until the sums no longer fit the registers, and the tile runs at
 * half the speed. */

INLINE int32_t four_bytes(const uint8_t *p)
{
    int32_t all;
    memcpy(&all, p, 4);
    return all;
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && !defined(LONGHAND_PLAIN) && !defined(LONGHAND_256)
#include <immintrin.h>
#define LANES 16
#define ACTIVATION_OFFSET 128
typedef __m512 vf;
typedef __m512i vi;
typedef __m512i vb;
#define KEEP(a) __asm__ volatile("" : "+v"(a))

INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
INLINE vf vf_all(float x) { return _mm512_set1_ps(x); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_clamp(vf a, vf low, vf high) { return _mm512_min_ps(_mm512_max_ps(a, low), high); }

INLINE vi vi_load(const int32_t *p) { return _mm512_loadu_si512(p); }
INLINE void vi_store(int32_t *p, vi a) { _mm512_storeu_si512(p, a); }
INLINE vf vi_to_float(vi a) { return _mm512_cvtepi32_ps(a); }
INLINE vb vb_load(const int8_t *p) { return _mm512_loadu_si512(p); }
INLINE vb vb_four(const uint8_t *p) { return _mm512_set1_epi32(four_bytes(p)); }
/* c[j] += the products of weights w[4j..4j+3] and activations a[4j..4j+3] */
#define vi_dot4_in(c, w, a) __asm__ volatile("vpdpbusd %1, %2, %0" : "+v"(c) : "v"(w), "v"(a))
/* c[j] = a[j] b[j] + c[j], rounded once */
#define vf_fma_in(c, a, b) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b))
#if defined(__AVX512BF16__)
#define HAS_BF16
/* c[j] += w[2j+1] a[2j+1], then c[j] += w[2j] a[2j] */
#define vf_dot2_in(c, w, a) __asm__ volatile("vdpbf16ps %1, %2, %0" : "+v"(c) : "v"(w), "v"(a))
#endif
#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
#define HAS_TILES
#endif
/* The first and the second bfloat16 of each pair, as floats. */
INLINE vf vb_firsts(vb a) { return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)); }
INLINE vf vb_seconds(vb a) { return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32((int)0xffff0000))); }
#define HAS_TRANSPOSE
/* to[k][16] = from[k] of 16 rows of 16 words of four bytes, `stride` bytes apart. */
static void transpose_16(void *to, const void *from, size_t stride)
{
    __m512i a[16], b[16];
    for (int j = 0; j < 16; j++) a[j] = _mm512_loadu_si512((const char *)from + (size_t)j * stride);
    for (int j = 0; j < 16; j += 2)
        b[j] = _mm512_unpacklo_epi32(a[j], a[j + 1]), b[j + 1] = _mm512_unpackhi_epi32(a[j], a[j + 1]);
    for (int j = 0; j < 16; j += 4)
        for (int k = 0; k < 2; k++) {
            a[j + 2 * k] = _mm512_unpacklo_epi64(b[j + k], b[j + k + 2]);
            a[j + 2 * k + 1] = _mm512_unpackhi_epi64(b[j + k], b[j + k + 2]);
        } /* a[j + c]: column c of each quarter, of the rows j to j + 3 */
    for (int j = 0; j < 4; j++)
        for (int k = 0; k < 2; k++) {
            b[j + 8 * k] = _mm512_shuffle_i32x4(a[j + 8 * k], a[j + 8 * k + 4], 0x88);     /* quarters 0 and 2 */
            b[j + 8 * k + 4] = _mm512_shuffle_i32x4(a[j + 8 * k], a[j + 8 * k + 4], 0xdd); /* 1 and 3 */
        }
    for (int j = 0; j < 8; j++) {
        _mm512_storeu_si512((char *)to + 64 * j, _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88));
        _mm512_storeu_si512((char *)to + 64 * (j + 8), _mm512_shuffle_i32x4(b[j], b[j + 8], 0xdd));
    }
}
/* LANES floats of -127 to 127, rounded to nearest even -> activations */
INLINE void vf_to_activations(uint8_t *p, vf a)
{
    __m512i n = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(ACTIVATION_OFFSET));
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(n));
}

#elif defined(__AVX2__) && defined(__FMA__) && !defined(LONGHAND_PLAIN)
#include <immintrin.h>
#define LANES 8
typedef __m256 vf;
typedef __m256i vi;
typedef __m256i vb;
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
INLINE vf vi_to_float(vi a) { return _mm256_cvtepi32_ps(a); }
INLINE vb vb_load(const int8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE vb vb_four(const uint8_t *p) { return _mm256_set1_epi32(four_bytes(p)); }
INLINE vf vb_firsts(vb a) { return _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)); }
INLINE vf vb_seconds(vb a) { return _mm256_castsi256_ps(_mm256_and_si256(a, _mm256_set1_epi32((int)0xffff0000))); }
#define vf_fma_in(c, a, b) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(c) : "x"(a), "x"(b))

#if defined(__AVXVNNI__) || defined(LONGHAND_256)
#define ACTIVATION_OFFSET 128
#if defined(LONGHAND_256) /* the same instruction in its AVX-512 encoding, for tests on a CPU without AVX-VNNI */
#define vi_dot4_in(c, w, a) __asm__ volatile("vpdpbusd %1, %2, %0" : "+v"(c) : "v"(w), "v"(a))
#else
#define vi_dot4_in(c, w, a) __asm__ volatile("%{vex%} vpdpbusd %1, %2, %0" : "+x"(c) : "x"(w), "x"(a))
#endif
#else
#define ACTIVATION_OFFSET 0
#define HAS_WIDE
/* |a| is unsigned and takes a's sign to the weight. Two products are at most 2 * 127 * 127 < 2^15: no saturation. */
#define vi_dot4_in(c, w, a)                                                                      \
    __asm__ volatile("vpaddd %1, %0, %0"                                                         \
                     : "+x"(c)                                                                   \
                     : "x"(_mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(w, a)), \
                                             _mm256_set1_epi16(1))))
#endif
#if defined(HAS_WIDE)
/* The even and the odd bytes, as int16. */
INLINE void vb_store_wide(int16_t *even, int16_t *odd, vb w)
{
    _mm256_storeu_si256((__m256i *)even, _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
    _mm256_storeu_si256((__m256i *)odd, _mm256_srai_epi16(w, 8));
}
/* LANES int8 activations -> int16, in the order that the even and odd weights have */
INLINE void widen_activations(int16_t *to, const uint8_t *from)
{
    const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 0, 0, 0, 0, 0, 0, 0, 0);
    __m128i bytes = _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)from), order);
    _mm_storeu_si128((__m128i *)to, _mm_cvtepi8_epi16(bytes));
}
/* c[j] += a[2j] b[2j] + a[2j+1] b[2j+1] */
#define vi_dot2_in(c, a, b) __asm__ volatile("vpaddd %1, %0, %0" : "+x"(c) : "x"(_mm256_madd_epi16(a, b)))
#endif
INLINE void vf_to_activations(uint8_t *p, vf a)
{
    __m256i n = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(ACTIVATION_OFFSET));
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
    _mm_storel_epi64((__m128i *)p, ACTIVATION_OFFSET ? _mm_packus_epi16(words, words) : _mm_packs_epi16(words, words));
}

#elif defined(__ARM_NEON) && defined(__aarch64__) && !defined(LONGHAND_PLAIN)
#include <arm_neon.h>
#define LANES 8
#define ACTIVATION_OFFSET 0
typedef struct { float32x4_t a, b; } vf;
typedef struct { int32x4_t a, b; } vi;
typedef struct { int8x16_t a, b; } vb;
#define KEEP(x) (void)(x)

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
INLINE vf vi_to_float(vi x) { return (vf){vcvtq_f32_s32(x.a), vcvtq_f32_s32(x.b)}; }
INLINE vb vb_load(const int8_t *p) { return (vb){vld1q_s8(p), vld1q_s8(p + 16)}; }
INLINE vb vb_four(const uint8_t *p)
{
    int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four_bytes(p)));
    return (vb){x, x};
}
INLINE float32x4_t firsts_half(int8x16_t a) { return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_s8(a), 16)); }
INLINE float32x4_t seconds_half(int8x16_t a)
{
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_s8(a), vdupq_n_u32(0xffff0000)));
}
INLINE vf vb_firsts(vb x) { return (vf){firsts_half(x.a), firsts_half(x.b)}; }
INLINE vf vb_seconds(vb x) { return (vf){seconds_half(x.a), seconds_half(x.b)}; }
#if defined(__ARM_FEATURE_DOTPROD)
#define vi_dot4_in(c, w, x) ((c).a = vdotq_s32((c).a, (w).a, (x).a), (c).b = vdotq_s32((c).b, (w).b, (x).b))
#else
INLINE int32x4_t dot4_half(int8x16_t w, int8x16_t x)
{
    int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
    return vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
}
#define vi_dot4_in(c, w, x) \
    ((c).a = vaddq_s32((c).a, dot4_half((w).a, (x).a)), (c).b = vaddq_s32((c).b, dot4_half((w).b, (x).b)))
#endif
#define vf_fma_in(c, x, y) ((c) = vf_fma(x, y, c))
INLINE void vf_to_activations(uint8_t *p, vf x)
{
    int16x8_t words = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(x.a)), vqmovn_s32(vcvtnq_s32_f32(x.b)));
    vst1_s8((int8_t *)p, vqmovn_s16(words));
}

#else
/* Any CPU; slow without an fma instruction. A test checks that it gives the bits of the others. */
#define LANES 8
#define ACTIVATION_OFFSET 0
typedef struct { float x[8]; } vf;
typedef struct { int32_t x[8]; } vi;
typedef struct { int8_t x[32]; } vb;
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
INLINE vf vi_to_float(vi a) { vf r; EACH(8) r.x[j] = (float)a.x[j]; return r; }
INLINE vb vb_load(const int8_t *p) { vb r; memcpy(&r, p, sizeof r); return r; }
INLINE vb vb_four(const uint8_t *p) { vb r; EACH(8) memcpy(r.x + 4 * j, p, 4); return r; }
INLINE vf vb_firsts(vb a)
{
    vf r;
    EACH(8) memcpy((char *)(r.x + j) + 2, a.x + 4 * j, 2), memset(r.x + j, 0, 2);
    return r;
}
INLINE vf vb_seconds(vb a)
{
    vf r;
    EACH(8) memcpy((char *)(r.x + j) + 2, a.x + 4 * j + 2, 2), memset(r.x + j, 0, 2);
    return r;
}
INLINE vi vi_dot4(vi c, vb w, vb a)
{
    EACH(32) c.x[j / 4] += w.x[j] * a.x[j];
    return c;
}
#define vi_dot4_in(c, w, a) ((c) = vi_dot4(c, w, a))
#define vf_fma_in(c, a, b) ((c) = vf_fma(a, b, c))
INLINE void vf_to_activations(uint8_t *p, vf a)
{
    /* adding 1.5 * 2^23 rounds to a whole number */
    EACH(8)
    {
        volatile float shifted = a.x[j] + 12582912.0f;
        p[j] = (uint8_t)(int8_t)(shifted - 12582912.0f);
    }
}
#undef EACH
#endif

#if !defined(HAS_TRANSPOSE)
/* to[k][16] = from[k] of 16 rows of 16 words of four bytes, `stride` bytes apart. */
static void transpose_16(void *to, const void *from, size_t stride)
{
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++)
            memcpy((char *)to + 64 * k + 4 * row, (const char *)from + (size_t)row * stride + 4 * k, 4);
}
#endif

/* The bytes of an activation. */
#if defined(HAS_WIDE)
#define ACTIVATION_BYTES 3
#else
#define ACTIVATION_BYTES 1
#endif

/* The nearest bfloat16, ties to even. A NaN of arithmetic, 0x7fc00000, stays one. */
INLINE uint32_t bf16_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
INLINE void round_to_bf16(uint16_t *restrict to, const float *restrict from, int n)
{
    for (int j = 0; j < n; j++) to[j] = (uint16_t)bf16_of(from[j]);
}

/* The bits must not depend on a mode that another library set in this thread: round to nearest, keep denormals; or,
 * with bfloat16, take denormals as zero. */
#if defined(__x86_64__)
#include <xmmintrin.h>
INLINE uint64_t float_mode_enter(void)
{
    uint64_t before = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return before;
}
INLINE uint64_t float_mode_flush(void)
{
    uint64_t before = _mm_getcsr();
    _mm_setcsr(0x9fc0);
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
INLINE uint64_t float_mode_flush(void)
{
    uint64_t before, flush = 1 << 24;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(flush));
    return before;
}
INLINE void float_mode_leave(uint64_t before) { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
INLINE void relax(void) { __asm__ volatile("yield"); }
#else
INLINE uint64_t float_mode_enter(void) { return 0; }
INLINE uint64_t float_mode_flush(void) { return 0; }
INLINE void float_mode_leave(uint64_t before) { (void)before; }
INLINE void relax(void) {}
#endif

#endif
