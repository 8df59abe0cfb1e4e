/* A training pass: a window of characters through the network forwards and backwards, to the gradient of every parameter.
 *
 * It is what model/network/regularization.py, the cross-entropy and autograd compute, to rounding, from the same draws.
 * The draws, and what follows the gradients, are the caller's. One thread computes a pass; callers divide the rows of a
 * batch among threads. Every sum has an order of its own, so all bits are the same with any instruction set.
 *
 * A hidden size that is no multiple of 16 is filled up with units whose weights are zero, and which stay zero.
 */
#ifndef LONGHAND_PASS_H
#define LONGHAND_PASS_H

#include "../../stepper.h"
#include "lstm_layer.h"
#include "../sampling.h"

enum { W_IH, W_HH, B_IH, B_HH, LAYER_PARAMETERS }; /* the parameters of a layer; before the first is the embedding */

typedef struct {
    int by_id;                /* whether `x` has a row for each id */
    int rows, inputs;         /* of x */
    const float *x;           /* (rows, inputs) */
    const float *w_ih, *w_hh; /* filled up, and with dropped weights */
    float *bias, *sums, *out; /* (4 units), (rows, 4 units), (N, units) */
    lstm_layer_t lstm;
} pass_layer_t;

typedef struct {
    lh_pass *p;
    int units, n;                 /* hidden, filled up; characters: rows * steps */
    pass_layer_t layer[MAX_LAYERS];
    float *x, *logits, *d_out[2]; /* (N, embed), (N, V), (N, max of units and embed) */
    float *d_gates, *d_inputs;    /* (N, 4 units), (V, 4 units) */
    float *d_weights;             /* (4 units, max of units and embed): a gradient of weights that are filled up */
    float *zero, *columns;        /* for packing */
    double *weight;               /* (V) */
    const float **row;            /* (max of N, V and 4 units): rows of a second factor */
    char *packed, *factors;       /* the second and the first factor of a product */
    zrow *z;
} pass_t;

static int most(int a, int b) { return a > b ? a : b; }

/* ---- memory ---- */

static size_t first_factor_bytes(int products, int rows, int k)
{
    return (size_t)(rows + SPARE_ROWS) * row_bytes(products, k);
}

static void lay_out_pass(pass_t *s, arena_t *at)
{
    const lh_pass *p = s->p;
    const int units = s->units, n = s->n, wide = most(units, p->embed), rows = most(n, p->vocab);
    const size_t f = sizeof(float), gates = 4 * (size_t)units;
    s->zero = allocate(at, (size_t)most(units, BLOCK) * f);
    s->columns = allocate(at, BLOCK * stride_of(most(wide, rows)) * f);
    s->weight = allocate(at, (size_t)p->vocab * sizeof(double));
    s->row = allocate(at, (size_t)most(rows, 4 * units) * sizeof *s->row);
    s->z = allocate(at, PRODUCT_ROWS * sizeof *s->z);
    s->x = allocate(at, (size_t)n * (size_t)p->embed * f);
    s->logits = allocate(at, (size_t)n * (size_t)p->vocab * f);
    for (int i = 0; i < 2; i++) s->d_out[i] = allocate(at, (size_t)rows * (size_t)wide * f);
    s->d_gates = allocate(at, (size_t)n * gates * f);
    s->d_inputs = allocate(at, s->layer[0].by_id ? (size_t)p->vocab * gates * f : 0);
    s->d_weights = allocate(at, units == p->hidden ? 0 : gates * (size_t)wide * f);
    size_t packed = 0, factors = 0; /* the most of: a layer's sums, weights' gradients, and what has a row for each id */
    const int outputs[] = {4 * units, wide, p->vocab}, k[] = {wide, most(rows, 4 * units), wide};
    const int many[] = {rows, 4 * units, p->vocab}, of[] = {most(wide, most(4 * units, p->vocab)), rows, n};
    for (int i = 0; i < 3; i++) {
        const size_t second = packed_bytes(p->products, outputs[i], k[i]);
        const size_t first = first_factor_bytes(p->products, many[i], of[i]);
        if (second > packed) packed = second;
        if (first > factors) factors = first;
    }
    s->packed = allocate(at, packed);
    s->factors = allocate(at, factors);
    for (int i = 0; i < p->layers; i++) {
        pass_layer_t *l = &s->layer[i];
        const size_t states = (size_t)p->rows * (size_t)units * f, outputs = (size_t)n * (size_t)units * f;
        const int is_filled_up = units != p->hidden;
        l->bias = allocate(at, gates * f);
        l->sums = allocate(at, (size_t)l->rows * gates * f);
        l->w_ih = allocate(at, is_filled_up ? gates * (size_t)l->inputs * f : 0);
        l->w_hh = allocate(at, is_filled_up || p->weight_threshold ? gates * (size_t)units * f : 0);
        l->lstm.h0 = allocate(at, states), l->lstm.c0 = allocate(at, states);
        l->lstm.h = allocate(at, outputs), l->lstm.c = allocate(at, outputs);
        l->lstm.gates = allocate(at, 4 * outputs);
        l->out = p->output_threshold ? allocate(at, outputs) : l->lstm.h;
    }
}

