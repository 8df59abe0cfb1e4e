/* Rows times blocks of 16 outputs. The order of every sum is fixed:
 *
 *   fp32  z = initial; then one fma per k, k = 0..K-1. One chain per output, whatever the number of rows.
 *   int8  z = sum of int8 weight * int8 activation, in int32. Exact, so in any order: pack_weights.py rules out overflow.
 *   bf16  for training: as fp32, but in pairs of k, the second of each pair first (simd.h).
 *
 * A step is one k of fp32, two of bf16 or four of int8; the weights of a block for a step are 64 bytes in each case: 16
 * floats, [16][2] bfloat16 or [16][4] int8. A row gives a step 4 bytes. Blocks are `block` bytes apart. Few rows read
 * several blocks at once, so that weights are read once. Many rows read KC steps, which stay in the L1 cache while all
 * rows use them; between them the sums are stored in z, which does not change them.
 *
 * The tiles are macros over named variables, not loops over arrays: gcc decides which arrays live in registers before
 * it unrolls loops, and a tile whose sums live in memory runs at a third of the speed.
 */
#ifndef LONGHAND_GEMM_H
#define LONGHAND_GEMM_H

#include "../simd.h"

#define BLOCK 16
#define BLOCKS 4 /* of a panel */
#define PANEL (BLOCK * BLOCKS)
#define STEP_BYTES 64
#define PER_BLOCK (BLOCK / LANES) /* vectors */

typedef union { float f[PANEL]; int32_t i[PANEL]; } zrow;

#define ROWS_1(M, ...) M(0, __VA_ARGS__)
#define ROWS_2(M, ...) ROWS_1(M, __VA_ARGS__) M(1, __VA_ARGS__)
#define ROWS_3(M, ...) ROWS_2(M, __VA_ARGS__) M(2, __VA_ARGS__)
#define ROWS_4(M, ...) ROWS_3(M, __VA_ARGS__) M(3, __VA_ARGS__)
#define ROWS_5(M, ...) ROWS_4(M, __VA_ARGS__) M(4, __VA_ARGS__)
#define ROWS_6(M, ...) ROWS_5(M, __VA_ARGS__) M(5, __VA_ARGS__)
#define ROWS_7(M, ...) ROWS_6(M, __VA_ARGS__) M(6, __VA_ARGS__)
#define ROWS_8(M, ...) ROWS_7(M, __VA_ARGS__) M(7, __VA_ARGS__)
#define VECS_1(M, ...) M(0, __VA_ARGS__)
#define VECS_2(M, ...) VECS_1(M, __VA_ARGS__) M(1, __VA_ARGS__)
#define VECS_4(M, ...) VECS_2(M, __VA_ARGS__) M(2, __VA_ARGS__) M(3, __VA_ARGS__)
#define VECS_8(M, ...) VECS_4(M, __VA_ARGS__) M(4, __VA_ARGS__) M(5, __VA_ARGS__) M(6, __VA_ARGS__) M(7, __VA_ARGS__)

/* What a tile does for row r and vector v of outputs, for each kind of arithmetic. */
#define F32_INPUT(r) vf i##r = vf_all(*(const float *)(x##r + 4 * k));
#define F32_WEIGHT(v) vf b##v = vf_load((const float *)(w##v + STEP_BYTES * k)); KEEP(b##v);
#define F32_LOAD(r, v) vf s##r##v = vf_load(z[r].f + v * LANES);
#define F32_STEP(r, v) vf_fma_in(s##r##v, i##r, b##v);
#define F32_SAVE(r, v) vf_store(z[r].f + v * LANES, s##r##v);

#define I8_INPUT(r) vb i##r = vb_four((const uint8_t *)(x##r + 4 * k));
#define I8_WEIGHT(v) vb b##v = vb_load((const int8_t *)(w##v + STEP_BYTES * k)); KEEP(b##v);
#define I8_LOAD(r, v) vi s##r##v = vi_load(z[r].i + v * LANES);
#define I8_STEP(r, v) vi_dot4_in(s##r##v, b##v, i##r);
#define I8_SAVE(r, v) vi_store(z[r].i + v * LANES, s##r##v);

#define BF16_LOAD F32_LOAD
#define BF16_SAVE F32_SAVE
#if defined(HAS_BF16)
#define TILE_ROWS_BF16 6
#define BF16_INPUT(r) vb i##r = vb_four((const uint8_t *)(x##r + 4 * k));
#define BF16_WEIGHT(v) vb b##v = vb_load((const int8_t *)(w##v + STEP_BYTES * k)); KEEP(b##v);
#define BF16_STEP(r, v) vf_dot2_in(s##r##v, b##v, i##r);
#else
#define TILE_ROWS_BF16 4 /* an input and a weight take two registers each */
#define BF16_INPUT(r)                                     \
    vb p##r = vb_four((const uint8_t *)(x##r + 4 * k));   \
    vf i##r = vb_firsts(p##r), j##r = vb_seconds(p##r);
