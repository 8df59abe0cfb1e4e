/* K steps of B texts through a stacked lstm, its head and the sampling, in one call.
 *
 * A step is a phase per layer, a phase for the head and one for sampling. An item of a layer's phase is two panels of 8
 * hidden units, four gates each, for some rows; the gates are applied right after the panel's product. The head and the
 * sampling run only for the rows whose id is sampled or scored at this step.
 *
 * Rows are ordered so that those with more steps come first: the rows that still run are always the first ones.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <sys/mman.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
/* Under AddressSanitizer a gap follows every piece of the arena, so that accesses past the end of a piece are found. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define ARENA_GAP 64
#else
#define ARENA_GAP 0
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

#include "api.h"
#include "gates.h"
#include "gemm.h"
#include "pool.h"

#define UNITS 8 /* hidden units of a panel: 4 gates * 8 = 32 outputs */
#define GROUP 2 /* panels of an item: 16 floats of h, a cache line that no other thread writes */
#define ROWS 96 /* the most rows of an item: their h stays in the L2 cache */
typedef struct {
    int panels;         /* of 32 outputs */
    int inputs;         /* 1: h; 2: the layer below's h, then h */
    size_t panel_size;  /* in weights: floats or int8 */
    const void *weights;
    const float *initial, *scale;
} layer_t;

/* Memory of one thread. */
typedef struct {
    zrow z[GROUP][ROWS];
    int16_t wide[KC * 2 * HALF];
    const void *row[2][ROWS];
    sampling_scratch_t sampling;
} scratch_t;

typedef struct lh_stepper {
    pool_t pool;
    lh_model model;
    layer_t layer[MAX_LAYERS + 1];
    int stride;  /* floats (or int16) between rows of h: H in whole cache lines, and one more */
    int vstride; /* floats between rows of logits */
    void *arena;
    size_t arena_size;
    float *state; /* (slots, 2, L, H) */
    float *h[MAX_LAYERS][2], *c[MAX_LAYERS]; /* (rows, stride); h at even and odd steps */
    int16_t *hq[MAX_LAYERS][2];              /* int8: h in fixed point */
    float *logits;                           /* (rows, vstride) */
    uint8_t *seen;                           /* (slots,) to find a slot that is there twice */
    scratch_t *scratch[MAX_THREADS];
    /* of the present run */
    lh_block *block;
    int32_t *order;     /* (rows,) the block's column of a row */
    int32_t *running;   /* (steps + 1,) rows with more than k steps */
    int32_t *drawn;     /* (steps + 1,) where the rows that step k samples or scores begin in `draws` */
    int32_t *draws;     /* rows, for one step after another */
} lh_stepper;

/* Whether this CPU has what this library was compiled for. */
EXPORT int lh_supported(void)
{
#if defined(__x86_64__) && defined(__AVX2__)
    /* not __builtin_cpu_supports: it always says no in a library that zig linked */
    unsigned a, b, c, d, state, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_FMA) || !(c & bit_AVX) || !(c & bit_OSXSAVE)) return 0;
    __asm__("xgetbv" : "=a"(state), "=d"(high) : "c"(0)); /* does the system save the wide registers? */
    return (state & 6) == 6 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
#else
    return 1;
#endif
}

/* ---- a step's phases ---- */

/* Fills the row pointers of `count` rows from `first`, for the segments of a layer at step k. */
static void layer_inputs(lh_stepper *s, int layer, int k, int first, int count, const void *(*row)[ROWS])
{
    int before = k & 1, after = before ^ 1, n = 0;
    size_t offset = (size_t)first * (size_t)s->stride;
    if (s->model.is_int8) {
        if (layer) {
            for (int r = 0; r < count; r++) row[n][r] = s->hq[layer - 1][after] + offset + (size_t)r * s->stride;
            n++;
        }
        for (int r = 0; r < count; r++) row[n][r] = s->hq[layer][before] + offset + (size_t)r * s->stride;
    } else {
        if (layer) {
            for (int r = 0; r < count; r++) row[n][r] = s->h[layer - 1][after] + offset + (size_t)r * s->stride;
            n++;
        }
        for (int r = 0; r < count; r++) row[n][r] = s->h[layer][before] + offset + (size_t)r * s->stride;
    }
}

