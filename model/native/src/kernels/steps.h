/* A step's phases: a layer's, the head's and the sampling's. Compiled once for each instruction set. */
#ifndef LONGHAND_STEPS_H
#define LONGHAND_STEPS_H

#include "../stepper.h"
#include "gates.h"
#include "products/gemm.h"
#include "sampling.h"

/* The row of h (fp32), or of activations (int8), of one layer; `now` is 0 or 1, see stepper.h. */
INLINE const void *h_of(const lh_stepper *s, const rows_t *rows, int layer, int now, int row)
{
    size_t at = (size_t)row * (size_t)s->stride;
    if (s->model.is_int8) return rows->hq[layer][now] + at * ACTIVATION_BYTES;
    return rows->h[layer][now] + at;
}

#if defined(HAS_TILES)
INLINE int is_by_tiles(const lh_stepper *s, int rows) { return s->model.is_int8 && rows >= TILE_MIN_ROWS; }
#else
INLINE int is_by_tiles(const lh_stepper *s, int rows) { return (void)s, (void)rows, 0; }
#endif

/* z += rows * weights for some blocks of a panel, all segments. */
static void multiply(const lh_stepper *s, const layer_t *l, int block, int blocks, int rows, scratch_t *t)
{
    const char *w = l->weights + (size_t)block * l->block_size;
#if defined(HAS_TILES)
    if (is_by_tiles(s, rows)) {
        const tile_inputs inputs = {.rows = {t->row[0], t->row[1]}, .inputs = l->inputs, .steps = l->steps};
        multiply_tiles(inputs, rows, w, l->block_size, blocks, (zrow *)t->z);
        return;
    }
#endif
    for (int i = 0; i < l->inputs; i++, w += (size_t)l->steps * STEP_BYTES) {
        const void *wide[ROWS];
        for (int r = 0; r < rows; r++) wide[r] = (const char *)t->row[i][r] + s->stride;
        multiply_segment(s->model.is_int8, t->row[i], wide, rows, l->steps, w, l->block_size, blocks, (zrow *)t->z);
    }
}

/* LANES sums as floats. fp32 sums began with the initial value; int8 adds it here. */
INLINE vf finish(int is_int8, const zrow *z, int at, const float *scale, const float *initial)
{
    if (!is_int8) return vf_load(z->f + at);
    return vf_fma(vi_to_float(vi_load(z->i + at)), vf_load(scale + at), vf_load(initial + at));
}

INLINE void begin(int is_int8, zrow *z, int outputs, const float *initial, const int32_t *offset)
{
    for (int v = 0; v < outputs; v += LANES) {
        if (is_int8) vi_store(z->i + v, vi_load(offset + v));
        else vf_store(z->f + v, vf_load(initial + v));
    }
}

/* Turns LANES values of h, from the one at `first` on, into activations of a row. */
INLINE void quantize_lanes(vf h, int first, int stride, uint8_t *row)
{
    (void)stride;
    vf_to_activations(row + first, vf_mul(vf_clamp(h, vf_all(-1.0f), vf_all(1.0f)), vf_all(ACTIVATION_SCALE)));
#if defined(HAS_WIDE)
    widen_activations((int16_t *)(row + stride) + first, row + first);
#endif
}

/* The same for n values, a multiple of LANES. */
static void quantize(const float *h, int first, int n, int stride, uint8_t *row)
{
    for (int j = 0; j < n; j += LANES) quantize_lanes(vf_load(h + j), first + j, stride, row);
}

/* How many rows an item has: evenly divided, at most ROWS, whole tiles except in the last item. */
static int rows_per_item(int is_int8, int rows)
{
#if defined(HAS_TILES)
    const int tile = is_int8 && rows >= TILE_MIN_ROWS ? 2 * TILE_GROUP : TILE_ROWS_F32;
#else
    const int tile = TILE_ROWS_F32;
    (void)is_int8;
#endif
    int items = (rows + ROWS - 1) / ROWS, item_rows = (rows + items - 1) / items, whole = (item_rows + tile - 1) / tile * tile;
    return whole < ROWS ? whole : ROWS;
}