#define BF16_WEIGHT(v)                                            \
    vb q##v = vb_load((const int8_t *)(w##v + STEP_BYTES * k));   \
    vf b##v = vb_firsts(q##v), d##v = vb_seconds(q##v);
#define BF16_STEP(r, v) vf_fma_in(s##r##v, j##r, d##v); vf_fma_in(s##r##v, i##r, b##v);
#endif

#define TILE_ROW(r, KIND) const char *x##r = (const char *)a[r] + 4 * k0;
#define TILE_VECTOR(v, KIND) const char *w##v = w + v / PER_BLOCK * block + v % PER_BLOCK * 4 * LANES;
#define TILE_LOAD(r, KIND, V) VECS_##V(TILE_LOAD_ONE, r, KIND)
#define TILE_LOAD_ONE(v, r, KIND) KIND##_LOAD(r, v)
#define TILE_SAVE(r, KIND, V) VECS_##V(TILE_SAVE_ONE, r, KIND)
#define TILE_SAVE_ONE(v, r, KIND) KIND##_SAVE(r, v)
#define TILE_INPUT(r, KIND) KIND##_INPUT(r)
#define TILE_WEIGHT(v, KIND) KIND##_WEIGHT(v)
#define TILE_STEP(v, r, KIND) KIND##_STEP(r, v)
#define TILE_STEP_OF(r, v, KIND) KIND##_STEP(r, v)
/* An input at a time, all weights in registers; or a weight at a time, all inputs in registers. */
#define BY_ROW(KIND, R, V) VECS_##V(TILE_WEIGHT, KIND) ROWS_##R(BY_ROW_ONE, KIND, V)
#define BY_ROW_ONE(r, KIND, V) { KIND##_INPUT(r) VECS_##V(TILE_STEP, r, KIND) }
#define BY_WEIGHT(KIND, R, V) ROWS_##R(TILE_INPUT, KIND) VECS_##V(BY_WEIGHT_ONE, KIND, R)
#define BY_WEIGHT_ONE(v, KIND, R) { KIND##_WEIGHT(v) ROWS_##R(TILE_STEP_OF, v, KIND) }

/* R rows by V vectors of outputs, over n steps from k0. With AHEAD_ONE_LINE a line of the weights at `next` is fetched
 * into the L2 cache at each step. */
#define TILE(NAME, KIND, R, V, ORDER, AHEAD)                                                              \
    static void NAME(const void *const *a, int k0, int n, const char *w, size_t block, zrow *z,           \
                     const char *next)                                                                    \
    {                                                                                                     \
        (void)block, (void)next;                                                                          \
        ROWS_##R(TILE_ROW, KIND)                                                                          \
        VECS_##V(TILE_VECTOR, KIND)                                                                       \
        ROWS_##R(TILE_LOAD, KIND, V)                                                                      \
        for (long k = 0; k < n; k++) {                                                                    \
            AHEAD                                                                                         \
            ORDER(KIND, R, V)                                                                             \
        }                                                                                                 \
        ROWS_##R(TILE_SAVE, KIND, V)                                                                      \
    }
#define NO_PREFETCH
#define AHEAD_ONE_LINE __builtin_prefetch(next + STEP_BYTES * k, 0, 2);
typedef void tile_fn(const void *const *a, int k0, int n, const char *w, size_t block, zrow *z, const char *next);

