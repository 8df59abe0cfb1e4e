/* Rows times a panel of 32 outputs. The order of a sum is its definition:
 *
 *   fp32  z = initial; then one fma per k, k = 0..K-1. One chain per output, whatever the number of rows.
 *   int8  z = sum of int8 weight * int16 activation, in int32. Exact (pack.py keeps it from overflowing), so any order.
 *
 * A panel is [k][32] floats, or [k/2][32][2] int8. Weights are walked once per block of KC, which stays in the first
 * cache while all rows pass over it; sums rest in z between blocks, and a float that rests is not changed by it.
 */
#ifndef LONGHAND_GEMM_H
#define LONGHAND_GEMM_H

#include "simd.h"

#define PANEL 32
#define VECS (PANEL / LANES)
#define KC 128      /* fp32: 128 * 32 * 4 bytes = 16 KB, half of the first cache */
#define KC_PAIRS 128 /* int8: 128 * 32 * 2 * 2 bytes = 16 KB when widened */
#define MAX_TILE 6

typedef union { float f[PANEL]; int32_t i[PANEL]; } zrow;

/* R rows x N vectors of outputs, n steps of k. Twelve sums of eight in registers hide the fma's latency. */
INLINE void tile_f32(const int R, const int N, const float *const *a, int k0, int n, const float *w, zrow *z, int z0)
{
    vf sum[MAX_TILE][VECS];
    const float *x[MAX_TILE];
    for (int r = 0; r < R; r++) {
        x[r] = a[r] + k0;
        for (int v = 0; v < N; v++) sum[r][v] = vf_load(z[r].f + z0 + v * LANES);
    }
    for (int k = 0; k < n; k++, w += PANEL) {
        vf b[VECS];
        for (int v = 0; v < N; v++) b[v] = vf_load(w + v * LANES);
        for (int r = 0; r < R; r++) {
            vf xr = vf_all(x[r][k]);
            for (int v = 0; v < N; v++) sum[r][v] = vf_fma(xr, b[v], sum[r][v]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < N; v++) vf_store(z[r].f + z0 + v * LANES, sum[r][v]);
}

/* One row, two panels: eight chains instead of four, for a row alone is bound by latency and by reading. */
INLINE void row_f32_two(const float *x, int n, const float *w0, const float *w1, float *z0, float *z1)
{
    vf s0[VECS], s1[VECS];
    for (int v = 0; v < VECS; v++) s0[v] = vf_load(z0 + v * LANES), s1[v] = vf_load(z1 + v * LANES);
    for (int k = 0; k < n; k++, w0 += PANEL, w1 += PANEL) {
        vf xk = vf_all(x[k]);
        for (int v = 0; v < VECS; v++) s0[v] = vf_fma(xk, vf_load(w0 + v * LANES), s0[v]);
        for (int v = 0; v < VECS; v++) s1[v] = vf_fma(xk, vf_load(w1 + v * LANES), s1[v]);
    }
    for (int v = 0; v < VECS; v++) vf_store(z0 + v * LANES, s0[v]), vf_store(z1 + v * LANES, s1[v]);
}

/* The same two for int8 weights; `wide` says that w is already int16. */
INLINE void tile_int(const int R, const int N, const int wide, const int16_t *const *a, int p0, int n, const void *w,
                     zrow *z, int z0)
{
    vi sum[MAX_TILE][VECS];
    const int16_t *x[MAX_TILE];
    const int8_t *w8 = w;
    const int16_t *w16 = w;
    for (int r = 0; r < R; r++) {
        x[r] = a[r] + 2 * p0;
        for (int v = 0; v < N; v++) sum[r][v] = vi_load(z[r].i + z0 + v * LANES);
    }
    for (int p = 0; p < n; p++, w8 += 2 * PANEL, w16 += 2 * PANEL) {
        vs b[VECS];
        for (int v = 0; v < N; v++) b[v] = wide ? vs_load(w16 + v * 2 * LANES) : vs_widen(w8 + v * 2 * LANES);
        for (int r = 0; r < R; r++) {
            vs xr = vs_pair(x[r] + 2 * p);
            for (int v = 0; v < N; v++) sum[r][v] = vi_dot2(sum[r][v], b[v], xr);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < N; v++) vi_store(z[r].i + z0 + v * LANES, sum[r][v]);
}

INLINE void row_int_two(const int16_t *x, int n, const int8_t *w0, const int8_t *w1, int32_t *z0, int32_t *z1)
{
    vi s0[VECS], s1[VECS];
    for (int v = 0; v < VECS; v++) s0[v] = vi_load(z0 + v * LANES), s1[v] = vi_load(z1 + v * LANES);
    for (int p = 0; p < n; p++, w0 += 2 * PANEL, w1 += 2 * PANEL) {
        vs xp = vs_pair(x + 2 * p);
        for (int v = 0; v < VECS; v++) s0[v] = vi_dot2(s0[v], vs_widen(w0 + v * 2 * LANES), xp);
        for (int v = 0; v < VECS; v++) s1[v] = vi_dot2(s1[v], vs_widen(w1 + v * 2 * LANES), xp);
    }
    for (int v = 0; v < VECS; v++) vi_store(z0 + v * LANES, s0[v]), vi_store(z1 + v * LANES, s1[v]);
}

/* All rows over one block of a panel: tiles of three rows (four rows as two and two: four sums would wait). */
static void block_f32(const float *const *a, int rows, int k0, int n, const float *w, zrow *z)
{
    for (int r = 0; r < rows;) {
        int left = rows - r, take = left == 4 ? 2 : left < 3 ? left : 3;
        if (take == 3) tile_f32(3, 4, a + r, k0, n, w, z + r, 0);
        else if (take == 2) tile_f32(2, 4, a + r, k0, n, w, z + r, 0);
        else tile_f32(1, 4, a + r, k0, n, w, z + r, 0);
        r += take;
    }
}

/* Six rows by half a panel: an integer tile needs a register more for the product before it is added. */
static void block_i16(const int16_t *const *a, int rows, int p0, int n, const int16_t *w, zrow *z)
{
    for (int r = 0; r < rows;) {
        int left = rows - r, take = left < 6 ? left : 6;
        for (int v = 0; v < VECS; v += 2) {
            const int16_t *half = w + v * 2 * LANES;
            int z0 = v * LANES;
            switch (take) {
            case 6: tile_int(6, 2, 1, a + r, p0, n, half, z + r, z0); break;
            case 5: tile_int(5, 2, 1, a + r, p0, n, half, z + r, z0); break;
            case 4: tile_int(4, 2, 1, a + r, p0, n, half, z + r, z0); break;
            case 3: tile_int(3, 2, 1, a + r, p0, n, half, z + r, z0); break;
            case 2: tile_int(2, 2, 1, a + r, p0, n, half, z + r, z0); break;
            default: tile_int(1, 2, 1, a + r, p0, n, half, z + r, z0);
            }
        }
        r += take;
    }
}

/* One segment (x or h) of a panel for all rows: z += rows * w. */
static void panel_f32(const float *const *a, int rows, int k, const float *w, zrow *z)
{
    int step = rows <= 3 ? k : KC;
    for (int k0 = 0; k0 < k; k0 += step)
        block_f32(a, rows, k0, k - k0 < step ? k - k0 : step, w + (size_t)k0 * PANEL, z);
}

static void panel_int(const int16_t *const *a, int rows, int pairs, const int8_t *w, zrow *z, int16_t *wide)
{
    if (rows == 1) tile_int(1, 4, 0, a, 0, pairs, w, z, 0);
    else if (rows == 2) tile_int(2, 4, 0, a, 0, pairs, w, z, 0);
    else
        for (int p0 = 0; p0 < pairs; p0 += KC_PAIRS) {
            int n = pairs - p0 < KC_PAIRS ? pairs - p0 : KC_PAIRS;
            const int8_t *from = w + (size_t)p0 * 2 * PANEL;
            for (int j = 0; j < n * 2 * PANEL; j += 2 * LANES) vs_store(wide + j, vs_widen(from + j));
            block_i16(a, rows, p0, n, wide, z);
        }
}

#endif
