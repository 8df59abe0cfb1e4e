/* What this machine could do at most: read a buffer, and multiply-add in registers. */
#include <stddef.h>
#include <stdint.h>

typedef uint64_t words __attribute__((vector_size(32)));
typedef float floats __attribute__((vector_size(32)));

/* Sums of a buffer, in eight registers at once, so that nothing but reading takes time. */
uint64_t read_all(const uint64_t *data, size_t count, int times)
{
    words sum[8] = {{0}};
    for (int t = 0; t < times; t++)
        for (size_t i = 0; i + 32 <= count; i += 32)
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) sum[j] += *(const words *)(data + i + 4 * j);
    uint64_t total = 0;
    for (int j = 0; j < 8; j++) total += sum[j][0] + sum[j][1] + sum[j][2] + sum[j][3];
    return total;
}

/* `times` * 96 multiply-adds in twelve chains, more than an fma's latency needs. */
float multiply_all(long times)
{
    floats sum[12], x = {0}, total = {0};
    for (int j = 0; j < 12; j++) sum[j] = x + (float)j;
    x += 0.5f;
    for (long t = 0; t < times; t++)
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) sum[j] = sum[j] * x + x;
    for (int j = 0; j < 12; j++) total += sum[j];
    return total[0];
}