/* z += rows * w for one or two panels, all segments. */
static void multiply_f32(lh_stepper *s, const layer_t *l, int panel, int panels, int rows, scratch_t *t)
{
    const int depth = s->model.hidden;
    const size_t size = l->panel_size, second = size / 2, segment = (size_t)depth * HALF;
    const float *w = (const float *)l->weights + (size_t)panel * size;
    if (rows > FEW_ROWS) {
        for (int g = 0; g < panels; g++)
            for (int h = 0; h < 2; h++)
                for (int seg = 0; seg < l->inputs; seg++)
                    half_f32((const float *const *)t->row[seg], rows, depth, w + g * size + h * second + seg * segment,
                             (zrow *)(t->z[g][0].f + h * HALF));
        return;
    }
    for (int seg = 0; seg < l->inputs; seg++, w += segment) {
        const float *const *a = (const float *const *)t->row[seg];
        if (rows == 1 && panels == 2) {
            zrow both[2] = {t->z[0][0], t->z[1][0]};
            f32_two_panels(a[0], depth, w, second, size, both);
            t->z[0][0] = both[0], t->z[1][0] = both[1];
        } else {
            for (int g = 0; g < panels; g++) few_f32(a, rows, depth, w + g * size, second, t->z[g]);
        }
    }
}

static void multiply_int(lh_stepper *s, const layer_t *l, int panel, int panels, int rows, scratch_t *t)
{
    const int depth = (s->model.hidden + 1) / 2;
    const size_t size = l->panel_size, second = size / 2, segment = (size_t)depth * 2 * HALF;
    const int8_t *w = (const int8_t *)l->weights + (size_t)panel * size;
    if (rows > FEW_ROWS) {
        for (int g = 0; g < panels; g++)
            for (int h = 0; h < 2; h++)
                for (int seg = 0; seg < l->inputs; seg++)
                    half_int((const int16_t *const *)t->row[seg], rows, depth, w + g * size + h * second + seg * segment,
                             (zrow *)(t->z[g][0].i + h * HALF), t->wide);
        return;
    }
    for (int seg = 0; seg < l->inputs; seg++, w += segment) {
        const int16_t *const *a = (const int16_t *const *)t->row[seg];
        if (rows == 1 && panels == 2) {
            zrow both[2] = {t->z[0][0], t->z[1][0]};
            int_two_panels(a[0], depth, w, second, size, both);
            t->z[0][0] = both[0], t->z[1][0] = both[1];
        } else {
            for (int g = 0; g < panels; g++) few_int(a, rows, depth, w + g * size, second, t->z[g]);
        }
    }
}

static void multiply(lh_stepper *s, const layer_t *l, int panel, int panels, int rows, scratch_t *t)
{
    if (s->model.is_int8) multiply_int(s, l, panel, panels, rows, t);
    else multiply_f32(s, l, panel, panels, rows, t);
}

/* Eight sums as floats. fp32 sums began with the initial value; int8 adds it here. */
INLINE vf finish(int is_int8, const zrow *z, int v, const float *scale, const float *initial)
{
    if (!is_int8) return vf_load(z->f + v * LANES);
    return vf_fma(vi_to_float(vi_load(z->i + v * LANES)), vf_load(scale + v * LANES), vf_load(initial + v * LANES));
}

INLINE void begin(int is_int8, zrow *z, const float *initial)
{
    for (int v = 0; v < PANEL; v += LANES) {
        if (is_int8) vi_store(z->i + v, vi_zero());
        else vf_store(z->f + v, vf_load(initial + v));
    }
}

/* How many rows an item has: evenly divided, at most ROWS, whole tiles of six except in the last item. */
static int rows_per_item(int rows)
{
    int items = (rows + ROWS - 1) / ROWS, each = (rows + items - 1) / items;
    return (each + 5) / 6 * 6 < ROWS ? (each + 5) / 6 * 6 : ROWS;
}

static int32_t id_fed(const lh_stepper *s, int k, int column)
{
    const lh_block *b = s->block;
    return k ? b->ids[(size_t)(k - 1) * b->rows + column] : b->forced_ids[column];
}

/* Turns a panel's sums into c and h, for `rows` rows; `at` is where the eight units of the first row are. */
static void apply_gates(lh_stepper *s, int layer, int now, size_t at, int rows, const zrow *z, const float *scale,
                        const float *const *initial, int offset)
{
    const int is_int8 = s->model.is_int8;
    const size_t stride = (size_t)s->stride;
    const vf to_int16 = vf_all(s->model.activation_scale), one = vf_all(1.0f), minus_one = vf_all(-1.0f);
    float *c = s->c[layer] + at, *h = s->h[layer][now] + at;
    for (int r = 0; r < rows; r++) {
        const float *start = initial[r] + offset;
        cell_update(finish(is_int8, z + r, 0, scale, start), finish(is_int8, z + r, 1, scale, start),
                    finish(is_int8, z + r, 2, scale, start), c + r * stride);
    }
    for (int r = 0; r < rows; r++)
        vf_store(h + r * stride, cell_output(finish(is_int8, z + r, 3, scale, initial[r] + offset), c + r * stride));
    if (!is_int8) return;
    int16_t *hq = s->hq[layer][now] + at;
    for (int r = 0; r < rows; r++)
        vf_to_int16(hq + r * stride, vf_mul(vf_clamp(vf_load(h + r * stride), minus_one, one), to_int16));
}