#if LANES == 16
/* 24 sums, 4 weights and an input of 32 registers. */
#define KC 128
#define TILE_ROWS_F32 6
#define TILE_ROWS_I8 6
#define TILES(KIND, name)                                                                                 \
    TILE(name##_1, KIND, 1, 4, BY_ROW, NO_PREFETCH)                                                       \
    TILE(name##_2, KIND, 2, 4, BY_ROW, NO_PREFETCH)                                                       \
    TILE(name##_3, KIND, 3, 4, BY_ROW, AHEAD_ONE_LINE)                                                    \
    TILE(name##_4, KIND, 4, 4, BY_ROW, AHEAD_ONE_LINE)                                                    \
    TILE(name##_5, KIND, 5, 4, BY_ROW, AHEAD_ONE_LINE)                                                    \
    TILE(name##_6, KIND, 6, 4, BY_ROW, AHEAD_ONE_LINE)                                                    \
    TILE(name##_block_1, KIND, 1, 1, BY_ROW, NO_PREFETCH)                                                 \
    TILE(name##_block_2, KIND, 2, 1, BY_ROW, NO_PREFETCH)                                                 \
    TILE(name##_block_3, KIND, 3, 1, BY_ROW, NO_PREFETCH)                                                 \
    TILE(name##_block_4, KIND, 4, 1, BY_ROW, NO_PREFETCH)                                                 \
    TILE(name##_block_5, KIND, 5, 1, BY_ROW, NO_PREFETCH)                                                 \
    TILE(name##_block_6, KIND, 6, 1, BY_ROW, NO_PREFETCH)                                                 \
    static tile_fn *const name##_panel[] = {name##_1, name##_2, name##_3, name##_4, name##_5, name##_6};  \
    static tile_fn *const name##_block[] = {name##_block_1, name##_block_2, name##_block_3,               \
                                            name##_block_4, name##_block_5, name##_block_6};
#else
/* Twelve sums, two weights, one input and one product fill the sixteen registers of AVX2. */
#define KC 256
#define TILE_ROWS_F32 6
#define TILE_ROWS_I8 (ACTIVATION_BYTES == 1 ? 6 : 5)
#define TILES(KIND, name)                                                                                 \
    TILE(name##_1, KIND, 1, 8, BY_WEIGHT, NO_PREFETCH)                                                    \
    TILE(name##_2, KIND, 2, 4, BY_WEIGHT, NO_PREFETCH)                                                    \
    TILE(name##_block_1, KIND, 1, 2, BY_ROW, NO_PREFETCH)                                                 \
    TILE(name##_block_2, KIND, 2, 2, BY_ROW, NO_PREFETCH)                                                 \
    TILE(name##_block_3, KIND, 3, 2, BY_ROW, AHEAD_ONE_LINE)                                              \
    TILE(name##_block_4, KIND, 4, 2, BY_ROW, AHEAD_ONE_LINE)                                              \
    TILE(name##_block_5, KIND, 5, 2, BY_ROW, AHEAD_ONE_LINE)                                              \
    TILE(name##_block_6, KIND, 6, 2, BY_ROW, AHEAD_ONE_LINE)                                              \
    static tile_fn *const name##_block[] = {name##_block_1, name##_block_2, name##_block_3,               \
                                            name##_block_4, name##_block_5, name##_block_6};
TILE(f32_3, F32, 3, 4, BY_WEIGHT, NO_PREFETCH)
#endif
TILES(F32, f32)
TILES(I8, i8)
TILES(BF16, bf16)
#if LANES == 16
#define HALVES(KIND, name)                                                                                \
    TILE(name##_7, KIND, 7, 2, BY_ROW, NO_PREFETCH)                                                       \
    TILE(name##_8, KIND, 8, 2, BY_ROW, NO_PREFETCH)                                                       \
    static tile_fn *const name##_halves[] = {name##_7, name##_8};
HALVES(F32, f32)
HALVES(I8, i8)
HALVES(BF16, bf16)
#endif

#if defined(HAS_WIDE)
/* int16: a step is a pair of k, the weights of a block for it are [16][2] int16, 64 bytes again. */
#define I16_INPUT(r) vi i##r = _mm256_set1_epi32(four_bytes((const uint8_t *)(x##r + 4 * k)));
#define I16_WEIGHT I8_WEIGHT
#define I16_LOAD I8_LOAD
#define I16_STEP(r, v) vi_dot2_in(s##r##v, b##v, i##r);
#define I16_SAVE I8_SAVE
#define WIDE_ROWS 6 /* from as many rows on int16 is faster */
TILE(i16_block_3, I16, 3, 2, BY_ROW, NO_PREFETCH)
TILE(i16_block_4, I16, 4, 2, BY_ROW, NO_PREFETCH)
TILE(i16_block_5, I16, 5, 2, BY_ROW, NO_PREFETCH)
TILE(i16_block_6, I16, 6, 2, BY_ROW, NO_PREFETCH)
static tile_fn *const i16_block[] = {NULL, NULL, i16_block_3, i16_block_4, i16_block_5, i16_block_6};
#endif

/* The rows of the next tile when `left` remain: as even as possible, because a tile of few rows is bound by latency. */
INLINE int tile_rows(int left, int most)
{
    int tiles = (left + most - 1) / most;
    return (left + tiles - 1) / tiles;
}

/* `blocks` is what a tile takes. While the first tiles use KC steps, each fetches those that follow in one block. */
INLINE void many_rows(tile_fn *const *tiles, int most, const void *const *a, int rows, int steps, const char *w,
                      size_t block, int blocks, zrow *z)
{
    for (int k = 0; k < steps; k += KC, w += KC * STEP_BYTES)
        for (int r = 0, take, b = 0, n = steps - k < KC ? steps - k : KC; r < rows; r += take, b++) {
            const char *next = w + KC * STEP_BYTES + (size_t)(b < blocks ? b : 0) * block;
            take = tile_rows(rows - r, most);
            tiles[take - 1](a + r, k, n, w, block, z + r, next);
        }
}

INLINE zrow *sums_of(zrow *z, int block) { return (zrow *)(z[0].f + block * BLOCK); }

#if LANES == 16
INLINE int is_by_halves(int rows, int blocks) { return blocks == BLOCKS && (rows == 7 || rows == 8); }

/* 7 or 8 rows: tiles of half a panel read the weights once. Two tiles of a panel would wait for the L2 cache. */
INLINE void by_halves(tile_fn *const *halves, const void *const *a, int rows, int steps, const char *w, size_t block, zrow *z)
{
    for (int b = 0; b < BLOCKS; b += 2) halves[rows - 7](a, 0, steps, w + b * block, block, sums_of(z, b), NULL);
}
#endif

#if defined(HAS_WIDE)
/* Many rows in int16: widens KC / 2 steps of the weights, and uses them for all rows. */
static void wide_rows(const void *const *a, int rows, int steps, const char *w, zrow *z)
{
    _Alignas(64) int16_t wide[KC * STEP_BYTES / 2];
    for (int k = 0; k < steps; k += KC / 2) {
        int n = steps - k < KC / 2 ? steps - k : KC / 2;
        for (int j = 0; j < n; j++, w += STEP_BYTES) {
            __builtin_prefetch(w + KC / 2 * STEP_BYTES, 0, 2);
            for (int v = 0; v < 2; v++) {
                int16_t *even = wide + j * STEP_BYTES + v * 2 * LANES;
                vb_store_wide(even, even + STEP_BYTES / 2, vb_load((const int8_t *)w + v * 4 * LANES));
            }
        }
        for (int r = 0, take; r < rows; r += take) {
            take = tile_rows(rows - r, 6);
            i16_block[take - 1](a + r, 2 * k, 2 * n, (const char *)wide, 0, z + r, NULL);
        }
    }
}
#endif

#if defined(HAS_TILES)
#include "int8_tiles.h"
#else
INLINE void tiles_release(void) {}
#endif

/* Rows times a segment (x or h) of `blocks` blocks of a panel, added to z. `wide`: the rows as int16, if HAS_WIDE. */
INLINE void multiply_segment(int is_int8, const void *const *a, const void *const *wide, int rows, int steps,
                             const char *w, size_t block, int blocks, zrow *z)
{
    const int most = is_int8 ? TILE_ROWS_I8 : TILE_ROWS_F32;
    int b = 0;
    (void)wide;
#if defined(HAS_WIDE)
    if (is_int8 && rows >= WIDE_ROWS) {
        for (; b < blocks; b++) wide_rows(wide, rows, steps, w + b * block, sums_of(z, b));
        return;
    }
#endif
#if LANES == 16
    if (is_by_halves(rows, blocks)) {
        by_halves(is_int8 ? i8_halves : f32_halves, a, rows, steps, w, block, z);
        return;
    }
    if (blocks == BLOCKS) {
        many_rows(is_int8 ? i8_panel : f32_panel, most, a, rows, steps, w, block, BLOCKS, z);
        return;
    }
#else
    if (rows == 1 && blocks == BLOCKS) {
        (is_int8 ? i8_1 : f32_1)(a, 0, steps, w, block, z, NULL);
        return;
    }
    if (rows == 2 || (rows == 3 && !is_int8)) {
        tile_fn *tile = is_int8 ? i8_2 : rows == 2 ? f32_2 : f32_3;
        for (; b + 2 <= blocks; b += 2) tile(a, 0, steps, w + b * block, block, sums_of(z, b), NULL);
    }
#endif
    for (; b < blocks; b++)
        many_rows(is_int8 ? i8_block : f32_block, most, a, rows, steps, w + b * block, block, 1, sums_of(z, b));
}

/* The same in bf16: steps are pairs of k. */
INLINE void multiply_bf16(const void *const *a, int rows, int steps, const char *w, size_t block, int blocks, zrow *z)
{
#if LANES == 16
    if (is_by_halves(rows, blocks)) {
        by_halves(bf16_halves, a, rows, steps, w, block, z);
        return;
    }
    if (blocks == BLOCKS) {
        many_rows(bf16_panel, TILE_ROWS_BF16, a, rows, steps, w, block, BLOCKS, z);
        return;
    }
#endif
    for (int b = 0; b < blocks; b++)
        many_rows(bf16_block, TILE_ROWS_BF16, a, rows, steps, w + b * block, block, 1, sums_of(z, b));
}

#endif
