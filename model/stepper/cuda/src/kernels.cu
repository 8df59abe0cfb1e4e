/* K steps of B texts through a stacked lstm, its head and the sampling, on a GPU; the bits are those of the CPU's
 * stepper (model/native/src), sum for sum:
 *
 *   fp32  z = initial; then one fma per k, k = 0..K-1: one chain per output
 *   int8  z = sum of int8 weight * int8 activation, in int32: exact, so in any order
 *
 * A step is a kernel per layer, one for the head and one for the sampling. The end of a kernel is the only barrier
 * between blocks. Weights are packed by pack_weights.py: panels of 64 outputs (of a layer, the four gates of 16 units),
 * and of a panel, for each step of a sum, 64 words: a word is one float of one k, or four int8 of four k.
 */
#include "arithmetic.h"

#define MAX_LAYERS 8
#define PANEL 64
#define SAMPLE_ID (-1)
#define NO_SCORE (-1)
#define ENDED (-1) /* rows with fewer steps come last, so the rows that still run are the first ones */

/* Filled by CudaStepper._allocate, field by field; every field has 8 bytes. */
typedef struct {
    Ptr<uint32_t> weights[MAX_LAYERS + 1]; /* (panels, words, 64); the entry after the last layer is the head */
    Ptr<float> initial[MAX_LAYERS + 1];    /* [0]: (V, panels, 64), by id; others: (panels, 64) */
    Ptr<float> scale[MAX_LAYERS + 1];      /* int8: (panels, 64) */
    Ptr<float> h[MAX_LAYERS][2];           /* (rows, stride), at even and odd steps */
    Ptr<int8_t> hq[MAX_LAYERS][2];         /* int8: the same as activations */
    Ptr<float> c[MAX_LAYERS];              /* (rows, stride) */
    Ptr<float> state;                      /* (slots, 2, L, H) */
    Ptr<float> logits;                     /* (rows, vstride) */
    Ptr<int32_t> block;                    /* the present block, see HEADER_ below */
    Ptr<int32_t> out;                      /* (K, rows) ids, then as many log-probabilities */
    Ptr<int32_t> sampled;                  /* (rows, capacity): the ids that were sampled in this block */
    Ptr<int32_t> sampled_count;            /* (rows,) */
    Ptr<int32_t> fed;                      /* (rows,) the id that the next step feeds, or ENDED; whole tiles */
    Ptr<int32_t> needs_logits;             /* (rows,) whether the next step samples or scores */
    Ptr<double> raw, weight, sums, key, bias; /* scratch of the sampling, (draw_blocks, V) each */
    Ptr<float> adjusted;
    Ptr<int32_t> occurrences, generated, order, keep; /* order: (draw_blocks, V to a power of two) */
    int64_t layers, hidden, vocab, stride, vstride, item_end, capacity, order_size;
} args_t;

/* The block: a header of int32, and where the arrays begin in it, in words of 4 bytes; 0: there is no such array. */
enum {
    HEADER_K, /* the steps that are done */
    HEADER_ROWS,
    HEADER_STEPS,
    HEADER_WINDOW,
    HEADER_SLOTS,       /* (rows,) */
    HEADER_ROW_STEPS,   /* (rows,) descending */
    HEADER_FORCED,      /* (K, rows) */
    HEADER_RANDOM,      /* (K, rows) double */
    HEADER_SAMPLING,    /* (rows, SAMPLING_FIELDS) double */
    HEADER_SCORE,       /* (K, rows) */
    HEADER_WINDOWS,     /* (rows, window) */
    HEADER_BIAS_STARTS, /* (rows + 1,) */
    HEADER_BIAS_IDS,
    HEADER_BIAS_VALUES, /* double */
    HEADER_WORDS
};
/* The fields of SamplingParams (model/network/sampling.py), in their order; a test compares them. */
enum {
    TEMPERATURE, TOP_K, TOP_P, MIN_P, TYPICAL_P,
    REPETITION_PENALTY, FREQUENCY_PENALTY, PRESENCE_PENALTY, PENALTY_WINDOW,
    SAMPLING_FIELDS
};

DEVICE Ptr<int32_t> array_of(const args_t &a, int header) { return a.block + (int32_t)a.block[header]; }
DEVICE Ptr<double> doubles_of(const args_t &a, int header) { return cast<double>(array_of(a, header)); }

