/* The part of CUDA's driver library that model/stepper/cuda/driver.py calls, over the CPU: built as libcuda.so.1, with
 * the kernels inside. A violation that a kernel commits is a sticky error 700, as an illegal address is on a GPU.
 *
 * For tests of failures, the variable LONGHAND_EMULATOR_FAULT makes it misbehave: "no device", "old driver",
 * "no memory", "wrong result", "launch fails", "hangs", "sticky:N" (from the Nth launch on), "crashes".
 */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>
#include <unistd.h>

#include <map>
#include <string>
#include <vector>

#include "kernels.cu"

namespace emulator {

static const int STACK = 256 << 10, MANY = -2, WARP = 32;

/* The last accesses of a word. */
struct Shadow {
    uint32_t write_launch = 0, write_block = 0, write_epoch = 0, read_launch = 0, read_block = 0, read_epoch = 0;
    int write_thread = -1, read_thread = -1;
    bool is_atomic = false, is_read_by_blocks = false;
};
struct Region {
    uintptr_t end;
    std::vector<Shadow> shadow; /* of each word, or of each byte where single bytes are accessed */
    uintptr_t unit = 4;
};
struct Copy { void *to; const void *from; int bytes; };
enum State { READY, AT_BARRIER, AT_PRODUCT, DONE };
struct Fiber {
    ucontext_t context;
    jmp_buf at;
    bool is_started = false;
    State state = DONE;
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> copies;
    int32_t *c;
    const uint32_t *a, *b;
    std::vector<char> stack;
};

static std::map<uintptr_t, Region> regions;
static std::map<uintptr_t, Region>::iterator last_region = regions.end();
static std::vector<Fiber *> fibers;
static std::map<const void *, void *> shared_arrays;
static std::string message;
static uint32_t launch, block, epoch;
static int running = -1, n_threads, block_at_x, block_at_y, grid_at_x;
static jmp_buf scheduler;
static void (*kernel)(void **);
static void **arguments;
static const Kernel *kernels;

Kernel::Kernel(const char *name, void (*run)(void **), int threads) : name(name), run(run), threads(threads), next(kernels) { kernels = this; }

int thread() { return running; }
int block_x() { return block_at_x; }
int block_y() { return block_at_y; }
int grid_x() { return grid_at_x; }

static void violation(const char *what, const void *p)
{
    char text[200];
    snprintf(text, sizeof text, "%s at %p, block (%d, %d), thread %d", what, p, block_at_x, block_at_y, running);
    if (message.empty()) message = text;
}

static void add_region(void *p, size_t bytes)
{
    memset(p, 0xff, bytes);
    regions[(uintptr_t)p] = Region{(uintptr_t)p + bytes, std::vector<Shadow>((bytes + 3) / 4), 4};
    last_region = regions.end();
}
static void remove_region(void *p)
{
    regions.erase((uintptr_t)p);
    last_region = regions.end();
}

bool is_allowed(const void *p, size_t bytes, Access access)
{
    const uintptr_t at = (uintptr_t)p;
    auto region = last_region;
    if (region == regions.end() || at < region->first || at >= region->second.end) {
        region = regions.upper_bound(at);
        if (region == regions.begin()) return violation("access outside of every allocation", p), false;
        --region;
    }
    if (at < region->first || at + bytes > region->second.end) return violation("access outside of every allocation", p), false;
    if (at % (bytes < 8 ? bytes : 8)) return violation("misaligned access", p), false;
    last_region = region;
    if (bytes == 1 && region->second.unit == 4) {
        std::vector<Shadow> of_bytes;
        for (const Shadow &s : region->second.shadow) of_bytes.insert(of_bytes.end(), 4, s);
        region->second.shadow = of_bytes, region->second.unit = 1;
    }
    const uintptr_t unit = region->second.unit;
    for (size_t i = (at - region->first) / unit; i <= (at + bytes - 1 - region->first) / unit; i++) {
        Shadow &s = region->second.shadow[i];
        const bool other_wrote = s.write_launch == launch && s.write_thread >= 0 &&
            (s.write_block != block || (s.write_epoch == epoch && s.write_thread != running));
        if (other_wrote && !(access == ATOMIC && s.is_atomic))
            return violation(access == READ ? "race: read of what another thread wrote" : "race: write of what another thread wrote", p), false;
        if (access == READ) {
            if (s.read_launch != launch) s.read_block = block, s.is_read_by_blocks = false, s.read_epoch = ~0u;
            if (s.read_block != block) s.is_read_by_blocks = true;
            s.read_thread = s.read_epoch == epoch && s.read_thread != running ? MANY : running;
            s.read_launch = launch, s.read_epoch = epoch, s.read_block = block;
            continue;
        }
        const bool other_read = s.read_launch == launch &&
            (s.is_read_by_blocks || s.read_block != block || (s.read_epoch == epoch && s.read_thread != running));
        if (other_read) return violation("race: write of what another thread read", p), false;
        s.write_launch = launch, s.write_block = block, s.write_epoch = epoch, s.write_thread = running, s.is_atomic = access == ATOMIC;
    }
    return true;
}

void *shared(const void *place, size_t bytes)
{
    void *&array = shared_arrays[place];
    if (!array) {
        array = aligned_alloc(128, (bytes + 127) / 128 * 128);
        add_region(array, bytes);
    }
    return array;
}

static void yield(State state)
{
    Fiber *f = fibers[running];
    f->state = state;
    if (!_setjmp(f->at)) _longjmp(scheduler, 1);
}

void barrier() { yield(AT_BARRIER); }
static bool is_true_for_any[2]; /* at even and odd barriers */
bool barrier_or(bool is_true)
{
    const uint32_t now = epoch;
    is_true_for_any[now & 1] |= is_true;
    barrier();
    const bool result = is_true_for_any[now & 1];
    barrier(); /* everybody has read it */
    is_true_for_any[now & 1] = false;
    return result;
}
void copy_later(void *to, const void *from, int bytes) { fibers[running]->copies.push_back({to, from, bytes}); }
void end_copy_group()
{
    Fiber *f = fibers[running];
    f->groups.push_back(f->copies);
    f->copies.clear();
}
void wait_for_copies(int left)
{
    Fiber *f = fibers[running];
    while ((int)f->groups.size() > left) {
        for (const Copy &c : f->groups.front()) {
            if (((uintptr_t)c.to | (uintptr_t)c.from) % 16) { violation("misaligned copy", c.to); continue; }
            if (!is_allowed(c.to, 16, WRITE)) continue;
            memset(c.to, 0, 16);
            if (c.bytes && is_allowed(c.from, (size_t)c.bytes, READ)) memcpy(c.to, c.from, (size_t)c.bytes);
        }
        f->groups.erase(f->groups.begin());
    }
}

/* mma.m16n8k32: the fragments are those of the PTX manual. */
void matrix_product(int32_t *c, const uint32_t *a, const uint32_t *b)
{
    Fiber *f = fibers[running];
    f->c = c, f->a = a, f->b = b;
    yield(AT_PRODUCT);
}
static void multiply_warp(int first)
{
    auto byte = [](uint32_t word, int i) { return (int32_t)(int8_t)(word >> (8 * i)); };
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 8; column++) {
            int32_t sum = 0;
            for (int k = 0; k < 32; k++) {
                const Fiber *x = fibers[first + row % 8 * 4 + k % 16 / 4], *w = fibers[first + column * 4 + k % 16 / 4];
                sum += byte(x->a[k / 16 * 2 + row / 8], k % 4) * byte(w->b[k / 16], k % 4);
            }
            fibers[first + row % 8 * 4 + column / 2]->c[row / 8 * 2 + column % 2] += sum;
        }
}

