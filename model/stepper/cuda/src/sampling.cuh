/* Logits and one random number -> an id: model/native/src/kernels/sampling.h, sum for sum. Exponentials, counts and
 * sorting are shared by the threads of a block; the sums, whose order is part of the result, are one thread's each.
 */
#define DRAW_THREADS 128
#define DRAW_SHARED 1024 /* ids whose weights fit shared memory */

/* A float as an integer with the same order; -0 is +0. */
DEVICE int32_t ordered(float x)
{
    const int32_t bits = (int32_t)as_bits(x + 0.0f);
    return bits >= 0 ? bits : bits ^ 0x7fffffff;
}

/* The lowest id with the largest logit. `scratch`: two words of shared memory. */
DEVICE int32_t argmax_of(Ptr<float> logits, int n, Ptr<int32_t> scratch)
{
    if (THREAD == 0) scratch[0] = (int32_t)0x80000000, scratch[1] = n;
    int32_t best = THREAD < n ? THREAD : 0;
    for (int i = THREAD + DRAW_THREADS; i < n; i += DRAW_THREADS)
        if ((float)logits[i] > (float)logits[best]) best = i;
    const int32_t value = ordered(logits[best]);
    SYNC();
    atomic_max(scratch, 0, value);
    SYNC();
    if (value == (int32_t)scratch[0]) atomic_min(scratch, 1, best);
    SYNC();
    const int32_t id = scratch[1];
    SYNC();
    return id;
}

DEVICE bool ranks_before(Ptr<double> key, int32_t a, int32_t b, int n)
{
    if (a >= n || b >= n) return a < b; /* what fills the order up to a power of two comes last */
    const double x = key[a], y = key[b];
    return x > y || (x == y && a < b);
}

/* Sorts 0..n-1 by key, the largest first, of equals the lowest: a bitonic sort. */
DEVICE void sort_by(Ptr<double> key, int n, Ptr<int32_t> order)
{
    int size = 1;
    while (size < n) size *= 2;
    SYNC();
    for (int i = THREAD; i < size; i += DRAW_THREADS) order[i] = i;
    for (int run = 2; run <= size; run *= 2)
        for (int gap = run / 2; gap > 0; gap /= 2) {
            SYNC();
            for (int i = THREAD; i < size / 2; i += DRAW_THREADS) {
                const int low = i / gap * 2 * gap + i % gap, high = low + gap;
                const bool is_falling = (low & run) == 0;
                const int32_t x = order[low], y = order[high];
                if (ranks_before(key, y, x, n) == is_falling) order[low] = y, order[high] = x;
            }
        }
    SYNC();
}

typedef struct {
    Ptr<double> raw, weight, sums, key, bias;
    Ptr<float> adjusted;
    Ptr<int32_t> occurrences, generated, order, keep;
} draw_scratch_t;

/* The logits after bias and penalties, in `adjusted`. */
DEVICE void adjust(const args_t &a, int row, Ptr<float> logits, Ptr<double> params, const draw_scratch_t &d)
{
    const int n = a.vocab, window = a.block[HEADER_WINDOW];
    SYNC();
    for (int i = THREAD; i < n; i += DRAW_THREADS) d.bias[i] = 0.0, d.occurrences[i] = 0, d.generated[i] = 0;
    SYNC();
    if ((int32_t)a.block[HEADER_BIAS_STARTS]) {
        const Ptr<int32_t> starts = array_of(a, HEADER_BIAS_STARTS);
        for (int i = (int32_t)starts[row] + THREAD; i < (int32_t)starts[row + 1]; i += DRAW_THREADS)
            d.bias[(int32_t)array_of(a, HEADER_BIAS_IDS)[i]] = doubles_of(a, HEADER_BIAS_VALUES)[i];
    }
    /* The ids that this block sampled, then the row's window, the latest first. */
    const int recent = a.sampled_count[row], most = (int)(double)params[PENALTY_WINDOW];
    for (int i = THREAD; i < most && i < recent + window; i += DRAW_THREADS) {
        const int32_t code = i < recent ? (int32_t)a.sampled[row * a.capacity + recent - 1 - i]
                                        : (int32_t)array_of(a, HEADER_WINDOWS)[row * window + window - 1 - (i - recent)];
        if (code == -1) continue;
        atomic_add(d.occurrences, code >= 0 ? code : -2 - code, 1);
        if (code >= 0) atomic_add(d.generated, code, 1);
    }
    SYNC();
    const double repetition = params[REPETITION_PENALTY], frequency = params[FREQUENCY_PENALTY];
    const double presence = params[PRESENCE_PENALTY];
    for (int i = THREAD; i < n; i += DRAW_THREADS) {
        double logit = (double)(float)logits[i] + (double)d.bias[i];
        if ((int32_t)d.occurrences[i] > 0) logit = logit > 0.0 ? logit / repetition : logit * repetition;
        const int32_t generated = d.generated[i];
        const double often = frequency * generated;
        logit = logit - often;
        logit = logit - (generated > 0 ? presence : 0.0);
        d.adjusted[i] = (float)logit;
    }
    SYNC();
}