static void layer_phase(lh_stepper *s, int layer, int k, int thread)
{
    const layer_t *l = &s->layer[layer];
    scratch_t *t = s->scratch[thread];
    int is_int8 = s->model.is_int8, rows = s->running[k], each = rows_per_item(rows);
    int groups = (l->panels + GROUP - 1) / GROUP, items = groups * ((rows + each - 1) / each);
    int now = (k & 1) ^ 1, from = thread;
    for (int item; (item = pool_take(&s->pool, items, &from)) >= 0;) {
        int first = item / groups * each, count = rows - first < each ? rows - first : each;
        int panel = item % groups * GROUP, panels = l->panels - panel < GROUP ? l->panels - panel : GROUP;
        const float *initial[ROWS];
        for (int r = 0; r < count; r++) {
            size_t at = layer ? 0 : (size_t)id_fed(s, k, s->order[first + r]) * l->panels;
            initial[r] = l->initial + (at + panel) * PANEL;
            for (int g = 0; g < panels; g++) begin(is_int8, &t->z[g][r], initial[r] + g * PANEL);
        }
        layer_inputs(s, layer, k, first, count, t->row);
        multiply(s, l, panel, panels, count, t);
        for (int g = 0; g < panels; g++) {
            size_t at = (size_t)first * s->stride + (size_t)(panel + g) * UNITS;
            apply_gates(s, layer, now, at, count, t->z[g], l->scale + (panel + g) * PANEL, initial, g * PANEL);
        }
    }
}

static void head_phase(lh_stepper *s, int k, int thread)
{
    const layer_t *l = &s->layer[s->model.layers];
    scratch_t *t = s->scratch[thread];
    int is_int8 = s->model.is_int8, top = s->model.layers - 1, now = (k & 1) ^ 1, from = thread;
    int rows = s->drawn[k + 1] - s->drawn[k], each = rows < 12 ? rows : 12;
    int items = l->panels * ((rows + each - 1) / each);
    const int32_t *draws = s->draws + s->drawn[k];
    for (int item; (item = pool_take(&s->pool, items, &from)) >= 0;) {
        int first = item / l->panels * each, count = rows - first < each ? rows - first : each;
        int panel = item % l->panels;
        for (int r = 0; r < count; r++) {
            size_t at = (size_t)draws[first + r] * s->stride;
            t->row[0][r] = is_int8 ? (const void *)(s->hq[top][now] + at) : (const void *)(s->h[top][now] + at);
            begin(is_int8, &t->z[0][r], l->initial + panel * PANEL);
        }
        multiply(s, l, panel, 1, count, t);
        for (int r = 0; r < count; r++)
            for (int v = 0; v < VECS; v++)
                vf_store(s->logits + (size_t)draws[first + r] * s->vstride + panel * PANEL + v * LANES,
                         finish(is_int8, &t->z[0][r], v, l->scale + panel * PANEL, l->initial + panel * PANEL));
    }
}

static void draw_phase(lh_stepper *s, int k, int thread)
{
    const lh_block *b = s->block;
    int rows = s->drawn[k + 1] - s->drawn[k], from = thread;
    for (int item; (item = pool_take(&s->pool, rows, &from)) >= 0;) {
        int row = s->draws[s->drawn[k] + item], column = s->order[row];
        size_t at = (size_t)k * b->rows + column;
        const float *logits = s->logits + (size_t)row * s->vstride;
        const sampling_scratch_t *scratch = &s->scratch[thread]->sampling;
        if (b->ids[at] == SAMPLE_ID)
            b->ids[at] = draw(logits, s->model.vocab, &b->sampling[column], b->random_values[at], scratch,
                              &b->logprobs[at]);
        if (b->score_ids && b->score_ids[at] >= 0)
            b->logprobs[at] = score(logits, s->model.vocab, b->score_ids[at], scratch);
    }
}

