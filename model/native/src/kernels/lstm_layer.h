/* One LSTM layer over T characters, forwards and backwards, for training: the sequential part that autograd needs.
 *
 * The products that do not depend on the step before (of the inputs, and of the weights' gradients) are left to the
 * caller, who computes each as one large product; the weights' gradient in the order of tiles is computed here. What
 * remains is, in every step, a product of a few rows with the whole recurrent matrix. It uses the tiles of
 * products/gemm.h, with the matrix laid out for them once per call, and applies the gates right after a panel's product.
 * It runs on one thread: callers divide the rows among threads.
 *
 * In bf16 the factors of that product (h or the gates' derivatives, and the matrix) are rounded to bfloat16. Its
 * sums and everything else are float32.
 */
#ifndef LONGHAND_LSTM_LAYER_H
#define LONGHAND_LSTM_LAYER_H

#include "../api.h"
#include "../scratch.h"
#include "gates.h"
#include "products/bf16_tiles.h"
#include "products/gemm.h"

#define LSTM_UNITS LANES /* hidden units of a panel: their four gates are two or four blocks */
#define LSTM_BLOCKS (4 * LSTM_UNITS / BLOCK)
#define LSTM_ROWS 48 /* rows that are computed together: their h and gates stay in the L2 cache */
#define MIN_ROWS 3 /* of a tile: fewer are filled up with copies of the first */

typedef struct {
    float *packed;              /* the recurrent matrix, as the direction needs it: float or bfloat16 */
    float *rows[2];             /* (LSTM_ROWS, stride): h before and after a step; backwards, the gates' derivatives.
                                   bf16: only [0], rounded */
    float *carried;             /* (LSTM_ROWS, hidden + 16): backwards, dL/dh of the step after; written by 16 */
    float *cell;                /* (LSTM_ROWS, hidden): backwards, dL/dc */
    float *zero;                /* (hidden): the state of a text that has not begun */
    float *columns;             /* (16, stride) for packing: 16 outputs */
    zrow z[LSTM_ROWS];
    char *gradient;             /* factors of the weights' gradient: see weights_gradient */
} lstm_scratch_t;

/* Floats between compact rows: a cache line more than needed, so that rows fall on different sets of the cache. */
static size_t stride_of(int floats) { return (size_t)(floats + 31) / 32 * 32 + 16; }

static float *take(char **at, size_t floats)
{
    float *p = (float *)*at;
    *at += (floats * sizeof(float) + 63) / 64 * 64;
    return p;
}

/* The pairs of characters of a window, in whole tiles: the steps of the weights' gradient. */
static int window_pairs(const lh_lstm_layer *w)
{
    return (w->rows * w->steps + 2 * TILE_PAIRS - 1) / (2 * TILE_PAIRS) * TILE_PAIRS;
}

/* Bytes between the outputs of the transposed derivatives: no power of two, so that 16 rows fall on different sets. */
static size_t gradient_stride(const lh_lstm_layer *w) { return (size_t)window_pairs(w) * 4 + 64; }

static int lstm_scratch_open(lstm_scratch_t *s, const lh_lstm_layer *w)
{
    const int hidden = w->hidden;
    size_t wide = stride_of(4 * hidden), matrix = (size_t)4 * hidden * (size_t)((hidden + 15) / 16 * 16);
    size_t floats = matrix + 2 * LSTM_ROWS * wide + (2 * LSTM_ROWS + 1) * (size_t)(hidden + 16) + 256;
    floats += BLOCK * stride_of(hidden);
    const size_t gradient = (size_t)4 * hidden * gradient_stride(w) + (size_t)hidden * (size_t)window_pairs(w) * 4;
    char *at = thread_scratch(floats * sizeof(float) + (w->d_weights ? gradient : 0));
    if (!at) return 0;
    s->packed = take(&at, matrix);
    s->rows[0] = take(&at, LSTM_ROWS * wide);
    s->rows[1] = take(&at, LSTM_ROWS * wide);
    s->carried = take(&at, LSTM_ROWS * (size_t)(hidden + 16));
    s->cell = take(&at, LSTM_ROWS * (size_t)hidden);
    s->zero = take(&at, (size_t)hidden);
    s->columns = take(&at, BLOCK * stride_of(hidden));
    memset(s->zero, 0, (size_t)hidden * sizeof(float));
    s->gradient = at;
    return 1;
}

