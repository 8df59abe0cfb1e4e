/* K steps of B texts through a stacked lstm, its head and the sampling, in one call.
 *
 * A step is a phase per layer, a phase for the head and one for sampling. An item of a layer's phase is a panel of 16
 * hidden units, four gates each, for some rows; the gates are applied right after the panel's product. The head and the
 * sampling run only for the rows whose id is sampled or scored at this step. The phases are in kernels/steps.h, which
 * is compiled once for each instruction set; this file is everything before and after them.
 *
 * Rows are ordered so that those with more steps come first: the rows that still run are always the first ones.
 */
#define _GNU_SOURCE
#include <math.h>
#include <sys/mman.h>
/* Under AddressSanitizer a gap follows every piece of the arena, so that accesses past the end of a piece are found. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define ARENA_GAP 64
#else
#define ARENA_GAP 0
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

#include "stepper.h"

/* ---- before and after ---- */

static int invalid(lh_block *b, int code, int row, int step)
{
    b->bad_row = row, b->bad_step = step;
    return code;
}

/* Returns LH_OK, or the code of the first invalid value. */
static int check(lh_stepper *s, lh_block *b)
{
    memset(s->seen, 0, (size_t)s->model.slots);
    for (int r = 0; r < b->rows; r++) {
        int slot = b->slots[r];
        if (slot < 0 || slot >= s->model.slots) return invalid(b, LH_SLOT, r, 0);
        if (s->seen[slot]++) return invalid(b, LH_SLOT_TWICE, r, 0);
        if (b->row_steps[r] < 1 || b->row_steps[r] > b->steps) return invalid(b, LH_STEPS, r, 0);
        if (b->forced_ids[r] < 0) return invalid(b, LH_FIRST_SAMPLE, r, 0);
        if (!sampling_is_valid(&b->sampling[r])) return invalid(b, LH_SAMPLING, r, 0);
        for (int i = 0; b->windows && i < b->window_size; i++) {
            int32_t code = b->windows[(size_t)r * b->window_size + i];
            if (code >= s->model.vocab || code < -1 - s->model.vocab) return invalid(b, LH_WINDOW, r, 0);
        }
        for (int i = b->bias_starts ? b->bias_starts[r] : 0; b->bias_starts && i < b->bias_starts[r + 1]; i++)
            if (b->bias_ids[i] < 0 || b->bias_ids[i] >= s->model.vocab || !(fabs(b->bias_values[i]) < INFINITY))
                return invalid(b, LH_LOGIT_BIAS, r, 0);
        if (b->automata && b->automaton_of[r] >= 0) {
            if (b->automaton_of[r] >= b->n_automata) return invalid(b, LH_CONSTRAINT, r, 0);
            const lh_automaton *a = &b->automata[b->automaton_of[r]];
            if (b->states[r] < 0 || b->states[r] >= a->states || b->budgets[r] < a->distance[b->states[r]])
                return invalid(b, LH_CONSTRAINT, r, 0);
        }
    }
    for (int k = 0; k < b->steps; k++)
        for (int r = 0; r < b->rows; r++) {
            size_t at = (size_t)k * b->rows + r;
            double random_value = b->random_values[at];
            if (k >= b->row_steps[r]) continue;
            if (b->forced_ids[at] >= s->model.vocab || b->forced_ids[at] < SAMPLE_ID)
                return invalid(b, LH_FORCED_ID, r, k);
            if (!(random_value >= 0.0 && random_value < 1.0)) return invalid(b, LH_RANDOM_VALUE, r, k);
            if (b->score_ids && b->score_ids[at] >= s->model.vocab) return invalid(b, LH_SCORE_ID, r, k);
        }
    return LH_OK;
}

