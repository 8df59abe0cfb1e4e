/* Rows times a panel of 32 outputs. The order of a sum is its definition:
 *
 *   fp32  z = initial; then one fma per k, k = 0..K-1. One chain per output, whatever the number of rows.
 *   int8  z = sum of int8 weight * int16 activation, in int32. Exact (pack.py keeps it from overflowing), so any order.
 *
 * A panel is [k][32] floats, or [k/2][32][2] int8. Weights are walked once per block of KC, which stays in the first
 * cache while all rows pass over it; sums rest in z between blocks, and a float that rests is not changed by it.
 *
 * The tiles are macros over named variables, not loops over arrays: gcc unrolls loops after it has decided which
 * arrays live in registers, and a tile whose sums live in memory runs at a third of the speed.
 */
#ifndef LONGHAND_GEMM_H
#define LONGHAND_GEMM_H

#include "simd.h"

#define PANEL 32
#define VECS (PANEL / LANES)
#define KC 96        /* fp32: 96 * 32 * 4 bytes = 12 KB: with the rows' inputs, within the first cache */
#define KC_PAIRS 96  /* int8: as many bytes when widened */
#define TILE_ROWS 6

typedef union { float f[PANEL]; int32_t i[PANEL]; } zrow;

#define ROWS_1(M, ...) M(0, __VA_ARGS__)
#define ROWS_2(M, ...) ROWS_1(M, __VA_ARGS__) M(1, __VA_ARGS__)
#define ROWS_3(M, ...) ROWS_2(M, __VA_ARGS__) M(2, __VA_ARGS__)
#define ROWS_4(M, ...) ROWS_3(M, __VA_ARGS__) M(3, __VA_ARGS__)
#define ROWS_5(M, ...) ROWS_4(M, __VA_ARGS__) M(4, __VA_ARGS__)
#define ROWS_6(M, ...) ROWS_5(M, __VA_ARGS__) M(5, __VA_ARGS__)

/* What a tile does for row r and vector v of outputs, once per kind of arithmetic; I8 has its weights as they are
 * stored, I16 widened. A step of F32 is one k, of the others a pair of them. */
#define F32_ROW(r) const float *x##r = a[r] + k0;
#define F32_INPUT(r) vf i##r = vf_all(x##r[k]);
#define F32_WEIGHT(v) vf w##v = vf_load(w + v * LANES); KEEP(w##v);
#define F32_LOAD(r, v) vf s##r##v = vf_load(z[r].f + v * LANES);
#define F32_STEP(r, v) vf_fma_in(s##r##v, i##r, w##v);
#define F32_SAVE(r, v) vf_store(z[r].f + v * LANES, s##r##v);

#define I16_ROW(r) const int16_t *x##r = a[r] + 2 * k0;
#define I16_INPUT(r) vs i##r = vs_pair(x##r + 2 * k);
#define I16_WEIGHT(v) vs w##v = vs_load(w + v * 2 * LANES); KEEP(w##v);
#define I16_LOAD(r, v) vi s##r##v = vi_load(z[r].i + v * LANES);
#define I16_STEP(r, v) vi_dot2_in(s##r##v, w##v, i##r);
#define I16_SAVE(r, v) vi_store(z[r].i + v * LANES, s##r##v);

#define I8_ROW I16_ROW
#define I8_INPUT I16_INPUT
#define I8_WEIGHT(v) vs w##v = vs_widen(w + v * 2 * LANES);
#define I8_LOAD I16_LOAD
#define I8_STEP I16_STEP
#define I8_SAVE I16_SAVE

#define TILE_INPUT(r, KIND) KIND##_INPUT(r)
#define TILE_ROW(r, KIND) KIND##_ROW(r)

/* R rows by a half panel, over n steps from k0: twelve sums, two weights, one input and one product fill the sixteen
 * registers. Reads ahead, a line a step from `ahead`: the next block's weights, while this one's are worked on. */