static int32_t id_fed(const lh_stepper *s, int k, int column)
{
    const lh_block *b = s->block;
    return k ? b->ids[(size_t)(k - 1) * b->rows + column] : b->forced_ids[column];
}

/* Prepares a row for a panel's product: its sums, its inputs, and its cells. The row continues the row `source` of the
 * step before, or the zero state where an item begins: there its input is zero if `is_zeroed`, else what the source has.
 * Returns where its sums begin. */
INLINE const float *begin_row(const lh_stepper *s, const rows_t *rows, scratch_t *t, int layer, int now, int panel, int r,
                              int row, int source, int32_t fed, int begins_item, int is_zeroed)
{
    const layer_t *l = &s->layer[layer];
    const size_t unit = (size_t)panel * UNITS, stride = (size_t)s->stride;
    const float *initial = l->initial + ((layer ? 0 : (size_t)fed * (l->blocks / BLOCKS)) + panel) * PANEL;
    begin(s->model.is_int8, (zrow *)t->z + r, PANEL, initial, l->offset + panel * PANEL);
    if (layer) t->row[0][r] = h_of(s, rows, layer - 1, now, row);
    const void **h = &t->row[layer ? 1 : 0][r];
    float *c = rows->c[layer][now] + row * stride + unit;
    const float *before = rows->c[layer][now ^ 1] + source * stride + unit;
    if (begins_item) {
        *h = !is_zeroed ? h_of(s, rows, layer, now ^ 1, source) : s->model.is_int8 ? (const void *)s->zero_hq : s->zero_h;
        memset(c, 0, UNITS * sizeof(float));
    } else {
        *h = h_of(s, rows, layer, now ^ 1, source);
        if (c != before) memcpy(c, before, UNITS * sizeof(float));
    }
    return initial;
}

/* Turns a panel's sums into c and h, for `rows` rows; `at` is where the sixteen units of the first row are. In int8 the
 * products read activations, so h itself is only stored if it is `kept`. */
static void apply_gates(const lh_stepper *s, const rows_t *memory, int layer, int now, size_t at, int rows,
                        const zrow *z, const float *scale, const float *const *initial, int is_kept)
{
    const int is_int8 = s->model.is_int8;
    const size_t stride = (size_t)s->stride, row = at / stride * stride; /* where the first row begins */
    float *c = memory->c[layer][now] + at, *h = memory->h[layer][now] + at;
    uint8_t *hq = is_int8 ? memory->hq[layer][now] + row * ACTIVATION_BYTES : NULL;
    for (int r = 0; r < rows; r++)
        for (int u = 0; u < UNITS; u += LANES)
            cell_update(finish(is_int8, z + r, u, scale, initial[r]),
                        finish(is_int8, z + r, UNITS + u, scale, initial[r]),
                        finish(is_int8, z + r, 2 * UNITS + u, scale, initial[r]), c + r * stride + u);
    for (int r = 0; r < rows; r++)
        for (int u = 0; u < UNITS; u += LANES) {
            vf output = cell_output(finish(is_int8, z + r, 3 * UNITS + u, scale, initial[r]), c + r * stride + u);
            if (is_kept) vf_store(h + r * stride + u, output);
            if (is_int8) quantize_lanes(output, (int)(at - row) + u, s->stride, hq + r * stride * ACTIVATION_BYTES);
        }
}

#if defined(HAS_TILES)
/* The product of a panel, for rows of which some begin an item and have the h of the one before: first that of h, which
 * those rows lose again, then that of the layer below. Tiles read rows that lie evenly apart, so a row of zeros elsewhere
 * would have all of them copied. Sums of int8 are exact in any order. */
static void multiply_with_begins(const lh_stepper *s, const layer_t *l, int panel, int count, const float *const *initial,
                                 const uint8_t *begins_item, scratch_t *t)
{
    zrow *z = (zrow *)t->z;
    for (int i = l->inputs - 1; i >= 0; i--) {
        const char *w = l->weights + (size_t)panel * BLOCKS * l->block_size + (size_t)i * l->steps * STEP_BYTES;
        multiply_tiles((tile_inputs){.rows = {t->row[i]}, .inputs = 1, .steps = l->steps}, count, w, l->block_size, BLOCKS, z);
        if (i == l->inputs - 1)
            for (int r = 0; r < count; r++)
                if (begins_item[r]) begin(1, &z[r], PANEL, initial[r], l->offset_without_h + panel * PANEL);
    }
}
#endif