static int pass_open(pass_t *s, lh_pass *p)
{
    memset(s, 0, sizeof *s);
    s->p = p, s->units = (p->hidden + 15) / 16 * 16, s->n = p->rows * p->steps;
    for (int i = 0; i < p->layers; i++) {
        pass_layer_t *l = &s->layer[i];
        /* Without dropout of the input, its product is one of each id, if those are fewer. */
        l->by_id = i == 0 && !p->embed_threshold && p->vocab <= s->n;
        l->rows = l->by_id ? p->vocab : s->n;
        l->inputs = i ? s->units : p->embed;
    }
    arena_t at = {NULL, 0};
    lay_out_pass(s, &at);
    at.base = thread_scratch(SCRATCH_PASS, at.used), at.used = 0;
    if (!at.base) return 0;
    lay_out_pass(s, &at);
    memset(s->zero, 0, (size_t)most(s->units, BLOCK) * sizeof(float));
    return 1;
}

/* Copies `groups` matrices of (rows, width) to places of (to_rows, to_width), or from there; what is filled up is zero. */
static void copy_matrices(float *to, int to_rows, int to_width, const float *from, int from_rows, int from_width, int groups)
{
    const int rows = to_rows < from_rows ? to_rows : from_rows, width = to_width < from_width ? to_width : from_width;
    const size_t to_size = (size_t)to_rows * (size_t)to_width, from_size = (size_t)from_rows * (size_t)from_width;
    for (int g = 0; g < groups; g++, to += to_size, from += from_size)
        for (int r = 0; r < to_rows; r++) {
            float *row = to + (size_t)r * (size_t)to_width;
            if (r < rows) memcpy(row, from + (size_t)r * (size_t)from_width, (size_t)width * sizeof(float));
            memset(row + (r < rows ? width : 0), 0, (size_t)(to_width - (r < rows ? width : 0)) * sizeof(float));
        }
}

/* ---- dropout ---- */

#define DRAWS 256 /* of a byte */
#define AT_ONCE 64 /* elements; copied, since `to` may be `from` */

/* An element is kept where its draw is at least the threshold, times what keeps the mean; elsewhere it is zero. */
static void drop(const float *from, size_t from_stride, const uint8_t *draws, int threshold, float *to, size_t to_stride,
                 int rows, int width)
{
    const float factor = (float)(DRAWS / (double)(DRAWS - threshold));
    for (int r = 0; r < rows; r++, from += from_stride, to += to_stride, draws += width) {
        int j = 0;
        for (; j + AT_ONCE <= width; j += AT_ONCE) {
            float x[AT_ONCE];
            uint8_t draw[AT_ONCE];
            memcpy(x, from + j, sizeof x), memcpy(draw, draws + j, sizeof draw);
            for (int i = 0; i < AT_ONCE; i++) x[i] = draw[i] >= threshold ? x[i] * factor : 0.0f;
            memcpy(to + j, x, sizeof x);
        }
        for (; j < width; j++) to[j] = draws[j] >= threshold ? from[j] * factor : 0.0f;
    }
}