/* Orders the rows, and lists for each step the rows to be sampled or scored. */
static void plan(lh_stepper *s, lh_block *b)
{
    int32_t *running = s->running, *begins = s->drawn, n = 0;
    memset(running, 0, ((size_t)b->steps + 1) * sizeof(int32_t));
    for (int r = 0; r < b->rows; r++) running[b->row_steps[r] - 1]++;
    for (int k = b->steps - 2; k >= 0; k--) running[k] += running[k + 1];
    for (int k = 1; k <= b->steps; k++) begins[k] = running[k]; /* rows with k steps come after those with more */
    for (int r = 0; r < b->rows; r++) s->order[begins[b->row_steps[r]]++] = r;
    for (int k = 0; k < b->steps; k++) {
        s->drawn[k] = n;
        for (int row = 0; row < b->rows; row++) {
            int column = s->order[row];
            size_t at = (size_t)k * b->rows + column;
            b->ids[at] = k + 1 < b->row_steps[column] ? b->forced_ids[at + b->rows] : SAMPLE_ID;
            b->logprobs[at] = NAN;
            if (b->automata) b->mask_logprobs[at] = 0.0f;
            int needs_logits = b->ids[at] == SAMPLE_ID || (b->score_ids && b->score_ids[at] >= 0);
            if (row < running[k] && needs_logits) s->draws[n++] = row;
        }
    }
    s->drawn[b->steps] = n;
}

static float *state_of(lh_stepper *s, int slot)
{
    return s->state + (size_t)slot * 2 * s->model.layers * s->model.hidden;
}

/* Copies the states, (2, L, H) each, from the table to the rows of the run. */
static void load_rows(lh_stepper *s)
{
    int layers = s->model.layers, hidden = s->model.hidden;
    rows_t *rows = &s->rows;
    for (int row = 0; row < s->block->rows; row++) {
        int slot = s->block->slots[s->order[row]];
        const float *state = state_of(s, slot);
        size_t at = (size_t)row * s->stride, bytes = (size_t)hidden * sizeof(float);
        for (int l = 0; l < layers; l++) {
            /* what is past H is multiplied by weights of zero, and must not be a NaN */
            memset(rows->h[l][0] + at, 0, (size_t)s->stride * sizeof(float));
            memset(rows->c[l][0] + at, 0, (size_t)s->stride * sizeof(float));
            memcpy(rows->h[l][0] + at, state + (size_t)l * hidden, bytes);
            memcpy(rows->c[l][0] + at, state + (size_t)(layers + l) * hidden, bytes);
            if (!s->model.is_int8) continue;
            uint8_t *activations = rows->hq[l][0] + at * (size_t)s->kernels->activation_bytes;
            s->kernels->quantize(rows->h[l][0] + at, 0, s->stride, s->stride, activations);
        }
    }
}

/* Copies the state of a row back to the table, as it is after so many steps. */
void store_row(lh_stepper *s, int row, int steps)
{
    int layers = s->model.layers, hidden = s->model.hidden;
    float *state = state_of(s, s->block->slots[s->order[row]]);
    size_t at = (size_t)row * s->stride, bytes = (size_t)hidden * sizeof(float);
    for (int l = 0; l < layers; l++) {
        memcpy(state + (size_t)l * hidden, s->rows.h[l][steps & 1] + at, bytes);
        memcpy(state + (size_t)(layers + l) * hidden, s->rows.c[l][0] + at, bytes);
    }
}

/* Copies the states back to the table, except those of rows that their constraint has stopped: they were copied then. */
static void store_rows(lh_stepper *s)
{
    lh_block *b = s->block;
    b->steps_run = 0;
    for (int row = 0; row < b->rows; row++) {
        int32_t *made = &b->made_steps[s->order[row]];
        if (s->steps_run[row] > b->steps_run) b->steps_run = s->steps_run[row];
        if (*made < b->row_steps[s->order[row]]) continue;
        if (s->steps_run[row] < *made) *made = s->steps_run[row];
        store_row(s, row, *made);
    }
}

/* The multiplications of a row's step. */
static double products_of(const lh_stepper *s)
{
    double products = 0.0;
    for (int i = 0; i <= s->model.layers; i++)
        products += (double)s->layer[i].blocks * BLOCK * s->layer[i].inputs * s->model.hidden;
    return products;
}

/* The threads for a run. A phase must be worth the barrier at its end (0.2 us), a run the waking of threads (30 us, more on
 * a busy machine): it must take about 100 us by itself. */
int threads_for(const lh_stepper *s, double rows, double steps)
{
    double products = s->products * rows; /* of a step */
    double worth = products * steps < (s->model.is_int8 ? 16e6 : 4e6) ? 1.0 : products / 65536.0;
    return worth < 2.0 ? 1 : worth < s->model.threads ? (int)worth : s->model.threads;
}

