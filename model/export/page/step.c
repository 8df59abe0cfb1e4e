/* A step of an lstm with int8 weights, for WebAssembly with SIMD: the bits of the native stepper.
 *
 * Gates and sampling are the native code's own files; what is written here is what they are made of. WebAssembly has
 * no fused multiply-add, so it is computed from operations that it has, exactly. Integer sums are exact in any order.
 *
 * Rebuild the module after a change: python -m model.export.page.build
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <wasm_simd128.h>

/* What model/native/src/kernels/simd.h defines for other machines. */
#define LONGHAND_SIMD_H
#define INLINE static inline __attribute__((always_inline))
#define LANES 4
#define ACTIVATION_SCALE 127.0f
typedef v128_t vf;

INLINE vf vf_load(const float *p) { return wasm_v128_load(p); }
INLINE void vf_store(float *p, vf x) { wasm_v128_store(p, x); }
INLINE vf vf_all(float x) { return wasm_f32x4_splat(x); }
INLINE vf vf_mul(vf x, vf y) { return wasm_f32x4_mul(x, y); }
INLINE vf vf_div(vf x, vf y) { return wasm_f32x4_div(x, y); }
INLINE vf vf_clamp(vf x, vf low, vf high) { return wasm_f32x4_min(wasm_f32x4_max(x, low), high); }

/* x y + z for two floats each, in double: the product is exact. The sum is rounded to odd (where it is inexact, to the
 * neighbour whose last bit is 1), so that rounding it again, to float, gives what one rounding would have given. */
INLINE v128_t fma_of_two(v128_t x, v128_t y, v128_t z)
{
    const v128_t one = wasm_i64x2_const(1, 1), zero = wasm_i64x2_const(0, 0);
    v128_t p = wasm_f64x2_mul(x, y), sum = wasm_f64x2_add(p, z);
    v128_t z_part = wasm_f64x2_sub(sum, p), p_part = wasm_f64x2_sub(sum, z_part);
    v128_t error = wasm_f64x2_add(wasm_f64x2_sub(p, p_part), wasm_f64x2_sub(z, z_part));
    v128_t is_even = wasm_i64x2_eq(wasm_v128_and(sum, one), zero);
    v128_t moves = wasm_v128_and(is_even, wasm_f64x2_ne(error, zero));
    v128_t outward = wasm_i64x2_eq(wasm_f64x2_gt(error, zero), wasm_f64x2_gt(sum, zero));
    v128_t by = wasm_v128_bitselect(one, wasm_i64x2_const(-1, -1), outward);
    return wasm_i64x2_add(sum, wasm_v128_and(moves, by));
}

static __attribute__((noinline)) vf vf_fma(vf x, vf y, vf z)
{
#define HIGH(v) wasm_f64x2_promote_low_f32x4(wasm_i32x4_shuffle(v, v, 2, 3, 2, 3))
#define LOW(v) wasm_f64x2_promote_low_f32x4(v)
    v128_t low = wasm_f32x4_demote_f64x2_zero(fma_of_two(LOW(x), LOW(y), LOW(z)));
    v128_t high = wasm_f32x4_demote_f64x2_zero(fma_of_two(HIGH(x), HIGH(y), HIGH(z)));
    return wasm_i32x4_shuffle(low, high, 0, 1, 4, 5);
}

/* a + b = *sum + the result, exactly (Knuth). */
INLINE double two_sum(double a, double b, double *sum)
{
    double s = a + b, b_part = s - a, a_part = s - b_part;
    *sum = s;
    return (a - a_part) + (b - b_part);
}

/* a b + c, rounded once (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using
 * rounding to odd", 2008); the product is split as Veltkamp and Dekker do. For the sizes that sampling.h has. */
static __attribute__((noinline)) double exact_fma(double a, double b, double c)
{
    const double splitter = 134217729.0; /* 2^27 + 1 */
    double a_high = splitter * a, b_high = splitter * b;
    a_high = a_high - (a_high - a), b_high = b_high - (b_high - b);
    double a_low = a - a_high, b_low = b - b_high, product = a * b;
    double product_low = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
    double low_sum, high, odd;
    double low_rest = two_sum(c, product_low, &low_sum);
    double high_rest = two_sum(product, low_sum, &high);
    double error = two_sum(low_rest, high_rest, &odd);
    int64_t bits;
    memcpy(&bits, &odd, 8);
    if (error != 0.0 && !(bits & 1)) bits += (error > 0.0) == (odd > 0.0) ? 1 : -1;
    memcpy(&odd, &bits, 8);
    return high + odd;
}

