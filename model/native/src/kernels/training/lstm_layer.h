/* One LSTM layer over T characters, forwards and backwards, for training: the sequential part of a pass.
 *
 * The products that do not depend on the step before, of the inputs and of the weights' gradients, are the caller's: each
 * is one large product. What remains is, in every step, a product of a few rows with the whole recurrent matrix. It uses
 * the panels of products/matrices.h, with the matrix laid out for them once per call, and applies the gates right after a
 * panel's product. It runs on one thread: callers divide the rows among threads.
 *
 * In bf16 the factors of that product (h or the gates' derivatives, and the matrix) are rounded to bfloat16. Its
 * sums and everything else are float32.
 */
#ifndef LONGHAND_LSTM_LAYER_H
#define LONGHAND_LSTM_LAYER_H

#include "../../scratch.h"
#include "../gates.h"
#include "../products/matrices.h"

#define LSTM_UNITS LANES /* hidden units of a panel: their four gates are two or four blocks */
#define LSTM_BLOCKS (4 * LSTM_UNITS / BLOCK)
#define LSTM_ROWS PRODUCT_ROWS /* rows that are computed together: their h and gates stay in the L2 cache */

/* Everything is contiguous; hidden is a multiple of 16. */
typedef struct {
    int rows, steps, hidden, products; /* LH_FP32, ... */
    const int64_t *ids;   /* (rows, steps), `ids_stride` between rows; or NULL: then `inputs` is (rows, steps, 4 hidden) */
    size_t ids_stride;
    const float *inputs;  /* (V, 4 hidden), by id: what the input adds to i, f, g, o, with all biases */
    const float *weights; /* (4 hidden, hidden), recurrent */
    const float *h0, *c0; /* (rows, hidden) */
    const uint8_t *starts; /* (rows, steps): not 0 where a row begins again from the zero state; or NULL */
    float *h;             /* (rows, steps, hidden), after each step */
    float *c;             /* (steps, rows, hidden), after each step */
    float *gates;         /* (steps, rows, hidden / 16, 4, 16), activated */
    const float *d_h;     /* (rows, steps, hidden): the derivatives of the loss with respect to h */
    float *d_gates;       /* (rows, steps, 4 hidden): and with respect to the sums before activation */
    float *d_inputs;      /* (V, 4 hidden), added to; NULL without ids: then d_gates is the result */
} lstm_layer_t;

typedef struct {
    float *packed;              /* the recurrent matrix, as the direction needs it: float or bfloat16 */
    float *rows[2];             /* (LSTM_ROWS, stride): h before and after a step; backwards, the gates' derivatives.
                                   bf16: only [0], rounded */
    float *carried;             /* (LSTM_ROWS, hidden + 16): backwards, dL/dh of the step after; written by 16 */
    float *cell;                /* (LSTM_ROWS, hidden): backwards, dL/dc */
    float *zero;                /* (hidden): the state of a text that has not begun */
    float *columns;             /* (16, stride) for packing: 16 outputs */
    zrow z[2][LSTM_ROWS];       /* the products of a panel, and of the one before */
} lstm_scratch_t;

static float *take(char **at, size_t floats)
{
    float *p = (float *)*at;
    *at += (floats * sizeof(float) + 63) / 64 * 64;
    return p;
}

static int lstm_scratch_open(lstm_scratch_t *s, const lstm_layer_t *w)
{
    const int hidden = w->hidden;
    size_t wide = stride_of(4 * hidden), matrix = (size_t)4 * hidden * (size_t)((hidden + 15) / 16 * 16);
    size_t floats = matrix + 2 * LSTM_ROWS * wide + (2 * LSTM_ROWS + 1) * (size_t)(hidden + 16) + 256;
    floats += BLOCK * stride_of(hidden);
    char *at = thread_scratch(SCRATCH_LAYER, floats * sizeof(float));
    if (!at) return 0;
    s->packed = take(&at, matrix);
    s->rows[0] = take(&at, LSTM_ROWS * wide);
    s->rows[1] = take(&at, LSTM_ROWS * wide);
    s->carried = take(&at, LSTM_ROWS * (size_t)(hidden + 16));
    s->cell = take(&at, LSTM_ROWS * (size_t)hidden);
    s->zero = take(&at, (size_t)hidden);
    s->columns = take(&at, BLOCK * stride_of(hidden));
    memset(s->zero, 0, (size_t)hidden * sizeof(float));
    return 1;
}

/* Whether a row begins again from the zero state at step t. */
static int starts_at(const lstm_layer_t *w, int row, int t)
{
    return w->starts && w->starts[(size_t)row * w->steps + t];
}