#define L2_BYTES ((size_t)1 << 20) /* weights that a core's own cache keeps */
#define L3_BYTES ((size_t)1 << 24) /* that the cache of several cores keeps */

/* Returns how many rows a group needs. Its thread reads all weights for them: reading must take less time than computing.
 * See docs/decisions/0052-interrupted-blocks.md. */
static int least_rows(const lh_stepper *s)
{
    size_t bytes = 0;
    for (int i = 0; i <= s->model.layers; i++) bytes += (size_t)s->layer[i].blocks * s->layer[i].block_size;
    return bytes <= L2_BYTES ? 4 : bytes <= L3_BYTES ? 7 : 32;
}

/* Forms a group for each thread; they have about equally much to do. */
static void form_groups(lh_stepper *s, row_group_t *group, int threads)
{
    const lh_block *b = s->block;
    double all = 0.0, done = 0.0;
    int n = 0;
    for (int row = 0; row < b->rows; row++) all += b->row_steps[row];
    for (int row = 0; row < b->rows; n++) {
        const int first = row;
        do done += b->row_steps[s->order[row++]];
        while (row < b->rows && (n == threads - 1 || done < all * (n + 1) / threads));
        group[n] = (row_group_t){first, row, 0};
    }
    s->groups.group = group, s->groups.n = n, s->groups.n_taken = 0, s->groups.n_active = 0;
    s->groups.least_rows = least_rows(s);
    pthread_mutex_init(&s->groups.lock, NULL);
    atomic_init(&s->groups.n_idle, 0);
    atomic_init(&s->groups.changes, 0);
    init_waiter(&s->groups.changed);
}

static void free_groups(lh_stepper *s)
{
    pthread_mutex_destroy(&s->groups.lock);
    destroy_waiter(&s->groups.changed);
    free(s->groups.group);
    s->groups.group = NULL;
}

/* ---- what Python calls ---- */

void *allocate(arena_t *a, size_t bytes)
{
    char *p = a->base ? a->base + a->used : NULL;
    size_t size = (bytes + 63) / 64 * 64 + ARENA_GAP;
    if (p) ASAN_POISON_MEMORY_REGION(p + bytes, size - bytes);
    a->used += size;
    return p;
}

void lay_out_rows(const lh_stepper *s, rows_t *rows, size_t n, int separate, arena_t *at)
{
    size_t floats = n * (size_t)s->stride;
    size_t activations = s->model.is_int8 ? floats * (size_t)s->kernels->activation_bytes : 0;
    for (int l = 0; l < s->model.layers; l++) {
        for (int i = 0; i < 2; i++) rows->h[l][i] = allocate(at, floats * sizeof(float));
        for (int i = 0; i < 2; i++) rows->hq[l][i] = allocate(at, activations);
        rows->c[l][0] = allocate(at, floats * sizeof(float));
        rows->c[l][1] = separate ? allocate(at, floats * sizeof(float)) : rows->c[l][0];
    }
}

/* Adds up the weights of some steps of a block. */
static void add_weights(const int8_t *w, const int8_t *end, int32_t *sum)
{
    for (; w < end; w += STEP_BYTES)
        for (int o = 0; o < BLOCK; o++) sum[o] += w[4 * o] + w[4 * o + 1] + w[4 * o + 2] + w[4 * o + 3];
}

/* What the offset of the activations adds to each output, negated: a sum that begins with it has no offset. */
static void sum_offsets(const layer_t *l, int32_t activation_offset)
{
    for (int b = 0; b < l->blocks; b++) {
        const int8_t *w = (const int8_t *)l->weights + (size_t)b * l->block_size;
        const int8_t *end = w + l->block_size, *of_h = end - (size_t)l->steps * STEP_BYTES;
        int32_t sum[BLOCK] = {0};
        add_weights(w, of_h, sum);
        for (int o = 0; o < BLOCK; o++) l->offset_without_h[b * BLOCK + o] -= activation_offset * sum[o];
        add_weights(of_h, end, sum);
        for (int o = 0; o < BLOCK; o++) l->offset[b * BLOCK + o] -= activation_offset * sum[o];
    }
}

