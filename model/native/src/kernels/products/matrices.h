/* Products of whole matrices, for training: in float32, or with factors rounded to bfloat16 in one of two orders.
 *
 *   A B^T   a layer's sums from its input: B holds a row of factors for each output, as weights lie in memory
 *   A B     derivatives with respect to the input: B as above
 *   A^T B   the gradient of weights: A has the derivatives of each character, B what it read
 *
 * B is laid out once in blocks of 16 outputs, [step][16], see gemm.h; a step is one factor, or a pair in bfloat16. Every
 * output is one sum over the factors in their order, so its bits depend neither on the other rows nor on the instruction
 * set. Where a matrix fills no whole block, pair or tile, zeros are added to it.
 */
#ifndef LONGHAND_MATRICES_H
#define LONGHAND_MATRICES_H

#include "../../api.h"
#include "bf16_tiles.h"
#include "gemm.h"

#define MIN_ROWS 3     /* of a tile: fewer are filled up with copies of the first */
#define PRODUCT_ROWS 48 /* rows that use a panel together: they stay in the L1 or L2 cache */
#define SPARE_ROWS 15  /* rows that tiles may read beyond the last */

/* The steps of a product with `k` factors: 4 bytes of a row each. */
static int product_steps(int products, int k)
{
    const int pairs = (k + 1) / 2;
    if (products == LH_FP32) return k;
    return products == LH_BF16_PAIRS ? pairs : (pairs + TILE_PAIRS - 1) / TILE_PAIRS * TILE_PAIRS;
}

/* The rows that a product of `count` rows computes: those that fill a tile up have any content. */
static int product_rows(int products, int count)
{
    if (products == LH_BF16_TILES) return bf16_tiles_begin(count);
    return count < MIN_ROWS ? MIN_ROWS : count;
}

/* Rows times a panel of `blocks` blocks; `rows` as product_rows returned it. out: of each row, `stride` floats apart; z:
 * memory for as many rows. */
INLINE void multiply_panel(int products, const void *const *a, int rows, int steps, const char *panel, int blocks,
                           float *out, size_t stride, zrow *z)
{
    const size_t block = (size_t)steps * STEP_BYTES, bytes = (size_t)blocks * BLOCK * sizeof(float);
#if defined(HAS_TILES)
    if (products == LH_BF16_TILES) {
        multiply_bf16_tiles(a, rows, steps, panel, block, blocks, out, stride * sizeof(float));
        return;
    }
#endif
    for (int r = 0; r < rows; r++) memset(z[r].f, 0, bytes);
    if (products == LH_FP32) multiply_segment(0, a, NULL, rows, steps, panel, block, blocks, z);
    else if (products == LH_BF16_PAIRS) multiply_bf16(a, rows, steps, panel, block, blocks, z);
#if !defined(HAS_TILES)
    else emulate_bf16_tiles(a, rows, steps, panel, block, blocks, z);
#endif
    if (out != z[0].f)
        for (int r = 0; r < rows; r++) memcpy(out + (size_t)r * stride, z[r].f, bytes);
}

/* ---- the second factor ---- */

static size_t packed_bytes(int products, int outputs, int k)
{
    return (size_t)((outputs + BLOCK - 1) / BLOCK) * (size_t)product_steps(products, k) * STEP_BYTES;
}

/* Floats between compact rows: a cache line more than needed, so that rows fall on different sets of the cache. */
static size_t stride_of(int floats) { return (size_t)(floats + 31) / 32 * 32 + 16; }

/* A block of 16 outputs from their rows of factors; a row that is NULL is zero. columns: 16 * stride_of(k) floats. */
static char *pack_block(int products, char *to, const float *const *rows, int k, float *columns)
{
    const int steps = product_steps(products, k);
    const size_t stride = stride_of(k);
    int step = 0;
    memset(columns, 0, BLOCK * stride * sizeof(float));
    for (int j = 0; j < BLOCK; j++) {
        if (!rows[j]) continue;
        if (products == LH_FP32) memcpy(columns + (size_t)j * stride, rows[j], (size_t)k * sizeof(float));
        else round_to_bf16((uint16_t *)(columns + (size_t)j * stride), rows[j], k);
    }
    for (; step + 16 <= steps; step += 16, to += 16 * STEP_BYTES) transpose_16(to, columns + step, stride * sizeof(float));
    for (; step < steps; step++, to += STEP_BYTES)
        for (int j = 0; j < BLOCK; j++) memcpy(to + 4 * j, columns + (size_t)j * stride + step, 4);
    return to;
}

/* B of A B^T: a row of k factors for each output. */
static void pack_outputs(int products, char *to, const float *b, int outputs, int k, float *columns)
{
    for (int first = 0; first < outputs; first += BLOCK) {
        const float *rows[BLOCK];
        for (int j = 0; j < BLOCK; j++) rows[j] = first + j < outputs ? b + (size_t)(first + j) * (size_t)k : NULL;
        to = pack_block(products, to, rows, k, columns);
    }
}

/* to[j] = a pair of bfloat16. */
INLINE void round_pairs(uint32_t *restrict to, const float *restrict first, const float *restrict second, int n)
{
    for (int j = 0; j < n; j++) to[j] = bf16_of(first[j]) | bf16_of(second[j]) << 16;
}

