/* Everything that is compiled once for each instruction set. KERNELS is the set's name; model/native/library.py has the
 * sets and their compiler flags.
 */
#include "levels.h"
#include "steps.h"
#include "training/optimizer.h"
#include "training/pass.h"

#define NAME_OF(set) lh_kernels_##set
#define NAME(set) NAME_OF(set)
#define TEXT_OF(set) #set
#define TEXT(set) TEXT_OF(set)

#if defined(HAS_TILES)
#define TILES_OF_SET 1
#else
#define TILES_OF_SET 0
#endif

const lh_kernels NAME(KERNELS) = {
    TEXT(KERNELS), ACTIVATION_OFFSET, ACTIVATION_BYTES, TILES_OF_SET, quantize, run_steps, run_levels, draw,
    training_pass, optimize,
};