#define HALF_LOAD(r, KIND) KIND##_LOAD(r, 0) KIND##_LOAD(r, 1)
#define HALF_STEP(r, KIND) { KIND##_INPUT(r) KIND##_STEP(r, 0) KIND##_STEP(r, 1) }
#define HALF_SAVE(r, KIND) KIND##_SAVE(r, 0) KIND##_SAVE(r, 1)
#define HALF(NAME, KIND, X, W, R)                                                                         \
    static void NAME(const X *const *a, int k0, int n, const W *w, zrow *z, const char *ahead)            \
    {                                                                                                     \
        ROWS_##R(TILE_ROW, KIND)                                                                          \
        ROWS_##R(HALF_LOAD, KIND)                                                                         \
        for (int k = 0; k < n; k++, w += PANEL * (int)(sizeof(float) / sizeof(W)), ahead += 64) {         \
            __builtin_prefetch(ahead, 0, 2);                                                               \
            KIND##_WEIGHT(0) KIND##_WEIGHT(1)                                                             \
            ROWS_##R(HALF_STEP, KIND)                                                                     \
        }                                                                                                 \
        ROWS_##R(HALF_SAVE, KIND)                                                                         \
    }
HALF(f32_half_3, F32, float, float, 3)
HALF(f32_half_4, F32, float, float, 4)
HALF(f32_half_5, F32, float, float, 5)
HALF(f32_half_6, F32, float, float, 6)
HALF(int_half_3, I16, int16_t, int16_t, 3)
HALF(int_half_4, I16, int16_t, int16_t, 4)
HALF(int_half_5, I16, int16_t, int16_t, 5)
HALF(int_half_6, I16, int16_t, int16_t, 6)