static size_t id_at(const lstm_layer_t *w, int row, int t)
{
    return (size_t)w->ids[(size_t)row * w->ids_stride + (size_t)t];
}

/* A row's cells after step t, or before the first one; a row's gates. They lie in the order in which the steps write them:
 * with rows of a power of two bytes apart, single lines of each would fall on the same sets of the cache. */
static float *cells_at(const lstm_layer_t *w, int row, int t) { return w->c + ((size_t)t * w->rows + row) * w->hidden; }

static const float *cells_before(const lstm_layer_t *w, const float *zero, int row, int t)
{
    if (starts_at(w, row, t)) return zero;
    return t ? cells_at(w, row, t - 1) : w->c0 + (size_t)row * w->hidden;
}

/* The gates i, f, g, o of the units from u on: 16 floats apart. */
static float *gates_at(const lstm_layer_t *w, int row, int t, int u)
{
    return w->gates + ((size_t)t * w->rows + row) * 4 * w->hidden + 4 * (u & ~15) + (u & 15);
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

/* ---- forwards: panels of LSTM_UNITS units, [block][k][16 outputs], the gates one after the other; bf16: a block is
 * [pair of k][16 outputs][2] ---- */

static void pack_forward(const lstm_layer_t *w, lstm_scratch_t *s)
{
    const int hidden = w->hidden;
    char *to = (char *)s->packed;
    for (int unit = 0; unit < hidden; unit += LSTM_UNITS)
        for (int block = 0; block < LSTM_BLOCKS; block++) {
            const float *rows[BLOCK];
            for (int output = 0; output < BLOCK; output++) {
                const int gate = (block * BLOCK + output) / LSTM_UNITS, j = (block * BLOCK + output) % LSTM_UNITS;
                rows[output] = w->weights + (size_t)(gate * hidden + unit + j) * (size_t)hidden;
            }
            to = pack_block(w->products, to, rows, hidden, s->columns);
        }
}

/* The gates, c and h of LSTM_UNITS units of a row from u on, from their products z and their inputs. */
INLINE void forward_units(const lstm_layer_t *w, const lstm_scratch_t *s, int row, int t, int u, const float *z,
                          const float *inputs, float *h_now)
{
    const vf one = vf_all(1.0f); /* an fma with one is a sum */
    const size_t H = (size_t)w->hidden;
    const float *before = cells_before(w, s->zero, row, t);
    vf sum[4];
    for (int g = 0; g < 4; g++) sum[g] = vf_fma(one, vf_load(z + g * LANES), vf_load(inputs + g * H));
    vf i = vf_sigmoid(sum[0]), f = vf_sigmoid(sum[1]), g = vf_tanh(sum[2]), o = vf_sigmoid(sum[3]);
    vf c = vf_fma(f, vf_load(before + u), vf_mul(i, g));
    vf h = vf_mul(o, vf_tanh(c));
    float *gates = gates_at(w, row, t, u);
    vf_store(gates, i), vf_store(gates + 16, f), vf_store(gates + 32, g), vf_store(gates + 48, o);
    vf_store(cells_at(w, row, t) + u, c);
    vf_store(h_now, h);
}

static void forward_rows(const lstm_layer_t *w, lstm_scratch_t *s, int first, int count)
{
    const int hidden = w->hidden, steps = w->steps;
    const int is_bf16 = w->products != LH_FP32, rows = product_rows(w->products, count);
    const int k = product_steps(w->products, hidden);
    const size_t H = (size_t)hidden, stride = stride_of(hidden), block = (size_t)k * STEP_BYTES;
    clear_rows(s, stride, rows);
    for (int r = 0; r < count; r++) memcpy(s->rows[is_bf16] + r * stride, w->h0 + (first + r) * H, H * sizeof(float));
    for (int t = 0; t < steps; t++) {
        const float *a[LSTM_ROWS], *from[LSTM_ROWS];
        float *old = s->rows[is_bf16 ? 0 : t & 1], *now = s->rows[is_bf16 ? 1 : ~t & 1];
        row_pointers(a, old, stride, rows);
        for (int r = 0; r < count; r++) {
            const size_t at = (size_t)(first + r) * steps + t;
            if (starts_at(w, first + r, t)) memset(old + r * stride, 0, H * sizeof(float));
            else if (is_bf16) round_to_bf16((uint16_t *)(old + r * stride), now + r * stride, hidden);
            from[r] = w->inputs + (w->ids ? id_at(w, first + r, t) : at) * 4 * H;
        }
        /* The gates of a panel follow the product of the next one: a core cannot pass what a tile stores on to a load, which
         * therefore waits until it is in the cache. */
        const char *panel = (const char *)s->packed;
        for (int u = 0; u <= hidden; u += LSTM_UNITS, panel += LSTM_BLOCKS * block) {
            zrow *z = s->z[u / LSTM_UNITS & 1], *of_last = s->z[~(u / LSTM_UNITS) & 1];
            if (u < hidden)
                multiply_panel(w->products, (const void *const *)a, rows, k, panel, LSTM_BLOCKS, z[0].f, PANEL, z);
            for (int r = 0; r < count && u; r++) {
                const int last = u - LSTM_UNITS;
                forward_units(w, s, first + r, t, last, of_last[r].f, from[r] + last, now + r * stride + last);
            }
        }
        for (int r = 0; r < count; r++)
            memcpy(w->h + ((size_t)(first + r) * steps + t) * H, now + r * stride, H * sizeof(float));
    }
}

/* ---- backwards: blocks of 16 inputs, [k = 4 hidden outputs][16]; bf16: [pair of k][16][2] ---- */

static void pack_backward(const lstm_layer_t *w, lstm_scratch_t *s)
{
    const int hidden = w->hidden, is_bf16 = w->products != LH_FP32, per_k = is_bf16 ? 2 : 1;
    float *to = s->packed;
    for (int u = 0; u < hidden; u += BLOCK)
        for (int k = 0; k < 4 * hidden; k += per_k, to += BLOCK) {
            const float *from = w->weights + (size_t)k * hidden + u;
            if (is_bf16) round_pairs((uint32_t *)to, from, from + hidden, BLOCK);
            else memcpy(to, from, BLOCK * sizeof(float));
        }
}

/* The derivatives of one row's sums at step t. `carried` and `cell` are dL/dh and dL/dc from the step after; `cell` is
 * moved on to this step. `to`: a second place for the derivatives, or NULL. */
static void gates_backward(const lstm_layer_t *w, const float *zero, int row, int t, const float *carried,
                           float *cell, float *to)
{
    const size_t H = (size_t)w->hidden, at = (size_t)row * w->steps + t;
    const float *c = cells_at(w, row, t), *before = cells_before(w, zero, row, t), *d_h = w->d_h + at * H;
    const int starts = starts_at(w, row, t);
    float *out = w->d_gates + at * 4 * H;
    float *sum = w->d_inputs ? w->d_inputs + id_at(w, row, t) * 4 * H : NULL;
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

static void backward_rows(const lstm_layer_t *w, lstm_scratch_t *s, int first, int count)
{
    const int hidden = w->hidden;
    const size_t H = (size_t)hidden, stride = stride_of(4 * hidden), carried = H + 16;
    const int is_bf16 = w->products != LH_FP32, rows = product_rows(w->products, count);
    const int k = product_steps(w->products, 4 * hidden);
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
            float *to = s->carried + u;
            multiply_panel(w->products, (const void *const *)a, rows, k, panel, width / BLOCK, to, carried, s->z[0]);
            for (int r = 0; r < count; r++)
                if (starts_at(w, first + r, t)) memset(to + r * carried, 0, (size_t)width * sizeof(float));
        }
    }
}