/* ---- products ---- */

/* out (rows, outputs) = bias + a (rows, k) times the weights (outputs, k) of each output. */
static void times_outputs(pass_t *s, const float *a, size_t stride, int rows, const float *weights, int outputs, int k,
                          const float *bias, float *out)
{
    const int products = s->p->products, steps = product_steps(products, k);
    const char *factors = (const char *)a;
    size_t bytes = stride * sizeof(float);
    pack_outputs(products, s->packed, weights, outputs, k, s->columns);
    if (products != LH_FP32) {
        round_rows(products, s->factors, a, stride, rows, k);
        factors = s->factors, bytes = row_bytes(products, k);
    }
    multiply_rows(products, factors, bytes, rows, steps, s->packed, outputs, bias, out, (size_t)outputs, s->z);
}

/* out (rows, outputs) = a (rows, k) times the weights (k, outputs) of each factor. */
static void times_factors(pass_t *s, const float *a, int rows, const float *weights, int k, int outputs, float *out,
                          size_t out_stride)
{
    const int products = s->p->products;
    const char *factors = (const char *)a;
    size_t bytes = (size_t)k * sizeof(float);
    for (int i = 0; i < k; i++) s->row[i] = weights + (size_t)i * (size_t)outputs;
    pack_factors(products, s->packed, s->row, k, outputs, s->zero);
    if (products != LH_FP32) {
        round_rows(products, s->factors, a, (size_t)k, rows, k);
        factors = s->factors, bytes = row_bytes(products, k);
    }
    multiply_rows(products, factors, bytes, rows, product_steps(products, k), s->packed, outputs, NULL, out, out_stride,
                  s->z);
}

/* out (rows, outputs) = the transposed first factor, in s->factors, times s->row[k], of `outputs` each. */
static void times_rows(pass_t *s, int rows, int k, int outputs, float *out)
{
    const int products = s->p->products;
    pack_factors(products, s->packed, s->row, k, outputs, s->zero);
    multiply_rows(products, s->factors, row_bytes(products, k), rows, product_steps(products, k), s->packed, outputs, NULL,
                  out, (size_t)outputs, s->z);
}

/* ---- forwards ---- */

/* Of the n-th character. */
static int64_t at_character(const lh_pass *p, const int64_t *ids, int64_t stride, int n)
{
    return ids[(int64_t)(n / p->steps) * stride + n % p->steps];
}
static int64_t id_of(const lh_pass *p, int n) { return at_character(p, p->ids, p->ids_stride, n); }
static int64_t target_of(const lh_pass *p, int n) { return at_character(p, p->targets, p->targets_stride, n); }

static const float *layer_parameter(const lh_pass *p, int layer, int which)
{
    return p->parameters[1 + layer * LAYER_PARAMETERS + which];
}
static float *layer_gradient(const lh_pass *p, int layer, int which)
{
    return p->gradients[1 + layer * LAYER_PARAMETERS + which];
}
static int head_weight(const lh_pass *p) { return 1 + p->layers * LAYER_PARAMETERS; }

/* A state (rows, hidden) of the caller's: kind 0 is h, 1 is c. */
static float *state_of(const lh_pass *p, int kind, int layer)
{
    return p->state + ((size_t)kind * (size_t)p->layers + (size_t)layer) * (size_t)p->rows * (size_t)p->hidden;
}