/* R rows, few, by a whole panel, so that weights are read once and in order; a weight at a time for all rows. */
#define WHOLE_LOAD(r, KIND) KIND##_LOAD(r, 0) KIND##_LOAD(r, 1) KIND##_LOAD(r, 2) KIND##_LOAD(r, 3)
#define WHOLE_STEP(r, KIND, v) KIND##_STEP(r, v)
#define WHOLE_SAVE(r, KIND) KIND##_SAVE(r, 0) KIND##_SAVE(r, 1) KIND##_SAVE(r, 2) KIND##_SAVE(r, 3)
#define WHOLE(NAME, KIND, X, W, R)                                                                        \
    static void NAME(const X *const *a, int n, const W *w, zrow *z)                                       \
    {                                                                                                     \
        const int k0 = 0;                                                                                 \
        ROWS_##R(TILE_ROW, KIND)                                                                          \
        ROWS_##R(WHOLE_LOAD, KIND)                                                                        \
        for (int k = 0; k < n; k++, w += PANEL * (sizeof(W) == 1 ? 2 : 1)) {                              \
            ROWS_##R(TILE_INPUT, KIND)                                                                    \
            { KIND##_WEIGHT(0) ROWS_##R(WHOLE_STEP, KIND, 0) }                                            \
            { KIND##_WEIGHT(1) ROWS_##R(WHOLE_STEP, KIND, 1) }                                            \
            { KIND##_WEIGHT(2) ROWS_##R(WHOLE_STEP, KIND, 2) }                                            \
            { KIND##_WEIGHT(3) ROWS_##R(WHOLE_STEP, KIND, 3) }                                            \
        }                                                                                                 \
        ROWS_##R(WHOLE_SAVE, KIND)                                                                        \
    }
WHOLE(f32_whole_1, F32, float, float, 1)
WHOLE(f32_whole_2, F32, float, float, 2)
WHOLE(f32_whole_3, F32, float, float, 3)
WHOLE(int_whole_1, I8, int16_t, int8_t, 1)
WHOLE(int_whole_2, I8, int16_t, int8_t, 2)
WHOLE(int_whole_3, I8, int16_t, int8_t, 3)

/* One row, two panels: eight chains instead of four, for a row alone is bound by latency and by reading. */
#define TWO_LOAD_F32(v) vf s##v = vf_load(z0->f + v * LANES), t##v = vf_load(z1->f + v * LANES);
#define TWO_STEP_F32(v)                                                                                   \
    vf_fma_in(s##v, xk, vf_load(w0 + v * LANES));                                                         \
    vf_fma_in(t##v, xk, vf_load(w1 + v * LANES));
#define TWO_SAVE_F32(v) vf_store(z0->f + v * LANES, s##v), vf_store(z1->f + v * LANES, t##v);
#define EACH_VEC(M) M(0) M(1) M(2) M(3)

static void row_f32_two(const float *x, int n, const float *w0, const float *w1, zrow *z0, zrow *z1)
{
    EACH_VEC(TWO_LOAD_F32)
    for (int k = 0; k < n; k++, w0 += PANEL, w1 += PANEL) {
        vf xk = vf_all(x[k]);
        EACH_VEC(TWO_STEP_F32)
    }
    EACH_VEC(TWO_SAVE_F32)
}

#define TWO_LOAD_INT(v) vi s##v = vi_load(z0->i + v * LANES), t##v = vi_load(z1->i + v * LANES);
#define TWO_STEP_INT(v)                                                                                   \
    vi_dot2_in(s##v, vs_widen(w0 + v * 2 * LANES), xk);                                                   \
    vi_dot2_in(t##v, vs_widen(w1 + v * 2 * LANES), xk);
#define TWO_SAVE_INT(v) vi_store(z0->i + v * LANES, s##v), vi_store(z1->i + v * LANES, t##v);

static void row_int_two(const int16_t *x, int n, const int8_t *w0, const int8_t *w1, zrow *z0, zrow *z1)
{
    EACH_VEC(TWO_LOAD_INT)
    for (int k = 0; k < n; k++, w0 += 2 * PANEL, w1 += 2 * PANEL) {
        vs xk = vs_pair(x + 2 * k);
        EACH_VEC(TWO_STEP_INT)
    }
    EACH_VEC(TWO_SAVE_INT)
}

/* The rows of a tile when `left` are to be done: as even as can be, since a tile of few rows waits for its sums. */
INLINE int tile_rows(int left)
{
    int tiles = (left + TILE_ROWS - 1) / TILE_ROWS;
    return (left + tiles - 1) / tiles;
}

/* One segment (x or h) of a panel for all rows: z += rows * w. */
static void panel_f32(const float *const *a, int rows, int k, const float *w, zrow *z)
{
    if (rows == 1) f32_whole_1(a, k, w, z);
    else if (rows == 2) f32_whole_2(a, k, w, z);
    else if (rows == 3) f32_whole_3(a, k, w, z);
    else
        for (int k0 = 0; k0 < k; k0 += KC, w += KC * PANEL) {
            int n = k - k0 < KC ? k - k0 : KC;
            for (int r = 0, take; r < rows; r += take) {
                take = tile_rows(rows - r);
                for (int v = 0; v < 2; v++) {
                    const float *half = w + v * 2 * LANES;
                    zrow *to = (zrow *)(z[r].f + v * 2 * LANES);
                    const char *ahead = (const char *)(w + KC * PANEL) + v * KC * 64;
                    switch (take) {
                    case 6: f32_half_6(a + r, k0, n, half, to, ahead); break;
                    case 5: f32_half_5(a + r, k0, n, half, to, ahead); break;
                    case 4: f32_half_4(a + r, k0, n, half, to, ahead); break;
                    default: f32_half_3(a + r, k0, n, half, to, ahead);
                    }
                }
            }
        }
}

static void panel_int(const int16_t *const *a, int rows, int pairs, const int8_t *w, zrow *z, int16_t *wide)
{
    if (rows == 1) int_whole_1(a, pairs, w, z);
    else if (rows == 2) int_whole_2(a, pairs, w, z);
    else if (rows == 3) int_whole_3(a, pairs, w, z);
    else
        for (int k0 = 0; k0 < pairs; k0 += KC_PAIRS, w += KC_PAIRS * 2 * PANEL) {
            int n = pairs - k0 < KC_PAIRS ? pairs - k0 : KC_PAIRS;
            for (int j = 0; j < n * 2 * PANEL; j += 2 * LANES) vs_store(wide + j, vs_widen(w + j));
            for (int r = 0, take; r < rows; r += take) {
                take = tile_rows(rows - r);
                for (int v = 0; v < 2; v++) {
                    const int16_t *half = wide + v * 4 * LANES;
                    zrow *to = (zrow *)(z[r].i + v * 2 * LANES);
                    const char *ahead = (const char *)(w + KC_PAIRS * 2 * PANEL);
                    switch (take) {
                    case 6: int_half_6(a + r, k0, n, half, to, ahead); break;
                    case 5: int_half_5(a + r, k0, n, half, to, ahead); break;
                    case 4: int_half_4(a + r, k0, n, half, to, ahead); break;
                    default: int_half_3(a + r, k0, n, half, to, ahead);
                    }
                }
            }
        }
}

#endif
