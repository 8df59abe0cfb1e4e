/* Products of int8 by the tiles of AMX: 16 rows of four bytes a step, times 16 outputs, over 16 steps, in one
 * instruction.
 *
 * Sums of int8 are exact, so these are the bits of gemm.h's other int8 kernels. The weights of a block for 16 steps,
 * 1,024 bytes, are a tile as they lie. A row's tile is 64 bytes of each of 16 rows; rows that do not lie evenly apart
 * (a row that begins with the zero state) are first copied.
 *
 * Two groups of 16 rows are multiplied with two blocks at once, so that four products need four tiles of input; the last
 * group alone with four blocks, so that its own input is read once.
 */
#ifndef LONGHAND_INT8_TILES_H
#define LONGHAND_INT8_TILES_H

#define TILE_STEPS 16 /* of a tile */
#define TILE_GROUP 16 /* rows of a tile */
#define TILE_MIN_ROWS 8 /* fewer rows are faster by vpdpbusd */

/* gcc does not know that the instructions of tiles read memory. */
#define MEMORY_IS_READ __asm__ volatile("" ::: "memory")

/* What LDTILECFG reads: palette 1, then bytes a row and rows of each of the eight tiles. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 weights. Tiles 0, 1 and 4 have `rows` rows; 2, 3 and 5 have `others`. */
INLINE void tiles_configure(int rows, int others, int steps)
{
    tile_shapes shapes = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        const int is_second = tile == 2 || tile == 3 || tile == 5, is_weights = tile >= 6, is_rows = tile == 4 || tile == 5;
        shapes.rows[tile] = (uint8_t)(is_weights ? steps : is_second ? others : rows);
        shapes.row_bytes[tile] = (uint16_t)(is_rows ? 4 * steps : 4 * BLOCK);
    }
    /* gcc believes that only the first eight bytes are read; a clobber alone would not keep a variable of our own */
    __asm__ volatile("" : : "r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
}

/* After the last product of a run: the system then saves 8 KB less of this thread. */
INLINE void tiles_release(void) { _tile_release(); }

/* The inputs of some rows: of a layer above the first, the layer below's h, then the row's own. */
typedef struct {
    const void *const *rows[2]; /* of each input, pointers to rows of `steps` steps */
    int inputs, steps;
    int from, end, width; /* the steps to multiply, in tiles of so many */
} tile_inputs;

/* The rows of a tile: where they lie, `stride` bytes apart. */
typedef struct {
    const uint8_t *first;
    size_t stride;
} tile_rows_t;

INLINE int lie_evenly(const void *const *a, int rows)
{
    for (int r = 2; r < rows; r++)
        if ((const char *)a[r] - (const char *)a[r - 1] != (const char *)a[1] - (const char *)a[0]) return 0;
    return rows < 2 || (const char *)a[1] > (const char *)a[0];
}

/* `bytes` of each row from a byte on: where they lie, if the rows lie evenly apart, else a copy. */
INLINE tile_rows_t rows_at(const void *const *a, int rows, int is_even, int byte, int bytes, uint8_t (*copy)[64])
{
    const uint8_t *first = a[0];
    if (is_even) return (tile_rows_t){first + byte, rows > 1 ? (size_t)((const uint8_t *)a[1] - first) : 64};
    for (int r = 0; r < rows; r++) memcpy(copy[r], (const uint8_t *)a[r] + byte, (size_t)bytes);
    __asm__ volatile("" : : "r"(copy) : "memory"); /* as in tiles_configure: a variable of our own */
    return (tile_rows_t){copy[0], 64};
}

#define LOAD_SUMS(tile, r, b) _tile_loadd(tile, z[r].i + (b) * BLOCK, sizeof *z)
#define SAVE_SUMS(tile, r, b) _tile_stored(tile, z[r].i + (b) * BLOCK, sizeof *z)
#define LOAD_WEIGHTS(tile, b) _tile_loadd(tile, at + (b) * block, STEP_BYTES)
#define EACH_INPUT(i) for (int i = 0; i < x->inputs; i++)
#define EACH_TILE(k) for (int k = x->from; k < x->end; k += x->width)
#define WEIGHTS_AT(i, k) (w + ((size_t)(i) * x->steps + (k)) * STEP_BYTES)

