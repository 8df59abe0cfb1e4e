/* Threads that share the items of a phase, and the barrier between phases.
 *
 * Each thread owns a range of the items and takes from it. When its range is empty it takes from the other ranges, so a
 * thread that the operating system does not schedule delays the phase by at most one item. Which thread computes an
 * item changes no bit of the result.
 *
 * A thread waits by a short spin and then by sleeping: with more runnable threads than cores, the thread that is waited
 * for may need this very core. (sched_yield would give the core to any other process for a whole time slice.) When the
 * threads mostly wait for one another, because other processes have the cores, one thread is faster than several: then
 * the pool falls back to a single thread for a number of runs.
 */
#ifndef LONGHAND_POOL_H
#define LONGHAND_POOL_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "kernels/simd.h"

#define MAX_THREADS 256
#define SPINS 2000                 /* before sleeping; about 30 us */
#define FALLBACK_AFTER_NS 50000000LL /* of runs in a row in which threads mostly waited: one alone, or short ones, say little */
#define FALLBACK_FIRST_RUNS 8      /* single-threaded runs after threads mostly waited; doubled each time it repeats */
#define FALLBACK_MOST_RUNS 128
#define FALLBACK_MOST_NS 100000000LL /* and never longer than this: 128 long runs would be seconds on one core */

/* Where threads sleep until a word changes. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    atomic_int sleepers;
} waiter_t;

typedef struct {
    _Alignas(64) atomic_int taken; /* items taken from this thread's range in this phase */
    _Alignas(64) atomic_uint job;  /* the number of runs that this thread was called to */
} worker_t;

typedef struct pool {
    worker_t worker[MAX_THREADS];
    _Alignas(64) atomic_int arrived; /* threads at the barrier */
    _Alignas(64) atomic_uint phase;
    waiter_t between_phases, between_runs;
    atomic_llong slept_ns; /* of all threads, in this run */
    int64_t waited_ns;     /* the time of the last runs, if threads mostly waited in each of them */
    int fallback_runs;     /* runs still to be done on a single thread */
    int next_fallback_runs;
    int64_t fallback_until_ns;
    int active;  /* threads in this run */
    int started; /* threads that exist, the caller's included */
    int stop;
    pid_t pid; /* of the process that started the threads: they do not survive a fork */
    void (*work)(void *, int thread);
    void *argument;
    pthread_t thread[MAX_THREADS];
} pool_t;

typedef struct {
    pool_t *pool;
    int index;
} worker_start_t;

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void init_waiter(waiter_t *waiter)
{
    pthread_mutex_init(&waiter->lock, NULL);
    pthread_cond_init(&waiter->changed, NULL);
    atomic_init(&waiter->sleepers, 0);
}

static void destroy_waiter(waiter_t *waiter)
{
    pthread_mutex_destroy(&waiter->lock);
    pthread_cond_destroy(&waiter->changed);
}

/* Waits until *word is not `seen`. Returns the ns that it slept. */
static int64_t wait_for_change(waiter_t *waiter, atomic_uint *word, unsigned seen)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != seen) return 0;
        relax();
    }
    int64_t since = now_ns();
    pthread_mutex_lock(&waiter->lock);
    atomic_fetch_add(&waiter->sleepers, 1);
    while (atomic_load(word) == seen) pthread_cond_wait(&waiter->changed, &waiter->lock);
    atomic_fetch_sub(&waiter->sleepers, 1);
    pthread_mutex_unlock(&waiter->lock);
    return now_ns() - since;
}

/* Call after the word was changed. No sleeper is missed: a sleeper counts itself before it reads the word, and all of
 * these operations are sequentially consistent. */
static void wake_all(waiter_t *waiter)
{
    if (atomic_load(&waiter->sleepers) == 0) return;
    pthread_mutex_lock(&waiter->lock);
    pthread_cond_broadcast(&waiter->changed);
    pthread_mutex_unlock(&waiter->lock);
}

/* Waits, as a thread of a run, until *word is not `seen`. */
static void pool_wait(pool_t *p, waiter_t *waiter, atomic_uint *word, unsigned seen)
{
    int64_t slept = wait_for_change(waiter, word, seen);
    if (slept) atomic_fetch_add_explicit(&p->slept_ns, slept, memory_order_relaxed);
}

/* Waits for all active threads; the last to arrive opens the next phase. The number of them is read before this thread
 * arrives: after that, the run may be over and the next one have another number. */