/* Lays everything out in one piece of memory, and returns its size; without a base it only counts the bytes. */
static size_t lay_out(lh_stepper *s, char *base)
{
    const lh_model *m = &s->model;
    size_t slots = (size_t)m->slots;
    arena_t at = {base, 0};
    for (int i = 0; i <= m->layers; i++) {
        layer_t *l = &s->layer[i];
        size_t bytes = (size_t)l->blocks * l->block_size, outputs = (size_t)l->blocks * BLOCK * sizeof(float);
        size_t initial = outputs * (i == 0 ? (size_t)m->vocab : 1);
        void *w = allocate(&at, bytes), *b = allocate(&at, initial), *c = allocate(&at, outputs);
        int32_t *offset = allocate(&at, outputs), *without_h = allocate(&at, outputs);
        if (!base) continue;
        l->weights = w, l->initial = b, l->scale = c, l->offset = offset, l->offset_without_h = without_h;
        l->initial_bytes = initial;
        if (!m->weights[0]) continue; /* the memory is zero */
        memcpy(w, m->weights[i], bytes);
        memcpy(b, m->initial[i], initial);
        if (m->is_int8) memcpy(c, m->scale[i], outputs);
    }
    size_t state = slots * 2 * (size_t)m->layers * (size_t)m->hidden * sizeof(float);
    s->state = allocate(&at, state);
    lay_out_rows(s, &s->rows, slots, 0, &at);
    s->zero_h = allocate(&at, (size_t)s->stride * sizeof(float));
    s->zero_hq = allocate(&at, m->is_int8 ? (size_t)s->stride * (size_t)s->kernels->activation_bytes : 0);
    if (base) memset(s->zero_h, 0, (size_t)s->stride * sizeof(float));
    if (base && m->is_int8) s->kernels->quantize(s->zero_h, 0, s->stride, s->stride, s->zero_hq);
    s->logits = allocate(&at, slots * (size_t)s->vstride * sizeof(float));
    s->seen = allocate(&at, slots);
    s->order = allocate(&at, slots * sizeof(int32_t));
    for (int i = 0; i < m->threads; i++) {
        s->scratch[i] = allocate(&at, sizeof(scratch_t));
        float *adjusted = allocate(&at, (size_t)m->vocab * sizeof(float));
        double *bias = allocate(&at, (size_t)m->vocab * sizeof(double));
        int32_t *occurrences = allocate(&at, (size_t)m->vocab * sizeof(int32_t));
        int32_t *generated = allocate(&at, (size_t)m->vocab * sizeof(int32_t));
        double *weight = allocate(&at, (size_t)m->vocab * sizeof(double));
        double *typicality = allocate(&at, (size_t)m->vocab * sizeof(double));
        int32_t *heap = allocate(&at, (size_t)m->vocab * sizeof(int32_t));
        uint8_t *keep = allocate(&at, (size_t)m->vocab);
        if (!base) continue;
        s->scratch[i]->sampling =
            (sampling_scratch_t){adjusted, bias, occurrences, generated, weight, typicality, heap, keep};
    }
    return at.used;
}

/* The memory of steppers that were closed last, for the next ones of their sizes: where a small model is loaded as another
 * one goes, zeroing new pages took the kernel longer than all the rest of a load. A lock that is taken is not waited for:
 * after a fork nobody gives it back. */
#define KEPT 8
#define KEPT_BYTES ((size_t)1 << 21) /* the most of one */
static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    void *memory;
    size_t size;
} kept[KEPT];

static void *new_arena(size_t size)
{
    void *memory = NULL;
    if (size <= KEPT_BYTES && pthread_mutex_trylock(&kept_lock) == 0) {
        for (int i = 0; i < KEPT && !memory; i++)
            if (kept[i].size == size) memory = kept[i].memory, kept[i].memory = NULL, kept[i].size = 0;
        pthread_mutex_unlock(&kept_lock);
    }
    if (memory) return memset(memory, 0, size);
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    madvise(memory, size, MADV_HUGEPAGE); /* 12 MB of weights are more 4 KB pages than the TLB holds */
#endif
    return memory;
}