/* Sets `keep` for what the filters keep. */
DEVICE void filter(int n, Ptr<float> logits, double max, int32_t best, Ptr<double> params, const draw_scratch_t &d)
{
    const int top_k = (int)(double)params[TOP_K], most = top_k > 0 && top_k < n ? top_k : n;
    const double top_p = params[TOP_P], min_p = params[MIN_P], typical_p = params[TYPICAL_P], temperature = params[TEMPERATURE];
    const bool by_rank = most < n || top_p < 1.0;
    SYNC();
    for (int i = THREAD; i < n; i += DRAW_THREADS) d.keep[i] = !by_rank && (double)d.weight[i] >= min_p;
    if (by_rank) {
        sort_by(d.weight, n, d.order);
        if (THREAD == 0) {
            double total = 0.0, before = 0.0, enough = INFINITE;
            if (top_p < 1.0) {
                for (int i = 0; i < most; i++) total += (double)d.weight[most < n ? (int32_t)d.order[i] : i];
                enough = top_p * total;
            }
            for (int rank = 0; rank < most && before < enough; rank++) {
                const int32_t id = d.order[rank];
                const double weight = d.weight[id];
                if (weight < min_p) break;
                d.keep[id] = 1;
                before += weight;
            }
        }
    }
    SYNC();
    if (THREAD == 0) d.keep[best] = 1;
    SYNC();
    if (typical_p >= 1.0) return;
    /* -inf stands for an id that the other filters drop: it sorts last and is never reached. */
    for (int i = THREAD; i < n; i += DRAW_THREADS) d.key[i] = ((double)(float)logits[i] - max) / temperature;
    SHARED(double, sums, 3);
    SYNC();
    if (THREAD == 0) {
        double total = 0.0, expected = 0.0;
        for (int i = 0; i < n; i++) {
            const double weight = d.weight[i];
            if (!(int32_t)d.keep[i] || weight == 0.0) continue;
            total += weight;
            const double part = weight * (double)d.key[i];
            expected += part;
        }
        sums[0] = total, sums[1] = expected / total;
    }
    SYNC();
    const double total = sums[0], expected = sums[1];
    for (int i = THREAD; i < n; i += DRAW_THREADS) {
        const double distance = (double)d.key[i] - expected;
        const bool is_candidate = (int32_t)d.keep[i] && (double)d.weight[i] != 0.0;
        d.bias[i] = -(distance < 0.0 ? -distance : distance); /* the bias has been added: its memory is free */
        d.key[i] = is_candidate ? (double)d.bias[i] : -INFINITE;
    }
    sort_by(d.key, n, d.order);
    if (THREAD == 0) {
        double mass = 0.0, last = 0.0;
        for (int i = 0; i < n && mass < typical_p * total; i++) {
            const int32_t id = d.order[i];
            if ((double)d.key[id] == -INFINITE) break;
            mass += (double)d.weight[id];
            last = d.key[id];
        }
        sums[2] = last;
    }
    SYNC();
    const double last = sums[2];
    for (int i = THREAD; i < n; i += DRAW_THREADS) d.keep[i] = (int32_t)d.keep[i] && (double)d.bias[i] >= last;
    SYNC();
}

/* The sum of n numbers in their order; sums[i] gets that of the first i + 1. One thread calls it. */
DEVICE double add_up(Ptr<double> numbers, int n, Ptr<double> sums)
{
    double sum = 0.0;
    UNROLL_BY(8)
    for (int i = 0; i < n; i++) {
        sum += (double)numbers[i];
        sums[i] = sum;
    }
    return sum;
}