/* Whether a row begins again from the zero state at step t. */
static int starts_at(const lh_lstm_layer *w, int row, int t)
{
    return w->starts && w->starts[(size_t)row * w->steps + t];
}

/* A row's cells after step t, or before the first one; a row's gates. They lie in the order in which the steps write them:
 * with rows of a power of two bytes apart, single lines of each would fall on the same sets of the cache. */
static float *cells_at(const lh_lstm_layer *w, int row, int t) { return w->c + ((size_t)t * w->rows + row) * w->hidden; }

static const float *cells_before(const lh_lstm_layer *w, const float *zero, int row, int t)
{
    if (starts_at(w, row, t)) return zero;
    return t ? cells_at(w, row, t - 1) : w->c0 + (size_t)row * w->hidden;
}

/* The gates i, f, g, o of the units from u on: 16 floats apart. */
static float *gates_at(const lh_lstm_layer *w, int row, int t, int u)
{
    return w->gates + ((size_t)t * w->rows + row) * 4 * w->hidden + 4 * (u & ~15) + (u & 15);
}

/* The steps of a product with `k` factors: 4 bytes of a row each. Tiles are filled up with zeros. */
static int product_steps(const lh_lstm_layer *w, int k)
{
    if (w->products == LH_FP32) return k;
    return w->products == LH_BF16_PAIRS ? k / 2 : (k / 2 + TILE_PAIRS - 1) / TILE_PAIRS * TILE_PAIRS;
}

/* The rows that a product of `count` rows computes: those that fill a tile up have any content. */
static int product_rows(const lh_lstm_layer *w, int count)
{
    if (w->products == LH_BF16_TILES) return bf16_tiles_begin(count);
    return count < MIN_ROWS ? MIN_ROWS : count;
}

/* Sets to zero what rows have beyond their own values, and the rows that are not there. */
static void clear_rows(lstm_scratch_t *s, size_t stride, int rows)
{
    for (int i = 0; i < 2; i++) memset(s->rows[i], 0, (size_t)rows * stride * sizeof(float));
}

/* Pointers to compact rows. */
static void row_pointers(const float **a, const float *rows, size_t stride, int count)
{
    for (int r = 0; r < count; r++) a[r] = rows + (size_t)r * stride;
}

/* A row's product with the blocks of a panel: `steps` of 4 bytes each. */
INLINE void lstm_multiply(const lh_lstm_layer *w, const float *const *a, int rows, int steps, const char *panel,
                          size_t block, int blocks, zrow *z)
{
    const void *const *from = (const void *const *)a;
    if (w->products == LH_FP32) multiply_segment(0, from, NULL, rows, steps, panel, block, blocks, z);
    else if (w->products == LH_BF16_PAIRS) multiply_bf16(from, rows, steps, panel, block, blocks, z);
    else multiply_bf16_tiles(from, rows, steps, panel, block, blocks, z);
}

/* ---- forwards: panels of LSTM_UNITS units, [block][k][16 outputs], the gates one after the other; bf16: a block is
 * [pair of k][16 outputs][2] ---- */

static void pack_forward(const lh_lstm_layer *w, lstm_scratch_t *s)
{
    const int hidden = w->hidden, is_bf16 = w->products != LH_FP32, steps = product_steps(w, hidden);
    const size_t stride = stride_of(hidden);
    char *to = (char *)s->packed;
    memset(s->columns, 0, BLOCK * stride * sizeof(float));
    for (int unit = 0; unit < hidden; unit += LSTM_UNITS)
        for (int block = 0; block < LSTM_BLOCKS; block++) {
            for (int output = 0; output < BLOCK; output++) {
                const int gate = (block * BLOCK + output) / LSTM_UNITS, j = (block * BLOCK + output) % LSTM_UNITS;
                const float *row = w->weights + (size_t)(gate * hidden + unit + j) * (size_t)hidden;
                if (is_bf16) round_to_bf16((uint16_t *)(s->columns + (size_t)output * stride), row, hidden);
                else memcpy(s->columns + (size_t)output * stride, row, (size_t)hidden * sizeof(float));
            }
            int k = 0;
            for (; k + 16 <= steps; k += 16, to += 16 * STEP_BYTES) transpose_16(to, s->columns + k, stride * sizeof(float));
            for (; k < steps; k++, to += STEP_BYTES)
                for (int output = 0; output < BLOCK; output++)
                    memcpy(to + 4 * output, s->columns + (size_t)output * stride + k, 4);
        }
}

