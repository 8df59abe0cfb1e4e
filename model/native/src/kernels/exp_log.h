/* exp and log in operations that IEEE 754 defines to the last bit, because libm's results differ between machines.
 *
 * model/stepper/cuda compiles this file for a GPU, with its own INLINE, d_fma, bits_of and double_of.
 */
#ifndef LONGHAND_EXP_LOG_H
#define LONGHAND_EXP_LOG_H

#ifndef d_fma
#include "simd.h"
#define d_fma __builtin_fma
INLINE uint64_t bits_of(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, 8);
    return bits;
}
INLINE double double_of(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, 8);
    return x;
}
#endif

#define LN2_HIGH 6.93147180369123816490e-01 /* 33 bits of ln 2, so that n * LN2_HIGH is exact */
#define LN2_LOW 1.90821492927058770002e-10  /* the rest */

/* e^x for x <= 0: 2^n e^r with |r| <= ln(2)/2, e^r by its series to r^13/13! (error 4e-18); 0 below -708. */
INLINE double exp_negative(double x)
{
    if (!(x > -708.0)) return 0.0;
    const double shift = 6755399441055744.0; /* 1.5 * 2^52: adding it rounds to a whole number */
    double n = d_fma(x, 1.4426950408889634, shift) - shift;
    double r = d_fma(-n, LN2_HIGH, x);
    r = d_fma(-n, LN2_LOW, r);
    double s = 1.0 / 6227020800.0;
    s = d_fma(s, r, 1.0 / 479001600.0);
    s = d_fma(s, r, 1.0 / 39916800.0);
    s = d_fma(s, r, 1.0 / 3628800.0);
    s = d_fma(s, r, 1.0 / 362880.0);
    s = d_fma(s, r, 1.0 / 40320.0);
    s = d_fma(s, r, 1.0 / 5040.0);
    s = d_fma(s, r, 1.0 / 720.0);
    s = d_fma(s, r, 1.0 / 120.0);
    s = d_fma(s, r, 1.0 / 24.0);
    s = d_fma(s, r, 1.0 / 6.0);
    s = d_fma(s, r, 0.5);
    s = d_fma(s, r, 1.0);
    s = d_fma(s, r, 1.0);
    return s * double_of((uint64_t)((int64_t)n + 1023) << 52);
}

/* ln x for 1 <= x < 2^1000: n ln 2 + 2 atanh(s), s = (m - 1) / (m + 1), |s| <= 0.172, by its series to s^23 / 23. */
INLINE double log_of(double x)
{
    uint64_t bits = bits_of(x);
    double n = (double)((int64_t)(bits >> 52) - 1023);
    double m = double_of((bits & 0xfffffffffffffULL) | 0x3ff0000000000000ULL);
    if (m > 1.4142135623730951) m *= 0.5, n += 1.0;
    double s = (m - 1.0) / (m + 1.0), z = s * s, t = 1.0 / 23.0;
    for (int k = 21; k >= 1; k -= 2) t = d_fma(t, z, 1.0 / k);
    return d_fma(n, LN2_HIGH, d_fma(2.0 * s, t, n * LN2_LOW));
}

#endif
