/* device.h on a CPU: a kernel's blocks run one after the other, the threads of a block as fibers, and every access is
 * checked: that it is inside an allocation, and that no other thread touches the same word without a barrier between
 * the two (another block: in the same launch at all).
 *
 * An asynchronous copy takes place when its thread waits for it. Memory that nobody wrote holds NaN.
 */
#ifndef LONGHAND_EMULATOR_H
#define LONGHAND_EMULATOR_H

#include <stdint.h>
#include <math.h>
#include <string.h>

namespace emulator {

enum Access { READ, WRITE, ATOMIC };

/* Checks an access by the thread that runs; after a violation it is ignored, and false is returned. */
bool is_allowed(const void *p, size_t bytes, Access access);
void *shared(const void *place, size_t bytes); /* the block's array of this declaration */
void barrier();
bool barrier_or(bool is_true);
void copy_later(void *to, const void *from, int bytes);
void end_copy_group();
void wait_for_copies(int groups_left);
void matrix_product(int32_t *c, const uint32_t *a, const uint32_t *b);
int thread();
int block_x();
int block_y();
int grid_x();

struct Kernel {
    Kernel(const char *name, void (*run)(void **), int threads);
    const char *name;
    void (*run)(void **);
    int threads;
    const Kernel *next;
};

}

template <class T> struct Ref {
    T *p;
    operator T() const
    {
        T value{};
        if (emulator::is_allowed(p, sizeof(T), emulator::READ)) memcpy(&value, p, sizeof(T));
        return value;
    }
    Ref &operator=(T value)
    {
        if (emulator::is_allowed(p, sizeof(T), emulator::WRITE)) memcpy(p, &value, sizeof(T));
        return *this;
    }
    Ref &operator=(const Ref &other) { return *this = (T)other; }
};

template <class T> struct Ptr {
    T *p;
    Ref<T> operator[](int64_t i) const { return {p + i}; }
    Ptr operator+(int64_t i) const { return {p + i}; }
};

#define DEVICE static inline
#define KERNEL(name, threads)                                                                          \
    static void name(const args_t &a, int layer, int step);                                            \
    static void name##_run(void **p) { name(*(const args_t *)p[0], *(const int *)p[1], *(const int *)p[2]); } \
    static emulator::Kernel name##_kernel(#name, name##_run, threads);                                 \
    static void name([[maybe_unused]] const args_t &a, [[maybe_unused]] int layer, [[maybe_unused]] int step)
#define SHARED(T, name, n)                \
    static const char name##_place = 0;   \
    const Ptr<T> name = {(T *)emulator::shared(&name##_place, (n) * sizeof(T))}
#define SYNC() emulator::barrier()
#define SYNC_OR(is_true) emulator::barrier_or(is_true)
#define THREAD emulator::thread()
#define BLOCK_X emulator::block_x()
#define BLOCK_Y emulator::block_y()
#define GRID_X emulator::grid_x()
#define UNROLL
#define UNROLL_BY(n)
#define INFINITE INFINITY
#define HAS_MMA

template <class To, class From> static inline Ptr<To> cast(Ptr<From> p) { return {(To *)p.p}; }

struct four_t { uint32_t x, y, z, w; };
static inline four_t load_four(Ptr<uint32_t> p, int i)
{
    four_t v{};
    const bool is_aligned = ((uintptr_t)(p.p + i) & 15) == 0;
    if (is_aligned && emulator::is_allowed(p.p + i, 16, emulator::READ)) memcpy(&v, p.p + i, 16);
    if (!is_aligned) emulator::is_allowed(nullptr, 16, emulator::READ);
    return v;
}

static inline float as_float(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t as_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
static inline double double_of(uint64_t bits) { double x; memcpy(&x, &bits, 8); return x; }
static inline uint64_t bits_of(double x) { uint64_t bits; memcpy(&bits, &x, 8); return bits; }
static inline float f_mul(float x, float y) { return x * y; }
static inline float f_div(float x, float y) { return x / y; }
static inline float f_fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
static inline float f_from_int(int32_t n) { return (float)n; }
static inline int32_t f_to_nearest(float x) { return (int32_t)nearbyintf(x); }
static inline double d_fma(double x, double y, double z) { return __builtin_fma(x, y, z); }

static inline int32_t dot4(uint32_t w, uint32_t x, int32_t sum)
{
    for (int i = 0; i < 32; i += 8) sum += (int8_t)(w >> i) * (int8_t)(x >> i);
    return sum;
}
static inline void atomic_add(Ptr<int32_t> p, int i, int32_t n)
{
    if (emulator::is_allowed(p.p + i, 4, emulator::ATOMIC)) p.p[i] += n;
}
static inline void atomic_min(Ptr<int32_t> p, int i, int32_t n)
{
    if (emulator::is_allowed(p.p + i, 4, emulator::ATOMIC) && n < p.p[i]) p.p[i] = n;
}
static inline void atomic_max(Ptr<int32_t> p, int i, int32_t n)
{
    if (emulator::is_allowed(p.p + i, 4, emulator::ATOMIC) && n > p.p[i]) p.p[i] = n;
}
static inline void await_previous() {}
static inline void copy16(Ptr<uint32_t> to, int i, Ptr<uint32_t> from, int64_t j, int bytes)
{
    emulator::copy_later(to.p + i, from.p + j, bytes);
}
static inline void copy_commit() { emulator::end_copy_group(); }
template <int N> static inline void copy_wait() { emulator::wait_for_copies(N); }
static inline void mma(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { emulator::matrix_product(c, a, b); }

#endif