#define __builtin_fma exact_fma
#include "../../native/src/kernels/gates.h"
#include "../../native/src/kernels/sampling.h"

#define EXPORT(name) __attribute__((export_name(#name)))
#define MAX_LAYERS 8
#define PAD 8 /* int16 of a vector: rows of weights and activations are padded to whole vectors */

typedef struct {
    const int8_t *weights; /* (outputs, segments, padded): row by row */
    const float *scale, *initial; /* (outputs,); the first layer's initial values are by id: (V, outputs) */
} layer_t;

static int layers, hidden, padded, vocab, item_end;
static layer_t layer_of[MAX_LAYERS + 1]; /* the entry after the last layer is the head */
static float *h[MAX_LAYERS], *c[MAX_LAYERS], *gates[MAX_LAYERS]; /* (padded,); gates (4, padded): sums of i f g o */
static int16_t *activations[MAX_LAYERS];                         /* (padded,): 127 h, rounded */
static float *sums, *logits;
static sampling_scratch_t scratch;
static float last_logprob;

extern uint8_t __heap_base;
static uint8_t *next = &__heap_base;

/* Returns zeroed memory, which is never freed: a page has one model. NULL when there is no more. */
EXPORT(allocate) void *allocate(uint32_t bytes)
{
    uint8_t *start = (uint8_t *)(((uintptr_t)next + 15) / 16 * 16);
    uint64_t end = (uint64_t)(uintptr_t)start + bytes, have = (uint64_t)__builtin_wasm_memory_size(0) << 16;
    if (end > have && __builtin_wasm_memory_grow(0, (uint32_t)((end - have + 65535) >> 16)) == (uint32_t)-1) return NULL;
    next = (uint8_t *)(uintptr_t)end;
    return start;
}

EXPORT(reset) void reset(void)
{
    for (int l = 0; l < layers; l++) {
        memset(h[l], 0, (size_t)padded * sizeof(float));
        memset(c[l], 0, (size_t)padded * sizeof(float));
        memset(activations[l], 0, (size_t)padded * sizeof(int16_t));
    }
}

/* Sets the shape; returns 0 when memory is missing. */
EXPORT(open) int open_model(int n_layers, int n_hidden, int n_vocab, int end)
{
    layers = n_layers, hidden = n_hidden, vocab = n_vocab, item_end = end;
    padded = (hidden + PAD - 1) / PAD * PAD;
    for (int l = 0; l < layers; l++) {
        h[l] = allocate((uint32_t)padded * 4), c[l] = allocate((uint32_t)padded * 4);
        gates[l] = allocate((uint32_t)padded * 16), activations[l] = allocate((uint32_t)padded * 2);
    }
    sums = allocate((uint32_t)padded * 16);
    logits = allocate((uint32_t)vocab * 4);
    scratch.weight = allocate((uint32_t)vocab * 8);
    return scratch.weight != NULL;
}

EXPORT(set_layer) void set_layer(int l, const int8_t *weights, const float *scale, const float *initial)
{
    layer_of[l] = (layer_t){weights, scale, initial};
}

EXPORT(cell_of) const float *cell_of(int l) { return c[l]; }
EXPORT(hidden_of) const float *hidden_of(int l) { return h[l]; }