static void fiber_main()
{
    for (;;) {
        kernel(arguments);
        yield(DONE);
    }
}

static void run_block()
{
    for (auto &[place, array] : shared_arrays) remove_region(array), free(array);
    shared_arrays.clear();
    while ((int)fibers.size() < n_threads) {
        Fiber *f = new Fiber;
        f->stack.resize(STACK);
        fibers.push_back(f);
    }
    for (int i = 0; i < n_threads; i++) fibers[i]->state = READY, fibers[i]->groups.clear(), fibers[i]->copies.clear();
    for (int live = n_threads; live > 0;) {
        for (running = 0; running < n_threads; running++) {
            Fiber *f = fibers[running];
            if (f->state != READY || _setjmp(scheduler)) continue;
            if (f->is_started) _longjmp(f->at, 1);
            f->is_started = true;
            getcontext(&f->context);
            f->context.uc_stack.ss_sp = f->stack.data(), f->context.uc_stack.ss_size = STACK, f->context.uc_link = nullptr;
            makecontext(&f->context, fiber_main, 0);
            setcontext(&f->context);
        }
        running = -1;
        int at_barrier = 0, done = 0, multiplied = 0;
        for (int w = 0; w < n_threads; w += WARP) {
            int waiting = 0;
            for (int i = w; i < w + WARP && i < n_threads; i++) waiting += fibers[i]->state == AT_PRODUCT;
            if (waiting == WARP) {
                multiply_warp(w), multiplied++;
                for (int i = w; i < w + WARP; i++) fibers[i]->state = READY;
            } else if (waiting) violation("a part of a warp at a matrix product", nullptr);
        }
        for (int i = 0; i < n_threads; i++) at_barrier += fibers[i]->state == AT_BARRIER, done += fibers[i]->state == DONE;
        live = n_threads - done;
        if (multiplied) continue;
        if (live && at_barrier != n_threads) violation("a part of a block at a barrier", nullptr);
        epoch++;
        for (int i = 0; i < n_threads; i++) if (fibers[i]->state == AT_BARRIER || fibers[i]->state == AT_PRODUCT) fibers[i]->state = READY;
    }
}

