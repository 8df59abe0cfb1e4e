/* The layouts of the structures in api.h, so that a test can compare them with Python's. */
#include <stddef.h>

#include "api.h"

typedef struct {
    const char *name; /* "structure" or "structure.field" */
    int32_t offset, size;
} lh_field;

#define WHOLE(structure) {#structure, 0, sizeof(structure)},
#define FIELD(structure, field) {#structure "." #field, offsetof(structure, field), sizeof(((structure *)0)->field)},
#define SAMPLING_FIELD(type, name) FIELD(sampling_t, name)

static const lh_field fields[] = {
    WHOLE(sampling_t)
    SAMPLING_FIELDS(SAMPLING_FIELD)
    WHOLE(lh_model)
    FIELD(lh_model, layers) FIELD(lh_model, hidden) FIELD(lh_model, vocab) FIELD(lh_model, slots)
    FIELD(lh_model, is_int8) FIELD(lh_model, threads) FIELD(lh_model, item_end) FIELD(lh_model, weights) FIELD(lh_model, initial)
    FIELD(lh_model, scale) FIELD(lh_model, instruction_set)
    WHOLE(lh_automaton)
    FIELD(lh_automaton, states) FIELD(lh_automaton, classes) FIELD(lh_automaton, class_of) FIELD(lh_automaton, next)
    FIELD(lh_automaton, distance) FIELD(lh_automaton, continuation)
    WHOLE(lh_block)
    FIELD(lh_block, rows) FIELD(lh_block, steps) FIELD(lh_block, window_size) FIELD(lh_block, n_automata)
    FIELD(lh_block, threads) FIELD(lh_block, least_steps) FIELD(lh_block, interrupt) FIELD(lh_block, slots)
    FIELD(lh_block, row_steps)
    FIELD(lh_block, forced_ids) FIELD(lh_block, random_values) FIELD(lh_block, sampling) FIELD(lh_block, score_ids)
    FIELD(lh_block, windows) FIELD(lh_block, bias_starts) FIELD(lh_block, bias_ids) FIELD(lh_block, bias_values)
    FIELD(lh_block, automata) FIELD(lh_block, automaton_of) FIELD(lh_block, states) FIELD(lh_block, budgets)
    FIELD(lh_block, mask_logprobs) FIELD(lh_block, made_steps)
    FIELD(lh_block, ids) FIELD(lh_block, logprobs) FIELD(lh_block, steps_run) FIELD(lh_block, bad_row) FIELD(lh_block, bad_step)
    WHOLE(lh_texts)
    FIELD(lh_texts, texts) FIELD(lh_texts, ids) FIELD(lh_texts, starts) FIELD(lh_texts, logprobs)
    WHOLE(lh_pass)
    FIELD(lh_pass, rows) FIELD(lh_pass, steps) FIELD(lh_pass, layers) FIELD(lh_pass, hidden)
    FIELD(lh_pass, embed) FIELD(lh_pass, vocab) FIELD(lh_pass, products) FIELD(lh_pass, embed_threshold)
    FIELD(lh_pass, weight_threshold) FIELD(lh_pass, output_threshold) FIELD(lh_pass, ids) FIELD(lh_pass, targets)
    FIELD(lh_pass, ids_stride) FIELD(lh_pass, targets_stride) FIELD(lh_pass, starts) FIELD(lh_pass, reset_draws)
    FIELD(lh_pass, reset) FIELD(lh_pass, embed_draws) FIELD(lh_pass, weight_draws) FIELD(lh_pass, output_draws)
    FIELD(lh_pass, parameters) FIELD(lh_pass, gradients) FIELD(lh_pass, state) FIELD(lh_pass, loss)
    FIELD(lh_pass, instruction_set)
    WHOLE(lh_optimizer)
    FIELD(lh_optimizer, tensors) FIELD(lh_optimizer, shards) FIELD(lh_optimizer, sizes)
    FIELD(lh_optimizer, gradients) FIELD(lh_optimizer, parameters) FIELD(lh_optimizer, means) FIELD(lh_optimizer, squares)
    FIELD(lh_optimizer, averages) FIELD(lh_optimizer, keeps) FIELD(lh_optimizer, divisor) FIELD(lh_optimizer, max_norm)
    FIELD(lh_optimizer, new_mean) FIELD(lh_optimizer, new_square) FIELD(lh_optimizer, step_size)
    FIELD(lh_optimizer, square_scale) FIELD(lh_optimizer, epsilon) FIELD(lh_optimizer, average_weight)
    FIELD(lh_optimizer, chunks) FIELD(lh_optimizer, norms) FIELD(lh_optimizer, threads)
    FIELD(lh_optimizer, instruction_set)
    {0, 0, 0},
};

/* Returns an array that ends with an entry without a name. */
EXPORT const lh_field *lh_layout(void) { return fields; }
