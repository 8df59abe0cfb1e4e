/* Runs one block outside Python, so that the kernels of another CPU can run in an emulator.
 *
 *     run_block INSTRUCTION_SET FILE    writes ids, log-probabilities and states to standard output
 *
 * FILE: int32 layers, hidden, vocab, is_int8, threads, rows, steps, then arrays, each as int32 length and bytes:
 * weights, initial and scale of each layer and the head, then forced_ids, random_values, sampling.
 */
#include <stdio.h>
#include <stdlib.h>

#include "../../../model/native/src/api.h"

struct lh_stepper;
struct lh_stepper *lh_open(const lh_model *model);
int lh_run(struct lh_stepper *stepper, lh_block *block);
void lh_read(struct lh_stepper *stepper, int32_t slot, float *state);

static void *read_bytes(FILE *file, size_t size)
{
    void *bytes = malloc(size + 64);
    if (!bytes || fread(bytes, 1, size, file) != size) exit(2);
    return bytes;
}

static void *read_array(FILE *file)
{
    int32_t *size = read_bytes(file, sizeof *size);
    void *array = read_bytes(file, (size_t)*size);
    free(size);
    return array;
}

int main(int count, char **arguments)
{
    FILE *file = count == 3 ? fopen(arguments[2], "rb") : NULL;
    if (!file) return 2;
    const int32_t *head = read_bytes(file, 7 * sizeof *head);
    lh_model model = {.layers = head[0], .hidden = head[1], .vocab = head[2], .is_int8 = head[3], .threads = head[4], .item_end = -1};
    int32_t rows = model.slots = head[5], steps = head[6];
    model.instruction_set = arguments[1];
    for (int i = 0; i <= model.layers; i++) {
        model.weights[i] = read_array(file);
        model.initial[i] = read_array(file);
        model.scale[i] = read_array(file);
    }
    lh_block block = {.rows = rows, .steps = steps};
    int32_t *slots = malloc((size_t)rows * 4), *row_steps = malloc((size_t)rows * 4);
    for (int r = 0; r < rows; r++) slots[r] = r, row_steps[r] = steps;
    block.slots = slots, block.row_steps = row_steps;
    block.forced_ids = read_array(file);
    block.random_values = read_array(file);
    block.sampling = read_array(file);
    size_t results = (size_t)rows * (size_t)steps, state_size = (size_t)2 * model.layers * model.hidden;
    block.made_steps = malloc((size_t)rows * 4), block.ids = calloc(results, 4), block.logprobs = calloc(results, 4);
    float *state = malloc(state_size * 4);
    struct lh_stepper *stepper = lh_open(&model);
    if (!stepper) return 3;
    if (lh_run(stepper, &block)) return 4;
    fwrite(block.ids, 4, results, stdout);
    fwrite(block.logprobs, 4, results, stdout);
    for (int r = 0; r < rows; r++) lh_read(stepper, r, state), fwrite(state, 4, state_size, stdout);
    return 0;
}
