/* Linear layers on rows of bfloat16 pairs, as those of linear.h are on float32 rows. */
#ifndef DRCT_LINEAR_BF16_H
#define DRCT_LINEAR_BF16_H

#include "memory.h"
#include "tiles.h"

#ifdef BF16_PRODUCTS
#define TALL 12 /* rows of a tile: TALL x 2 sums, and what is multiplied, fill the registers */

typedef struct {
    const uint32_t *weight; /* in panels of COLUMNS outputs, pair of inputs by pair; the last panel may be half as wide */
    const float *bias;      /* may be NULL */
    int64_t in, out;        /* pairs of inputs, for the matrix unit whole tiles; outputs, a multiple of LANES: those beyond a layer's own are
                             * zero */
} Matrix;

typedef struct {
    const uint32_t *at;
    int64_t stride; /* in pairs */
} Rows;

typedef enum { SET, ADD, ROUND, GELU } After; /* y = p, y = y + p in float32; y = p, y = gelu(p) in bfloat16 */

INLINE void add_product(vec sum[TALL][2], int rows, int vectors, const Rows *x, int64_t row, const Matrix *matrix, int64_t column) {
    const uint32_t *a = x->at + row * x->stride, *weight = matrix->weight + column * matrix->in;
    for (int64_t c = 0; c < matrix->in; c++, weight += vectors * LANES) {
        __m512i w0 = pairs(weight), w1 = pairs(weight + (vectors - 1) * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            __m512i v = pair(a + r * x->stride + c);
            sum[r][0] = dot(sum[r][0], v, w0);
            if (vectors == 2) sum[r][1] = dot(sum[r][1], v, w1);
        }
    }
}

/* One tile: y = after(x matrix + other_x other + bias). */
INLINE void tile(int rows, int vectors, int64_t row, int64_t column, const Rows *x, const Matrix *matrix, const Rows *other_x,
                 const Matrix *other, After after, void *y, int64_t stride) {
    vec sum[TALL][2];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = matrix->bias ? load(matrix->bias + column + v * LANES) : splat(0);
    add_product(sum, rows, vectors, x, row, matrix, column);
    if (other) add_product(sum, rows, vectors, other_x, row, other, column);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) {
            int64_t at = (row + r) * stride + column + v * LANES;
            float *to = (float *)y + at;
            if (after == SET) store(to, sum[r][v]);
            if (after == ADD) store(to, load(to) + sum[r][v]);
            if (after == ROUND) narrow((uint16_t *)y + at, sum[r][v]);
            if (after == GELU) narrow((uint16_t *)y + at, gelu_short(sum[r][v]));
        }
}

#define TILE(name, rows, vectors)                                                                                                        \
    static __attribute__((noinline)) void name(int64_t row, int64_t column, const Rows *x, const Matrix *matrix, const Rows *other_x,   \
                                               const Matrix *other, After after, void *y, int64_t stride) {                             \
        tile(rows, vectors, row, column, x, matrix, other_x, other, after, y, stride);                                                   \
    }
TILE(tile_full, TALL, 2)
TILE(tile_full_half, TALL, 1)
TILE(tile_four, 4, 2)
TILE(tile_four_half, 4, 1)
#undef TILE

#ifdef TILES
/* Sums of some times 16 rows and of 16 columns, which lie in one panel, grow. */
INLINE void add_product_tiles(int blocks, const Rows *x, int64_t row, const Matrix *matrix, int64_t column) {
    int64_t panel = column / COLUMNS * COLUMNS, width = matrix->out - panel < COLUMNS ? LANES : COLUMNS;
    const uint32_t *a = x->at + row * x->stride, *b = matrix->weight + panel * matrix->in + column % COLUMNS;
#define STEP(u) TILE_LOAD(LEFT, a + u * SIDE * x->stride, x->stride); TILE_PRODUCT(u, LEFT, RIGHT)
    for (int64_t c = 0; c < matrix->in; c += SIDE, a += SIDE, b += SIDE * width) {
        TILE_LOAD(RIGHT, b, width);
        STEP(0);
        if (blocks > 1) { STEP(1); }
        if (blocks > 2) { STEP(2); STEP(3); }
    }
#undef STEP
}

