/* What follows the gradients of a training step: their sum over the shards, their norm, clipping, AdamW (Loshchilov and
 * Hutter, 2019) and the moving average of the weights, in two passes over the memory.
 *
 * Each tensor is divided into chunks, and threads divide the chunks. The norm is a sum over the chunks in their order,
 * and each chunk's squares are added up in double in LANES_OF_NORM sums, so that it depends neither on the number of
 * threads nor on the instruction set. Denormals are zero.
 */
#ifndef LONGHAND_OPTIMIZER_H
#define LONGHAND_OPTIMIZER_H

#include <math.h>
#include <pthread.h>

#include "../../api.h"
#include "../simd.h"

#define CHUNK 8192 /* elements; model/network/native_optimizer.py knows it, too */
#define LANES_OF_NORM 16
#define OPTIMIZER_THREADS 64

/* A chunk: elements `first` to `first + count` of a tensor. */
typedef struct {
    int tensor;
    int64_t first;
    int count;
} chunk_t;

/* The chunk after *c in the order of the tensors; before the first, count is 0 and tensor 0. */
static int next_chunk(const lh_optimizer *o, chunk_t *c)
{
    c->first += c->count;
    while (c->tensor < o->tensors && c->first >= o->sizes[c->tensor]) c->tensor++, c->first = 0;
    if (c->tensor >= o->tensors) return 0;
    const int64_t left = o->sizes[c->tensor] - c->first;
    c->count = left < CHUNK ? (int)left : CHUNK;
    return 1;
}

/* g[j] = the sum over the shards, in their order, divided by `divisor`. Returns the sum of squares. */
static double sum_chunk(const lh_optimizer *o, chunk_t c)
{
    float *restrict g = o->gradients[c.tensor] + c.first;
    for (int shard = 1; shard < o->shards; shard++) {
        const float *restrict other = o->gradients[(int64_t)shard * o->tensors + c.tensor] + c.first;
        for (int j = 0; j < c.count; j++) g[j] += other[j];
    }
    const float divisor = o->divisor;
    if (divisor != 1.0f)
        for (int j = 0; j < c.count; j++) g[j] /= divisor;
    double sums[LANES_OF_NORM] = {0}, total = 0;
    int j = 0;
    for (; j + LANES_OF_NORM <= c.count; j += LANES_OF_NORM)
        for (int lane = 0; lane < LANES_OF_NORM; lane++) sums[lane] += (double)g[j + lane] * (double)g[j + lane];
    for (int lane = 0; j < c.count; j++, lane++) sums[lane] += (double)g[j] * (double)g[j];
    for (int lane = 0; lane < LANES_OF_NORM; lane++) total += sums[lane];
    return total;
}

static void step_chunk(const lh_optimizer *o, chunk_t c, float clip)
{
    const float *restrict g = o->gradients[c.tensor] + c.first;
    float *restrict p = o->parameters[c.tensor] + c.first, *restrict m = o->means[c.tensor] + c.first;
    float *restrict v = o->squares[c.tensor] + c.first, *restrict average = o->averages[c.tensor] + c.first;
    const float keep = o->keeps[c.tensor], step = o->step_size, scale = o->square_scale;
    const float new_mean = o->new_mean, new_square = o->new_square, epsilon = o->epsilon, weight = o->average_weight;
    for (int j = 0; j < c.count; j++) {
        const float gradient = g[j] * clip;
        const float mean = m[j] + (gradient - m[j]) * new_mean;
        const float square = v[j] + (gradient * gradient - v[j]) * new_square;
        const float parameter = p[j] * keep - step * (mean / (sqrtf(square) * scale + epsilon));
        m[j] = mean, v[j] = square, p[j] = parameter;
        average[j] = weight < 0.5f ? average[j] + weight * (parameter - average[j])
                                   : parameter - (parameter - average[j]) * (1.0f - weight);
    }
}

/* Returns the factor that scales the gradient down to the maximum; not a number where the norm is none. */
static float clip_factor(const lh_optimizer *o)
{
    double sum = 0.0;
    for (int64_t n = 0; n < o->chunks; n++) sum += o->norms[n];
    const double factor = (double)o->max_norm / (sqrt(sum) + 1e-6);
    return factor > 1.0 ? 1.0f : (float)factor;
}

/* What a thread does in one of the two passes: its chunks. */
typedef struct {
    const lh_optimizer *o;
    int64_t begin, end; /* chunks */
    int is_step;
    float clip;
} share_t;

static void *do_share(void *of_thread)
{
    const share_t *share = of_thread;
    const uint64_t mode = float_mode_flush();
    chunk_t c = {0, 0, 0};
    for (int64_t n = 0; n < share->end && next_chunk(share->o, &c); n++) {
        if (n < share->begin) continue;
        if (share->is_step) step_chunk(share->o, c, share->clip);
        else share->o->norms[n] = sum_chunk(share->o, c);
    }
    float_mode_leave(mode);
    return NULL;
}

/* A thread is started for each share but the first, and ends with it: that takes a few hundredths of a millisecond. A share
 * that gets no thread is done here. */
static void do_shares(const lh_optimizer *o, int is_step, float clip)
{
    share_t shares[OPTIMIZER_THREADS];
    pthread_t threads[OPTIMIZER_THREADS];
    int has_thread[OPTIMIZER_THREADS] = {0};
    const int n = o->threads < 1 ? 1 : o->threads > OPTIMIZER_THREADS ? OPTIMIZER_THREADS : o->threads;
    for (int i = n - 1; i >= 0; i--) {
        shares[i] = (share_t){o, o->chunks * i / n, o->chunks * (i + 1) / n, is_step, clip};
        has_thread[i] = i && pthread_create(&threads[i], NULL, do_share, &shares[i]) == 0;
        if (!has_thread[i]) do_share(&shares[i]);
    }
    for (int i = 0; i < n; i++)
        if (has_thread[i]) pthread_join(threads[i], NULL);
}

static void optimize(const lh_optimizer *o)
{
    do_shares(o, 0, 1.0f);
    do_shares(o, 1, clip_factor(o));
}

#endif
