/* Rows times a panel of 32 outputs. The order of every sum is fixed:
 *
 *   fp32  z = initial; then one fma per k, k = 0..K-1. One chain per output, whatever the number of rows.
 *   int8  z = sum of int8 weight * int16 activation, in int32. Exact (pack.py rules out overflow), so in any order.
 *
 * A panel is two halves, each [k][16] floats or [k/2][16][2] int8. Few rows read both at once. Many rows read a half in
 * blocks of KC, which stay in the L1 cache while all rows use them; between blocks the sums are stored in z, which does
 * not change them.
 *
 * The tiles are macros over named variables, not loops over arrays: gcc decides which arrays live in registers before
 * it unrolls loops, and a tile whose sums live in memory runs at a third of the speed.
 */
#ifndef LONGHAND_GEMM_H
#define LONGHAND_GEMM_H

#include "simd.h"

#define PANEL 32
#define VECS (PANEL / LANES)
#define HALF (PANEL / 2)
#define KC 256 /* k, or pairs of them: 256 * 16 * 4 bytes = 16 KB in both cases, half of an L1 cache */
#define TILE_ROWS 6

typedef union { float f[PANEL]; int32_t i[PANEL]; } zrow;

#define ROWS_1(M, ...) M(0, __VA_ARGS__)
#define ROWS_2(M, ...) ROWS_1(M, __VA_ARGS__) M(1, __VA_ARGS__)
#define ROWS_3(M, ...) ROWS_2(M, __VA_ARGS__) M(2, __VA_ARGS__)
#define ROWS_4(M, ...) ROWS_3(M, __VA_ARGS__) M(3, __VA_ARGS__)
#define ROWS_5(M, ...) ROWS_4(M, __VA_ARGS__) M(4, __VA_ARGS__)
#define ROWS_6(M, ...) ROWS_5(M, __VA_ARGS__) M(5, __VA_ARGS__)

/* What a tile does for row r and vector v of outputs, for each kind of arithmetic. I8 reads its weights as they are
 * stored, I16 widened. A step of F32 is one k, of the others a pair of them. */
#define F32_ROW(r) const float *x##r = a[r] + k0;
#define F32_INPUT(r) vf i##r = vf_all(x##r[k]);
#define F32_WEIGHT(v, from) vf b##v = vf_load(from); KEEP(b##v);
#define F32_LOAD(r, v) vf s##r##v = vf_load(z[r].f + v * LANES);
#define F32_STEP(r, v) vf_fma_in(s##r##v, i##r, b##v);
#define F32_SAVE(r, v) vf_store(z[r].f + v * LANES, s##r##v);

#define I16_ROW(r) const int16_t *x##r = a[r] + 2 * k0;
#define I16_INPUT(r) vs i##r = vs_pair(x##r + 2 * k);
#define I16_WEIGHT(v, from) vs b##v = vs_load(from); KEEP(b##v);
#define I16_LOAD(r, v) vi s##r##v = vi_load(z[r].i + v * LANES);
#define I16_STEP(r, v) vi_dot2_in(s##r##v, b##v, i##r);
#define I16_SAVE(r, v) vi_store(z[r].i + v * LANES, s##r##v);

#define I8_ROW I16_ROW
#define I8_INPUT I16_INPUT
#define I8_WEIGHT(v, from) vs b##v = vs_widen(from);
#define I8_LOAD I16_LOAD
#define I8_STEP I16_STEP
#define I8_SAVE I16_SAVE

#define TILE_INPUT(r, KIND) KIND##_INPUT(r)
#define TILE_ROW(r, KIND) KIND##_ROW(r)

/* R rows by a half panel, over n steps from k0: twelve sums, two weights, one input and one product fill the sixteen
 * registers. Prefetches one cache line per step from `ahead`, the weights of the next block. */
#define HALF_LOAD(r, KIND) KIND##_LOAD(r, 0) KIND##_LOAD(r, 1)
#define HALF_STEP(r, KIND) { KIND##_INPUT(r) KIND##_STEP(r, 0) KIND##_STEP(r, 1) }
#define HALF_SAVE(r, KIND) KIND##_SAVE(r, 0) KIND##_SAVE(r, 1)
#define HALF_TILE(NAME, KIND, X, W, R)                                                                    \
    static void NAME(const X *const *a, int k0, int n, const W *w, zrow *z, const char *ahead)            \
    {                                                                                                     \
        ROWS_##R(TILE_ROW, KIND)                                                                          \
        ROWS_##R(HALF_LOAD, KIND)                                                                         \
        for (int k = 0; k < n; k++, w += 64 / (int)sizeof(W), ahead += 64) {                              \
            __builtin_prefetch(ahead, 0, 2);                                                              \
            KIND##_WEIGHT(0, w) KIND##_WEIGHT(1, w + 32 / sizeof(W))                                      \
            ROWS_##R(HALF_STEP, KIND)                                                                     \
        }                                                                                                 \
        ROWS_##R(HALF_SAVE, KIND)                                                                         \
    }