static void forward_rows(const lh_lstm_layer *w, lstm_scratch_t *s, int first, int count)
{
    const int hidden = w->hidden, steps = w->steps;
    const size_t H = (size_t)hidden, stride = stride_of(hidden), block = (size_t)product_steps(w, hidden) * STEP_BYTES;
    const int is_bf16 = w->products != LH_FP32, rows = product_rows(w, count), k = product_steps(w, hidden);
    clear_rows(s, stride, rows);
    for (int r = 0; r < count; r++) memcpy(s->rows[is_bf16] + r * stride, w->h0 + (first + r) * H, H * sizeof(float));
    for (int t = 0; t < steps; t++) {
        const float *a[LSTM_ROWS], *from[LSTM_ROWS];
        float *old = s->rows[is_bf16 ? 0 : t & 1], *now = s->rows[is_bf16 ? 1 : ~t & 1];
        row_pointers(a, old, stride, rows);
        for (int r = 0; r < count; r++) {
            size_t at = (size_t)(first + r) * steps + t;
            if (starts_at(w, first + r, t)) memset(old + r * stride, 0, H * sizeof(float));
            else if (is_bf16) round_to_bf16((uint16_t *)(old + r * stride), now + r * stride, hidden);
            from[r] = w->inputs + (w->ids ? (size_t)w->ids[at] : at) * 4 * H;
        }
        const char *panel = (const char *)s->packed;
        for (int u = 0; u < hidden; u += LSTM_UNITS, panel += LSTM_BLOCKS * block) {
            for (int r = 0; r < count; r++)
                for (int g = 0; g < 4; g++) vf_store(s->z[r].f + g * LANES, vf_load(from[r] + g * H + u));
            for (int r = count; r < rows; r++) s->z[r] = s->z[0];
            lstm_multiply(w, a, rows, k, panel, block, LSTM_BLOCKS, s->z);
            for (int r = 0; r < count; r++) {
                const float *z = s->z[r].f, *before = cells_before(w, s->zero, first + r, t);
                vf i = vf_sigmoid(vf_load(z)), f = vf_sigmoid(vf_load(z + LANES));
                vf g = vf_tanh(vf_load(z + 2 * LANES)), o = vf_sigmoid(vf_load(z + 3 * LANES));
                vf c = vf_fma(f, vf_load(before + u), vf_mul(i, g));
                vf h = vf_mul(o, vf_tanh(c));
                float *gates = gates_at(w, first + r, t, u);
                vf_store(gates, i), vf_store(gates + 16, f), vf_store(gates + 32, g), vf_store(gates + 48, o);
                vf_store(cells_at(w, first + r, t) + u, c);
                vf_store(now + r * stride + u, h);
            }
        }
        for (int r = 0; r < count; r++)
            memcpy(w->h + ((size_t)(first + r) * steps + t) * H, now + r * stride, H * sizeof(float));
    }
}

/* ---- backwards: blocks of 16 inputs, [k = 4 hidden outputs][16]; bf16: [pair of k][16][2] ---- */

static void pack_backward(const lh_lstm_layer *w, lstm_scratch_t *s)
{
    const int hidden = w->hidden, is_bf16 = w->products != LH_FP32, per_k = is_bf16 ? 2 : 1;
    float *to = s->packed;
    for (int u = 0; u < hidden; u += BLOCK)
        for (int k = 0; k < 4 * hidden; k += per_k, to += BLOCK) {
            const float *from = w->weights + (size_t)k * hidden + u;
            uint32_t pairs[BLOCK];
            if (is_bf16) {
                for (int j = 0; j < BLOCK; j++) pairs[j] = bf16_of(from[j]) | bf16_of(from[hidden + j]) << 16;
                memcpy(to, pairs, sizeof pairs);
            } else
                memcpy(to, from, BLOCK * sizeof(float));
        }
}

/* The derivatives of one row's sums at step t. `carried` and `cell` are dL/dh and dL/dc from the step after; `cell` is
 * moved on to this step. `to`: a second place for the derivatives, or NULL. */