/* The product of a panel and the gates, for `count` rows that begin_row has prepared. */
static void finish_rows(const lh_stepper *s, const rows_t *rows, scratch_t *t, int layer, int now, int panel, int first,
                        int count, const float *const *initial, const uint8_t *begins_item, int is_kept)
{
    const layer_t *l = &s->layer[layer];
#if defined(HAS_TILES)
    if (begins_item) multiply_with_begins(s, l, panel, count, initial, begins_item, t);
    else
#endif
        multiply(s, l, panel * BLOCKS, BLOCKS, count, t);
    (void)begins_item;
    size_t at = (size_t)first * s->stride + (size_t)panel * UNITS;
    apply_gates(s, rows, layer, now, at, count, (zrow *)t->z, l->scale + panel * PANEL, initial, is_kept);
}

/* One panel of a layer, for `count` rows at step k; `is_last`: the run ends with this step. */
static void layer_item(const lh_stepper *s, scratch_t *t, int layer, int k, int panel, int first, int count, int is_last)
{
    const int is_zeroed = !is_by_tiles(s, count), now = (k & 1) ^ 1;
    const int may_end = s->block->automata || is_last || s->running[k + 1] < s->running[k]; /* a row, with this step */
    const float *initial[ROWS];
    uint8_t begins_item[ROWS];
    int n_begins = 0;
    for (int r = 0; r < count; r++) {
        int row = first + r;
        const int32_t fed = id_fed(s, k, s->order[row]);
        n_begins += begins_item[r] = fed == s->model.item_end;
        initial[r] = begin_row(s, &s->rows, t, layer, now, panel, r, row, row, fed, begins_item[r], is_zeroed);
    }
    finish_rows(s, &s->rows, t, layer, now, panel, first, count, initial, n_begins && !is_zeroed ? begins_item : NULL,
                may_end || !s->model.is_int8);
}

INLINE int layer_panels(const lh_stepper *s, int layer) { return s->layer[layer].blocks / BLOCKS; }

static void layer_phase(lh_stepper *s, int layer, int k, int is_last, int thread)
{
    int rows = s->running[k], item_rows = rows_per_item(s->model.is_int8, rows);
    int groups = (rows + item_rows - 1) / item_rows, items = layer_panels(s, layer) * groups, from = thread;
    /* every other step backwards: the weights that were read last are still in the cache */
    for (int item; (item = pool_take(&s->pool, items, &from, k & 1)) >= 0;) {
        int first = item % groups * item_rows, count = rows - first < item_rows ? rows - first : item_rows;
        /* the same panels for a thread at each step: their weights stay in its cache */
        layer_item(s, s->scratch[thread], layer, k, item / groups, first, count, is_last);
    }
}

/* The logits of some rows and some blocks of the head, (count, vstride). */
static void head_of(const lh_stepper *s, const rows_t *rows, scratch_t *t, int now, const int32_t *row, int count,
                    int panel, float *const *logits)
{
    const layer_t *l = &s->layer[s->model.layers];
    zrow *z = (zrow *)t->z;
    int is_int8 = s->model.is_int8, top = s->model.layers - 1;
    int block = panel * BLOCKS, blocks = l->blocks - block < BLOCKS ? l->blocks - block : BLOCKS;
    const float *initial = l->initial + block * BLOCK, *scale = l->scale + block * BLOCK;
    for (int r = 0; r < count; r++) {
        t->row[0][r] = h_of(s, rows, top, now, row[r]);
        begin(is_int8, &z[r], blocks * BLOCK, initial, l->offset + block * BLOCK);
    }
    multiply(s, l, block, blocks, count, t);
    for (int r = 0; r < count; r++)
        for (int v = 0; v < blocks * BLOCK; v += LANES)
            vf_store(logits[r] + block * BLOCK + v, finish(is_int8, &z[r], v, scale, initial));
}