static void run_launch(const Kernel *k, int grid_x, int grid_y, void **params)
{
    launch++, epoch = 1, block = 0;
    kernel = k->run, arguments = params, n_threads = k->threads, grid_at_x = grid_x;
    for (block_at_y = 0; block_at_y < grid_y; block_at_y++)
        for (block_at_x = 0; block_at_x < grid_x; block_at_x++, block++) run_block();
}

}

/* ---- the driver's functions ---- */

#define EXPORT extern "C" __attribute__((visibility("default")))
enum { SUCCESS, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719 };

struct Node { const emulator::Kernel *kernel; int grid_x, grid_y; args_t a; int layer, step; };
struct Graph { std::vector<Node> nodes; };

static Graph *capturing;
static int sticky, launches;
static size_t allocated;

static bool is_fault(const char *name)
{
    const char *fault = getenv("LONGHAND_EMULATOR_FAULT");
    return fault && !strcmp(fault, name);
}
static int status()
{
    if (!emulator::message.empty() && !sticky) {
        fprintf(stderr, "emulator: %s\n", emulator::message.c_str());
        sticky = ILLEGAL_ADDRESS;
    }
    return sticky;
}

static int run_node(const Node &n)
{
    if (sticky) return sticky;
    const char *fault = getenv("LONGHAND_EMULATOR_FAULT");
    if (is_fault("launch fails")) return LAUNCH_FAILED;
    if (is_fault("hangs")) for (;;) pause();
    if (is_fault("crashes")) abort();
    if (fault && !strncmp(fault, "sticky:", 7) && ++launches >= atoi(fault + 7)) return sticky = LAUNCH_FAILED;
    if (emulator::running >= 0) return ILLEGAL_ADDRESS;
    void *params[] = {(void *)&n.a, (void *)&n.layer, (void *)&n.step};
    emulator::run_launch(n.kernel, n.grid_x, n.grid_y, params);
    if (is_fault("wrong result") && !strncmp(n.kernel->name, "draw", 4)) n.a.out.p[0] = (n.a.out.p[0] + 1) % (int)n.a.vocab;
    return status();
}

EXPORT const char *emulator_message() { return emulator::message.c_str(); }
EXPORT void emulator_reset() { emulator::message.clear(), sticky = 0, launches = 0; }
EXPORT size_t emulator_allocated() { return allocated; }
EXPORT int emulator_args_size() { return sizeof(args_t); }

