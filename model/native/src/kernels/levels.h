/* The phases of lh_score_run: a level of texts that are read side by side. Compiled once for each instruction set.
 *
 * What a row computes is what steps.h computes for it in a block, bit for bit; a text that was equal to others so far
 * has its row in common with them.
 */
#ifndef LONGHAND_LEVELS_H
#define LONGHAND_LEVELS_H

#include "steps.h"

static void level_layer_phase(lh_scoring *g, int layer, int level, int thread)
{
    lh_stepper *s = g->stepper;
    scratch_t *t = s->scratch[thread];
    int begins = g->begins[level], rows = g->begins[level + 1] - begins, item_rows = rows_per_item(s->model.is_int8, rows);
    int panels = s->layer[layer].blocks / BLOCKS, items = panels * ((rows + item_rows - 1) / item_rows);
    int depth = g->level + level, now = (depth & 1) ^ 1, from = thread;
    for (int item; (item = pool_take(&s->pool, items, &from, 0)) >= 0;) {
        int first = item / panels * item_rows, count = rows - first < item_rows ? rows - first : item_rows;
        int panel = item % panels;
        const float *initial[ROWS];
        for (int r = 0; r < count; r++) {
            const int row = first + r;
            const int32_t fed = g->fed[begins + row];
            initial[r] = begin_row(s, &g->rows, t, layer, now, panel, r, row, g->source[begins + row], fed,
                                   depth == 0 || fed == s->model.item_end, 1);
        }
        finish_rows(s, &g->rows, t, layer, now, panel, first, count, initial, NULL, !s->model.is_int8);
    }
}

/* The log-probability of the id that follows in each text of a row, as `score` in sampling.h computes it. */
static void score_readers(lh_scoring *g, int row, int depth, const float *logits, const sampling_scratch_t *d)
{
    const lh_texts *texts = &g->texts;
    const int n = g->stepper->model.vocab;
    const double max = logits[argmax(logits, n)], total = log_of(weigh(logits, n, max, d->weight));
    for (int i = g->readers[row]; i < g->readers[row + 1]; i++) {
        int text = g->reader[i];
        int64_t at = texts->starts[text] + depth; /* of the id that was fed */
        texts->logprobs[at - text] = (float)((double)logits[texts->ids[at + 1]] - max - total);
    }
}

static void level_head_phase(lh_scoring *g, int level, int thread)
{
    lh_stepper *s = g->stepper;
    scratch_t *t = s->scratch[thread];
    int begins = g->begins[level], rows = g->begins[level + 1] - begins, panels = head_panels(s);
    int item_rows = rows < HEAD_ROWS ? rows : HEAD_ROWS, items = (rows + item_rows - 1) / item_rows;
    int depth = g->level + level, from = thread;
    float *logits[HEAD_ROWS];
    for (int r = 0; r < HEAD_ROWS; r++) logits[r] = g->logits + ((size_t)thread * HEAD_ROWS + r) * s->vstride;
    for (int item; (item = pool_take(&s->pool, items, &from, 0)) >= 0;) {
        int first = item * item_rows, count = rows - first < item_rows ? rows - first : item_rows;
        int32_t row[HEAD_ROWS];
        for (int r = 0; r < count; r++) row[r] = first + r;
        for (int panel = 0; panel < panels; panel++)
            head_of(s, &g->rows, t, (depth & 1) ^ 1, row, count, panel, logits);
        for (int r = 0; r < count; r++) score_readers(g, begins + first + r, depth, logits[r], &t->sampling);
    }
}

static void run_levels(void *scoring, int thread)
{
    lh_scoring *g = scoring;
    for (int level = 0; level < g->levels; level++) {
        for (int layer = 0; layer < g->stepper->model.layers; layer++) {
            level_layer_phase(g, layer, level, thread);
            pool_barrier(&g->stepper->pool);
        }
        level_head_phase(g, level, thread);
        pool_barrier(&g->stepper->pool);
    }
    tiles_release();
}

#endif