static void gates_backward(const lh_lstm_layer *w, const float *zero, int row, int t, const float *carried,
                           float *cell, float *to)
{
    const size_t H = (size_t)w->hidden, at = (size_t)row * w->steps + t;
    const float *c = cells_at(w, row, t), *before = cells_before(w, zero, row, t), *d_h = w->d_h + at * H;
    const int starts = starts_at(w, row, t);
    float *out = w->d_gates + at * 4 * H;
    float *sum = w->d_inputs ? w->d_inputs + (size_t)w->ids[at] * 4 * H : NULL;
    const vf one = vf_all(1.0f), minus = vf_all(-1.0f); /* an fma with one is a sum */
#define ONE_MINUS(x) vf_fma(minus, x, one)                       /* 1 - x */
#define ONE_MINUS_SQUARE(x) vf_fma(vf_mul(minus, x), x, one) /* 1 - x^2 */
    for (size_t u = 0; u < H; u += LANES) {
        const float *gates = gates_at(w, row, t, (int)u);
        vf i = vf_load(gates), f = vf_load(gates + 16), g = vf_load(gates + 32), o = vf_load(gates + 48);
        vf tanh_c = vf_tanh(vf_load(c + u));
        vf dh = vf_fma(one, vf_load(d_h + u), vf_load(carried + u));
        vf dc = vf_fma(vf_mul(dh, o), ONE_MINUS_SQUARE(tanh_c), vf_load(cell + u));
        vf d[4];
        d[0] = vf_mul(vf_mul(dc, g), vf_mul(i, ONE_MINUS(i)));
        d[1] = vf_mul(vf_mul(dc, vf_load(before + u)), vf_mul(f, ONE_MINUS(f)));
        d[2] = vf_mul(vf_mul(dc, i), ONE_MINUS_SQUARE(g));
        d[3] = vf_mul(vf_mul(dh, tanh_c), vf_mul(o, ONE_MINUS(o)));
        vf_store(cell + u, starts ? vf_all(0.0f) : vf_mul(dc, f));
        for (int gate = 0; gate < 4; gate++) {
            size_t place = (size_t)gate * H + u;
            if (to) vf_store(to + place, d[gate]);
            vf_store(out + place, d[gate]);
            if (sum) vf_store(sum + place, vf_fma(one, d[gate], vf_load(sum + place)));
        }
    }
#undef ONE_MINUS
#undef ONE_MINUS_SQUARE
}

static void backward_rows(const lh_lstm_layer *w, lstm_scratch_t *s, int first, int count)
{
    const int hidden = w->hidden;
    const size_t H = (size_t)hidden, stride = stride_of(4 * hidden), carried = H + 16;
    const int is_bf16 = w->products != LH_FP32, rows = product_rows(w, count), k = product_steps(w, 4 * hidden);
    const size_t block = (size_t)k * STEP_BYTES;
    clear_rows(s, stride, rows);
    memset(s->carried, 0, LSTM_ROWS * carried * sizeof(float));
    memset(s->cell, 0, LSTM_ROWS * H * sizeof(float));
    for (int t = w->steps - 1; t >= 0; t--) {
        const float *a[LSTM_ROWS];
        const char *panel = (const char *)s->packed;
        for (int r = 0; r < count; r++) {
            float *row = s->rows[0] + r * stride;
            gates_backward(w, s->zero, first + r, t, s->carried + r * carried, s->cell + r * H, is_bf16 ? NULL : row);
            const float *d_gates = w->d_gates + ((size_t)(first + r) * w->steps + t) * 4 * H;
            if (is_bf16) round_to_bf16((uint16_t *)row, d_gates, 4 * hidden);
        }
        if (!t) break; /* backpropagation is truncated here */
        row_pointers(a, s->rows[0], stride, rows);
        for (int u = 0, width; u < hidden; u += width, panel += width / BLOCK * block) {
            width = hidden - u < PANEL ? hidden - u : PANEL;
            memset(s->z, 0, (size_t)rows * sizeof(zrow));
            lstm_multiply(w, a, rows, k, panel, block, width / BLOCK, s->z);
            for (int r = 0; r < count; r++) {
                float *to = s->carried + r * carried + u;
                if (starts_at(w, first + r, t)) memset(to, 0, (size_t)width * sizeof(float));
                else memcpy(to, s->z[r].f, (size_t)width * sizeof(float));
            }
        }
    }
}

/* ---- the weights' gradient: d_gates' h, over all characters of a window, in the order of tiles ---- */

/* What the recurrent product of the n-th character read. */
static const float *h_before(const lh_lstm_layer *w, const float *zero, int n)
{
    const int row = n / w->steps, t = n % w->steps;
    if (starts_at(w, row, t)) return zero;
    return t ? w->h + (size_t)(n - 1) * w->hidden : w->h0 + (size_t)row * w->hidden;
}

