/* Everything that is compiled once for each instruction set. KERNELS is the set's name; model/native/library.py has the
 * sets and their compiler flags.
 */
#include "groups.h"
#include "levels.h"
#include "steps.h"
#include "training/optimizer.h"
#include "training/pass.h"

#define NAME_OF(set) lh_kernels_##set
#define NAME(set) NAME_OF(set)
#define TEXT_OF(set) #set
#define TEXT(set) TEXT_OF(set)

/* With vectors of 32 bytes a product needs more rows to be as fast; with tiles it was not measured. */
#if LANES == 16 && defined(HAS_TILES)
#define GROUPS {1, 0}
#elif LANES == 16
#define GROUPS {1, 1}
#else
#define GROUPS {0, 0}
#endif

static void run_steps(void *stepper, int thread)
{
    lh_stepper *s = stepper;
    if (s->groups.group) run_groups(s, thread);
    else run_phases(s, thread);
    tiles_release();
}

const lh_kernels NAME(KERNELS) = {
    TEXT(KERNELS), ACTIVATION_OFFSET, ACTIVATION_BYTES, GROUPS, quantize, run_steps, run_levels, draw,
    training_pass, optimize,
};
