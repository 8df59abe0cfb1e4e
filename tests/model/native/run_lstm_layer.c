/* Runs the LSTM layer of training outside Python, so that the kernels of another CPU can run in an emulator.
 *
 *     run_lstm_layer INSTRUCTION_SET FILE    writes h, c, the gates and both gradients to standard output
 *
 * FILE: int32 rows, steps, hidden, products, vocab, then ids (int64), inputs, weights, h0, c0, starts (uint8), d_h.
 */
#include <stdio.h>
#include <stdlib.h>

#include "../../../model/native/src/api.h"

int lh_lstm_forward(const lh_lstm_layer *layer);
int lh_lstm_backward(const lh_lstm_layer *layer);

static void *read_bytes(FILE *file, size_t size)
{
    void *bytes = malloc(size + 64);
    if (!bytes || fread(bytes, 1, size, file) != size) exit(2);
    return bytes;
}

static float *write_floats(float *floats, size_t count)
{
    if (fwrite(floats, sizeof(float), count, stdout) != count) exit(5);
    return floats;
}

int main(int count, char **arguments)
{
    FILE *file = count == 3 ? fopen(arguments[2], "rb") : NULL;
    if (!file) return 2;
    const int32_t *head = read_bytes(file, 5 * sizeof *head);
    lh_lstm_layer layer = {.rows = head[0], .steps = head[1], .hidden = head[2], .products = head[3]};
    const size_t states = (size_t)head[0] * (size_t)head[2], places = (size_t)head[0] * (size_t)head[1];
    const size_t hidden = (size_t)head[2], vocab = (size_t)head[4];
    layer.instruction_set = arguments[1];
    layer.ids = read_bytes(file, places * 8);
    layer.inputs = read_bytes(file, vocab * 4 * hidden * 4);
    layer.weights = read_bytes(file, 4 * hidden * hidden * 4);
    layer.h0 = read_bytes(file, states * 4);
    layer.c0 = read_bytes(file, states * 4);
    layer.starts = read_bytes(file, places);
    layer.d_h = read_bytes(file, places * hidden * 4);
    layer.h = calloc(places * hidden, 4), layer.c = calloc(places * hidden, 4);
    layer.gates = calloc(places * 4 * hidden, 4), layer.d_gates = calloc(places * 4 * hidden, 4);
    layer.d_inputs = calloc(vocab * 4 * hidden, 4);
    if (lh_lstm_forward(&layer)) return 3;
    if (lh_lstm_backward(&layer)) return 4;
    write_floats(layer.h, places * hidden);
    write_floats(layer.c, places * hidden);
    write_floats(layer.gates, places * 4 * hidden);
    write_floats(layer.d_gates, places * 4 * hidden);
    write_floats(layer.d_inputs, vocab * 4 * hidden);
    return 0;
}
