/* Products of bfloat16 whose sums have the order of AMX's tiles (TDPBF16PS), on every CPU.
 *
 * A tile is 16 pairs of k. Over these pairs two sums begin at zero, one fma for each product: of the first factors of
 * each pair, and of the second. Then their sum is added to z. All of it is rounded to nearest even, with denormals as
 * zero (float_mode_flush). A CPU without AMX does the same with its fma and gets the same bits, at the speed of fp32.
 *
 * steps: pairs of k, a multiple of 16. Weights as in gemm.h. Rows lie evenly apart, and so do their z.
 */
#ifndef LONGHAND_BF16_TILES_H
#define LONGHAND_BF16_TILES_H

#include "gemm.h"

#define TILE_PAIRS 16

#if defined(HAS_TILES)
/* Gives the tiles their shape. Returns the rows to multiply: up to 15 more, whose content does not matter. */
static int bf16_tiles_begin(int rows)
{
    const int group = tile_rows(rows, TILE_GROUP), groups = (rows + group - 1) / group;
    tiles_configure(group, group, TILE_PAIRS);
    return groups * group;
}

static void bf16_tiles_end(void) { tiles_release(); }

/* `sums`: of the rows, `sums_stride` bytes apart. */
#define SUMS(r, b) (char *)sums + (size_t)(r) * sums_stride + (b) * STEP_BYTES
#define SAVE_SUMS(tile, r, b) _tile_stored(tile, SUMS(r, b), sums_stride)
#define LOAD_ROWS(tile, r) _tile_loadd(tile, (const char *)a[r] + 4 * k, stride)
#define LOAD_WEIGHTS(tile, b) _tile_loadd(tile, w + (b) * block + (size_t)k * STEP_BYTES, STEP_BYTES)

/* A group of rows, times four blocks. */
INLINE void bf16_tiles_1x4(const void *const *a, size_t stride, int steps, const char *w, size_t block, void *sums,
                           size_t sums_stride)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < steps; k += TILE_PAIRS) {
        LOAD_ROWS(4, 0);
        LOAD_WEIGHTS(6, 0);
        _tile_dpbf16ps(0, 4, 6);
        LOAD_WEIGHTS(7, 1);
        _tile_dpbf16ps(1, 4, 7);
        LOAD_WEIGHTS(6, 2);
        _tile_dpbf16ps(2, 4, 6);
        LOAD_WEIGHTS(7, 3);
        _tile_dpbf16ps(3, 4, 7);
    }
    SAVE_SUMS(0, 0, 0);
    SAVE_SUMS(1, 0, 1);
    SAVE_SUMS(2, 0, 2);
    SAVE_SUMS(3, 0, 3);
}

/* Two groups, times two blocks: weights are read once for both. */
INLINE void bf16_tiles_2x2(const void *const *a, size_t stride, int group, int steps, const char *w, size_t block,
                           void *sums, size_t sums_stride)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < steps; k += TILE_PAIRS) {
        LOAD_WEIGHTS(6, 0);
        LOAD_ROWS(4, 0);
        _tile_dpbf16ps(0, 4, 6);
        LOAD_ROWS(5, group);
        _tile_dpbf16ps(2, 5, 6);
        LOAD_WEIGHTS(7, 1);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    SAVE_SUMS(0, 0, 0);
    SAVE_SUMS(1, 0, 1);
    SAVE_SUMS(2, group, 0);
    SAVE_SUMS(3, group, 1);
}

/* A group of rows, times one block. */
INLINE void bf16_tiles_1x1(const void *const *a, size_t stride, int steps, const char *w, void *sums, size_t sums_stride)
{
    _tile_zero(0);
    for (int k = 0; k < steps; k += TILE_PAIRS) {
        LOAD_ROWS(4, 0);
        _tile_loadd(6, w + (size_t)k * STEP_BYTES, STEP_BYTES);
        _tile_dpbf16ps(0, 4, 6);
    }
    SAVE_SUMS(0, 0, 0);
}