/* Whether the id after step k is sampled. */
DEVICE bool is_sampled(const args_t &a, int rows, int k, int row)
{
    if (k + 1 >= (int32_t)array_of(a, HEADER_ROW_STEPS)[row]) return true;
    return (int32_t)array_of(a, HEADER_FORCED)[(k + 1) * rows + row] == SAMPLE_ID;
}

DEVICE int32_t score_id(const args_t &a, int rows, int k, int row)
{
    if (!(int32_t)a.block[HEADER_SCORE]) return NO_SCORE;
    return array_of(a, HEADER_SCORE)[k * rows + row];
}

DEVICE bool needs_logits(const args_t &a, int rows, int k, int row)
{
    return is_sampled(a, rows, k, row) || score_id(a, rows, k, row) >= 0;
}

/* ---- a layer, or the head ---- */

/* The words of a sum's input as they are packed: STEPS in pack_weights.py. */
DEVICE int64_t padded_words(int words) { return (words + 63) / 64 * 64; }

/* What a block of a layer's or the head's kernel needs. */
typedef struct {
    int first;                /* the tile's first row */
    int segments, words;      /* a sum's inputs (below, own, or both in this order), and the words of each */
    Ptr<uint32_t> weights;    /* of the panel */
    Ptr<uint32_t> below, own; /* (rows, stride words): h of the layer below, and the layer's own */
    int64_t input_stride;     /* in words */
} tile_t;

/* `parity`: of the number of steps done, which says where h is. */
template <bool INT8, bool HEAD> DEVICE tile_t tile_of(const args_t &a, int layer, int parity, int panel, int tile_rows)
{
    tile_t t;
    const int before = parity, now = parity ^ 1;
    t.first = BLOCK_Y * tile_rows;
    t.words = INT8 ? ((int)a.hidden + 3) / 4 : (int)a.hidden;
    t.input_stride = INT8 ? a.stride / 4 : a.stride;
    t.segments = HEAD || layer == 0 ? 1 : 2;
    t.weights = a.weights[layer] + panel * t.segments * padded_words(t.words) * PANEL;
    if (layer) t.below = INT8 ? cast<uint32_t>(a.hq[layer - 1][now]) : cast<uint32_t>(a.h[layer - 1][now]);
    if (!HEAD) t.own = INT8 ? cast<uint32_t>(a.hq[layer][before]) : cast<uint32_t>(a.h[layer][before]);
    return t;
}

/* Fills `fed` with the ids of the tile's rows, or ENDED; false when the tile has nothing to do. */
template <bool HEAD> DEVICE bool read_ids(const args_t &a, const tile_t &t, int tile_rows, Ptr<int32_t> fed)
{
    int is_needed = 0;
    if (THREAD < tile_rows) {
        const int32_t id = a.fed[t.first + THREAD];
        fed[THREAD] = id;
        is_needed = id != ENDED && (!HEAD || (int32_t)a.needs_logits[t.first + THREAD]);
    }
    return SYNC_OR(is_needed);
}

/* A sum as a float. fp32 sums began with the initial value; int8 adds it here. */
template <bool INT8> DEVICE float finish(uint32_t sum, float scale, float initial)
{
    return INT8 ? f_fma(f_from_int((int32_t)sum), scale, initial) : as_float(sum);
}

/* Turns the four sums of a unit of a row into c and h. */
template <bool INT8> DEVICE void update_unit(const args_t &a, int layer, int now, int row, int unit, bool begins_item, const float (&z)[4])
{
    const int64_t at = row * a.stride + unit;
    float c = begins_item ? 0.0f : (float)a.c[layer][at];
    cell_update(z[0], z[1], z[2], &c);
    const float h = cell_output(z[3], &c);
    a.c[layer][at] = c;
    a.h[layer][now][at] = h;
    if (INT8) a.hq[layer][now][at] = (int8_t)activation(h);
}

#define FEW_THREADS 128
#define FEW_WARPS 4

/* A few rows by 32 outputs, half a panel: a lane has one output of ROWS rows. Weights and inputs come in chunks of CHUNK
 * words through STAGES stages of shared memory, so that many reads are under way. */