/* Two groups of rows, times two blocks. */
INLINE void tiles_2x2(const tile_inputs *x, int r, int rows, int others, const char *w, size_t block, zrow *z)
{
    uint8_t copy[2][TILE_GROUP][64];
    LOAD_SUMS(0, 0, 0);
    LOAD_SUMS(1, 0, 1);
    LOAD_SUMS(2, TILE_GROUP, 0);
    LOAD_SUMS(3, TILE_GROUP, 1);
    EACH_INPUT(i)
    {
        const void *const *a = x->rows[i] + r, *const *b = a + TILE_GROUP;
        const int is_even = lie_evenly(a, rows), others_even = lie_evenly(b, others);
        EACH_TILE(k)
        {
            const char *at = WEIGHTS_AT(i, k);
            const tile_rows_t first = rows_at(a, rows, is_even, 4 * k, 4 * x->width, copy[0]);
            const tile_rows_t second = rows_at(b, others, others_even, 4 * k, 4 * x->width, copy[1]);
            LOAD_WEIGHTS(6, 0);
            _tile_loadd(4, first.first, first.stride);
            _tile_dpbusd(0, 4, 6);
            LOAD_WEIGHTS(7, 1);
            _tile_dpbusd(1, 4, 7);
            _tile_loadd(5, second.first, second.stride);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
    }
    SAVE_SUMS(0, 0, 0);
    SAVE_SUMS(1, 0, 1);
    SAVE_SUMS(2, TILE_GROUP, 0);
    SAVE_SUMS(3, TILE_GROUP, 1);
}

/* A group of rows, times four blocks. */
INLINE void tiles_1x4(const tile_inputs *x, int r, int rows, const char *w, size_t block, zrow *z)
{
    uint8_t copy[TILE_GROUP][64];
    LOAD_SUMS(0, 0, 0);
    LOAD_SUMS(1, 0, 1);
    LOAD_SUMS(2, 0, 2);
    LOAD_SUMS(3, 0, 3);
    EACH_INPUT(i)
    {
        const int is_even = lie_evenly(x->rows[i] + r, rows);
        EACH_TILE(k)
        {
            const char *at = WEIGHTS_AT(i, k);
            const tile_rows_t input = rows_at(x->rows[i] + r, rows, is_even, 4 * k, 4 * x->width, copy);
            _tile_loadd(4, input.first, input.stride);
            LOAD_WEIGHTS(6, 0);
            _tile_dpbusd(0, 4, 6);
            LOAD_WEIGHTS(7, 1);
            _tile_dpbusd(1, 4, 7);
            LOAD_WEIGHTS(6, 2);
            _tile_dpbusd(2, 4, 6);
            LOAD_WEIGHTS(7, 3);
            _tile_dpbusd(3, 4, 7);
        }
    }
    SAVE_SUMS(0, 0, 0);
    SAVE_SUMS(1, 0, 1);
    SAVE_SUMS(2, 0, 2);
    SAVE_SUMS(3, 0, 3);
}

/* A group of rows, times one block. */
INLINE void tiles_1x1(const tile_inputs *x, int r, int rows, const char *w, zrow *z)
{
    uint8_t copy[TILE_GROUP][64];
    LOAD_SUMS(0, 0, 0);
    EACH_INPUT(i)
    {
        const int is_even = lie_evenly(x->rows[i] + r, rows);
        EACH_TILE(k)
        {
            const tile_rows_t input = rows_at(x->rows[i] + r, rows, is_even, 4 * k, 4 * x->width, copy);
            _tile_loadd(4, input.first, input.stride);
            _tile_loadd(6, WEIGHTS_AT(i, k), STEP_BYTES);
            _tile_dpbusd(0, 4, 6);
        }
    }
    SAVE_SUMS(0, 0, 0);
}

static void tiles_over(const tile_inputs *x, int rows, const char *w, size_t block, int blocks, zrow *z)
{
    int configured = 0; /* the rows of both groups */
    for (int r = 0; r < rows;) {
        const int left = rows - r, is_pair = left > TILE_GROUP && blocks == BLOCKS;
        const int first = left < TILE_GROUP ? left : TILE_GROUP;
        const int second = !is_pair ? first : left - first < TILE_GROUP ? left - first : TILE_GROUP;
        if (configured != first + second) tiles_configure(first, second, x->width);
        configured = first + second;
        if (is_pair)
            for (int b = 0; b < blocks; b += 2)
                tiles_2x2(x, r, first, second, w + b * block, block, sums_of(z + r, b));
        else if (blocks == BLOCKS)
            tiles_1x4(x, r, first, w, block, z + r);
        else
            for (int b = 0; b < blocks; b++) tiles_1x1(x, r, first, w + b * block, sums_of(z + r, b));
        r += is_pair ? first + second : first;
    }
}

#undef LOAD_SUMS
#undef SAVE_SUMS
#undef LOAD_WEIGHTS
#undef EACH_INPUT
#undef EACH_TILE
#undef WEIGHTS_AT

/* z += the products of all inputs with some blocks. The steps that fill no tile are multiplied after the others: a tile
 * of another width forgets the sums. */
static void multiply_tiles(tile_inputs x, int rows, const char *w, size_t block, int blocks, zrow *z)
{
    const int whole = x.steps / TILE_STEPS * TILE_STEPS;
    MEMORY_IS_READ;
    x.from = 0, x.end = whole, x.width = TILE_STEPS;
    if (whole) tiles_over(&x, rows, w, block, blocks, z);
    x.from = whole, x.end = x.steps, x.width = x.steps - whole;
    if (x.width) tiles_over(&x, rows, w, block, blocks, z);
    MEMORY_IS_READ;
}

#endif
