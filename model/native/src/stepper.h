/* The stepper's memory, and the functions that exist once for each instruction set. */
#ifndef LONGHAND_STEPPER_H
#define LONGHAND_STEPPER_H

#include "api.h"
#include "pool.h"

#define UNITS 16 /* hidden units of a panel: 4 gates * 16 = 64 outputs; 16 floats of h are a cache line */
#define ROWS 96  /* the most rows of an item: their h stays in the L2 cache */
#define BLOCK 16      /* outputs, see kernels/products/gemm.h */
#define STEP_BYTES 64 /* of a block, for one step */
#define HEAD_ROWS 12  /* the most rows of an item of the head */

typedef struct {
    int blocks;        /* of 16 outputs; of a layer, 4 for each 16 units */
    int inputs;        /* 1: h; 2: the layer below's h, then h */
    int steps;         /* of a segment (one input): k in fp32, four of them in int8 */
    size_t block_size; /* in bytes */
    char *weights;
    float *initial, *scale;
    size_t initial_bytes;
    int32_t *offset;           /* (blocks, 16): where an integer sum begins */
    int32_t *offset_without_h; /* the same, where nothing of h is added: an h of zeros has activations, too */
} layer_t;

/* Memory of one thread. */
typedef struct {
    _Alignas(64) int32_t z[ROWS][4 * UNITS]; /* sums: floats, or int32 */
    const void *row[2][ROWS];
    sampling_scratch_t sampling;
} scratch_t;

/* The memory of rows that are advanced together. Everything of a row is `stride` apart from the next one's. */
typedef struct {
    float *h[MAX_LAYERS][2], *c[MAX_LAYERS][2]; /* (rows, stride), at even and odd steps; c may be the same memory */
    uint8_t *hq[MAX_LAYERS][2];                 /* int8: h as activations, see kernels/simd.h */
} rows_t;

/* Rows that one thread advances through all phases, see kernels/groups.h. */
typedef struct {
    int first, end; /* rows */
    int step;       /* the next one */
} row_group_t;

/* The groups of a run: together they have each row once. */
typedef struct {
    row_group_t *group;   /* (rows,), of which n are used; NULL: threads share the items of each phase */
    int n;                /* of the last run: 0 if threads shared phases */
    int n_taken;          /* the first ones, which a thread has or had */
    int n_active;         /* threads that have a group */
    int least_rows;       /* that a group needs at first */
    pthread_mutex_t lock; /* of all before */
    atomic_int n_idle;    /* threads that wait for a group */
    atomic_uint changes;  /* counts up when there is a group, or when there will be none */
    waiter_t changed;
} row_groups_t;

typedef struct lh_stepper {
    pool_t pool;
    lh_model model;
    const struct lh_kernels *kernels;
    layer_t layer[MAX_LAYERS + 1];
    int stride;  /* floats (or activations) between rows of h: H in whole cache lines of activations, and one more */
    int vstride; /* floats between rows of logits */
    void *arena;
    size_t arena_size;
    float *state; /* (slots, 2, L, H) */
    rows_t rows;      /* of a run */
    float *zero_h;    /* (stride,) */
    uint8_t *zero_hq; /* int8: the same as activations */
    float *logits;    /* (rows, vstride) */
    uint8_t *seen;    /* (slots,) to find a slot that is there twice */
    scratch_t *scratch[MAX_THREADS];
    double products;      /* the multiplications of a row's step */
    /* of the present run */
    lh_block *block;
    int32_t *order;       /* (rows,) the block's column of a row */
    int32_t *running;     /* (steps + 1,) rows with more than k steps */
    int32_t *drawn;       /* (steps + 1,) where the rows that step k samples or scores begin in `draws` */
    int32_t *draws;       /* rows, for one step after another */
    int32_t *steps_run;   /* (rows,) the steps of a row's group, when the run has ended */
    atomic_int last_step; /* where threads share phases: the run ends with it */
    row_groups_t groups;
} lh_stepper;

/* Texts that are read side by side, each from the zero state. Equal beginnings are read once: a row stands for all texts
 * that have been equal so far. */
typedef struct lh_scoring {
    lh_stepper *stepper;
    lh_texts texts;
    rows_t rows;     /* as many as texts */
    float *logits;   /* (threads, HEAD_ROWS, vstride) */
    void *arena;
    int32_t level;   /* how many ids the running texts have been fed */
    int32_t running; /* texts that are not read to their end */
    int32_t *active; /* (texts,) which those are, in their order */
    int32_t *shared; /* (texts,) how many ids a text is fed that are also those of the text before it, from the first on */
    int32_t *row;    /* (texts,) the row of a running text, after its last id */
    /* of the present run */
    int32_t levels;
    int32_t *begins;  /* (levels + 1,) where the rows of each level begin */
    int32_t *fed;     /* of each row: the id that it is fed */
    int32_t *source;  /* of each row: the row of the level before that it continues */
    int32_t *readers; /* of each row, and one more: where its texts begin */
    int32_t *reader;  /* texts, for one row after another */
} lh_scoring;

/* What is compiled for one instruction set. */
typedef struct lh_kernels {
    const char *name;
    int32_t activation_offset, activation_bytes; /* see kernels/simd.h */
    int32_t has_groups[2]; /* in fp32 and in int8: whether a thread advances rows by itself, see stepper.c */
    void (*quantize)(const float *h, int first, int n, int stride, uint8_t *row);
    void (*run_steps)(void *stepper, int thread);
    void (*run_levels)(void *scoring, int thread);
    int32_t (*draw)(const float *logits, int n, const sampling_t *params, double random_value,
                    const sampling_scratch_t *scratch, float *logprob);
    int (*training_pass)(lh_pass *pass);
    void (*optimize)(const lh_optimizer *optimizer);
} lh_kernels;

typedef struct {
    char *base;
    size_t used;
} arena_t;

/* Returns the next piece of an arena; without a base it only counts the bytes. */
void *allocate(arena_t *a, size_t bytes);

/* Takes the memory of so many rows from an arena; with `separate` the cells before a step stay as they were. */
void lay_out_rows(const lh_stepper *s, rows_t *rows, size_t n, int separate, arena_t *at);

/* The threads for so many steps of so many rows. */
int threads_for(const lh_stepper *s, double rows, double steps);

/* Copies the state of a row back to the table, as it is after so many steps. Not analysed across functions: GCC 12
 * then takes it for one that writes nothing, and leaves its calls out. */
#if defined(__GNUC__) && !defined(__clang__)
__attribute__((noipa))
#endif
void store_row(lh_stepper *s, int row, int steps);

/* The kernels of an instruction set that this CPU has, or NULL. NULL asks for the best one. */
const lh_kernels *kernels_named(const char *name);

#endif
