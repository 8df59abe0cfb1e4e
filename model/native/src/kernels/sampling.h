/* Logits and one random number -> an id: the arithmetic of model/network/sampling.py, in double, in id order.
 *
 * Weights are not normalised (the most probable id has weight 1): every comparison that the filters make is one of
 * ratios.
 */
#ifndef LONGHAND_SAMPLING_H
#define LONGHAND_SAMPLING_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "exp_log.h"
#include "simd.h"

/* The fields of SamplingParams in model/network/sampling.py, in its order; a test compares the layouts. */
#define SAMPLING_FIELDS(FIELD)        \
    FIELD(double, temperature)        \
    FIELD(int32_t, top_k)             \
    FIELD(double, top_p)              \
    FIELD(double, min_p)              \
    FIELD(double, typical_p)          \
    FIELD(double, repetition_penalty) \
    FIELD(double, frequency_penalty)  \
    FIELD(double, presence_penalty)   \
    FIELD(int32_t, penalty_window)

#define SAMPLING_DECLARE(type, name) type name;
typedef struct { SAMPLING_FIELDS(SAMPLING_DECLARE) } sampling_t;

/* Whether every parameter is a number that the code below can work with. The comparisons are false for NaN. */
static int sampling_is_valid(const sampling_t *s)
{
    return s->temperature >= 0.0 && s->temperature < INFINITY && s->top_k >= 0 && s->top_p >= 0.0 && s->min_p >= 0.0 &&
           s->typical_p > 0.0 && s->repetition_penalty > 0.0 && s->repetition_penalty < INFINITY &&
           fabs(s->frequency_penalty) < INFINITY && fabs(s->presence_penalty) < INFINITY && s->penalty_window > 0;
}

/* Whether any filter may remove an id. */
INLINE int sampling_has_filters(const sampling_t *s)
{
    return s->top_k > 0 || s->top_p < 1.0 || s->min_p > 0.0 || s->typical_p < 1.0;
}

/* Whether what is drawn depends on the recent text. */
INLINE int sampling_has_penalties(const sampling_t *s)
{
    return s->repetition_penalty != 1.0 || s->frequency_penalty != 0.0 || s->presence_penalty != 0.0;
}

/* A thread's memory for sampling, (V,) each. */
typedef struct {
    float *adjusted;      /* logits after bias and penalties */
    double *bias;         /* what is added to each logit */
    int32_t *occurrences; /* of an id in the window of the penalties */
    int32_t *generated;   /* of those, how many were sampled */
    double *weight;     /* exp((logit - max) / temperature) */
    double *typicality; /* minus the distance of an id's information content from the entropy */
    int32_t *heap;      /* ids; the most probable, or the most typical, is at the root */
    uint8_t *keep;
} sampling_scratch_t;

/* Whether id a ranks before id b: the more probable first, of equals the lower id. */
INLINE int ranks_before(const double *weight, int32_t a, int32_t b)
{
    return weight[a] > weight[b] || (weight[a] == weight[b] && a < b);
}