static void run_steps(void *stepper, int thread)
{
    lh_stepper *s = stepper;
    for (int k = 0; k < s->block->steps && s->running[k]; k++) {
        for (int layer = 0; layer < s->model.layers; layer++) {
            layer_phase(s, layer, k, thread);
            pool_barrier(&s->pool);
        }
        if (s->drawn[k + 1] == s->drawn[k]) continue;
        head_phase(s, k, thread);
        pool_barrier(&s->pool);
        draw_phase(s, k, thread);
        pool_barrier(&s->pool);
    }
}

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
    for (int row = 0; row < s->block->rows; row++) {
        int slot = s->block->slots[s->order[row]];
        const float *state = state_of(s, slot);
        size_t at = (size_t)row * s->stride, bytes = (size_t)hidden * sizeof(float);
        for (int l = 0; l < layers; l++) {
            /* what is past H is multiplied by weights of zero, and must not be a NaN */
            memset(s->h[l][0] + at, 0, (size_t)s->stride * sizeof(float));
            memset(s->c[l] + at, 0, (size_t)s->stride * sizeof(float));
            memcpy(s->h[l][0] + at, state + (size_t)l * hidden, bytes);
            memcpy(s->c[l] + at, state + (size_t)(layers + l) * hidden, bytes);
            if (!s->model.is_int8) continue;
            for (int j = 0; j < s->stride; j += LANES) {
                vf h = vf_clamp(vf_load(s->h[l][0] + at + j), vf_all(-1.0f), vf_all(1.0f));
                vf_to_int16(s->hq[l][0] + at + j, vf_mul(h, vf_all(s->model.activation_scale)));
            }
        }
    }
}

/* Copies the states back to the table. */
static void store_rows(lh_stepper *s)
{
    int layers = s->model.layers, hidden = s->model.hidden;
    for (int row = 0; row < s->block->rows; row++) {
        int column = s->order[row], slot = s->block->slots[column], last = s->block->row_steps[column] & 1;
        float *state = state_of(s, slot);
        size_t at = (size_t)row * s->stride, bytes = (size_t)hidden * sizeof(float);
        for (int l = 0; l < layers; l++) {
            memcpy(state + (size_t)l * hidden, s->h[l][last] + at, bytes);
            memcpy(state + (size_t)(layers + l) * hidden, s->c[l] + at, bytes);
        }
    }
}

/* The threads for a run. A phase must be worth the barrier at its end (0.2 us), a run the waking of threads (30 us). */
static int threads_for(const lh_stepper *s, const lh_block *b)
{
    double products = 0.0; /* of a step */
    for (int i = 0; i <= s->model.layers; i++)
        products += (double)s->layer[i].panels * PANEL * s->layer[i].inputs * s->model.hidden * b->rows;
    double worth = products * b->steps < 4e6 ? 1.0 : products / 65536.0;
    return worth < 2.0 ? 1 : worth < s->model.threads ? (int)worth : s->model.threads;
}

/* ---- what Python calls ---- */

typedef struct {
    char *base;
    size_t used;
} arena_t;

static void *allocate(arena_t *a, size_t bytes)
{
    char *p = a->base ? a->base + a->used : NULL;
    size_t size = (bytes + 63) / 64 * 64 + ARENA_GAP;
    if (p) ASAN_POISON_MEMORY_REGION(p + bytes, size - bytes);
    a->used += size;
    return p;
}

/* Lays everything out in one piece of memory, and returns its size; without a base it only counts the bytes. */
static size_t lay_out(lh_stepper *s, char *base)
{
    const lh_model *m = &s->model;
    size_t slots = (size_t)m->slots, item = m->is_int8 ? 1 : sizeof(float);
    arena_t at = {base, 0};
    for (int i = 0; i <= m->layers; i++) {
        layer_t *l = &s->layer[i];
        size_t bytes = (size_t)l->panels * l->panel_size * item;
        size_t outputs = (size_t)l->panels * PANEL * sizeof(float);
        size_t initial = outputs * (i == 0 ? (size_t)m->vocab : 1);
        void *w = allocate(&at, bytes), *b = allocate(&at, initial), *c = allocate(&at, outputs);
        if (!base) continue;
        l->weights = memcpy(w, m->weights[i], bytes);
        l->initial = memcpy(b, m->initial[i], initial);
        l->scale = m->is_int8 ? memcpy(c, m->scale[i], outputs) : memset(c, 0, outputs);
    }
    size_t state = slots * 2 * (size_t)m->layers * (size_t)m->hidden * sizeof(float);
    size_t rows = slots * (size_t)s->stride;
    s->state = allocate(&at, state);
    for (int l = 0; l < m->layers; l++) {
        for (int i = 0; i < 2; i++) s->h[l][i] = allocate(&at, rows * sizeof(float));
        for (int i = 0; i < 2; i++) s->hq[l][i] = allocate(&at, m->is_int8 ? rows * sizeof(int16_t) : 0);
        s->c[l] = allocate(&at, rows * sizeof(float));
    }
    s->logits = allocate(&at, slots * (size_t)s->vstride * sizeof(float));
    s->seen = allocate(&at, slots);
    s->order = allocate(&at, slots * sizeof(int32_t));
    for (int i = 0; i < m->threads; i++) {
        s->scratch[i] = allocate(&at, sizeof(scratch_t));
        double *weight = allocate(&at, (size_t)m->vocab * sizeof(double));
        int32_t *heap = allocate(&at, (size_t)m->vocab * sizeof(int32_t));
        uint8_t *keep = allocate(&at, (size_t)m->vocab);
        if (base) s->scratch[i]->sampling = (sampling_scratch_t){weight, heap, keep};
    }
    return at.used;
}

