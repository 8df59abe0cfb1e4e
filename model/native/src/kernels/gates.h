/* An LSTM's gates, with a sigmoid and a tanh made of operations whose bits are the same on every CPU. */
#ifndef LONGHAND_GATES_H
#define LONGHAND_GATES_H

#include "simd.h"

/* x P(x^2) / Q(x^2), fitted to tanh on [-9, 9] for the least relative error (2.1e-8 before rounding); beyond it tanh
 * is 1 in float32. Over all floats: within 3.7e-7. Clamped, since the rounded quotient may pass 1 by an ulp or two. */
INLINE vf vf_tanh(vf x)
{
    x = vf_clamp(x, vf_all(-9.0f), vf_all(9.0f));
    vf u = vf_mul(x, x);
    vf p = vf_fma(vf_all(1.331907029e-08f), u, vf_all(2.058348036e-05f));
    vf q = vf_fma(vf_all(7.762018868e-07f), u, vf_all(3.283092519e-04f));
    p = vf_fma(p, u, vf_all(3.494034521e-03f));
    q = vf_fma(q, u, vf_all(2.587107196e-02f));
    p = vf_fma(p, u, vf_all(1.337971836e-01f));
    q = vf_fma(q, u, vf_all(4.671303332e-01f));
    p = vf_fma(p, u, vf_all(1.0f));
    q = vf_fma(q, u, vf_all(1.0f));
    return vf_clamp(vf_div(vf_mul(x, p), q), vf_all(-1.0f), vf_all(1.0f));
}

/* 1 / (1 + exp(-x)) = 1/2 + tanh(x/2)/2; within 1.9e-7 */
INLINE vf vf_sigmoid(vf x)
{
    vf half = vf_all(0.5f);
    return vf_fma(half, vf_tanh(vf_mul(half, x)), half);
}

/* Eight units of a row, from the sums of gates i, f, g, o: first the cell c, then its output h. They are two functions
 * because each is a long chain of dependent steps, and the core overlaps more rows of a short chain. */
INLINE void cell_update(vf i, vf f, vf g, float *c)
{
    vf written = vf_mul(vf_sigmoid(i), vf_tanh(g));
    vf_store(c, vf_fma(vf_sigmoid(f), vf_load(c), written));
}

INLINE vf cell_output(vf o, const float *c) { return vf_mul(vf_sigmoid(o), vf_tanh(vf_load(c))); }

#endif