template <bool INT8, bool HEAD, int ROWS, int STAGES> DEVICE void few_rows(const args_t &a, int layer, int parity)
{
    enum { TILE = FEW_WARPS * ROWS, WIDTH = 32, CHUNK = 64, INPUT = CHUNK + 4 };
    SHARED(uint32_t, w, STAGES * CHUNK * WIDTH);
    SHARED(uint32_t, x, STAGES * TILE * INPUT);
    SHARED(int32_t, fed, TILE);
    SHARED(uint32_t, z, HEAD ? 1 : TILE * (WIDTH + 1));
    const int panel = BLOCK_X / 2, half = BLOCK_X % 2 * WIDTH, lane = THREAD % 32, warp = THREAD / 32;
    const tile_t t = tile_of<INT8, HEAD>(a, layer, parity, panel, TILE);
    const int chunks_of_one = (t.words + CHUNK - 1) / CHUNK, chunks = t.segments * chunks_of_one;
    const Ptr<uint32_t> weights = t.weights + half;
    auto fetch_weights = [&](int chunk) {
        if (chunk >= chunks) return;
        UNROLL
        for (int i = THREAD; i < CHUNK * WIDTH / 4; i += FEW_THREADS) {
            const int k = i / 8, n = i % 8 * 4;
            copy16(w, (chunk % STAGES * CHUNK + k) * WIDTH + n, weights, ((int64_t)chunk * CHUNK + k) * PANEL + n, 16);
        }
    };
    auto fetch_inputs = [&](int chunk) {
        if (chunk < chunks) {
            const bool is_own = !HEAD && chunk >= chunks - chunks_of_one;
            const Ptr<uint32_t> input = is_own ? t.own : t.below;
            const int word = (chunk < chunks_of_one ? chunk : chunk - chunks_of_one) * CHUNK;
            UNROLL
            for (int i = THREAD; i < TILE * CHUNK / 4; i += FEW_THREADS) {
                const int r = i / 16, k = i % 16 * 4;
                const int32_t id = fed[r];
                const bool is_zero = id == ENDED || (is_own && id == a.item_end);
                const int64_t row = id == ENDED ? 0 : t.first + r;
                copy16(x, (chunk % STAGES * TILE + r) * INPUT + k, input, row * t.input_stride + word + k, is_zero ? 0 : 16);
            }
        }
        copy_commit(); /* also without a chunk, so that copy_wait counts */
    };

    for (int i = 0; i < STAGES - 1; i++) fetch_weights(i);
    await_previous();
    if (!read_ids<HEAD>(a, t, TILE, fed)) return;
    for (int i = 0; i < STAGES - 1; i++) fetch_inputs(i);
    const int64_t at = panel * PANEL + half + lane;
    uint32_t sum[ROWS];
    UNROLL
    for (int r = 0; r < ROWS; r++) {
        const int32_t id = fed[warp * ROWS + r];
        const int64_t of_id = HEAD || layer || id == ENDED ? 0 : (int64_t)id * (GRID_X / 2 * PANEL);
        sum[r] = INT8 ? 0 : as_bits((float)a.initial[layer][of_id + at]);
    }
    for (int chunk = 0, left = t.words; chunk < chunks; chunk++) {
        copy_wait<STAGES - 2>();
        SYNC(); /* the chunk is there for every thread, and every thread is done with the one before */
        fetch_weights(chunk + STAGES - 1);
        fetch_inputs(chunk + STAGES - 1);
        const int stage = chunk % STAGES, n = left < CHUNK ? left : CHUNK;
        left = left > CHUNK ? left - CHUNK : t.words;
        const Ptr<uint32_t> ws = w + stage * CHUNK * WIDTH + lane, xs = x + (stage * TILE + warp * ROWS) * INPUT;
        auto one = [&](int r, uint32_t weight, uint32_t input) {
            sum[r] = INT8 ? (uint32_t)dot4(weight, input, (int32_t)sum[r])
                          : as_bits(f_fma(as_float(input), as_float(weight), as_float(sum[r])));
        };
        auto four = [&](int k) {
            const uint32_t w0 = ws[k * WIDTH], w1 = ws[(k + 1) * WIDTH], w2 = ws[(k + 2) * WIDTH], w3 = ws[(k + 3) * WIDTH];
            UNROLL
            for (int r = 0; r < ROWS; r++) {
                const four_t v = load_four(xs, r * INPUT + k);
                one(r, w0, v.x), one(r, w1, v.y), one(r, w2, v.z), one(r, w3, v.w);
            }
        };
        if (n == CHUNK) {
            UNROLL
            for (int k = 0; k < CHUNK; k += 4) four(k);
        } else {
            int k = 0;
            for (; k + 4 <= n; k += 4) four(k);
            for (; k < n; k++)
                UNROLL
                for (int r = 0; r < ROWS; r++) one(r, ws[k * WIDTH], xs[r * INPUT + k]);
        }
    }

    if constexpr (HEAD) {
        UNROLL
        for (int r = 0; r < ROWS; r++)
            if ((int32_t)fed[warp * ROWS + r] != ENDED)
                a.logits[(t.first + warp * ROWS + r) * a.vstride + at] =
                    finish<INT8>(sum[r], INT8 ? (float)a.scale[layer][at] : 0.0f, a.initial[layer][at]);
    } else {
        UNROLL
        for (int r = 0; r < ROWS; r++) z[(warp * ROWS + r) * (WIDTH + 1) + lane] = sum[r];
        SYNC();
        for (int i = THREAD; i < TILE * 8; i += FEW_THREADS) {
            const int row = i / 8, unit = i % 8;
            const int32_t id = fed[row];
            if (id == ENDED) continue;
            float gates[4];
            UNROLL
            for (int g = 0; g < 4; g++) {
                const int n = INT8 ? unit / 4 * 16 + g / 2 * 8 + unit % 4 * 2 + g % 2 : unit * 4 + g;
                const int64_t output = panel * PANEL + half + n;
                const int64_t of_id = layer ? 0 : (int64_t)id * (GRID_X / 2 * PANEL);
                gates[g] = finish<INT8>(z[row * (WIDTH + 1) + n], INT8 ? (float)a.scale[layer][output] : 0.0f,
                                        INT8 ? (float)a.initial[layer][of_id + output] : 0.0f);
            }
            update_unit<INT8>(a, layer, parity ^ 1, t.first + row, panel * 16 + half / 4 + unit, id == a.item_end, gates);
        }
    }
}

