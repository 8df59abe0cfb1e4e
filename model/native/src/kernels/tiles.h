/* Products by the tiles of AMX: 16 rows of four bytes a step, times 16 outputs, over 16 steps, in one instruction.
 *
 * Sums of int8 are exact, so these are the bits of gemm.h's other int8 kernels. The weights of a block for 16 steps,
 * 1,024 bytes, are a tile as they lie. A row's tile is 64 bytes of each of 16 rows; rows that do not lie evenly apart
 * (a row that begins with the zero state) are first copied.
 *
 * Two groups of 16 rows are multiplied with two blocks at once, so that four products need four tiles of input; the last
 * group alone with four blocks, so that its own input is read once.
 */
#ifndef LONGHAND_TILES_H
#define LONGHAND_TILES_H

#define TILE_STEPS 16 /* of a tile */
#define TILE_GROUP 16 /* rows of a tile */
#define TILE_MIN_ROWS 8 /* fewer rows are faster by vpdpbusd */

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
    __asm__ volatile("" : : "r"(&shapes) : "memory"); /* gcc believes that only the first eight bytes are read */
    _tile_loadconfig(&shapes);
}

/* After the last product of a run: the system then saves 8 KB less of this thread. */
INLINE void tiles_release(void) { _tile_release(); }

/* Rows that lie `stride` bytes apart. */
typedef struct {
    const uint8_t *first;
    size_t stride;
} even_rows;

/* The tile-wide part of `rows` rows that begins at a byte: where they lie, if they lie evenly apart, else a copy. */
INLINE even_rows rows_at(const void *const *a, int rows, int is_even, int byte, int bytes, uint8_t (*copy)[64])
{
    const uint8_t *first = a[0];
    if (is_even) return (even_rows){first + byte, rows > 1 ? (size_t)((const uint8_t *)a[1] - first) : 64};
    for (int r = 0; r < rows; r++) memcpy(copy[r], (const uint8_t *)a[r] + byte, (size_t)bytes);
    return (even_rows){copy[0], 64};
}

INLINE int lie_evenly(const void *const *a, int rows)
{
    for (int r = 2; r < rows; r++)
        if ((const char *)a[r] - (const char *)a[r - 1] != (const char *)a[1] - (const char *)a[0]) return 0;
    return rows < 2 || (const char *)a[1] > (const char *)a[0];
}

