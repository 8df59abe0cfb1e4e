/* What kernels.cu needs of its device: CUDA's own, or the emulator of tests/cuda_emulator, which runs the same source
 * on a CPU and checks every access.
 *
 *   Ptr<T>           a pointer to device or shared memory
 *   SHARED(T, x, n)  an array of a block
 *   SYNC()           all threads of a block wait for each other, and see what the others wrote
 *   SYNC_OR(b)       the same; whether b is true for any of them
 *   await_previous() wait until the kernel launched before is done, and see what it wrote. Where the GPU can, kernels
 *                    start before that, and read what does not change. Every kernel calls it.
 *   copy16           an asynchronous copy of 16 bytes from device to shared memory; copy_commit ends a group,
 *                    copy_wait<n>() waits until at most n groups of this thread are under way
 */
#ifndef LONGHAND_DEVICE_H
#define LONGHAND_DEVICE_H

#if defined(LONGHAND_EMULATOR)
#include "emulator.h"
#else

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

#define DEVICE static __device__ __forceinline__
#define KERNEL(name, threads) extern "C" __global__ void __launch_bounds__(threads) name(const args_t a, int layer, int step)
#define SHARED(T, name, n) __shared__ __align__(16) T name[n]
#define SYNC() __syncthreads()
#define SYNC_OR(is_true) __syncthreads_or(is_true)
#define THREAD ((int)threadIdx.x)
#define BLOCK_X ((int)blockIdx.x)
#define BLOCK_Y ((int)blockIdx.y)
#define GRID_X ((int)gridDim.x)
#define PRAGMA(text) _Pragma(#text)
#define UNROLL PRAGMA(unroll)
#define UNROLL_BY(n) PRAGMA(unroll n)
#define INFINITE __longlong_as_double(0x7ff0000000000000LL)

template <class T> using Ptr = T *;

template <class To, class From> DEVICE Ptr<To> cast(Ptr<From> p) { return (To *)p; }

struct four_t { uint32_t x, y, z, w; };
/* Four words from an address of 16 bytes. */
DEVICE four_t load_four(Ptr<uint32_t> p, int i)
{
    const uint4 v = *(const uint4 *)(p + i);
    return four_t{v.x, v.y, v.z, v.w};
}

DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
DEVICE uint32_t as_bits(float x) { return __float_as_uint(x); }
DEVICE double double_of(uint64_t bits) { return __longlong_as_double((int64_t)bits); }
DEVICE uint64_t bits_of(double x) { return (uint64_t)__double_as_longlong(x); }

DEVICE float f_mul(float x, float y) { return __fmul_rn(x, y); }
DEVICE float f_div(float x, float y) { return __fdiv_rn(x, y); }
DEVICE float f_fma(float x, float y, float z) { return __fmaf_rn(x, y, z); }
DEVICE float f_from_int(int32_t n) { return __int2float_rn(n); }
DEVICE int32_t f_to_nearest(float x) { return __float2int_rn(x); }
DEVICE double d_fma(double x, double y, double z) { return __fma_rn(x, y, z); }

DEVICE void await_previous()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

DEVICE int32_t dot4(uint32_t w, uint32_t x, int32_t sum) { return __dp4a((int)w, (int)x, sum); }
DEVICE void atomic_add(Ptr<int32_t> p, int i, int32_t n) { atomicAdd(p + i, n); }
DEVICE void atomic_min(Ptr<int32_t> p, int i, int32_t n) { atomicMin(p + i, n); }
DEVICE void atomic_max(Ptr<int32_t> p, int i, int32_t n) { atomicMax(p + i, n); }

#if __CUDA_ARCH__ >= 800
#define HAS_MMA
/* `bytes` of 16 are copied, 0 or 16; the rest is filled with zeros. */
DEVICE void copy16(Ptr<uint32_t> to, int i, Ptr<uint32_t> from, int64_t j, int bytes)
{
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(to + i);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from + j), "r"(bytes) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

/* c += a b, 16 rows by 8 outputs, over 32 int8; the fragments are those of mma.m16n8k32 in the PTX manual. */
DEVICE void mma(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
DEVICE void copy16(Ptr<uint32_t> to, int i, Ptr<uint32_t> from, int64_t j, int bytes)
{
    const uint4 zero = {0, 0, 0, 0};
    *(uint4 *)(to + i) = bytes ? *(const uint4 *)(from + j) : zero;
}
DEVICE void copy_commit() {}
template <int N> DEVICE void copy_wait() {}
#endif

#endif
#endif
