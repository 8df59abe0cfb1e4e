/* Threads that share the items of a phase, and the barrier between phases.
 *
 * Each thread owns a range of items and takes from it; when it is through it takes from the others' ranges, so that a
 * thread the machine gives no time to holds up at most one item. Which thread computes an item changes no bit of it.
 *
 * Waiting: a short spin, then sleep: on a machine with more runnable threads than cores the one waited for may need
 * this very core. (Yielding it instead gives it to a stranger for a whole slice, milliseconds.) Where threads mostly
 * wait for one another, since others have the cores, a run is better off on one: pool_threads sees to that.
 */
#ifndef LONGHAND_POOL_H
#define LONGHAND_POOL_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "simd.h"

#define MAX_THREADS 256
#define SPINS 2000     /* about 30 us */
#define ALONE_FIRST 8  /* runs on one thread after one in which threads waited; doubled each time it happens again */
#define ALONE_MOST 128
#define ALONE_NS 100000000LL /* but no longer than this: 128 runs of 40 ms would be five seconds on one core */

/* Where threads sleep until a word changes. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    atomic_int sleepers;
} room_t;

typedef struct {
    _Alignas(64) atomic_int taken; /* items taken from this thread's range in this phase */
    _Alignas(64) atomic_uint job;  /* counts the runs this thread was called to */
} worker_t;

typedef struct pool {
    worker_t worker[MAX_THREADS];
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_uint phase;
    room_t between_phases, between_runs;
    atomic_llong slept_ns; /* by all threads together, between phases of this run */
    int alone, alone_next; /* runs still to be done on one thread; how many the next time */
    int64_t alone_until;
    int active;  /* threads in this run */
    int started; /* threads that exist, the caller's counted as one */
    int stop;
    pid_t pid; /* threads do not survive a fork */
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

/* Returns the ns it slept. */
static int64_t room_wait(room_t *room, atomic_uint *word, unsigned seen)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != seen) return 0;
        relax();
    }
    int64_t since = now_ns();
    pthread_mutex_lock(&room->lock);
    atomic_fetch_add(&room->sleepers, 1);
    while (atomic_load(word) == seen) pthread_cond_wait(&room->changed, &room->lock);
    atomic_fetch_sub(&room->sleepers, 1);
    pthread_mutex_unlock(&room->lock);
    return now_ns() - since;
}

/* After the word was changed (sequentially consistent, as is the sleepers' own order: count, then look). */
static void room_wake(room_t *room)
{
    if (atomic_load(&room->sleepers) == 0) return;
    pthread_mutex_lock(&room->lock);
    pthread_cond_broadcast(&room->changed);
    pthread_mutex_unlock(&room->lock);
}

/* All active threads meet; the last to come opens the next phase. */
static void pool_meet(pool_t *p)
{
    if (p->active == 1) {
        atomic_store_explicit(&p->worker[0].taken, 0, memory_order_relaxed);
        return;
    }
    unsigned seen = atomic_load_explicit(&p->phase, memory_order_acquire);
    if (atomic_fetch_add_explicit(&p->arrived, 1, memory_order_acq_rel) == p->active - 1) {
        atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
        for (int t = 0; t < p->active; t++) atomic_store_explicit(&p->worker[t].taken, 0, memory_order_relaxed);
        atomic_fetch_add(&p->phase, 1);
        room_wake(&p->between_phases);
    } else {
        int64_t slept = room_wait(&p->between_phases, &p->phase, seen);
        if (slept) atomic_fetch_add_explicit(&p->slept_ns, slept, memory_order_relaxed);
    }
}

/* The next item of this phase for this thread, or -1. `*from` is whose range it takes from; start with its own. */
static int pool_take(pool_t *p, int items, int *from)
{
    for (int tried = 0; tried < p->active; tried++) {
        int t = *from;
        int low = (int)((int64_t)items * t / p->active), high = (int)((int64_t)items * (t + 1) / p->active);
        if (low + atomic_load_explicit(&p->worker[t].taken, memory_order_relaxed) < high) {
            int item = low + atomic_fetch_add_explicit(&p->worker[t].taken, 1, memory_order_relaxed);
            if (item < high) return item;
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
        room_wait(&p->between_runs, &p->worker[index].job, seen);
        if (p->stop) return NULL;
        p->work(p->argument, index);
        pool_meet(p);
    }
}

static void pool_init(pool_t *p)
{
    memset(p, 0, sizeof *p);
    for (int i = 0; i < 2; i++) {
        room_t *room = i ? &p->between_phases : &p->between_runs;
        pthread_mutex_init(&room->lock, NULL);
        pthread_cond_init(&room->changed, NULL);
    }
    p->started = 1;
    p->alone_next = ALONE_FIRST;
    p->pid = getpid();
}

/* How many of n threads a run should use now. Changes no bit of it. */
static int pool_threads(pool_t *p, int n)
{
    if (n == 1 || p->alone == 0) return n;
    if (now_ns() > p->alone_until) p->alone = 1;
    p->alone--;
    return 1;
}

/* After a run on n threads: if together they did no more than one would, the next runs are on one. */
static void pool_learn(pool_t *p, int n, int64_t run_ns)
{
    int64_t slept = atomic_exchange(&p->slept_ns, 0);
    if (n == 1) return;
    if (slept < (n - 1) * run_ns / 10 * 6) {
        p->alone_next = ALONE_FIRST;
        return;
    }
    p->alone = p->alone_next;
    p->alone_until = now_ns() + ALONE_NS;
    if (p->alone_next < ALONE_MOST) p->alone_next *= 2;
}

/* Runs work(argument, thread) on up to n threads, the caller's among them; returns when all are through. */
static void pool_run(pool_t *p, int n, void (*work)(void *, int), void *argument)
{
    if (p->pid != getpid()) pool_init(p);
    n = pool_threads(p, n < MAX_THREADS ? n : MAX_THREADS);
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
            n = p->started; /* the machine gives no more threads: go on with fewer */
            break;
        }
        p->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    p->active = n, p->work = work, p->argument = argument;
    for (int t = 1; t < n; t++) atomic_fetch_add(&p->worker[t].job, 1);
    if (n > 1) room_wake(&p->between_runs);
    work(argument, 0);
    pool_meet(p);
    pool_learn(p, n, now_ns() - since);
}

static void pool_close(pool_t *p)
{
    if (p->pid == getpid()) {
        p->stop = 1;
        for (int t = 1; t < p->started; t++) atomic_fetch_add(&p->worker[t].job, 1);
        room_wake(&p->between_runs);
        for (int t = 1; t < p->started; t++) pthread_join(p->thread[t], NULL);
    }
}

#endif
