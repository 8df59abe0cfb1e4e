/* The arithmetic of gates and sampling. It is the CPU's own source: with these definitions a vector of gates.h is one
 * float. So a text has the same bits on a CPU and on a GPU.
 */
#ifndef LONGHAND_ARITHMETIC_H
#define LONGHAND_ARITHMETIC_H

#include "device.h"

#define INLINE DEVICE

#define LONGHAND_SIMD_H /* instead of simd.h: */
typedef float vf;
DEVICE vf vf_load(const float *p) { return *p; }
DEVICE void vf_store(float *p, vf x) { *p = x; }
DEVICE vf vf_all(float x) { return x; }
DEVICE vf vf_mul(vf x, vf y) { return f_mul(x, y); }
DEVICE vf vf_div(vf x, vf y) { return f_div(x, y); }
DEVICE vf vf_fma(vf x, vf y, vf z) { return f_fma(x, y, z); }
DEVICE vf vf_clamp(vf x, vf low, vf high)
{
    x = x > low ? x : low;
    return x < high ? x : high;
}
#include "gates.h"

#define d_fma d_fma
#include "exp_log.h"

/* h as a signed byte: 127 h, rounded to nearest even. */
DEVICE int32_t activation(float h) { return f_to_nearest(f_mul(vf_clamp(h, -1.0f, 1.0f), 127.0f)); }

#endif