/* to[j] = a pair of bfloat16. */
INLINE void round_pairs(uint32_t *restrict to, const float *restrict first, const float *restrict second, int n)
{
    for (int j = 0; j < n; j++) to[j] = bf16_of(first[j]) | bf16_of(second[j]) << 16;
}

/* The rows of the product are the 4 hidden outputs, its steps pairs of characters. */
static void weights_gradient(const lh_lstm_layer *w, lstm_scratch_t *s)
{
    const int hidden = w->hidden, outputs = 4 * hidden, steps = window_pairs(w), characters = w->rows * w->steps;
    const size_t stride = gradient_stride(w), block = (size_t)steps * STEP_BYTES;
    char *transposed = s->gradient, *packed = s->gradient + (size_t)outputs * stride;
    uint32_t pairs[TILE_PAIRS][BLOCK], columns[BLOCK][TILE_PAIRS];
    /* transposed[output][pair] */
    for (int pair = 0; pair < steps; pair += TILE_PAIRS)
        for (int output = 0; output < outputs; output += BLOCK) {
            for (int j = 0; j < TILE_PAIRS; j++) {
                const int n = 2 * (pair + j);
                const float *first = n < characters ? w->d_gates + (size_t)n * outputs + output : s->zero;
                const float *second = n + 1 < characters ? w->d_gates + (size_t)(n + 1) * outputs + output : s->zero;
                round_pairs(pairs[j], first, second, BLOCK);
            }
            transpose_16(columns, pairs, sizeof pairs[0]);
            for (int j = 0; j < BLOCK; j++)
                memcpy(transposed + (size_t)(output + j) * stride + (size_t)pair * 4, columns[j], sizeof columns[j]);
        }
    /* packed[block of 16 units][pair][16][2] */
    for (int pair = 0; pair < steps; pair++) {
        const int n = 2 * pair;
        const float *first = n < characters ? h_before(w, s->zero, n) : s->zero;
        const float *second = n + 1 < characters ? h_before(w, s->zero, n + 1) : s->zero;
        for (int u = 0; u < hidden; u += BLOCK) {
            char *to = packed + (size_t)(u / BLOCK) * block + (size_t)pair * STEP_BYTES;
            round_pairs((uint32_t *)to, first + u, second + u, BLOCK);
        }
    }
    const void *a[2 * BLOCK]; /* 4 hidden is a multiple of it */
    bf16_tiles_begin(2 * BLOCK);
    for (int output = 0; output < outputs; output += 2 * BLOCK) {
        for (int j = 0; j < 2 * BLOCK; j++) a[j] = transposed + (size_t)(output + j) * stride;
        for (int u = 0, width; u < hidden; u += width) {
            width = hidden - u < PANEL ? hidden - u : PANEL;
            memset(s->z, 0, 2 * BLOCK * sizeof(zrow));
            multiply_bf16_tiles(a, 2 * BLOCK, steps, packed + (size_t)(u / BLOCK) * block, block, width / BLOCK, s->z);
            for (int j = 0; j < 2 * BLOCK; j++)
                memcpy(w->d_weights + (size_t)(output + j) * hidden + u, s->z[j].f, (size_t)width * sizeof(float));
        }
    }
}

/* ---- what Python calls ---- */

static int lstm_run(const lh_lstm_layer *w, void (*pack)(const lh_lstm_layer *, lstm_scratch_t *),
               void (*go)(const lh_lstm_layer *, lstm_scratch_t *, int, int))
{
    lstm_scratch_t s;
    if (!lstm_scratch_open(&s, w)) return 1;
    const uint64_t mode = w->products != LH_FP32 ? float_mode_flush() : 0;
    pack(w, &s);
    for (int first = 0; first < w->rows; first += LSTM_ROWS)
        go(w, &s, first, w->rows - first < LSTM_ROWS ? w->rows - first : LSTM_ROWS);
    if (w->d_weights) weights_gradient(w, &s);
    if (w->products == LH_BF16_TILES) bf16_tiles_end();
    if (w->products != LH_FP32) float_mode_leave(mode);
    return 0;
}

/* Computes h, c and gates. Returns 1 when there is no memory. */
static int lstm_forward(const lh_lstm_layer *w) { return lstm_run(w, pack_forward, forward_rows); }

/* Computes d_gates, d_inputs where there are ids, and d_weights where it is given. Returns 1 when there is no memory. */
static int lstm_backward(const lh_lstm_layer *w) { return lstm_run(w, pack_backward, backward_rows); }

#endif