HALF_TILE(f32_half_3, F32, float, float, 3)
HALF_TILE(f32_half_4, F32, float, float, 4)
HALF_TILE(f32_half_5, F32, float, float, 5)
HALF_TILE(f32_half_6, F32, float, float, 6)
HALF_TILE(int_half_3, I16, int16_t, int16_t, 3)
HALF_TILE(int_half_4, I16, int16_t, int16_t, 4)
HALF_TILE(int_half_5, I16, int16_t, int16_t, 5)
HALF_TILE(int_half_6, I16, int16_t, int16_t, 6)

/* R rows (few) by a whole panel, so that weights are read once. `second` is the distance of the second half. */
#define WHOLE_LOAD(r, KIND) KIND##_LOAD(r, 0) KIND##_LOAD(r, 1) KIND##_LOAD(r, 2) KIND##_LOAD(r, 3)
#define WHOLE_STEP(r, KIND, v) KIND##_STEP(r, v)
#define WHOLE_SAVE(r, KIND) KIND##_SAVE(r, 0) KIND##_SAVE(r, 1) KIND##_SAVE(r, 2) KIND##_SAVE(r, 3)
#define WHOLE_TILE(NAME, KIND, X, W, R)                                                                   \
    static void NAME(const X *const *a, int n, const W *w, size_t second, zrow *z)                        \
    {                                                                                                     \
        const int k0 = 0, lanes = sizeof(W) == 1 ? 2 * LANES : LANES;                                     \
        const W *u = w + second;                                                                          \
        ROWS_##R(TILE_ROW, KIND)                                                                          \
        ROWS_##R(WHOLE_LOAD, KIND)                                                                        \
        for (int k = 0; k < n; k++, w += 2 * lanes, u += 2 * lanes) {                                     \
            ROWS_##R(TILE_INPUT, KIND)                                                                    \
            { KIND##_WEIGHT(0, w) ROWS_##R(WHOLE_STEP, KIND, 0) }                                         \
            { KIND##_WEIGHT(1, w + lanes) ROWS_##R(WHOLE_STEP, KIND, 1) }                                 \
            { KIND##_WEIGHT(2, u) ROWS_##R(WHOLE_STEP, KIND, 2) }                                         \
            { KIND##_WEIGHT(3, u + lanes) ROWS_##R(WHOLE_STEP, KIND, 3) }                                 \
        }                                                                                                 \
        ROWS_##R(WHOLE_SAVE, KIND)                                                                        \
    }
WHOLE_TILE(f32_whole_1, F32, float, float, 1)
WHOLE_TILE(f32_whole_2, F32, float, float, 2)
WHOLE_TILE(f32_whole_3, F32, float, float, 3)
WHOLE_TILE(int_whole_1, I8, int16_t, int8_t, 1)
WHOLE_TILE(int_whole_2, I8, int16_t, int8_t, 2)
WHOLE_TILE(int_whole_3, I8, int16_t, int8_t, 3)

/* One row by two panels, `panel` apart: eight chains instead of four, because one row is bound by latency. */
#define TWO_LOAD(v, KIND) KIND##_LOAD(0, v) KIND##_LOAD(1, v)
#define TWO_STEP(r, v, KIND, FROM) { KIND##_WEIGHT(v, FROM) KIND##_STEP(r, v) }
#define TWO_SAVE(v, KIND) KIND##_SAVE(0, v) KIND##_SAVE(1, v)
#define TWO_PANELS(NAME, KIND, X, W)                                                                      \
    static void NAME(const X *x, int n, const W *w, size_t second, size_t panel, zrow *z)                 \
    {                                                                                                     \
        const int k0 = 0, lanes = sizeof(W) == 1 ? 2 * LANES : LANES;                                     \
        const W *u = w + second, *w1 = w + panel, *u1 = u + panel;                                        \
        const X *const a[1] = {x};                                                                        \
        KIND##_ROW(0)                                                                                     \
        TWO_LOAD(0, KIND) TWO_LOAD(1, KIND) TWO_LOAD(2, KIND) TWO_LOAD(3, KIND)                           \
        for (int k = 0; k < n; k++, w += 2 * lanes, u += 2 * lanes, w1 += 2 * lanes, u1 += 2 * lanes) {   \
            KIND##_INPUT(0)                                                                               \
            KIND##_SAME_INPUT                                                                             \
            TWO_STEP(0, 0, KIND, w) TWO_STEP(0, 1, KIND, w + lanes)                                       \
            TWO_STEP(0, 2, KIND, u) TWO_STEP(0, 3, KIND, u + lanes)                                       \
            TWO_STEP(1, 0, KIND, w1) TWO_STEP(1, 1, KIND, w1 + lanes)                                     \
            TWO_STEP(1, 2, KIND, u1) TWO_STEP(1, 3, KIND, u1 + lanes)                                     \
        }                                                                                                 \
        TWO_SAVE(0, KIND) TWO_SAVE(1, KIND) TWO_SAVE(2, KIND) TWO_SAVE(3, KIND)                           \
    }
#define F32_SAME_INPUT vf i1 = i0;
#define I8_SAME_INPUT vs i1 = i0;
TWO_PANELS(f32_two_panels, F32, float, float)
TWO_PANELS(int_two_panels, I8, int16_t, int8_t)

/* The rows of the next tile when `left` remain: as even as possible, because a tile of few rows is bound by latency. */
INLINE int tile_rows(int left)
{
    int tiles = (left + TILE_ROWS - 1) / TILE_ROWS;
    return (left + tiles - 1) / tiles;
}

/* The size of the block of KC at k0. */
INLINE int block_of(int k0, int k) { return k - k0 < KC ? k - k0 : KC; }

/* Rows times a segment (x or h) of a half panel, added to z, which points to this half in the first row. */
static void half_f32(const float *const *a, int rows, int k, const float *w, zrow *z)
{
    for (int k0 = 0; k0 < k; k0 += KC, w += KC * HALF)
        for (int r = 0, take, n = block_of(k0, k); r < rows; r += take)
            switch (take = tile_rows(rows - r)) {
            case 6: f32_half_6(a + r, k0, n, w, z + r, (const char *)(w + KC * HALF)); break;
            case 5: f32_half_5(a + r, k0, n, w, z + r, (const char *)(w + KC * HALF)); break;
            case 4: f32_half_4(a + r, k0, n, w, z + r, (const char *)(w + KC * HALF)); break;
            default: f32_half_3(a + r, k0, n, w, z + r, (const char *)(w + KC * HALF));
            }
}

static void half_int(const int16_t *const *a, int rows, int pairs, const int8_t *w, zrow *z, int16_t *wide)
{
    for (int k0 = 0; k0 < pairs; k0 += KC, w += KC * 2 * HALF) {
        int n = block_of(k0, pairs);
        for (int j = 0; j < n * 2 * HALF; j += 2 * LANES) vs_store(wide + j, vs_widen(w + j));
        for (int r = 0, take; r < rows; r += take)
            switch (take = tile_rows(rows - r)) {
            case 6: int_half_6(a + r, k0, n, wide, z + r, (const char *)(w + KC * 2 * HALF)); break;
            case 5: int_half_5(a + r, k0, n, wide, z + r, (const char *)(w + KC * 2 * HALF)); break;
            case 4: int_half_4(a + r, k0, n, wide, z + r, (const char *)(w + KC * 2 * HALF)); break;
            default: int_half_3(a + r, k0, n, wide, z + r, (const char *)(w + KC * 2 * HALF));
            }
    }
}

/* A panel's segment for up to FEW_ROWS rows; `second` is the distance of its second half. */
#define FEW_ROWS 3

static void few_f32(const float *const *a, int rows, int k, const float *w, size_t second, zrow *z)
{
    if (rows == 1) f32_whole_1(a, k, w, second, z);
    else if (rows == 2) f32_whole_2(a, k, w, second, z);
    else f32_whole_3(a, k, w, second, z);
}

static void few_int(const int16_t *const *a, int rows, int pairs, const int8_t *w, size_t second, zrow *z)
{
    if (rows == 1) int_whole_1(a, pairs, w, second, z);
    else if (rows == 2) int_whole_2(a, pairs, w, second, z);
    else int_whole_3(a, pairs, w, second, z);
}

#endif