#define MANY_THREADS 128
#define MANY_DEPTH 16 /* words of a chunk */
#define MANY_STAGES 3
#define MANY_INPUT (MANY_DEPTH + 4)

/* Copies a chunk of TILE rows and a panel, whose words are WIDTH apart in shared memory. */
template <bool HEAD, int TILE, int WIDTH>
DEVICE void fetch_many(const args_t &a, const tile_t &t, int chunk, int chunks, int chunks_of_one, Ptr<uint32_t> w, Ptr<uint32_t> x, Ptr<int32_t> fed)
{
    if (chunk < chunks) {
        const int stage = chunk % MANY_STAGES;
        const bool is_own = !HEAD && chunk >= chunks - chunks_of_one, is_second = chunk >= chunks_of_one;
        const int word = (is_second ? chunk - chunks_of_one : chunk) * MANY_DEPTH;
        const Ptr<uint32_t> from = t.weights + ((is_second ? padded_words(t.words) : 0) + word) * PANEL;
        const Ptr<uint32_t> input = is_own ? t.own : t.below;
        UNROLL
        for (int i = THREAD; i < MANY_DEPTH * PANEL / 4; i += MANY_THREADS)
            copy16(w, (stage * MANY_DEPTH + i / 16) * WIDTH + i % 16 * 4, from, i * 4, 16);
        UNROLL
        for (int i = THREAD; i < TILE * MANY_DEPTH / 4; i += MANY_THREADS) {
            const int r = i / 4, k = i % 4 * 4;
            const int32_t id = fed[r];
            const bool is_zero = id == ENDED || (is_own && id == a.item_end);
            const int64_t row = id == ENDED ? 0 : t.first + r;
            copy16(x, (stage * TILE + r) * MANY_INPUT + k, input, row * t.input_stride + word + k, is_zero ? 0 : 16);
        }
    }
    copy_commit();
}