/* The vectors of the characters. */
static const float *embed_characters(pass_t *s)
{
    const lh_pass *p = s->p;
    const size_t embed = (size_t)p->embed;
    for (int n = 0; n < s->n; n++) {
        const float *from = p->parameters[0] + (size_t)id_of(p, n) * embed;
        float *to = s->x + (size_t)n * embed;
        if (p->embed_threshold) /* one mask for all characters of a row */
            drop(from, embed, p->embed_draws + (size_t)(n / p->steps) * embed, p->embed_threshold, to, embed, 1, p->embed);
        else memcpy(to, from, embed * sizeof(float));
    }
    return s->x;
}

/* The weights and the state that a layer computes with. */
static void prepare_layer(pass_t *s, int i)
{
    const lh_pass *p = s->p;
    const int units = s->units, hidden = p->hidden;
    pass_layer_t *l = &s->layer[i];
    lstm_layer_t *w = &l->lstm;
    const float *w_ih = layer_parameter(p, i, W_IH), *w_hh = layer_parameter(p, i, W_HH);
    const float *b_ih = layer_parameter(p, i, B_IH), *b_hh = layer_parameter(p, i, B_HH);
    float *dropped = (float *)l->w_hh;
    if (p->weight_threshold) {
        if (units != hidden) dropped = s->d_weights; /* (4 hidden, hidden), before it is filled up */
        drop(w_hh, (size_t)hidden, p->weight_draws[i], p->weight_threshold, dropped, (size_t)hidden, 4 * hidden, hidden);
        w_hh = dropped;
    }
    if (units != hidden) {
        copy_matrices((float *)l->w_hh, units, units, w_hh, hidden, hidden, 4);
        copy_matrices((float *)l->w_ih, units, l->inputs, w_ih, hidden, i ? hidden : p->embed, 4);
    } else l->w_hh = w_hh, l->w_ih = w_ih;
    for (int gate = 0; gate < 4; gate++)
        for (int u = 0; u < units; u++)
            l->bias[gate * units + u] = u < hidden ? b_ih[gate * hidden + u] + b_hh[gate * hidden + u] : 0.0f;
    for (int r = 0; r < p->rows && p->reset_draws; r++)
        for (int kind = 0; kind < 2 && p->reset_draws[r] < p->reset; kind++)
            memset(state_of(p, kind, i) + (size_t)r * (size_t)hidden, 0, (size_t)hidden * sizeof(float));
    copy_matrices((float *)w->h0, p->rows, units, state_of(p, 0, i), p->rows, hidden, 1);
    copy_matrices((float *)w->c0, p->rows, units, state_of(p, 1, i), p->rows, hidden, 1);
    w->rows = p->rows, w->steps = p->steps, w->hidden = units, w->products = p->products;
    w->ids = l->by_id ? p->ids : NULL, w->ids_stride = (size_t)p->ids_stride;
    w->inputs = l->sums, w->weights = l->w_hh, w->starts = p->starts;
    w->d_gates = s->d_gates, w->d_inputs = l->by_id ? s->d_inputs : NULL;
}

/* Returns 1 when there is no memory. */
static int pass_forward(pass_t *s)
{
    const lh_pass *p = s->p;
    const float *x = s->layer[0].by_id ? p->parameters[0] : embed_characters(s);
    for (int i = 0; i < p->layers; i++) {
        pass_layer_t *l = &s->layer[i];
        prepare_layer(s, i);
        l->x = x;
        times_outputs(s, x, (size_t)l->inputs, l->rows, l->w_ih, 4 * s->units, l->inputs, l->bias, l->sums);
        if (lstm_forward(&l->lstm)) return 1;
        if (p->output_threshold) {
            if (s->units != p->hidden) memset(l->out, 0, (size_t)s->n * (size_t)s->units * sizeof(float));
            drop(l->lstm.h, (size_t)s->units, p->output_draws[i], p->output_threshold, l->out, (size_t)s->units, s->n,
                 p->hidden);
        }
        x = l->out;
    }
    return 0;
}

/* ---- the loss ---- */