static void pool_barrier(pool_t *p)
{
    const int active = p->active;
    if (active == 1) {
        atomic_store_explicit(&p->worker[0].taken, 0, memory_order_relaxed);
        return;
    }
    unsigned seen = atomic_load_explicit(&p->phase, memory_order_acquire);
    if (atomic_fetch_add_explicit(&p->arrived, 1, memory_order_acq_rel) == active - 1) {
        atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
        for (int t = 0; t < active; t++) atomic_store_explicit(&p->worker[t].taken, 0, memory_order_relaxed);
        atomic_fetch_add(&p->phase, 1);
        wake_all(&p->between_phases);
    } else {
        pool_wait(p, &p->between_phases, &p->phase, seen);
    }
}

/* Returns the next item of this phase for this thread, or -1. `*from` is the range that it takes from; start with the
 * thread's own. A range is gone through forwards, or backwards. */
static int pool_take(pool_t *p, int items, int *from, int backwards)
{
    for (int tried = 0; tried < p->active; tried++) {
        int t = *from;
        int low = (int)((int64_t)items * t / p->active), high = (int)((int64_t)items * (t + 1) / p->active);
        if (low + atomic_load_explicit(&p->worker[t].taken, memory_order_relaxed) < high) {
            int item = low + atomic_fetch_add_explicit(&p->worker[t].taken, 1, memory_order_relaxed);
            if (item < high) return backwards ? low + high - 1 - item : item;
        }
        *from = t + 1 == p->active ? 0 : t + 1;
    }
    return -1;
}

static void *worker_main(void *start)
{
    pool_t *p = ((worker_start_t *)start)->pool;
    int index = ((worker_start_t *)start)->index;
    free(start);
    float_mode_enter();
    for (unsigned seen = 0;; seen++) {
        wait_for_change(&p->between_runs, &p->worker[index].job, seen);
        if (p->stop) return NULL;
        p->work(p->argument, index);
        pool_barrier(p);
    }
}

static void pool_init(pool_t *p)
{
    memset(p, 0, sizeof *p);
    init_waiter(&p->between_phases);
    init_waiter(&p->between_runs);
    p->started = 1;
    p->next_fallback_runs = FALLBACK_FIRST_RUNS;
    p->pid = getpid();
}

/* Returns how many of n threads the next run should use. It changes no bit of the result. */
static int pool_threads(pool_t *p, int n)
{
    if (p->pid != getpid()) pool_init(p);
    if (n > MAX_THREADS) n = MAX_THREADS;
    if (n == 1 || p->fallback_runs == 0) return n;
    if (now_ns() > p->fallback_until_ns) p->fallback_runs = 1;
    p->fallback_runs--;
    return 1;
}

/* After a run on n threads: if they have slept so much for a while that one thread would have been as fast, fall back to
 * one. */
static void pool_measure(pool_t *p, int n, int64_t run_ns)
{
    int64_t slept = atomic_exchange(&p->slept_ns, 0);
    if (n == 1) return;
    if (slept < (n - 1) * run_ns / 10 * 6) {
        p->waited_ns = 0;
        p->next_fallback_runs = FALLBACK_FIRST_RUNS;
        return;
    }
    p->waited_ns += run_ns;
    if (p->waited_ns < FALLBACK_AFTER_NS) return;
    p->fallback_runs = p->next_fallback_runs;
    p->fallback_until_ns = now_ns() + FALLBACK_MOST_NS;
    if (p->next_fallback_runs < FALLBACK_MOST_RUNS) p->next_fallback_runs *= 2;
}

/* Runs work(argument, thread) on n threads, the caller's included, and returns when all are done; n is what pool_threads
 * said. They are fewer if the system gives no more. */
static void pool_run(pool_t *p, int n, void (*work)(void *, int), void *argument)
{
    int64_t since = now_ns();
    sigset_t all, before; /* signals are for the host's threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (p->started < n) {
        worker_start_t *start = malloc(sizeof *start);
        if (start) *start = (worker_start_t){p, p->started};
        atomic_store(&p->worker[p->started].job, 0);
        if (!start || pthread_create(&p->thread[p->started], NULL, worker_main, start)) {
            free(start);
            n = p->started; /* the system gives no more threads: use those that there are */
            break;
        }
        p->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    p->active = n, p->work = work, p->argument = argument;
    for (int t = 1; t < n; t++) atomic_fetch_add(&p->worker[t].job, 1);
    if (n > 1) wake_all(&p->between_runs);
    work(argument, 0);
    pool_barrier(p);
    pool_measure(p, n, now_ns() - since);
}

static void pool_close(pool_t *p)
{
    if (p->pid == getpid()) {
        p->stop = 1;
        for (int t = 1; t < p->started; t++) atomic_fetch_add(&p->worker[t].job, 1);
        wake_all(&p->between_runs);
        for (int t = 1; t < p->started; t++) pthread_join(p->thread[t], NULL);
    }
}

#endif