/* Two groups of rows times two blocks. */
INLINE void tiles_2x2(const void *const *a, int rows, int others, const int *is_even, int from, int end, int width,
                      const char *w, size_t block, zrow *z, uint8_t (*copy)[64])
{
    _tile_loadd(0, z[0].i, sizeof *z);
    _tile_loadd(1, z[0].i + BLOCK, sizeof *z);
    _tile_loadd(2, z[TILE_GROUP].i, sizeof *z);
    _tile_loadd(3, z[TILE_GROUP].i + BLOCK, sizeof *z);
    for (int k = from; k < end; k += width) {
        even_rows x = rows_at(a, rows, is_even[0], 4 * k, 4 * width, copy);
        _tile_loadd(6, w + (size_t)k * STEP_BYTES, STEP_BYTES);
        _tile_loadd(4, x.first, x.stride);
        x = rows_at(a + TILE_GROUP, others, is_even[1], 4 * k, 4 * width, copy + TILE_GROUP);
        _tile_dpbusd(0, 4, 6);
        _tile_loadd(7, w + block + (size_t)k * STEP_BYTES, STEP_BYTES);
        _tile_dpbusd(1, 4, 7);
        _tile_loadd(5, x.first, x.stride);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(0, z[0].i, sizeof *z);
    _tile_stored(1, z[0].i + BLOCK, sizeof *z);
    _tile_stored(2, z[TILE_GROUP].i, sizeof *z);
    _tile_stored(3, z[TILE_GROUP].i + BLOCK, sizeof *z);
}

/* A group of rows times four blocks. */
INLINE void tiles_1x4(const void *const *a, int rows, int is_even, int from, int end, int width, const char *w,
                      size_t block, zrow *z, uint8_t (*copy)[64])
{
    _tile_loadd(0, z[0].i, sizeof *z);
    _tile_loadd(1, z[0].i + BLOCK, sizeof *z);
    _tile_loadd(2, z[0].i + 2 * BLOCK, sizeof *z);
    _tile_loadd(3, z[0].i + 3 * BLOCK, sizeof *z);
    for (int k = from; k < end; k += width) {
        const even_rows x = rows_at(a, rows, is_even, 4 * k, 4 * width, copy);
        const char *at = w + (size_t)k * STEP_BYTES;
        _tile_loadd(4, x.first, x.stride);
        _tile_loadd(6, at, STEP_BYTES);
        _tile_dpbusd(0, 4, 6);
        _tile_loadd(7, at + block, STEP_BYTES);
        _tile_dpbusd(1, 4, 7);
        _tile_loadd(6, at + 2 * block, STEP_BYTES);
        _tile_dpbusd(2, 4, 6);
        _tile_loadd(7, at + 3 * block, STEP_BYTES);
        _tile_dpbusd(3, 4, 7);
    }
    _tile_stored(0, z[0].i, sizeof *z);
    _tile_stored(1, z[0].i + BLOCK, sizeof *z);
    _tile_stored(2, z[0].i + 2 * BLOCK, sizeof *z);
    _tile_stored(3, z[0].i + 3 * BLOCK, sizeof *z);
}

/* A group of rows times one block. */
INLINE void tiles_1x1(const void *const *a, int rows, int is_even, int from, int end, int width, const char *w, zrow *z,
                      uint8_t (*copy)[64])
{
    _tile_loadd(0, z[0].i, sizeof *z);
    for (int k = from; k < end; k += width) {
        const even_rows x = rows_at(a, rows, is_even, 4 * k, 4 * width, copy);
        _tile_loadd(4, x.first, x.stride);
        _tile_loadd(6, w + (size_t)k * STEP_BYTES, STEP_BYTES);
        _tile_dpbusd(0, 4, 6);
    }
    _tile_stored(0, z[0].i, sizeof *z);
}

/* The steps `from` to `end`, in tiles of `width` steps. */
static void tiles_over(const void *const *a, int rows, int from, int end, int width, const char *w, size_t block,
                       int blocks, zrow *z)
{
    uint8_t copy[2 * TILE_GROUP][64];
    int configured = 0; /* the rows of both groups */
    for (int r = 0; r < rows;) {
        const int left = rows - r, is_pair = left > TILE_GROUP && blocks == BLOCKS;
        const int first = left < TILE_GROUP ? left : TILE_GROUP;
        const int second = !is_pair ? first : left - first < TILE_GROUP ? left - first : TILE_GROUP;
        const int is_even[2] = {lie_evenly(a + r, first), is_pair && lie_evenly(a + r + first, second)};
        if (configured != first + second) tiles_configure(first, second, width);
        configured = first + second;
        if (is_pair)
            for (int b = 0; b < blocks; b += 2)
                tiles_2x2(a + r, first, second, is_even, from, end, width, w + b * block, block, sums_of(z + r, b), copy);
        else if (blocks == BLOCKS)
            tiles_1x4(a + r, first, is_even[0], from, end, width, w, block, z + r, copy);
        else
            for (int b = 0; b < blocks; b++)
                tiles_1x1(a + r, first, is_even[0], from, end, width, w + b * block, sums_of(z + r, b), copy);
        r += is_pair ? first + second : first;
    }
}

static void multiply_tiles(const void *const *a, int rows, int steps, const char *w, size_t block, int blocks, zrow *z)
{
    const int whole = steps / TILE_STEPS * TILE_STEPS;
    if (whole) tiles_over(a, rows, 0, whole, TILE_STEPS, w, block, blocks, z);
    if (steps > whole) tiles_over(a, rows, whole, steps, steps - whole, w, block, blocks, z);
}

#endif