/* 64 UNITS rows by a panel in fp32: a thread has eight rows by the four gates of UNITS units (of the head, 4 UNITS ids). */
template <bool HEAD, int UNITS> DEVICE void many_rows_f32(const args_t &a, int layer, int parity)
{
    enum { TILE = 64 * UNITS, GROUPS = 8 * UNITS, ACROSS = 16 / UNITS };
    SHARED(uint32_t, w, MANY_STAGES * MANY_DEPTH * PANEL);
    SHARED(uint32_t, x, MANY_STAGES * TILE * MANY_INPUT);
    SHARED(int32_t, fed, TILE);
    /* A warp has eight units by four groups of rows. */
    const int panel = BLOCK_X, unit = UNITS == 2 ? THREAD % 8 : THREAD % 8 + THREAD / 64 * 8;
    const int group = UNITS == 2 ? THREAD / 8 : THREAD / 8 % 8;
    const tile_t t = tile_of<false, HEAD>(a, layer, parity, panel, TILE);
    const int chunks_of_one = (t.words + MANY_DEPTH - 1) / MANY_DEPTH, chunks = t.segments * chunks_of_one;
    await_previous();
    if (!read_ids<HEAD>(a, t, TILE, fed)) return;
    for (int i = 0; i < MANY_STAGES - 1; i++) fetch_many<HEAD, TILE, PANEL>(a, t, i, chunks, chunks_of_one, w, x, fed);
    const int64_t at = panel * PANEL + unit * 4;
    float sum[8][UNITS][4];
    UNROLL
    for (int r = 0; r < 8; r++) {
        const int32_t id = fed[group + GROUPS * r];
        const int64_t of_id = HEAD || layer || id == ENDED ? 0 : (int64_t)id * (GRID_X * PANEL);
        UNROLL
        for (int u = 0; u < UNITS; u++)
            UNROLL
            for (int g = 0; g < 4; g++) sum[r][u][g] = a.initial[layer][of_id + at + u * ACROSS * 4 + g];
    }
    for (int chunk = 0, left = t.words; chunk < chunks; chunk++) {
        copy_wait<MANY_STAGES - 2>();
        SYNC();
        fetch_many<HEAD, TILE, PANEL>(a, t, chunk + MANY_STAGES - 1, chunks, chunks_of_one, w, x, fed);
        const int stage = chunk % MANY_STAGES, n = left < MANY_DEPTH ? left : MANY_DEPTH;
        left = left > MANY_DEPTH ? left - MANY_DEPTH : t.words;
        const Ptr<uint32_t> ws = w + stage * MANY_DEPTH * PANEL + unit * 4, xs = x + (stage * TILE + group) * MANY_INPUT;
        auto multiply = [&](int r, uint32_t input, const four_t (&v)[UNITS]) {
            const float in = as_float(input);
            UNROLL
            for (int u = 0; u < UNITS; u++) {
                sum[r][u][0] = f_fma(in, as_float(v[u].x), sum[r][u][0]);
                sum[r][u][1] = f_fma(in, as_float(v[u].y), sum[r][u][1]);
                sum[r][u][2] = f_fma(in, as_float(v[u].z), sum[r][u][2]);
                sum[r][u][3] = f_fma(in, as_float(v[u].w), sum[r][u][3]);
            }
        };
        auto one = [&](int k) {
            four_t v[UNITS];
            UNROLL
            for (int u = 0; u < UNITS; u++) v[u] = load_four(ws, k * PANEL + u * ACROSS * 4);
            UNROLL
            for (int r = 0; r < 8; r++) multiply(r, xs[r * GROUPS * MANY_INPUT + k], v);
        };
        if (n == MANY_DEPTH) {
            UNROLL
            for (int k = 0; k < MANY_DEPTH; k += 4) {
                four_t in[8];
                UNROLL
                for (int r = 0; r < 8; r++) in[r] = load_four(xs, r * GROUPS * MANY_INPUT + k);
                UNROLL
                for (int i = 0; i < 4; i++) {
                    four_t v[UNITS];
                    UNROLL
                    for (int u = 0; u < UNITS; u++) v[u] = load_four(ws, (k + i) * PANEL + u * ACROSS * 4);
                    UNROLL
                    for (int r = 0; r < 8; r++) multiply(r, i == 0 ? in[r].x : i == 1 ? in[r].y : i == 2 ? in[r].z : in[r].w, v);
                }
            }
        } else
            for (int k = 0; k < n; k++) one(k);
    }
    UNROLL
    for (int r = 0; r < 8; r++) {
        const int row = group + GROUPS * r;
        const int32_t id = fed[row];
        if (id == ENDED) continue;
        UNROLL
        for (int u = 0; u < UNITS; u++) {
            if (HEAD) {
                UNROLL
                for (int g = 0; g < 4; g++) a.logits[(t.first + row) * a.vstride + at + u * ACROSS * 4 + g] = sum[r][u][g];
            } else
                update_unit<false>(a, layer, parity ^ 1, t.first + row, panel * 16 + unit + u * ACROSS, id == a.item_end, sum[r][u]);
        }
    }
}

