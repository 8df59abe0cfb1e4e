/* Runs a training pass outside Python, so that the kernels of another CPU can run in an emulator.
 *
 *     run_training_pass INSTRUCTION_SET FILE    writes the loss, the state and the gradients to standard output
 *
 * FILE: int32 rows, steps, layers, hidden, embed, vocab, products, then the thresholds of embedding, weights and output;
 * then ids and targets (int64), starts (uint8), the draws of the embedding, of each layer's weights and of each layer's
 * output (uint8), the state and the parameters.
 */
#include <stdio.h>
#include <stdlib.h>

#include "../../../model/native/src/api.h"

#define MOST_PARAMETERS (4 * MAX_LAYERS + 3)

int lh_train(lh_pass *pass);

static void *read_bytes(FILE *file, size_t size)
{
    void *bytes = malloc(size + 64);
    if (!bytes || fread(bytes, 1, size, file) != size) exit(2);
    return bytes;
}

static void write_bytes(const void *bytes, size_t size)
{
    if (fwrite(bytes, 1, size, stdout) != size) exit(5);
}

int main(int count, char **arguments)
{
    FILE *file = count == 3 ? fopen(arguments[2], "rb") : NULL;
    if (!file) return 2;
    lh_pass pass = {.instruction_set = arguments[1]};
    const int32_t *head = read_bytes(file, 10 * sizeof *head);
    pass.rows = head[0], pass.steps = head[1], pass.layers = head[2], pass.hidden = head[3], pass.embed = head[4];
    pass.vocab = head[5], pass.products = head[6];
    pass.embed_threshold = head[7], pass.weight_threshold = head[8], pass.output_threshold = head[9];
    const size_t rows = (size_t)pass.rows, places = rows * (size_t)pass.steps, hidden = (size_t)pass.hidden;
    const size_t embed = (size_t)pass.embed, vocab = (size_t)pass.vocab, layers = (size_t)pass.layers;
    pass.ids = read_bytes(file, places * 8), pass.targets = read_bytes(file, places * 8);
    pass.ids_stride = pass.targets_stride = pass.steps;
    pass.starts = read_bytes(file, places);
    pass.embed_draws = read_bytes(file, rows * embed);
    for (size_t i = 0; i < layers; i++) pass.weight_draws[i] = read_bytes(file, 4 * hidden * hidden);
    for (size_t i = 0; i < layers; i++) pass.output_draws[i] = read_bytes(file, places * hidden);
    const size_t state = 2 * layers * rows * hidden;
    pass.state = read_bytes(file, state * sizeof(float));

    size_t sizes[MOST_PARAMETERS] = {vocab * embed}, n = 1;
    for (size_t i = 0; i < layers; i++) {
        sizes[n++] = 4 * hidden * (i ? hidden : embed), sizes[n++] = 4 * hidden * hidden;
        sizes[n++] = 4 * hidden, sizes[n++] = 4 * hidden;
    }
    sizes[n++] = vocab * hidden, sizes[n++] = vocab;
    const float *parameters[MOST_PARAMETERS];
    float *gradients[MOST_PARAMETERS];
    for (size_t i = 0; i < n; i++) {
        parameters[i] = read_bytes(file, sizes[i] * sizeof(float));
        gradients[i] = calloc(sizes[i], sizeof(float));
    }
    pass.parameters = parameters, pass.gradients = gradients;
    if (lh_train(&pass)) return 3;
    write_bytes(&pass.loss, sizeof pass.loss);
    write_bytes(pass.state, state * sizeof(float));
    for (size_t i = 0; i < n; i++) write_bytes(gradients[i], sizes[i] * sizeof(float));
    return 0;
}