/* What the recurrent product of the n-th character read. `zero`: hidden zeros. */
static const float *h_before(const lstm_layer_t *w, const float *zero, int n)
{
    const int row = n / w->steps, t = n % w->steps;
    if (starts_at(w, row, t)) return zero;
    return t ? w->h + (size_t)(n - 1) * w->hidden : w->h0 + (size_t)row * w->hidden;
}

static int lstm_run(const lstm_layer_t *w, void (*pack)(const lstm_layer_t *, lstm_scratch_t *),
                    void (*go)(const lstm_layer_t *, lstm_scratch_t *, int, int))
{
    lstm_scratch_t s;
    if (!lstm_scratch_open(&s, w)) return 1;
    pack(w, &s);
    for (int first = 0; first < w->rows; first += LSTM_ROWS)
        go(w, &s, first, w->rows - first < LSTM_ROWS ? w->rows - first : LSTM_ROWS);
    return 0;
}

/* Computes h, c and gates. Returns 1 when there is no memory. */
static int lstm_forward(const lstm_layer_t *w) { return lstm_run(w, pack_forward, forward_rows); }

/* Computes d_gates, and d_inputs where there are ids. Returns 1 when there is no memory. */
static int lstm_backward(const lstm_layer_t *w) { return lstm_run(w, pack_backward, backward_rows); }

#endif