#if defined(HAS_MMA)
/* 64 rows by a panel in int8, on the tensor cores: a warp has 16 rows by 64 outputs, eight mma wide. */
template <bool HEAD> DEVICE void many_rows_i8(const args_t &a, int layer, int parity)
{
    enum { TILE = 64, OUTPUT = PANEL + 8 }; /* padded: no two lanes use one bank */
    SHARED(uint32_t, w, MANY_STAGES * MANY_DEPTH * OUTPUT);
    SHARED(uint32_t, x, MANY_STAGES * TILE * MANY_INPUT);
    SHARED(int32_t, fed, TILE);
    const int panel = BLOCK_X, lane = THREAD % 32, warp = THREAD / 32, quad = lane % 4, eighth = lane / 4;
    const tile_t t = tile_of<true, HEAD>(a, layer, parity, panel, TILE);
    /* Words past H are zeros in the weights and in the activations: whole chunks are exact. */
    const int chunks_of_one = (t.words + MANY_DEPTH - 1) / MANY_DEPTH, chunks = t.segments * chunks_of_one;
    await_previous();
    if (!read_ids<HEAD>(a, t, TILE, fed)) return;
    int32_t sum[8][4];
    UNROLL
    for (int n = 0; n < 8; n++) sum[n][0] = sum[n][1] = sum[n][2] = sum[n][3] = 0;
    for (int i = 0; i < MANY_STAGES - 1; i++) fetch_many<HEAD, TILE, OUTPUT>(a, t, i, chunks, chunks_of_one, w, x, fed);
    for (int chunk = 0; chunk < chunks; chunk++) {
        copy_wait<MANY_STAGES - 2>();
        SYNC();
        fetch_many<HEAD, TILE, OUTPUT>(a, t, chunk + MANY_STAGES - 1, chunks, chunks_of_one, w, x, fed);
        const int stage = chunk % MANY_STAGES;
        const Ptr<uint32_t> ws = w + stage * MANY_DEPTH * OUTPUT, xs = x + (stage * TILE + warp * 16) * MANY_INPUT;
        UNROLL
        for (int k = 0; k < MANY_DEPTH; k += 8) {
            const uint32_t rows[4] = {
                xs[eighth * MANY_INPUT + k + quad],
                xs[(eighth + 8) * MANY_INPUT + k + quad],
                xs[eighth * MANY_INPUT + k + 4 + quad],
                xs[(eighth + 8) * MANY_INPUT + k + 4 + quad],
            };
            UNROLL
            for (int n = 0; n < 8; n++) {
                const uint32_t outputs[2] = {ws[(k + quad) * OUTPUT + n * 8 + eighth], ws[(k + 4 + quad) * OUTPUT + n * 8 + eighth]};
                mma(sum[n], rows, outputs);
            }
        }
    }
    /* sum[n][0..1]: row `eighth`, outputs 8 n + 2 quad and the next; sum[n][2..3]: the same of row `eighth` + 8 */
    UNROLL
    for (int half = 0; half < 2; half++) {
        const int row = warp * 16 + eighth + 8 * half;
        const int32_t id = fed[row];
        if (id == ENDED) continue;
        const int64_t of_id = HEAD || layer ? 0 : (int64_t)id * (GRID_X * PANEL);
        UNROLL
        for (int n = 0; n < 8; n += 2) {
            float z[4];
            UNROLL
            for (int g = 0; g < 4; g++) {
                const int64_t at = panel * PANEL + (n + g / 2) * 8 + quad * 2 + g % 2;
                z[g] = finish<true>((uint32_t)sum[n + g / 2][half * 2 + g % 2], a.scale[layer][at], a.initial[layer][of_id + at]);
                if (HEAD) a.logits[(t.first + row) * a.vstride + at] = z[g];
            }
            if (!HEAD) update_unit<true>(a, layer, parity ^ 1, t.first + row, panel * 16 + n * 2 + quad, id == a.item_end, z);
        }
    }
}
#endif

