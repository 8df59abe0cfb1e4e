/* What crosses between Python and C. model/native/library.py mirrors every structure here; report_layout.c exports their
 * layouts, and a test compares the two.
 */
#ifndef LONGHAND_API_H
#define LONGHAND_API_H

#include <stdint.h>

#include "kernels/sampling.h"

#define EXPORT __attribute__((visibility("default")))
#define MAX_LAYERS 8
#define SAMPLE_ID (-1) /* in forced_ids: feed the id that the step before produced */

/* A network, packed by model/stepper/cpu/pack_weights.py. Entry i is layer i; the entry after the last layer is the head.
 * Without weights[0] the caller fills the arrays itself: lh_array, lh_filled. */
typedef struct {
    int32_t layers, hidden, vocab, slots, is_int8, threads;
    int32_t item_end; /* before this id is fed, a row's state becomes the zero state; -1: there is none */
    const void *weights[MAX_LAYERS + 1];  /* blocks of 16 outputs, see kernels/products/gemm.h: float, or int8_t */
    const float *initial[MAX_LAYERS + 1]; /* where a sum begins. [0]: (V, blocks, 16), by id; others: (blocks, 16) */
    const float *scale[MAX_LAYERS + 1];   /* int8: (blocks, 16), what an integer sum is multiplied by */
    const char *instruction_set;          /* see instruction_sets.c; NULL: the best that this CPU has */
} lh_model;

/* model.structured_outputs.automaton.Automaton: which ids may follow, by state. */
typedef struct {
    int32_t states, classes;      /* S, C */
    const int32_t *class_of;      /* (V,) */
    const int32_t *next;          /* (S, C) the state after an id of a class, or negative */
    const int32_t *distance;      /* (S,) the fewest ids to an end */
    const int32_t *continuation;  /* (S,) and after at least one more */
} lh_automaton;

/* model.stepper.Block and BlockResult. */
typedef struct {
    int32_t rows, steps, window_size, n_automata;
    int32_t threads;                  /* the most that the run may use, 0: any number; they change no bit of the result */
    int32_t least_steps;              /* of each row, or all that it has, before the run can be interrupted */
    const int32_t *interrupt;         /* when it is not 0, the run ends with the present step or the next one; or NULL */
    const int32_t *slots, *row_steps; /* (B,) */
    const int32_t *forced_ids;        /* (K, B) */
    const double *random_values;      /* (K, B) */
    const sampling_t *sampling;       /* (B,) */
    const int32_t *score_ids;         /* (K, B), negative where none is requested; or NULL */
    const int32_t *windows;           /* (B, window_size), see model/network/penalties.py; or NULL */
    const int32_t *bias_starts;       /* (B + 1,): a row's entries of bias_ids and bias_values; or NULL */
    const int32_t *bias_ids;
    const double *bias_values;
    const lh_automaton *automata;     /* (N,), or NULL: no row has a constraint */
    const int32_t *automaton_of;      /* (B,) the index of the row's automaton, or negative */
    int32_t *states, *budgets;        /* (B,) of the constraints before the first sampled id; changed with each */
    float *mask_logprobs;             /* (K, B) out: of the ids that were allowed together */
    int32_t *made_steps;              /* (B,) out: row_steps, or fewer if nothing could follow or the run was interrupted */
    int32_t *ids;                     /* (K, B) out */
    float *logprobs;                  /* (K, B) out */
    int32_t steps_run;                /* out: the most steps that were computed for a row */
    int32_t bad_row, bad_step;        /* where an invalid value is, if lh_run refuses the block */
} lh_block;

/* The codes that lh_run returns; model/stepper/cpu has their messages. */
enum {
    LH_OK,
    LH_MEMORY,
    LH_SLOT,
    LH_SLOT_TWICE,
    LH_STEPS,
    LH_FIRST_SAMPLE,
    LH_FORCED_ID,
    LH_RANDOM_VALUE,
    LH_SAMPLING,
    LH_SCORE_ID,
    LH_WINDOW,
    LH_LOGIT_BIAS,
    LH_CONSTRAINT
};

/* Texts that are only read: see scoring.c. */
typedef struct {
    int32_t texts;
    const int32_t *ids;    /* of all texts, one after the other; the last id of a text is not fed */
    const int64_t *starts; /* (texts + 1,) where each text's ids begin; a text has at least two */
    float *logprobs;       /* out: natural, of every id but the first of each text, one after the other */
} lh_texts;

/* How a layer multiplies in training: in float32; with factors rounded to bfloat16 and sums in the order of vdpbf16ps
 * (products/gemm.h), or in that of AMX's tiles (products/bf16_tiles.h). */
enum { LH_FP32, LH_BF16_PAIRS, LH_BF16_TILES };

/* A window of a training step, forwards and backwards: see kernels/training/pass.h. */
typedef struct {
    int32_t rows, steps;              /* B, T */
    int32_t layers, hidden, embed, vocab;
    int32_t products;                 /* LH_FP32, ... */
    int32_t embed_threshold, weight_threshold, output_threshold; /* draws below are dropped; 0: no dropout */
    const int64_t *ids, *targets;     /* (B, T): the characters that are read, and the one after each */
    int64_t ids_stride, targets_stride; /* between rows */
    const uint8_t *starts;            /* (B, T): not 0 where a row begins again from the zero state; or NULL */
    const float *reset_draws;         /* (B): below `reset`, a row's state is set to zero before the window; or NULL */
    float reset;
    const uint8_t *embed_draws;       /* (B, embed) */
    const uint8_t *weight_draws[MAX_LAYERS]; /* (4 hidden, hidden) */
    const uint8_t *output_draws[MAX_LAYERS]; /* (B * T, hidden) */
    const float *const *parameters;   /* embedding; of each layer w_ih, w_hh, b_ih, b_hh; weights and bias of the head */
    float *const *gradients;          /* out, in the same order */
    float *state;                     /* h, then c: (2, layers, B, hidden); becomes the state after the window */
    double loss;                      /* out: nats per character */
    const char *instruction_set;      /* as in lh_model */
} lh_pass;

/* What follows the gradients of a training step, see kernels/training/optimizer.h. Tensors are contiguous; a pointer of each. */
typedef struct {
    int32_t tensors, shards;
    const int64_t *sizes;      /* (tensors), elements */
    float *const *gradients;   /* (shards, tensors); the first shard's become the mean of all */
    float *const *parameters, *const *means, *const *squares; /* (tensors): the weights, the moments of AdamW */
    float *const *averages;    /* (tensors): the moving average of the weights */
    const float *keeps;        /* (tensors): 1 - learning rate * weight decay */
    float divisor;             /* of the sum of the gradients */
    float max_norm;            /* the gradient is scaled down to it */
    float new_mean, new_square; /* 1 - beta of each moment */
    float step_size;           /* learning rate / the bias of the first moment */
    float square_scale;        /* 1 / square root of the bias of the second */
    float epsilon, average_weight; /* of the newest weights in their average */
    int64_t chunks;            /* of all tensors */
    double *norms;             /* (chunks): sums of squares */
    int32_t threads;           /* that share the chunks; they change no bit of the result */
    const char *instruction_set;
} lh_optimizer;

#endif