/* Replaces the logits by the derivatives of the mean loss with respect to them, and adds those up in d_bias. */
static double cross_entropy(pass_t *s, float *restrict d_bias)
{
    const int vocab = s->p->vocab;
    double sum = 0.0;
    memset(d_bias, 0, (size_t)vocab * sizeof(float));
    for (int n = 0; n < s->n; n++) {
        float *restrict logits = s->logits + (size_t)n * (size_t)vocab;
        const int64_t target = target_of(s->p, n);
        const double max = logits[argmax(logits, vocab)], total = weigh(logits, vocab, max, s->weight);
        const double scale = 1.0 / (total * (double)s->n);
        sum -= (double)logits[target] - max - log_of(total);
        s->weight[target] -= total;
        for (int i = 0; i < vocab; i++) {
            logits[i] = (float)(s->weight[i] * scale);
            d_bias[i] += logits[i];
        }
    }
    return sum / (double)s->n;
}

/* The head forwards and backwards: the derivatives with respect to x (N, units). */
static void pass_head(pass_t *s, const float *x, float *d_x)
{
    lh_pass *p = s->p;
    const int head = head_weight(p), vocab = p->vocab, hidden = p->hidden;
    const size_t units = (size_t)s->units;
    times_outputs(s, x, units, s->n, p->parameters[head], vocab, hidden, p->parameters[head + 1], s->logits);
    p->loss = cross_entropy(s, p->gradients[head + 1]);
    transpose_rows(p->products, s->factors, s->logits, s->n, vocab, s->zero);
    for (int n = 0; n < s->n; n++) s->row[n] = x + (size_t)n * units;
    times_rows(s, vocab, s->n, hidden, p->gradients[head]);
    if (s->units != hidden) memset(d_x, 0, (size_t)s->n * units * sizeof(float));
    times_factors(s, s->logits, s->n, p->parameters[head], vocab, hidden, d_x, units);
}

/* ---- backwards ---- */

/* to[j] = the sum over the rows, of `hidden` of each gate's `units`. */
static void sum_rows(const float *rows, int n, int units, int hidden, float *restrict to)
{
    for (int gate = 0; gate < 4; gate++) {
        float *restrict sums = to + (size_t)gate * (size_t)hidden;
        memset(sums, 0, (size_t)hidden * sizeof(float));
        for (int r = 0; r < n; r++) {
            const float *restrict row = rows + ((size_t)r * 4 + (size_t)gate) * (size_t)units;
            for (int u = 0; u < hidden; u++) sums[u] += row[u];
        }
    }
}

/* Multiplies as times_rows, to a gradient of (4 hidden, width). */
static void weights_gradient(pass_t *s, int k, int inputs, float *gradient, int width)
{
    float *out = s->units == s->p->hidden ? gradient : s->d_weights;
    times_rows(s, 4 * s->units, k, inputs, out);
    if (out != gradient) copy_matrices(gradient, s->p->hidden, width, out, s->units, inputs, 4);
}