KERNEL(few_f32_layer, FEW_THREADS) { few_rows<false, false, 1, 4>(a, layer, step); }
KERNEL(few_f32_head, FEW_THREADS) { few_rows<false, true, 1, 4>(a, layer, step); }
KERNEL(few_i8_layer, FEW_THREADS) { few_rows<true, false, 1, 4>(a, layer, step); }
KERNEL(few_i8_head, FEW_THREADS) { few_rows<true, true, 1, 4>(a, layer, step); }
KERNEL(some_f32_layer, FEW_THREADS) { few_rows<false, false, 4, 3>(a, layer, step); }
KERNEL(some_f32_head, FEW_THREADS) { few_rows<false, true, 4, 3>(a, layer, step); }
KERNEL(some_i8_layer, FEW_THREADS) { few_rows<true, false, 4, 3>(a, layer, step); }
KERNEL(some_i8_head, FEW_THREADS) { few_rows<true, true, 4, 3>(a, layer, step); }
KERNEL(many_f32_layer, MANY_THREADS) { many_rows_f32<false, 1>(a, layer, step); }
KERNEL(many_f32_head, MANY_THREADS) { many_rows_f32<true, 1>(a, layer, step); }
KERNEL(most_f32_layer, MANY_THREADS) { many_rows_f32<false, 2>(a, layer, step); }
KERNEL(most_f32_head, MANY_THREADS) { many_rows_f32<true, 2>(a, layer, step); }
#if defined(HAS_MMA)
KERNEL(many_i8_layer, MANY_THREADS) { many_rows_i8<false>(a, layer, step); }
KERNEL(many_i8_head, MANY_THREADS) { many_rows_i8<true>(a, layer, step); }
#endif

#include "sampling.cuh"

/* ---- before and after a block ---- */

#define COPY_THREADS 128

/* Copies the states of the block's rows from the table, and says what the first step feeds. The grid has a block for
 * each row of the graphs and each layer; `step` says whether this is int8. */
KERNEL(load_rows, COPY_THREADS)
{
    await_previous();
    const int row = BLOCK_X, l = BLOCK_Y, rows = a.block[HEADER_ROWS];
    if (row >= rows) {
        if (l == 0 && THREAD == 0) a.fed[row] = ENDED;
        return;
    }
    if (l == 0 && THREAD == 0) {
        a.sampled_count[row] = 0;
        a.fed[row] = array_of(a, HEADER_FORCED)[row];
        a.needs_logits[row] = needs_logits(a, rows, 0, row);
    }
    const int64_t slot = array_of(a, HEADER_SLOTS)[row];
    for (int i = THREAD; i < a.stride; i += COPY_THREADS) {
        const bool is_unit = i < a.hidden; /* what is past H stays zero */
        const float h = is_unit ? (float)a.state[(slot * 2 * a.layers + l) * a.hidden + i] : 0.0f;
        const float c = is_unit ? (float)a.state[((slot * 2 + 1) * a.layers + l) * a.hidden + i] : 0.0f;
        const int64_t at = row * a.stride + i;
        a.h[l][0][at] = h, a.c[l][at] = c;
        a.h[l][1][at] = 0.0f;
        if (step) a.hq[l][0][at] = (int8_t)activation(h), a.hq[l][1][at] = 0;
    }
}

/* Copies them back. */
KERNEL(store_rows, COPY_THREADS)
{
    await_previous();
    const int row = BLOCK_X, l = BLOCK_Y;
    if (row >= (int32_t)a.block[HEADER_ROWS]) return;
    const int64_t slot = array_of(a, HEADER_SLOTS)[row];
    const int last = (int32_t)array_of(a, HEADER_ROW_STEPS)[row] & 1;
    for (int i = THREAD; i < a.hidden; i += COPY_THREADS) {
        const int64_t at = row * a.stride + i;
        a.state[(slot * 2 * a.layers + l) * a.hidden + i] = a.h[l][last][at];
        a.state[((slot * 2 + 1) * a.layers + l) * a.hidden + i] = a.c[l][at];
    }
}

/* So many steps are done. */
KERNEL(advance, 1)
{
    await_previous();
    a.block[HEADER_K] = (int32_t)a.block[HEADER_K] + step;
}