/* B of A B and A^T B: a row of outputs for each of k factors, at b[factor]. `zero`: 16 zeros. */
static void pack_factors(int products, char *to, const float *const *b, int k, int outputs, const float *zero)
{
    const int steps = product_steps(products, k), width = products == LH_FP32 ? 1 : 2;
    for (int first = 0; first < outputs; first += BLOCK) {
        const int n = outputs - first < BLOCK ? outputs - first : BLOCK;
        for (int step = 0; step < steps; step++, to += STEP_BYTES) {
            const int at = step * width;
            const float *one = at < k ? b[at] + first : zero, *two = at + 1 < k ? b[at + 1] + first : zero;
            float some[2][BLOCK];
            if (n < BLOCK) {
                memset(some, 0, sizeof some);
                memcpy(some[0], one, (size_t)n * sizeof(float)), memcpy(some[1], two, (size_t)n * sizeof(float));
                one = some[0], two = some[1];
            }
            if (width == 1) memcpy(to, one, STEP_BYTES);
            else round_pairs((uint32_t *)to, one, two, BLOCK);
        }
    }
}

/* ---- the first factor: rows of steps, `stride` bytes apart ---- */

static size_t row_bytes(int products, int k) { return stride_of(product_steps(products, k)) * 4; }

/* The rows of A, rounded; in float32 they are used where they lie. */
static void round_rows(int products, char *to, const float *a, size_t stride, int rows, int k)
{
    const size_t bytes = row_bytes(products, k);
    for (int r = 0; r < rows; r++, to += bytes) {
        round_to_bf16((uint16_t *)to, a + (size_t)r * stride, k);
        memset(to + 2 * (size_t)k, 0, bytes - 2 * (size_t)k);
    }
}

/* The columns of A as rows: `a` has k rows of n. `zero`: 16 zeros. Reads 16 columns at once, n is a multiple of 16 or the
 * rest of a row can be read. */
static void transpose_rows(int products, char *to, const float *a, int k, int n, const float *zero)
{
    const int steps = product_steps(products, k), width = products == LH_FP32 ? 1 : 2;
    const size_t bytes = row_bytes(products, k);
    uint32_t words[16][BLOCK], columns[BLOCK][16];
    for (int step = 0; step < steps; step += 16)
        for (int first = 0; first < n; first += BLOCK) {
            for (int j = 0; j < 16; j++) {
                const int at = (step + j) * width;
                const float *one = at < k ? a + (size_t)at * (size_t)n + first : zero;
                const float *two = at + 1 < k ? a + (size_t)(at + 1) * (size_t)n + first : zero;
                const int count = n - first < BLOCK ? n - first : BLOCK;
                if (width == 1 && count == BLOCK) memcpy(words[j], one, sizeof words[j]);
                else if (width == 2) round_pairs(words[j], one, two, count);
                else memcpy(words[j], one, (size_t)count * sizeof(float));
            }
            transpose_16(columns, words, sizeof words[0]);
            for (int j = 0; j < BLOCK && first + j < n; j++)
                memcpy(to + (size_t)(first + j) * bytes + (size_t)step * 4, columns[j], sizeof columns[j]);
        }
}

/* ---- the product ---- */

/* out[r][j] = bias[j], or zero, + the sum over the steps of row r and output j. z: PRODUCT_ROWS rows. `a` has SPARE_ROWS
 * more rows that can be read, except in float32. */
static void multiply_rows(int products, const char *a, size_t bytes, int rows, int steps, const char *packed, int outputs,
                          const float *bias, float *out, size_t out_stride, zrow *z)
{
    const size_t block = (size_t)steps * STEP_BYTES;
    const int at_once = products == LH_BF16_TILES ? 32 : PRODUCT_ROWS; /* two groups of tiles use the same weights */
    const int together = 4 * PRODUCT_ROWS; /* rows that use a panel while it is in the L2 cache */
    for (int begin = 0; begin < rows; begin += together)
        for (int first = 0; first < outputs; first += PANEL) {
            const int width = outputs - first < PANEL ? outputs - first : PANEL, blocks = (width + BLOCK - 1) / BLOCK;
            const int end = rows - begin < together ? rows : begin + together;
            const char *panel = packed + (size_t)(first / BLOCK) * block;
            float offset[PANEL] = {0};
            if (bias) memcpy(offset, bias + first, (size_t)width * sizeof(float));
            for (int r = begin, count; r < end; r += count) {
                count = end - r < at_once ? end - r : at_once;
                const int all = product_rows(products, count), fits = all == count && width == blocks * BLOCK;
                const void *from[PRODUCT_ROWS];
                float *sums = out + (size_t)r * out_stride + first;
                for (int i = 0; i < all; i++)
                    from[i] = a + (size_t)(r + (i < count || products == LH_BF16_TILES ? i : 0)) * bytes;
                multiply_panel(products, from, all, steps, panel, blocks, fits ? sums : z[0].f, fits ? out_stride : PANEL,
                               z);
                for (int i = 0; i < count && (bias || !fits); i++) {
                    const float *row = fits ? sums + (size_t)i * out_stride : z[i].f;
                    for (int j = 0; j < width; j++) sums[(size_t)i * out_stride + (size_t)j] = row[j] + offset[j];
                }
            }
        }
}

#endif