static void free_arena(void *memory, size_t size)
{
    ASAN_UNPOISON_MEMORY_REGION(memory, size);
    if (size <= KEPT_BYTES && pthread_mutex_trylock(&kept_lock) == 0) {
        void *before = kept[KEPT - 1].memory;
        size_t before_size = kept[KEPT - 1].size;
        memmove(&kept[1], &kept[0], (KEPT - 1) * sizeof kept[0]);
        kept[0].memory = memory, kept[0].size = size;
        pthread_mutex_unlock(&kept_lock);
        memory = before, size = before_size;
    }
    if (memory) munmap(memory, size);
}

EXPORT void lh_close(lh_stepper *s)
{
    if (!s) return;
    pool_close(&s->pool);
    if (s->arena) free_arena(s->arena, s->arena_size);
    free(s);
}

/* Call once, when the arrays that lh_open was not given have been filled. */
EXPORT void lh_filled(lh_stepper *s)
{
    for (int i = 0; s->model.is_int8 && i <= s->model.layers; i++) sum_offsets(&s->layer[i], s->kernels->activation_offset);
}

/* Returns where an array of entry i lies, and its bytes. Kinds: 0 weights, 1 initial, 2 scale, as in lh_model. */
EXPORT void *lh_array(lh_stepper *s, int32_t kind, int32_t i, int64_t *bytes)
{
    const layer_t *l = &s->layer[i];
    *bytes = (int64_t)(kind == 0 ? (size_t)l->blocks * l->block_size
                                 : kind == 1 ? l->initial_bytes : (size_t)l->blocks * BLOCK * sizeof(float));
    return kind == 0 ? l->weights : kind == 1 ? (void *)l->initial : l->scale;
}

/* Returns a stepper with a copy of the model; NULL when there is no memory, or no such instruction set. */
EXPORT lh_stepper *lh_open(const lh_model *model)
{
    lh_stepper *s = NULL;
    const lh_kernels *kernels = kernels_named(model->instruction_set);
    if (!kernels || posix_memalign((void **)&s, 64, sizeof *s)) return NULL;
    memset(s, 0, sizeof *s);
    pool_init(&s->pool);
    s->model = *model;
    s->kernels = kernels;
    if (s->model.threads > MAX_THREADS) s->model.threads = MAX_THREADS;
    for (int i = 0; i <= model->layers; i++) {
        layer_t *l = &s->layer[i];
        int is_head = i == model->layers;
        l->blocks = is_head ? (model->vocab + BLOCK - 1) / BLOCK : (model->hidden + UNITS - 1) / UNITS * 4;
        l->inputs = i == 0 || is_head ? 1 : 2;
        l->steps = model->is_int8 ? (model->hidden + 3) / 4 : model->hidden;
        l->block_size = (size_t)l->inputs * (size_t)l->steps * STEP_BYTES;
    }
    /* Rows of activations, too, begin at a cache line: a tile reads 64 bytes of each. A line more, so that rows do not
     * fall on the same sets of the cache. */
    s->stride = (model->hidden + 63) / 64 * 64 + 64;
    s->vstride = s->layer[model->layers].blocks * BLOCK;
    s->products = products_of(s);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    s->arena_size = (lay_out(s, NULL) + page - 1) / page * page;
    s->arena = new_arena(s->arena_size);
    if (!s->arena) {
        lh_close(s);
        return NULL;
    }
    lay_out(s, s->arena);
    if (model->weights[0]) lh_filled(s);
    return s;
}

