/* Which instruction sets this library was compiled for, and which of them this CPU has. */
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "stepper.h"

#if defined(__x86_64__)
enum { LEAF1_ECX, LEAF7_EBX, LEAF7_ECX, LEAF71_EAX, XCR0, WORDS };

/* Whether the CPU has these bits of cpuid, and the system saves these registers. Not __builtin_cpu_supports: it always
 * says no in a library that zig linked. */
static int cpu_has(unsigned ecx1, unsigned ebx7, unsigned ecx7, unsigned eax71, unsigned registers)
{
    unsigned needed[WORDS] = {ecx1 | bit_OSXSAVE, ebx7, ecx7, eax71, registers}, has[WORDS] = {0}, a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &has[LEAF1_ECX], &d) || !(has[LEAF1_ECX] & bit_OSXSAVE)) return 0;
    __asm__("xgetbv" : "=a"(has[XCR0]), "=d"(d) : "c"(0));
    if (__get_cpuid_count(7, 0, &a, &has[LEAF7_EBX], &has[LEAF7_ECX], &d) && a >= 1)
        __get_cpuid_count(7, 1, &has[LEAF71_EAX], &b, &c, &d);
    for (int i = 0; i < WORDS; i++)
        if ((has[i] & needed[i]) != needed[i]) return 0;
    return 1;
}

/* Whether the system saves these registers: bits of XCR0. */
static int has_registers(unsigned needed) { return cpu_has(0, 0, 0, 0, needed); }

#define YMM 6u
#define ZMM 0xe6u
#define AVX2_FMA bit_FMA | bit_AVX, bit_AVX2
#define TILE_REGISTERS 0x60000u
#define AMX (1u << 22 | 1u << 24 | 1u << 25) /* bf16, tiles, int8 */
#define AVX512 (bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL)
static int has_avx2(void) { return cpu_has(AVX2_FMA, 0, 0, YMM); }
static int has_avx2_vnni(void) { return cpu_has(AVX2_FMA, 0, 1u << 4, YMM); }
static int has_avx512_bf16(void) { return cpu_has(AVX2_FMA | AVX512, 1u << 11, 1u << 5, ZMM); }
/* The system must also let this process use the registers of tiles: 8 KB a thread, so Linux waits until it is asked. */
static int has_avx512_amx(void)
{
#if defined(__linux__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILES = 18 };
    unsigned a, b, c, edx7 = 0;
    if (!has_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &edx7)) return 0;
    if ((edx7 & AMX) != AMX || !has_registers(TILE_REGISTERS)) return 0;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILES) == 0;
#else
    return 0;
#endif
}
static int has_avx512_vnni(void) { return cpu_has(AVX2_FMA | AVX512, 1u << 11, 0, ZMM); }
#elif defined(__aarch64__)
static int has_neon(void) { return 1; }
static int has_neon_dotprod(void)
{
#if defined(__linux__)
    return (getauxval(AT_HWCAP) >> 20 & 1) != 0;
#else
    return 1; /* every 64-bit Arm CPU of Apple has it */
#endif
}
#endif
static int has_plain(void) { return 1; }

/* LONGHAND_SETS(SET) is defined by the build: SET(name) for each set that the compiler knew, the best first. Plain C is
 * there for tests, so it comes last and is only used when it is named. */
#define SET_EXTERN(set) extern const lh_kernels lh_kernels_##set;
#define SET_ENTRY(set) {&lh_kernels_##set, has_##set},
LONGHAND_SETS(SET_EXTERN)

static const struct {
    const lh_kernels *kernels;
    int (*available)(void);
} sets[] = {LONGHAND_SETS(SET_ENTRY)};
enum { SETS = sizeof sets / sizeof *sets };

/* Whether this CPU has a set. It is looked up once: cpuid ends a virtual machine's turn on the core, and a training step
 * that did so in each of its calls took a tenth of its time for it. */
static int is_available(int set)
{
    static _Atomic signed char known[SETS]; /* 1: yes, -1: no, 0: nobody knows yet; threads find out the same */
    if (!known[set]) known[set] = sets[set].available() ? 1 : -1;
    return known[set] > 0;
}

const lh_kernels *kernels_named(const char *name)
{
    for (int i = 0; i < SETS; i++) {
        const char *own = sets[i].kernels->name;
        if (name ? strcmp(name, own) : !strcmp(own, "plain")) continue;
        if (is_available(i)) return sets[i].kernels;
    }
    return NULL;
}

/* Returns the name of the i-th instruction set of this library, the best first, and whether this CPU has it; NULL after
 * the last. */
EXPORT const char *lh_instruction_set(int32_t i, int32_t *available)
{
    if (i < 0 || i >= SETS) return NULL;
    *available = is_available(i);
    return sets[i].kernels->name;
}
