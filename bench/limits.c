/* The limits of this machine: reading a buffer, and multiply-adds in registers. */
#include <stddef.h>
#include <stdint.h>
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#include <immintrin.h>
#endif
#if defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

typedef uint64_t words __attribute__((vector_size(32)));
#if defined(__AVX512F__)
#define FLOATS 16
#else
#define FLOATS 8
#endif
typedef float floats __attribute__((vector_size(4 * FLOATS)));

/* Sums up a buffer in eight registers, so that only the reading takes time. It is read as S ranges side by side: how far
 * a core prefetches depends on their number, and differs between machines. */
#define READ(S)                                                                                    \
    static uint64_t read_##S(const uint64_t *data, size_t count, int times)                        \
    {                                                                                              \
        words sum[8] = {{0}};                                                                      \
        const size_t range = count / (S) / 64 * 64;                                                \
        for (int t = 0; t < times; t++)                                                            \
            for (size_t i = 0; i < range; i += 64 / (S))                                           \
                _Pragma("GCC unroll 16") for (int j = 0; j < 16; j++)                              \
                {                                                                                  \
                    const uint64_t *from = data + (size_t)(j / (16 / (S))) * range + i;            \
                    sum[j % 8] += *(const words *)(from + j % (16 / (S)) * 4);                     \
                }                                                                                  \
        uint64_t total = 0;                                                                        \
        for (int j = 0; j < 8; j++) total += sum[j][0] + sum[j][1] + sum[j][2] + sum[j][3];        \
        return total;                                                                              \
    }
READ(1)
READ(2)
READ(4)
READ(8)

uint64_t read_all(const uint64_t *data, size_t count, int times, int streams)
{
    switch (streams) {
    case 1: return read_1(data, count, times);
    case 2: return read_2(data, count, times);
    case 4: return read_4(data, count, times);
    default: return read_8(data, count, times);
    }
}

/* Multiply-adds of floats in twelve chains, more than the latency of an fma needs. Returns how many. The compiler must not
 * know the factor: a chain whose value it knows (1 * 0.5 + 0.5) it does not compute. */
double multiply_all(long times)
{
    volatile float half = 0.5f;
    floats sum[12], x = {0}, total = {0};
    for (int j = 0; j < 12; j++) sum[j] = x + (float)j;
    x += half;
    for (long t = 0; t < times; t++)
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) sum[j] = sum[j] * x + x;
    for (int j = 0; j < 12; j++) total += sum[j];
    volatile float kept = total[0];
    (void)kept;
    return 12.0 * FLOATS * (double)times;
}

/* Multiply-adds of int8 (vpdpbusd) in twelve chains, each in a register of its own. Returns how many; 0 where the CPU has
 * no such instruction. */
#define CHAINS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11)
double dot_all(long times)
{
#if defined(__AVX512VNNI__)
    __m512i x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(5);
#define DOT(j) __asm__ volatile("vpdpbusd %1, %2, %0" : "+v"(sum##j) : "v"(y), "v"(x));
#elif defined(__AVXVNNI__)
    __m256i x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(5);
#define DOT(j) __asm__ volatile("%{vex%} vpdpbusd %1, %2, %0" : "+x"(sum##j) : "x"(y), "x"(x));
#endif
#if defined(DOT)
#define SUM(j) __typeof__(x) sum##j = x;
    CHAINS(SUM)
    for (long t = 0; t < times; t++) { CHAINS(DOT) }
    return 12.0 * sizeof x * (double)times;
#else
    (void)times;
    return 0.0;
#endif
}

/* Multiply-adds of int8 by AMX's tiles in four chains, as kernels have them. Returns how many; 0 where there are none. */
double tile_all(long times)
{
#if defined(__AMX_INT8__) && defined(__linux__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILES = 18 };
    struct { uint8_t palette, start_row, reserved[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } shapes = {.palette = 1};
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILES)) return 0.0;
    for (int tile = 0; tile < 8; tile++) shapes.row_bytes[tile] = 64, shapes.rows[tile] = 16;
    __asm__ volatile("" : : "r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
    for (long t = 0; t < times; t++) {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_release();
    return 4.0 * 16 * 16 * 64 * (double)times;
#else
    (void)times;
    return 0.0;
#endif
}
