/* The log-probabilities of many texts, each read from the zero state.
 *
 * Texts are read side by side, a level at a time: level k feeds each text its k-th id. Texts that were equal so far are
 * one row, so a beginning that many lines have in common is computed once. The caller sorts the texts to bring equal
 * beginnings together; the order changes no bit of a result. The phases of a level are in kernels/levels.h.
 */
#include "stepper.h"

/* Removes the texts that are read to their end from the running ones. */
static void drop_read(lh_scoring *g)
{
    const int64_t *starts = g->texts.starts;
    int32_t kept = 0;
    for (int32_t i = 0; i < g->running; i++) {
        int32_t text = g->active[i];
        if (starts[text + 1] - starts[text] - 1 > g->level) g->active[kept++] = text;
    }
    g->running = kept;
}

/* Lists the rows of the next levels, until there are as many steps as requested; returns their number. */
static int32_t plan_levels(lh_scoring *g, int32_t steps, int32_t *levels)
{
    const lh_texts *texts = &g->texts;
    const int32_t first_level = g->level;
    int32_t rows = 0, readers = 0;
    for (*levels = 0; g->running && rows < steps && readers < 4 * steps; (*levels)++, g->level++, drop_read(g)) {
        int32_t row = -1;
        g->begins[*levels] = rows;
        for (int32_t i = 0; i < g->running; i++) {
            int32_t text = g->active[i];
            if (row < 0 || g->shared[text] <= g->level) {
                row++;
                g->source[rows] = g->row[text];
                g->fed[rows] = texts->ids[texts->starts[text] + g->level];
                g->readers[rows++] = readers;
            }
            g->reader[readers++] = text;
            g->row[text] = row;
        }
    }
    g->begins[*levels] = rows;
    g->readers[rows] = readers;
    g->level = first_level; /* lh_score_run moves on when the levels are computed */
    return rows;
}

/* Begins to read texts; NULL when there is no memory. The arrays of `texts` must stay where they are. */
EXPORT lh_scoring *lh_score_open(lh_stepper *s, const lh_texts *texts)
{
    lh_scoring *g = calloc(1, sizeof *g);
    size_t n = (size_t)texts->texts, logits = (size_t)s->model.threads * HEAD_ROWS * (size_t)s->vstride;
    if (!g) return NULL;
    g->stepper = s, g->texts = *texts;
    arena_t at = {NULL, 0};
    for (int pass = 0; pass < 2; pass++) {
        lay_out_rows(s, &g->rows, n, 1, &at);
        g->logits = allocate(&at, logits * sizeof(float));
        g->active = allocate(&at, n * sizeof(int32_t));
        g->shared = allocate(&at, n * sizeof(int32_t));
        g->row = allocate(&at, n * sizeof(int32_t));
        if (pass) break;
        if (posix_memalign(&g->arena, 64, at.used)) {
            free(g);
            return NULL;
        }
        /* the units past H of a row are multiplied by weights of zero, and must not be a NaN */
        memset(g->arena, 0, at.used);
        at = (arena_t){g->arena, 0};
    }
    for (int32_t text = 0; text < texts->texts; text++) {
        const int64_t *starts = texts->starts + text;
        int64_t most = text ? starts[0] - starts[-1] : 0, own = starts[1] - starts[0], same = 0;
        most = (most < own ? most : own) - 1; /* the last id of a text is not fed */
        const int32_t *ids = texts->ids + starts[0], *before = text ? texts->ids + starts[-1] : ids;
        while (same < most && ids[same] == before[same]) same++;
        g->shared[text] = (int32_t)same;
        g->active[text] = text;
    }
    g->running = texts->texts;
    return g;
}

/* Reads on for about so many steps of rows: at least one level, and fewer steps than `steps` and one level more; on so
 * many threads at most, 0: any number. Returns how many steps it were, 0 when all texts are read to their end, or -1
 * when there is no memory. */
EXPORT int64_t lh_score_run(lh_scoring *g, int32_t steps, int32_t threads)
{
    lh_stepper *s = g->stepper;
    if (steps < 1) steps = 1;
    if (!g->running) return 0;
    size_t rows = (size_t)steps + (size_t)g->running, readers = 4 * (size_t)steps + (size_t)g->running;
    int32_t *lists = malloc((4 * (rows + 1) + readers) * sizeof(int32_t)), levels;
    if (!lists) return -1;
    g->begins = lists, g->fed = lists + rows + 1, g->source = g->fed + rows + 1, g->readers = g->source + rows + 1;
    g->reader = g->readers + rows + 1;
    int32_t made = plan_levels(g, steps, &levels);
    g->levels = levels;
    uint64_t mode = float_mode_enter();
    int used = threads_for(s, (double)made / levels, levels);
    used = pool_threads(&s->pool, threads > 0 && threads < used ? threads : used);
    pool_run(&s->pool, used, s->kernels->run_levels, g);
    float_mode_leave(mode);
    g->level += levels;
    free(lists);
    return made;
}

EXPORT void lh_score_close(lh_scoring *g)
{
    if (!g) return;
    free(g->arena);
    free(g);
}