EXPORT void lh_close(lh_stepper *s)
{
    if (!s) return;
    pool_close(&s->pool);
    if (s->arena) {
        ASAN_UNPOISON_MEMORY_REGION(s->arena, s->arena_size);
        munmap(s->arena, s->arena_size);
    }
    free(s);
}

/* Returns a stepper with a copy of the model; NULL when there is no memory. */
EXPORT lh_stepper *lh_open(const lh_model *model)
{
    lh_stepper *s = NULL;
    if (posix_memalign((void **)&s, 64, sizeof *s)) return NULL;
    memset(s, 0, sizeof *s);
    pool_init(&s->pool);
    s->model = *model;
    if (s->model.threads > MAX_THREADS) s->model.threads = MAX_THREADS;
    for (int i = 0; i <= model->layers; i++) {
        layer_t *l = &s->layer[i];
        int is_head = i == model->layers;
        l->panels = is_head ? (model->vocab + PANEL - 1) / PANEL : (model->hidden + UNITS - 1) / UNITS;
        l->inputs = i == 0 || is_head ? 1 : 2;
        size_t depth = model->is_int8 ? ((size_t)model->hidden + 1) / 2 * 2 : (size_t)model->hidden;
        l->panel_size = (size_t)l->inputs * depth * PANEL;
    }
    /* whole panels, and a cache line more, so that rows do not fall on the same sets of the cache */
    s->stride = (model->hidden + 31) / 32 * 32 + 32;
    s->vstride = s->layer[model->layers].panels * PANEL;
    size_t huge = (size_t)1 << 21;
    s->arena_size = (lay_out(s, NULL) + huge - 1) / huge * huge;
    s->arena = mmap(NULL, s->arena_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s->arena == MAP_FAILED) {
        s->arena = NULL;
        lh_close(s);
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    madvise(s->arena, s->arena_size, MADV_HUGEPAGE); /* 12 MB of weights are more 4 KB pages than the TLB holds */
#endif
    lay_out(s, s->arena);
    return s;
}

/* Returns LH_OK, or another code for an invalid block, which then has changed nothing. */
EXPORT int lh_run(lh_stepper *s, lh_block *b)
{
    if (b->rows == 0 || b->steps == 0) return LH_OK;
    if (b->rows > s->model.slots) return invalid(b, LH_SLOT_TWICE, s->model.slots, 0);
    int code = check(s, b);
    if (code != LH_OK) return code;
    size_t steps = (size_t)b->steps + 1, draws = (size_t)b->steps * (size_t)b->rows;
    int32_t *lists = malloc((2 * steps + draws) * sizeof(int32_t));
    if (!lists) return LH_MEMORY;
    s->block = b, s->running = lists, s->drawn = lists + steps, s->draws = lists + 2 * steps;
    uint64_t mode = float_mode_enter();
    plan(s, b);
    load_rows(s);
    pool_run(&s->pool, threads_for(s, b), run_steps, s);
    store_rows(s);
    float_mode_leave(mode);
    free(lists);
    s->block = NULL;
    return LH_OK;
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

/* Draws one id from logits, for tests of the sampling alone; -1 when there is no memory. */
EXPORT int32_t lh_sample(const float *logits, int32_t vocab, const sampling_t *params, double random_value,
                         float *logprob)
{
    size_t n = (size_t)vocab;
    sampling_scratch_t scratch = {malloc(n * sizeof(double)), malloc(n * sizeof(int32_t)), malloc(n)};
    int32_t id = -1;
    if (scratch.weight && scratch.heap && scratch.keep) {
        uint64_t mode = float_mode_enter();
        id = draw(logits, vocab, params, random_value, &scratch, logprob);
        float_mode_leave(mode);
    }
    free(scratch.weight), free(scratch.heap), free(scratch.keep);
    return id;
}