EXPORT int cuInit(unsigned) { return is_fault("no device") ? NO_DEVICE : SUCCESS; }
EXPORT int cuDriverGetVersion(int *v) { *v = is_fault("old driver") ? 11040 : 13000; return SUCCESS; }
EXPORT int cuDeviceGetCount(int *n) { *n = 1; return SUCCESS; }
EXPORT int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? INVALID_VALUE : SUCCESS; }
EXPORT int cuDeviceGetName(char *name, int n, int) { snprintf(name, (size_t)n, "emulated GPU"); return SUCCESS; }
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int)
{
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 16 ? 4 : 0;
    return SUCCESS;
}
EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int) { *bytes = (size_t)1 << 30; return SUCCESS; }
EXPORT int cuMemGetInfo_v2(size_t *free, size_t *total) { *total = (size_t)1 << 30, *free = *total - allocated; return status(); }
EXPORT int cuDevicePrimaryCtxRetain(void **context, int) { *context = &sticky; return status(); }
EXPORT int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
EXPORT int cuCtxSetCurrent(void *) { return SUCCESS; }
EXPORT int cuModuleLoadData(void **module, const void *) { *module = &capturing; return status(); }
EXPORT int cuModuleUnload(void *) { return SUCCESS; }
EXPORT int cuModuleGetFunction(void **function, void *, const char *name)
{
    for (const emulator::Kernel *k = emulator::kernels; k; k = k->next)
        if (!strcmp(k->name, name)) return *function = (void *)k, SUCCESS;
    return NOT_FOUND;
}
EXPORT int cuFuncGetAttribute(int *value, int, void *) { *value = 0; return SUCCESS; }
EXPORT int cuMemAlloc_v2(uint64_t *p, size_t bytes)
{
    if (status()) return sticky;
    if (is_fault("no memory") || allocated + bytes > (size_t)1 << 30) return OUT_OF_MEMORY;
    void *memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    emulator::add_region(memory, bytes);
    allocated += bytes;
    *p = (uint64_t)memory;
    return SUCCESS;
}
EXPORT int cuMemFree_v2(uint64_t p)
{
    const auto region = emulator::regions.find(p);
    if (region == emulator::regions.end()) return INVALID_VALUE;
    allocated -= region->second.end - region->first;
    emulator::remove_region((void *)p);
    free((void *)p);
    return status();
}
EXPORT int cuMemAllocHost_v2(void **p, size_t bytes) { *p = malloc(bytes); return SUCCESS; }
EXPORT int cuMemFreeHost(void *p) { free(p); return SUCCESS; }
EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *) { if (status()) return sticky; memcpy((void *)to, from, n); return SUCCESS; }
EXPORT int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *) { if (status()) return sticky; memcpy(to, (void *)from, n); return SUCCESS; }
EXPORT int cuMemsetD8Async(uint64_t to, unsigned char value, size_t n, void *) { if (status()) return sticky; memset((void *)to, value, n); return SUCCESS; }
EXPORT int cuStreamCreate(void **stream, unsigned) { *stream = &allocated; return status(); }
EXPORT int cuStreamDestroy_v2(void *) { return SUCCESS; }
EXPORT int cuStreamSynchronize(void *) { return status(); }
EXPORT int cuStreamBeginCapture_v2(void *, int) { capturing = new Graph; return status(); }
EXPORT int cuStreamEndCapture(void *, void **graph) { *graph = capturing, capturing = nullptr; return status(); }
EXPORT int cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long) { *exec = new Graph(*(Graph *)graph); return status(); }
EXPORT int cuGraphLaunch(void *exec, void *)
{
    for (const Node &n : ((Graph *)exec)->nodes)
        if (int code = run_node(n)) return code;
    return SUCCESS;
}
EXPORT int cuGraphExecDestroy(void *exec) { delete (Graph *)exec; return SUCCESS; }
EXPORT int cuGraphDestroy(void *graph) { delete (Graph *)graph; return SUCCESS; }
EXPORT int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned, unsigned bx, unsigned, unsigned, unsigned, void *, void **params, void **)
{
    const emulator::Kernel *k = (const emulator::Kernel *)function;
    if ((int)bx != k->threads || !gx || !gy) return INVALID_VALUE;
    const Node n = {k, (int)gx, (int)gy, *(args_t *)params[0], *(int *)params[1], *(int *)params[2]};
    if (capturing) return capturing->nodes.push_back(n), SUCCESS;
    return run_node(n);
}
struct Config { unsigned gx, gy, gz, bx, by, bz, shared; void *stream, *attributes; unsigned n_attributes; };
EXPORT int cuLaunchKernelEx(const Config *c, void *function, void **params, void **extra)
{
    return cuLaunchKernel(function, c->gx, c->gy, c->gz, c->bx, c->by, c->bz, c->shared, c->stream, params, extra);
}
EXPORT int cuGetErrorName(int code, const char **name)
{
    *name = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE"
          : code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : code == LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR";
    return SUCCESS;
}
EXPORT int cuGetErrorString(int, const char **text) { *text = emulator::message.empty() ? "emulated" : emulator::message.c_str(); return SUCCESS; }