static void sift_down(int32_t *heap, int n, int at, const double *weight)
{
    int32_t moved = heap[at];
    for (;;) {
        int child = 2 * at + 1;
        if (child >= n) break;
        if (child + 1 < n && ranks_before(weight, heap[child + 1], heap[child])) child++;
        if (!ranks_before(weight, heap[child], moved)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

/* Removes the root of a heap of n ids, and puts it at heap[n - 1]. */
static int32_t heap_pop(int32_t *heap, int n, const double *weight)
{
    int32_t root = heap[0];
    heap[0] = heap[n - 1];
    heap[n - 1] = root;
    sift_down(heap, n - 1, 0, weight);
    return root;
}

#define FEW_IDS 128 /* at most so many are ranked by counting */

/* Fills `order` with the ids from the last rank to the first; n is at most FEW_IDS. An id's rank is the number of ids
 * before it: n * n comparisons without branches, which take less time than a heap's unpredictable ones. */
static void rank_few(int32_t *order, int n, const double *weight)
{
    for (int i = 0; i < n; i++) {
        const double own = weight[i];
        int64_t rank = 0;
        for (int j = 0; j < i; j++) rank += weight[j] >= own;
        for (int j = i + 1; j < n; j++) rank += weight[j] > own;
        order[n - 1 - rank] = i;
    }
}

/* Sets `keep` for what top_k, top_p and min_p keep. Few ids are ranked at once. Of many, a heap gives ids by rank, and is
 * popped only as often as needed. */
static void filter(const sampling_scratch_t *d, int n, const sampling_t *s)
{
    const double *weight = d->weight;
    int by_rank = (s->top_k > 0 && s->top_k < n) || s->top_p < 1.0;
    if (!by_rank) {
        for (int i = 0; i < n; i++) d->keep[i] = weight[i] >= s->min_p;
        return;
    }
    int left = n; /* ids of the heap; the others lie behind it, the first at heap[n - 1] */
    for (int i = 0; i < n; i++) d->keep[i] = 0, d->heap[i] = i;
    if (n <= FEW_IDS)
        rank_few(d->heap, n, weight), left = 0;
    else
        for (int i = n / 2 - 1; i >= 0; i--) sift_down(d->heap, n, i, weight);
    int most = s->top_k > 0 && s->top_k < n ? s->top_k : n;
    double total = 0.0, before = 0.0, enough = INFINITY;
    if (s->top_p < 1.0) {
        /* the mass that top_k leaves */
        if (most < n) {
            for (; left > n - most; left--) heap_pop(d->heap, left, weight);
            for (int rank = 0; rank < most; rank++) total += weight[d->heap[n - 1 - rank]];
        } else
            for (int i = 0; i < n; i++) total += weight[i];
        enough = s->top_p * total;
    }
    for (int rank = 0; rank < most && before < enough; rank++) {
        int at = n - 1 - rank;
        if (at < left) heap_pop(d->heap, left--, weight);
        int32_t id = d->heap[at];
        if (weight[id] < s->min_p) break;
        d->keep[id] = 1;
        before += weight[id];
    }
}

/* Takes from `keep` what typical_p drops. The information content of an id is (max - logit) / temperature plus a
 * constant, which cancels out of its distance from the entropy. A heap gives ids by distance, the nearest first. */
static void filter_typical(const sampling_scratch_t *d, const float *logits, double max, int n, const sampling_t *s)
{
    const double *weight = d->weight;
    double total = 0.0, expected = 0.0, mass = 0.0, last = 0.0;
    int left = 0;
    for (int i = 0; i < n; i++) {
        d->typicality[i] = ((double)logits[i] - max) / s->temperature;
        if (!d->keep[i] || weight[i] == 0.0) continue;
        total += weight[i];
        expected += weight[i] * d->typicality[i];
        d->heap[left++] = i;
    }
    expected /= total;
    for (int i = 0; i < n; i++) d->typicality[i] = -fabs(d->typicality[i] - expected);
    for (int i = left / 2 - 1; i >= 0; i--) sift_down(d->heap, left, i, d->typicality);
    while (left > 0 && mass < s->typical_p * total) {
        int32_t id = heap_pop(d->heap, left--, d->typicality);
        mass += weight[id];
        last = d->typicality[id];
    }
    for (int i = 0; i < n; i++) d->keep[i] = d->keep[i] && d->typicality[i] >= last;
}

/* The lowest id with the largest logit. */
INLINE int32_t argmax(const float *logits, int n)
{
    int32_t best = 0;
    for (int i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* Fills weight[i] = exp(logit - max) and returns their sum. */
INLINE double weigh(const float *logits, int n, double max, double *weight)
{
    double sum = 0.0;
    for (int i = 0; i < n; i++) weight[i] = exp_negative((double)logits[i] - max);
    for (int i = 0; i < n; i++) sum += weight[i];
    return sum;
}

/* The natural log-probability of an id at temperature 1 without filters. */
static float score(const float *logits, int n, int32_t id, const sampling_scratch_t *d)
{
    double max = logits[argmax(logits, n)];
    return (float)((double)logits[id] - max - log_of(weigh(logits, n, max, d->weight)));
}

/* Adds a character to the counts, from its code in a window: see model/network/penalties.py. */
INLINE void count(const sampling_scratch_t *d, int32_t code)
{
    if (code == -1) return;
    int32_t id = code >= 0 ? code : -2 - code;
    d->occurrences[id]++;
    d->generated[id] += code >= 0;
}

/* Fills `adjusted` from bias and counts. In double, rounded once: as adjusted_logits in penalties.py does. */
static void adjust(const float *logits, int n, const sampling_t *s, const sampling_scratch_t *d)
{
    for (int i = 0; i < n; i++) {
        double logit = (double)logits[i] + d->bias[i];
        if (d->occurrences[i] > 0)
            logit = logit > 0.0 ? logit / s->repetition_penalty : logit * s->repetition_penalty;
        double frequency = s->frequency_penalty * d->generated[i];
        logit = logit - frequency;
        logit = logit - (d->generated[i] > 0 ? s->presence_penalty : 0.0);
        d->adjusted[i] = (float)logit;
    }
}

/* Draws an id; its log-probability, as `score` gives it, goes to *logprob. */
static int32_t draw(const float *logits, int n, const sampling_t *s, double random_value, const sampling_scratch_t *d,
                    float *logprob)
{
    int32_t best = argmax(logits, n), id = best;
    double max = logits[best], *weight = d->weight, sum = weigh(logits, n, max, weight);
    if (s->temperature > 0.0) {
        double total = sum;
        if (s->temperature != 1.0) {
            for (int i = 0; i < n; i++) weight[i] = exp_negative(((double)logits[i] - max) / s->temperature);
            total = 0.0;
            for (int i = 0; i < n; i++) total += weight[i];
        }
        if (sampling_has_filters(s)) {
            filter(d, n, s);
            d->keep[best] = 1; /* these filters always keep the most probable id */
            if (s->typical_p < 1.0) filter_typical(d, logits, max, n, s);
            total = 0.0;
            for (int i = 0; i < n; i++) total += weight[i] = d->keep[i] ? weight[i] : 0.0;
        }
        double target = random_value * total, cumulative = 0.0;
        for (int i = 0; i < n; i++) {
            cumulative += weight[i];
            if (weight[i] > 0.0) id = i; /* if rounding lets the target reach the total: the last id that is kept */
            if (cumulative > target) break;
        }
    }
    *logprob = (float)((double)logits[id] - max - log_of(sum));
    return id;
}

#endif