/* The gradients of a layer from d_out (N, units), which it changes. d_x: (rows of x, inputs). Returns 1 without memory. */
static int layer_backward(pass_t *s, int i, float *d_out, float *d_x)
{
    const lh_pass *p = s->p;
    const int hidden = p->hidden, units = s->units, gates = 4 * units;
    pass_layer_t *l = &s->layer[i];
    lstm_layer_t *w = &l->lstm;
    if (p->output_threshold)
        drop(d_out, (size_t)units, p->output_draws[i], p->output_threshold, d_out, (size_t)units, s->n, hidden);
    w->d_h = d_out;
    if (l->by_id) memset(s->d_inputs, 0, (size_t)p->vocab * (size_t)gates * sizeof(float));
    if (lstm_backward(w)) return 1;
    const float *d_sums = l->by_id ? s->d_inputs : s->d_gates;
    sum_rows(d_sums, l->rows, units, hidden, layer_gradient(p, i, B_IH));
    memcpy(layer_gradient(p, i, B_HH), layer_gradient(p, i, B_IH), 4 * (size_t)hidden * sizeof(float));

    float *d_w_hh = layer_gradient(p, i, W_HH);
    transpose_rows(p->products, s->factors, s->d_gates, s->n, gates, s->zero);
    for (int n = 0; n < s->n; n++) s->row[n] = h_before(w, s->zero, n);
    weights_gradient(s, s->n, units, d_w_hh, hidden);
    if (p->weight_threshold)
        drop(d_w_hh, (size_t)hidden, p->weight_draws[i], p->weight_threshold, d_w_hh, (size_t)hidden, 4 * hidden, hidden);

    if (l->by_id) transpose_rows(p->products, s->factors, s->d_inputs, p->vocab, gates, s->zero);
    for (int r = 0; r < l->rows; r++) s->row[r] = l->x + (size_t)r * (size_t)l->inputs;
    weights_gradient(s, l->rows, l->inputs, layer_gradient(p, i, W_IH), i ? hidden : p->embed);
    times_factors(s, d_sums, l->rows, l->w_ih, gates, l->inputs, d_x, (size_t)l->inputs);
    return 0;
}

/* The gradient of the table from those of the characters' vectors, d_x (N, embed), which it changes. */
static void embedding_gradient(pass_t *s, float *d_x)
{
    const lh_pass *p = s->p;
    const size_t embed = (size_t)p->embed;
    memset(p->gradients[0], 0, (size_t)p->vocab * embed * sizeof(float));
    for (int n = 0; n < s->n; n++) {
        float *restrict from = d_x + (size_t)n * embed, *restrict to = p->gradients[0] + (size_t)id_of(p, n) * embed;
        if (p->embed_threshold)
            drop(from, embed, p->embed_draws + (size_t)(n / p->steps) * embed, p->embed_threshold, from, embed, 1, p->embed);
        for (size_t j = 0; j < embed; j++) to[j] += from[j];
    }
}

/* ---- what Python calls ---- */

static void store_states(const pass_t *s)
{
    const lh_pass *p = s->p;
    for (int i = 0; i < p->layers; i++)
        for (int r = 0; r < p->rows; r++) {
            const lstm_layer_t *w = &s->layer[i].lstm;
            const size_t bytes = (size_t)p->hidden * sizeof(float), at = (size_t)r * (size_t)p->hidden;
            memcpy(state_of(p, 0, i) + at, w->h + ((size_t)(r + 1) * (size_t)p->steps - 1) * (size_t)s->units, bytes);
            memcpy(state_of(p, 1, i) + at, cells_at(w, r, p->steps - 1), bytes);
        }
}

static int pass_gradients(pass_t *s)
{
    const lh_pass *p = s->p;
    if (pass_forward(s)) return 1;
    pass_head(s, s->layer[p->layers - 1].out, s->d_out[0]);
    for (int i = p->layers - 1, turn = 0; i >= 0; i--, turn = !turn) {
        float *d_x = s->layer[i].by_id ? p->gradients[0] : s->d_out[!turn];
        if (layer_backward(s, i, s->d_out[turn], d_x)) return 1;
        if (i == 0 && !s->layer[i].by_id) embedding_gradient(s, d_x);
    }
    store_states(s);
    return 0;
}

/* Returns 1 when there is no memory, 2 when a character is none of the network's; then nothing is written. */
static int training_pass(lh_pass *p)
{
    pass_t s;
    for (int n = 0; n < p->rows * p->steps; n++) {
        const int64_t id = id_of(p, n), target = target_of(p, n);
        if (id < 0 || id >= p->vocab || target < 0 || target >= p->vocab) return 2;
    }
    if (!pass_open(&s, p)) return 1;
    const uint64_t mode = float_mode_flush();
    const int failed = pass_gradients(&s);
    if (p->products == LH_BF16_TILES) bf16_tiles_end();
    float_mode_leave(mode);
    return failed;
}

#endif