INLINE int head_panels(const lh_stepper *s) { return (s->layer[s->model.layers].blocks + BLOCKS - 1) / BLOCKS; }

/* One panel of the head, for `count` of the rows that step k samples or scores. */
static void head_item(const lh_stepper *s, scratch_t *t, int k, int panel, const int32_t *draws, int count)
{
    float *logits[HEAD_ROWS];
    for (int r = 0; r < count; r++) logits[r] = s->logits + (size_t)draws[r] * s->vstride;
    head_of(s, &s->rows, t, (k & 1) ^ 1, draws, count, panel, logits);
}

static void head_phase(lh_stepper *s, int k, int thread)
{
    int rows = s->drawn[k + 1] - s->drawn[k], item_rows = rows < HEAD_ROWS ? rows : HEAD_ROWS, panels = head_panels(s);
    int items = panels * ((rows + item_rows - 1) / item_rows), from = thread;
    for (int item; (item = pool_take(&s->pool, items, &from, 0)) >= 0;) {
        int first = item / panels * item_rows, count = rows - first < item_rows ? rows - first : item_rows;
        head_item(s, s->scratch[thread], k, item % panels, s->draws + s->drawn[k] + first, count);
    }
}

/* The logits that the row's id is drawn from at step k: `logits`, or what bias and penalties make of them. */
static const float *logits_to_draw(const lh_stepper *s, int k, int column, const float *logits,
                                   const sampling_scratch_t *d)
{
    const lh_block *b = s->block;
    const sampling_t *params = &b->sampling[column];
    int n = s->model.vocab, has_penalties = sampling_has_penalties(params);
    int first = b->bias_starts ? b->bias_starts[column] : 0, end = b->bias_starts ? b->bias_starts[column + 1] : 0;
    if (!has_penalties && first == end) return logits;
    memset(d->bias, 0, (size_t)n * sizeof(double));
    memset(d->occurrences, 0, (size_t)n * sizeof(int32_t));
    memset(d->generated, 0, (size_t)n * sizeof(int32_t));
    for (int i = first; i < end; i++) d->bias[b->bias_ids[i]] = b->bias_values[i];
    if (has_penalties) {
        int left = params->penalty_window; /* the ids that earlier steps sampled, then the row's window */
        for (int j = k - 1; j >= 0 && left > 0; j--)
            if (b->forced_ids[(size_t)(j + 1) * b->rows + column] == SAMPLE_ID)
                count(d, b->ids[(size_t)j * b->rows + column]), left--;
        const int32_t *window = b->windows ? b->windows + (size_t)column * b->window_size : NULL;
        for (int i = b->windows ? b->window_size - 1 : -1; i >= 0 && left > 0; i--, left--) count(d, window[i]);
    }
    adjust(logits, n, params, d);
    return d->adjusted;
}

/* Copies the logits to d->adjusted, and gives those that a row's constraint does not allow minus infinity. Returns the
 * log-probability of the others together, at temperature 1, and puts the normalizer of all into *log_total; `logits` are
 * the network's. If nothing may follow, which ends a row, all are allowed. */
static float mask(const lh_automaton *a, int32_t state, int32_t budget, const float *logits, const float *drawn_from,
                  int n, const sampling_scratch_t *d, double *log_total)
{
    const int32_t *next = a->next + (size_t)state * a->classes;
    double max = logits[argmax(logits, n)], largest = -INFINITY, left = 0.0, sum = weigh(logits, n, max, d->weight);
    *log_total = log_of(sum);
    for (int i = 0; i < n; i++) {
        int32_t after = next[a->class_of[i]];
        d->keep[i] = after >= 0 && a->distance[after] < budget;
        if (d->keep[i] && logits[i] > largest) largest = logits[i];
    }
    int is_any = largest > -INFINITY;
    for (int i = 0; i < n; i++) d->adjusted[i] = d->keep[i] || !is_any ? drawn_from[i] : -INFINITY;
    if (!is_any) return 0.0f;
    if (largest - max > -600.0) { /* the weights of what is left are not rounded to 0 */
        for (int i = 0; i < n; i++) left += d->keep[i] ? d->weight[i] : 0.0;
        return (float)-log_of(sum / left);
    }
    for (int i = 0; i < n; i++) left += d->keep[i] ? exp_negative((double)logits[i] - largest) : 0.0;
    return (float)(largest - max + log_of(left) - *log_total);
}