/* The sum of `outputs` rows of weights times the activations, as floats: initial + scale * sum, rounded once. */
static void multiply(const layer_t *layer, const float *initial, const int16_t *const *inputs, int n_inputs, int outputs,
                     float *to)
{
    const int8_t *w = layer->weights;
    for (int row = 0; row < outputs; row += 4) {
        int32_t total[4] = {0, 0, 0, 0};
        int rows = outputs - row < 4 ? outputs - row : 4;
        for (int r = 0; r < rows; r++) {
            v128_t sum = wasm_i32x4_splat(0), other = wasm_i32x4_splat(0);
            for (int i = 0; i < n_inputs; i++, w += padded) {
                int k = 0;
                for (; k + 16 <= padded; k += 16) {
                    sum = wasm_i32x4_add(
                        sum, wasm_i32x4_dot_i16x8(wasm_i16x8_load8x8(w + k), wasm_v128_load(inputs[i] + k)));
                    other = wasm_i32x4_add(
                        other, wasm_i32x4_dot_i16x8(wasm_i16x8_load8x8(w + k + 8), wasm_v128_load(inputs[i] + k + 8)));
                }
                for (; k < padded; k += 8)
                    sum = wasm_i32x4_add(
                        sum, wasm_i32x4_dot_i16x8(wasm_i16x8_load8x8(w + k), wasm_v128_load(inputs[i] + k)));
            }
            sum = wasm_i32x4_add(sum, other);
            total[r] = wasm_i32x4_extract_lane(sum, 0) + wasm_i32x4_extract_lane(sum, 1) +
                       wasm_i32x4_extract_lane(sum, 2) + wasm_i32x4_extract_lane(sum, 3);
        }
        float scale[4], start[4], result[4];
        for (int r = 0; r < 4; r++) {
            scale[r] = r < rows ? layer->scale[row + r] : 0.0f;
            start[r] = r < rows ? initial[row + r] : 0.0f;
        }
        vf_store(result, vf_fma(wasm_f32x4_convert_i32x4(wasm_v128_load(total)), vf_load(scale), vf_load(start)));
        for (int r = 0; r < rows; r++) to[row + r] = result[r];
    }
}

/* Reads a character: state and logits are those after it. */
EXPORT(step) void step(int id)
{
    if (id == item_end) reset();
    for (int l = 0; l < layers; l++) {
        const int16_t *inputs[2] = {l ? activations[l - 1] : activations[l], activations[l]};
        const layer_t *layer = &layer_of[l];
        multiply(layer, l ? layer->initial : layer->initial + (size_t)id * 4 * hidden, inputs, l ? 2 : 1, 4 * hidden, sums);
        for (int gate = 3; gate >= 0; gate--) /* to rows of `padded`; from the last one, as they overlap */
            memmove(sums + gate * padded, sums + gate * hidden, (size_t)hidden * sizeof(float));
        for (int u = 0; u < padded; u += LANES) {
            vf i = vf_load(sums + u), f = vf_load(sums + padded + u);
            vf g = vf_load(sums + 2 * padded + u), o = vf_load(sums + 3 * padded + u);
            cell_update(i, f, g, c[l] + u);
            vf output = cell_output(o, c[l] + u);
            vf_store(h[l] + u, output);
            vf whole = wasm_f32x4_nearest(
                vf_mul(vf_clamp(output, vf_all(-1.0f), vf_all(1.0f)), vf_all(ACTIVATION_SCALE)));
            v128_t words = wasm_i32x4_trunc_sat_f32x4(whole);
            wasm_v128_store64_lane(activations[l] + u, wasm_i16x8_narrow_i32x4(words, words), 0);
        }
        if (padded > hidden) { /* the units beyond the last one stay zero */
            memset(h[l] + hidden, 0, (size_t)(padded - hidden) * sizeof(float));
            memset(c[l] + hidden, 0, (size_t)(padded - hidden) * sizeof(float));
            memset(activations[l] + hidden, 0, (size_t)(padded - hidden) * sizeof(int16_t));
        }
        memcpy(gates[l], sums, (size_t)padded * 16);
    }
    const int16_t *top[1] = {activations[layers - 1]};
    multiply(&layer_of[layers], layer_of[layers].initial, top, 1, vocab, logits);
}

/* Returns the activated gates i f g o of a layer after the last step, (4, padded), until the next step. */
EXPORT(gates_of) const float *gates_of(int l)
{
    for (int u = 0; u < 4 * padded; u += LANES) {
        vf sum = vf_load(gates[l] + u);
        vf_store(sums + u, u / padded == 2 ? vf_tanh(sum) : vf_sigmoid(sum));
    }
    return sums;
}

/* Draws the next character; its log-probability at temperature 1 is then `logprob`. */
EXPORT(draw) int draw_id(double temperature, double random_value)
{
    const sampling_t params = {
        .temperature = temperature, .top_p = 1.0, .typical_p = 1.0, .repetition_penalty = 1.0, .penalty_window = 1};
    return draw(logits, vocab, &params, random_value, &scratch, &last_logprob);
}

EXPORT(logprob) float logprob_of_draw(void) { return last_logprob; }

/* The log-probability of a character that is given. */
EXPORT(score) float score_id(int id) { return score(logits, vocab, id, &scratch); }