/* rows: as bf16_tiles_begin returned it. sums: of each row, `sums_stride` bytes apart. */
static void multiply_bf16_tiles(const void *const *a, int rows, int steps, const char *w, size_t block, int blocks,
                                void *sums, size_t sums_stride)
{
    const int group = tile_rows(rows, TILE_GROUP);
    const size_t stride = rows > 1 ? (size_t)((const char *)a[1] - (const char *)a[0]) : STEP_BYTES;
    MEMORY_IS_READ;
    for (int r = 0; r < rows;) {
        const int is_pair = rows - r >= 2 * group && blocks == BLOCKS;
        if (is_pair)
            for (int b = 0; b < blocks; b += 2)
                bf16_tiles_2x2(a + r, stride, group, steps, w + b * block, block, SUMS(r, b), sums_stride);
        else if (blocks == BLOCKS)
            bf16_tiles_1x4(a + r, stride, steps, w, block, SUMS(r, 0), sums_stride);
        else
            for (int b = 0; b < blocks; b++) bf16_tiles_1x1(a + r, stride, steps, w + b * block, SUMS(r, b), sums_stride);
        r += is_pair ? 2 * group : group;
    }
    MEMORY_IS_READ;
}

#else
static int bf16_tiles_begin(int rows) { return rows; }
static void bf16_tiles_end(void) {}

#define BF16_TILED_INPUT(r)                             \
    vb p##r = vb_four((const uint8_t *)(x##r + 4 * k)); \
    vf i##r = vb_firsts(p##r), j##r = vb_seconds(p##r);
#define BF16_TILED_WEIGHT(v)                                    \
    vb q##v = vb_load((const int8_t *)(w##v + STEP_BYTES * k)); \
    vf b##v = vb_firsts(q##v), d##v = vb_seconds(q##v);
#define BF16_TILED_LOAD(r, v) vf s##r##v = vf_all(0.0f), t##r##v = vf_all(0.0f);
#define BF16_TILED_STEP(r, v) vf_fma_in(s##r##v, i##r, b##v); vf_fma_in(t##r##v, j##r, d##v);
/* An fma with one is a sum. */
#define BF16_TILED_SAVE(r, v)                                                                    \
    vf_store(z[r].f + v * LANES, vf_fma(vf_all(1.0f), vf_fma(vf_all(1.0f), s##r##v, t##r##v),    \
                                        vf_load(z[r].f + v * LANES)));
#if LANES == 16
#define TILED_ROWS 6
#define TILED_VECTORS 1
#else
#define TILED_ROWS 2 /* twice two sums of each vector, four registers of weights, two of inputs */
#define TILED_VECTORS 2
#endif
#define TILED_TILE(R, V) TILED_TILE_OF(R, V)
#define TILED_TILE_OF(R, V) TILE(bf16_tiled_##R, BF16_TILED, R, V, BY_ROW, NO_PREFETCH)
TILED_TILE(1, TILED_VECTORS)
TILED_TILE(2, TILED_VECTORS)
#if TILED_ROWS == 2
static tile_fn *const bf16_tiled[] = {bf16_tiled_1, bf16_tiled_2};
#else
TILED_TILE(3, TILED_VECTORS)
TILED_TILE(4, TILED_VECTORS)
TILED_TILE(5, TILED_VECTORS)
TILED_TILE(6, TILED_VECTORS)
static tile_fn *const bf16_tiled[] = {bf16_tiled_1, bf16_tiled_2, bf16_tiled_3, bf16_tiled_4, bf16_tiled_5, bf16_tiled_6};
#endif

/* The same without the instruction; z begins at zero. */
static void emulate_bf16_tiles(const void *const *a, int rows, int steps, const char *w, size_t block, int blocks, zrow *z)
{
    for (int k = 0; k < steps; k += TILE_PAIRS, w += TILE_PAIRS * STEP_BYTES)
        for (int b = 0; b < blocks; b++)
            for (int r = 0, take; r < rows; r += take) {
                take = tile_rows(rows - r, TILED_ROWS);
                bf16_tiled[take - 1](a + r, k, TILE_PAIRS, w + b * block, block, sums_of(z + r, b), NULL);
            }
}
#endif

#endif