/* Returns LH_OK, or another code for an invalid block, which then has changed nothing. */
EXPORT int lh_run(lh_stepper *s, lh_block *b)
{
    if (b->rows == 0 || b->steps == 0) return LH_OK;
    if (b->rows > s->model.slots) return invalid(b, LH_SLOT_TWICE, s->model.slots, 0);
    int code = check(s, b);
    if (code != LH_OK) return code;
    size_t steps = (size_t)b->steps + 1, rows = (size_t)b->rows, draws = (size_t)b->steps * rows;
    int threads = threads_for(s, b->rows, b->steps);
    threads = pool_threads(&s->pool, b->threads > 0 && b->threads < threads ? b->threads : threads);
    const int is_grouped = s->kernels->has_groups[s->model.is_int8] && threads > 1 && b->rows >= threads * least_rows(s);
    row_group_t *group = is_grouped ? malloc(rows * sizeof *group) : NULL;
    int32_t *lists = malloc((2 * steps + rows + draws) * sizeof(int32_t));
    if (!lists || (is_grouped && !group)) {
        free(group);
        free(lists);
        return LH_MEMORY;
    }
    s->block = b, s->running = lists, s->drawn = lists + steps;
    s->steps_run = lists + 2 * steps, s->draws = s->steps_run + rows;
    uint64_t mode = float_mode_enter();
    plan(s, b);
    s->groups.n = 0;
    if (is_grouped) form_groups(s, group, threads);
    atomic_store(&s->last_step, b->row_steps[s->order[0]] - 1); /* rows with more steps come first */
    memcpy(b->made_steps, b->row_steps, rows * sizeof(int32_t));
    load_rows(s);
    pool_run(&s->pool, threads, s->kernels->run_steps, s);
    if (is_grouped) free_groups(s);
    else for (size_t row = 0; row < rows; row++) s->steps_run[row] = atomic_load(&s->last_step) + 1;
    store_rows(s);
    float_mode_leave(mode);
    free(lists);
    s->block = NULL;
    return LH_OK;
}

/* How many groups of rows the last run had, for tests; 0: threads shared phases. */
EXPORT int32_t lh_groups(const lh_stepper *s) { return s->groups.n; }

/* How many threads a run of such a block uses, if it may use as many as it likes. */
EXPORT int32_t lh_threads(const lh_stepper *s, int32_t rows, int32_t steps)
{
    return threads_for(s, rows, steps);
}

/* The bytes of memory that a stepper holds: weights, tables, states and scratch. */
EXPORT int64_t lh_bytes(const lh_stepper *s)
{
    return (int64_t)(sizeof *s + s->arena_size);
}

EXPORT void lh_read(lh_stepper *s, int32_t slot, float *state)
{
    memcpy(state, state_of(s, slot), (size_t)2 * s->model.layers * s->model.hidden * sizeof(float));
}

EXPORT void lh_write(lh_stepper *s, int32_t slot, const float *state)
{
    size_t bytes = (size_t)2 * s->model.layers * s->model.hidden * sizeof(float);
    if (state) memcpy(state_of(s, slot), state, bytes);
    else memset(state_of(s, slot), 0, bytes);
}

/* Draws one id from logits, for tests of the sampling alone; -1 when there is no memory, or no such instruction set. */
EXPORT int32_t lh_sample(const char *instruction_set, const float *logits, int32_t vocab, const sampling_t *params,
                         double random_value, float *logprob)
{
    size_t n = (size_t)vocab;
    const lh_kernels *kernels = kernels_named(instruction_set);
    sampling_scratch_t scratch = {
        .weight = malloc(n * sizeof(double)),
        .typicality = malloc(n * sizeof(double)),
        .heap = malloc(n * sizeof(int32_t)),
        .keep = malloc(n),
    };
    int32_t id = -1;
    if (kernels && scratch.weight && scratch.typicality && scratch.heap && scratch.keep) {
        uint64_t mode = float_mode_enter();
        id = kernels->draw(logits, vocab, params, random_value, &scratch, logprob);
        float_mode_leave(mode);
    }
    free(scratch.weight), free(scratch.typicality), free(scratch.heap), free(scratch.keep);
    return id;
}

/* The gradients, the loss and the state after a window. Returns 1 when there is no memory, or no such instruction set; 2
 * when a character is none of the network's. */
EXPORT int lh_train(lh_pass *pass)
{
    const lh_kernels *kernels = kernels_named(pass->instruction_set);
    return kernels ? kernels->training_pass(pass) : 1;
}

/* The gradients of the first shard become the mean of all; then follow the moments, the weights and their average. Returns 1
 * when there is no such instruction set. */
EXPORT int lh_optimize(const lh_optimizer *optimizer)
{
    const lh_kernels *kernels = kernels_named(optimizer->instruction_set);
    if (kernels) kernels->optimize(optimizer);
    return !kernels;
}
