/* Groups of rows. A thread advances a group through all phases of its steps, and there is no barrier before the end of the
 * run. A thread that finds no group gets half of the rows of another one's (work stealing), so that threads end together
 * also if one of them loses its core for a while. See docs/decisions/0052-interrupted-blocks.md.
 */
#ifndef LONGHAND_GROUPS_H
#define LONGHAND_GROUPS_H

#include "steps.h"

#if !defined(LEAST_PRODUCTS)
#define LEAST_PRODUCTS 3e7 /* multiply-adds of a half: 0.1 to 0.5 ms, several times what waking a thread takes */
#endif

/* Takes a group that no thread has, or waits until there is one; NULL: the run is over. */
static row_group_t *take_group(lh_stepper *s)
{
    row_groups_t *groups = &s->groups;
    pthread_mutex_lock(&groups->lock);
    while (groups->n_taken == groups->n && groups->n_active) {
        unsigned seen = atomic_load(&groups->changes);
        atomic_fetch_add(&groups->n_idle, 1);
        pthread_mutex_unlock(&groups->lock);
        pool_wait(&s->pool, &groups->changed, &groups->changes, seen);
        pthread_mutex_lock(&groups->lock);
        atomic_fetch_sub(&groups->n_idle, 1);
    }
    row_group_t *group = groups->n_taken < groups->n ? &groups->group[groups->n_taken++] : NULL;
    groups->n_active += group != NULL;
    pthread_mutex_unlock(&groups->lock);
    return group;
}

/* Wakes the threads that wait for a group. The caller has the lock. */
static void notify_idle(row_groups_t *groups)
{
    atomic_fetch_add(&groups->changes, 1);
    wake_all(&groups->changed);
}

/* Ends a thread's work on its group. */
static void end_group(lh_stepper *s, const row_group_t *group)
{
    row_groups_t *groups = &s->groups;
    for (int row = group->first; row < group->end; row++) s->steps_run[row] = group->step;
    pthread_mutex_lock(&groups->lock);
    if (--groups->n_active == 0) notify_idle(groups);
    pthread_mutex_unlock(&groups->lock);
}

/* Gives half of what a group has left to do to a thread that waits, if it is worth it. A half may have half as many rows as
 * a group needs at first: without it the thread would do nothing. */
static void split_group(lh_stepper *s, row_group_t *group)
{
    row_groups_t *groups = &s->groups;
    const int end = s->running[group->step] < group->end ? s->running[group->step] : group->end;
    const int least = (groups->least_rows + 1) / 2;
    double left = 0.0, half = 0.0;
    for (int row = group->first; row < end; row++) left += s->block->row_steps[s->order[row]] - group->step;
    if (end - group->first < 2 * least || left / 2 * s->products < LEAST_PRODUCTS) return;
    int middle = group->first;
    while (middle < end - least && (half < left / 2 || middle < group->first + least))
        half += s->block->row_steps[s->order[middle++]] - group->step;
    pthread_mutex_lock(&groups->lock);
    if (groups->n - groups->n_taken < atomic_load(&groups->n_idle)) { /* else one is on its way to the thread that waits */
        groups->group[groups->n++] = (row_group_t){middle, group->end, group->step};
        group->end = middle;
        notify_idle(groups);
    }
    pthread_mutex_unlock(&groups->lock);
}

/* The next step of the rows of a group, all of it by this thread. */
static void group_step(lh_stepper *s, const row_group_t *g, int is_last, scratch_t *t)
{
    const int k = g->step, end = s->running[k] < g->end ? s->running[k] : g->end, rows = end - g->first;
    const int item_rows = rows_per_item(s->model.is_int8, rows);
    for (int layer = 0; layer < s->model.layers; layer++)
        for (int i = 0, panels = layer_panels(s, layer); i < panels; i++) {
            const int panel = k & 1 ? panels - 1 - i : i;
            for (int r = 0; r < rows; r += item_rows)
                layer_item(s, t, layer, k, panel, g->first + r, rows - r < item_rows ? rows - r : item_rows, is_last);
        }
    const int32_t *draws = s->draws + s->drawn[k], *draws_end = s->draws + s->drawn[k + 1];
    while (draws < draws_end && *draws < g->first) draws++; /* they ascend */
    while (draws < draws_end && draws_end[-1] >= end) draws_end--;
    for (const int32_t *d = draws; d < draws_end; d += HEAD_ROWS)
        for (int panel = 0; panel < head_panels(s); panel++)
            head_item(s, t, k, panel, d, draws_end - d < HEAD_ROWS ? (int)(draws_end - d) : HEAD_ROWS);
    for (const int32_t *d = draws; d < draws_end; d++) draw_row(s, k, *d, &t->sampling);
}

/* Advances groups of rows until the run is over. */
static void run_groups(lh_stepper *s, int thread)
{
    for (row_group_t *g; (g = take_group(s)) != NULL; end_group(s, g))
        for (int is_last = 0; !is_last && g->step < s->block->row_steps[s->order[g->first]]; g->step++) {
            is_last = is_interrupted(s->block, g->step);
            if (!is_last && atomic_load_explicit(&s->groups.n_idle, memory_order_relaxed)) split_group(s, g);
            group_step(s, g, is_last, s->scratch[thread]);
        }
}

#endif
