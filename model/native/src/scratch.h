/* Memory that a thread keeps for its next call. */
#ifndef LONGHAND_SCRATCH_H
#define LONGHAND_SCRATCH_H

#include <stddef.h>

enum { SCRATCH_LAYER, SCRATCH_PASS, SCRATCHES }; /* memory of an LSTM layer, and of the training pass around it */

/* At least so many bytes, in large pages where the system has them: with small ones, a matrix of 1.6 MB is read from the
 * L2 cache at two thirds of the speed. What they hold is what an earlier call of the thread left. NULL: no memory. */
void *thread_scratch(int scratch, size_t bytes);

#endif