/* The id after step k of a row, and its log-probability; and what the next step feeds. `scratch`: two words. */
DEVICE void draw_row(const args_t &a, int k, int rows, int row, const draw_scratch_t &d, Ptr<int32_t> scratch)
{
    SHARED(double, totals, 2);
    const int n = a.vocab;
    const int64_t at = (int64_t)k * rows + row;
    const bool sampled = is_sampled(a, rows, k, row), is_last = k + 1 >= (int32_t)array_of(a, HEADER_ROW_STEPS)[row];
    const int32_t scored = score_id(a, rows, k, row);
    const Ptr<int32_t> logprobs = a.out + (int64_t)(int32_t)a.block[HEADER_STEPS] * rows;
    if (THREAD == 64) a.needs_logits[row] = !is_last && needs_logits(a, rows, k + 1, row);
    if (!sampled && THREAD == 0) {
        const int32_t id = array_of(a, HEADER_FORCED)[at + rows];
        a.out[at] = id;
        a.fed[row] = id;
    }
    if (!sampled && scored < 0) {
        if (THREAD == 0) logprobs[at] = 0x7fc00000; /* NaN */
        return;
    }
    const Ptr<float> logits = a.logits + row * a.vstride;
    const Ptr<double> params = doubles_of(a, HEADER_SAMPLING) + row * SAMPLING_FIELDS;
    const int32_t raw_best = argmax_of(logits, n, scratch);
    const double raw_max = (float)logits[raw_best];
    for (int i = THREAD; i < n; i += DRAW_THREADS) d.raw[i] = exp_negative((double)(float)logits[i] - raw_max);

    Ptr<float> drawn_from = logits;
    int32_t best = raw_best;
    double max = raw_max;
    const double temperature = params[TEMPERATURE];
    bool has_weights = false; /* of its own: other than raw */
    if (sampled) {
        const bool has_bias = (int32_t)a.block[HEADER_BIAS_STARTS] &&
                              (int32_t)array_of(a, HEADER_BIAS_STARTS)[row] < (int32_t)array_of(a, HEADER_BIAS_STARTS)[row + 1];
        const bool has_penalties = (double)params[REPETITION_PENALTY] != 1.0 || (double)params[FREQUENCY_PENALTY] != 0.0 ||
                                   (double)params[PRESENCE_PENALTY] != 0.0;
        if (has_bias || has_penalties) {
            adjust(a, row, logits, params, d);
            drawn_from = d.adjusted;
            best = argmax_of(drawn_from, n, scratch);
            max = (float)drawn_from[best];
        }
        const bool is_weighed = temperature > 0.0 && (temperature != 1.0 || has_bias || has_penalties);
        const bool is_filtered = temperature > 0.0 &&
            ((double)params[TOP_K] > 0.0 || (double)params[TOP_P] < 1.0 || (double)params[MIN_P] > 0.0 || (double)params[TYPICAL_P] < 1.0);
        has_weights = is_weighed || is_filtered;
        if (has_weights)
            for (int i = THREAD; i < n; i += DRAW_THREADS)
                d.weight[i] = is_weighed ? exp_negative(((double)(float)drawn_from[i] - max) / temperature) : (double)d.raw[i];
        if (is_filtered) {
            filter(n, drawn_from, max, best, params, d);
            for (int i = THREAD; i < n; i += DRAW_THREADS)
                if (!(int32_t)d.keep[i]) d.weight[i] = 0.0;
        }
    }
    if (THREAD == 0) scratch[0] = n, scratch[1] = -1;
    SYNC();
    if (THREAD == 0) {
        /* where the weights are raw, its partial sums are those that are drawn from */
        if (has_weights) {
            double sum = 0.0;
            UNROLL_BY(8)
            for (int i = 0; i < n; i++) sum += (double)d.raw[i];
            totals[0] = sum;
        } else totals[0] = totals[1] = add_up(d.raw, n, d.sums);
    }
    if (THREAD == 32 && has_weights) totals[1] = add_up(d.weight, n, d.sums);
    SYNC();
    if (sampled && temperature > 0.0) {
        /* the first id whose sum passes the target, or, if rounding lets the target reach the total, the last that is kept */
        const double target = (double)doubles_of(a, HEADER_RANDOM)[at] * (double)totals[1];
        int first = n, last = -1;
        for (int i = THREAD; i < n; i += DRAW_THREADS) {
            if (first == n && (double)d.sums[i] > target) first = i;
            if ((double)(has_weights ? d.weight : d.raw)[i] > 0.0) last = i;
        }
        if (first < n) atomic_min(scratch, 0, first);
        if (last >= 0) atomic_max(scratch, 1, last);
    }
    SYNC();
    if (THREAD == 0) {
        int32_t id = best;
        if (temperature > 0.0) id = (int32_t)scratch[0] < n ? (int32_t)scratch[0] : (int32_t)scratch[1];
        if (sampled) {
            a.out[at] = id;
            a.fed[row] = is_last ? ENDED : id;
            const int count = a.sampled_count[row];
            a.sampled[row * a.capacity + count] = id;
            a.sampled_count[row] = count + 1;
        }
        const int32_t reported = scored >= 0 ? scored : id;
        logprobs[at] = (int32_t)as_bits((float)((double)(float)logits[reported] - raw_max - log_of(totals[0])));
    }
}

template <bool SMALL> DEVICE void draw_rows(const args_t &a, int step)
{
    SHARED(int32_t, scratch, 2);
    SHARED(double, raw, SMALL ? DRAW_SHARED : 1);
    SHARED(double, weight, SMALL ? DRAW_SHARED : 1);
    SHARED(double, sums, SMALL ? DRAW_SHARED : 1);
    await_previous();
    const int k = (int32_t)a.block[HEADER_K] + step, rows = a.block[HEADER_ROWS];
    const int64_t at = BLOCK_X * a.vocab;
    const draw_scratch_t d = {
        SMALL ? raw : a.raw + at, SMALL ? weight : a.weight + at, SMALL ? sums : a.sums + at, a.key + at, a.bias + at,
        a.adjusted + at, a.occurrences + at, a.generated + at, a.order + BLOCK_X * a.order_size, a.keep + at,
    };
    for (int row = BLOCK_X; row < rows && (int32_t)a.fed[row] != ENDED; row += GRID_X) {
        SYNC(); /* every thread has read the row's id, and is done with the scratch */
        draw_row(a, k, rows, row, d, scratch);
    }
}

KERNEL(draw_small, DRAW_THREADS) { draw_rows<true>(a, step); }
KERNEL(draw_large, DRAW_THREADS) { draw_rows<false>(a, step); }