INLINE void tile_rows(int blocks, int64_t row, int64_t column, const Rows *x, const Matrix *matrix, const Rows *other_x, const Matrix *other,
                      After after, void *y, int64_t stride) {
    static const float none[SIDE];
    float sums[4 * SIDE * SIDE] __attribute__((aligned(64)));
    const float *bias = matrix->bias ? matrix->bias + column : none;
    float *target = (float *)y + row * stride + column, *to = after == SET ? target : sums;
    int64_t below = after == SET ? stride : SIDE;
#define EACH(do) \
    do(0); \
    if (blocks > 1) { do(1); } \
    if (blocks > 2) { do(2); do(3); }
#define BEGIN(u) TILE_LOAD(u, bias, 0) /* the same for all rows */
#define END(u) TILE_STORE(u, to + u * SIDE * below, below)
    EACH(BEGIN)
    add_product_tiles(blocks, x, row, matrix, column);
    if (other) add_product_tiles(blocks, other_x, row, other, column);
    EACH(END)
#undef EACH
#undef BEGIN
#undef END
    if (after == SET) return;
    for (int r = 0; r < blocks * SIDE; r++) {
        vec sum = load(sums + r * SIDE);
        uint16_t *rounded = (uint16_t *)y + (row + r) * stride + column;
        if (after == ADD) store(target + r * stride, load(target + r * stride) + sum);
        if (after == ROUND) narrow(rounded, sum);
        if (after == GELU) narrow(rounded, gelu_short(sum));
    }
}

/* The same as linear() below; returns how many rows it did, a multiple of 16. */
INLINE int64_t linear_tiles(int64_t rows, const Rows *x, const Matrix *matrix, const Rows *other_x, const Matrix *other, After after, void *y,
                            int64_t stride) {
    for (int64_t column = 0; column < matrix->out; column += SIDE) {
        int64_t row = 0;
        for (; row + 4 * SIDE <= rows; row += 4 * SIDE) tile_rows(4, row, column, x, matrix, other_x, other, after, y, stride);
        for (; row + 2 * SIDE <= rows; row += 2 * SIDE) tile_rows(2, row, column, x, matrix, other_x, other, after, y, stride);
        for (; row + SIDE <= rows; row += SIDE) tile_rows(1, row, column, x, matrix, other_x, other, after, y, stride);
    }
    return rows / SIDE * SIDE;
}
#define LINEAR(name, after) \
    static __attribute__((noinline)) int64_t name(int64_t rows, const Rows *x, const Matrix *matrix, const Rows *other_x, const Matrix *other, \
                                                  void *y, int64_t stride) { \
        return linear_tiles(rows, x, matrix, other_x, other, after, y, stride); \
    }
LINEAR(linear_set, SET)
LINEAR(linear_add, ADD)
LINEAR(linear_round, ROUND)
LINEAR(linear_gelu, GELU)
#undef LINEAR
#endif

/* y = after(x matrix + other_x other + bias) for a multiple of four rows; `other` may be NULL. Rows of y lie `stride` numbers apart. */
static void linear(int64_t rows, Rows x, const Matrix *matrix, Rows other_x, const Matrix *other, After after, void *y, int64_t stride) {
    int64_t first = 0;
#ifdef TILES
    if (use_tiles)
        first = (after == SET   ? linear_set
                 : after == ADD ? linear_add
                 : after == ROUND ? linear_round
                                  : linear_gelu)(rows, &x, matrix, &other_x, other, y, stride);
#endif
    for (int64_t column = 0; column < matrix->out; column += COLUMNS) {
        int half = matrix->out - column < COLUMNS;
        int64_t row = first;
        for (; row + TALL <= rows; row += TALL)
            (half ? tile_full_half : tile_full)(row, column, &x, matrix, &other_x, other, after, y, stride);
        for (; row + 4 <= rows; row += 4)
            (half ? tile_four_half : tile_four)(row, column, &x, matrix, &other_x, other, after, y, stride);
    }
}
#endif

#endif