/* Advances a row's constraint by the id that was sampled. If nothing may follow, the row stops: its state is copied
 * back to the table, and what its later steps compute is not used. */
static void advance_constraint(lh_stepper *s, const lh_automaton *a, int k, int row, int32_t id)
{
    lh_block *b = s->block;
    int column = s->order[row];
    int32_t after = a->next[(size_t)b->states[column] * a->classes + a->class_of[id]];
    if (after >= 0) b->states[column] = after, b->budgets[column]--;
    if (a->continuation[b->states[column]] <= b->budgets[column]) return;
    b->made_steps[column] = k + 1;
    if (k + 1 < b->row_steps[column]) store_row(s, row, k + 1);
}

/* Draws the id of a row at step k, or scores one. */
static void draw_row(lh_stepper *s, int k, int row, const sampling_scratch_t *scratch)
{
    const lh_block *b = s->block;
    int column = s->order[row];
    size_t at = (size_t)k * b->rows + column;
    const float *logits = s->logits + (size_t)row * s->vstride;
    const lh_automaton *automaton = NULL;
    if (b->automata && b->automaton_of[column] >= 0) {
        automaton = &b->automata[b->automaton_of[column]];
        if (b->made_steps[column] <= k) { /* stopped before this step */
            if (b->ids[at] == SAMPLE_ID) b->ids[at] = 0;
            return;
        }
    }
    if (b->ids[at] == SAMPLE_ID) {
        const float *drawn_from = logits_to_draw(s, k, column, logits, scratch);
        double log_total = 0.0;
        if (automaton) {
            b->mask_logprobs[at] = mask(automaton, b->states[column], b->budgets[column], logits, drawn_from,
                                        s->model.vocab, scratch, &log_total);
            drawn_from = scratch->adjusted;
        }
        b->ids[at] = draw(drawn_from, s->model.vocab, &b->sampling[column], b->random_values[at], scratch,
                          &b->logprobs[at]);
        if (automaton) {
            double max = logits[argmax(logits, s->model.vocab)];
            b->logprobs[at] = (float)((double)logits[b->ids[at]] - max - log_total);
            advance_constraint(s, automaton, k, row, b->ids[at]);
        } else if (drawn_from != logits) b->logprobs[at] = score(logits, s->model.vocab, b->ids[at], scratch);
    }
    if (b->score_ids && b->score_ids[at] >= 0)
        b->logprobs[at] = score(logits, s->model.vocab, b->score_ids[at], scratch);
}

static void draw_phase(lh_stepper *s, int k, int thread)
{
    int rows = s->drawn[k + 1] - s->drawn[k], from = thread;
    for (int item; (item = pool_take(&s->pool, rows, &from, 0)) >= 0;)
        draw_row(s, k, s->draws[s->drawn[k] + item], &s->scratch[thread]->sampling);
}

/* Whether a run should end with step k, because its caller has something else to do. */
INLINE int is_interrupted(const lh_block *b, int k)
{
    return b->interrupt && k + 1 >= b->least_steps && __atomic_load_n(b->interrupt, __ATOMIC_RELAXED);
}

/* The steps of all rows; threads share the items of each phase. Thread 0 says which step is the last, a step before: after
 * a barrier all threads know it. */
static void run_phases(lh_stepper *s, int thread)
{
    for (int k = 0, last; (last = atomic_load_explicit(&s->last_step, memory_order_relaxed)) >= k; k++) {
        if (thread == 0 && k + 1 < last && is_interrupted(s->block, k + 1))
            atomic_store_explicit(&s->last_step, k + 1, memory_order_relaxed);
        for (int layer = 0; layer < s->model.layers; layer++) {
            layer_phase(s, layer, k, k == last, thread);
            pool_barrier(&s->pool);
        }
        if (s->drawn[k + 1] == s->drawn[k]) continue;
        head_phase(s, k, thread);
        pool_barrier(&s->pool);
        draw_phase(s, k, thread);
        pool_barrier(&s->pool);
    }
}

#endif
