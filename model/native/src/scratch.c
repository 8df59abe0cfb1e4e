/* See scratch.h. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "scratch.h"

static pthread_key_t keys[SCRATCHES]; /* their values are freed when the thread ends */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int has_keys;
static __thread size_t sizes[SCRATCHES]; /* of this thread's memory */

static void create_keys(void)
{
    has_keys = 1;
    for (int i = 0; i < SCRATCHES; i++) has_keys = has_keys && pthread_key_create(&keys[i], free) == 0;
}

void *thread_scratch(int scratch, size_t bytes)
{
    const size_t page = (size_t)1 << 21;
    size_t *size = &sizes[scratch];
    pthread_once(&once, create_keys);
    if (!has_keys) return NULL;
    void *memory = pthread_getspecific(keys[scratch]);
#if defined(__SANITIZE_ADDRESS__)
    *size = 0; /* so that accesses past the end of what this call needs are found */
#else
    bytes = (bytes + page - 1) / page * page;
#endif
    if (memory && *size >= bytes) return memory;
    free(memory);
    memory = NULL, *size = 0;
    if (posix_memalign(&memory, page, bytes)) memory = NULL;
#if defined(MADV_HUGEPAGE)
    if (memory) madvise(memory, bytes, MADV_HUGEPAGE); /* it may refuse */
#endif
    if (pthread_setspecific(keys[scratch], memory)) {
        free(memory);
        return NULL;
    }
    if (memory) *size = bytes;
    return memory;
}
