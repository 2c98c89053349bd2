/* Linear layers on rows of bfloat16 pairs, as those of linear.h are on float32 rows. */
#ifndef DRCT_LINEAR_BF16_H
#define DRCT_LINEAR_BF16_H

#include "bf16.h"
#include "memory.h"

#ifdef BF16_PRODUCTS
#define TALL 12 /* rows of a tile: TALL x 2 sums, and what is multiplied, fill the registers */

typedef struct {
    const uint32_t *weight; /* in panels of COLUMNS outputs, pair of inputs by pair; the last panel may be half as wide */
    const float *bias;      /* may be NULL */
    int64_t in, out;        /* pairs of inputs; outputs, a multiple of LANES: those beyond a layer's own are zero */
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

/* y = after(x matrix + other_x other + bias) for a multiple of four rows; `other` may be NULL. Rows of y lie `stride` numbers apart. */
static void linear(int64_t rows, Rows x, const Matrix *matrix, Rows other_x, const Matrix *other, After after, void *y, int64_t stride) {
    for (int64_t column = 0; column < matrix->out; column += COLUMNS) {
        int half = matrix->out - column < COLUMNS;
        int64_t row = 0;
        for (; row + TALL <= rows; row += TALL)
            (half ? tile_full_half : tile_full)(row, column, &x, matrix, &other_x, other, after, y, stride);
        for (; row + 4 <= rows; row += 4)
            (half ? tile_four_half : tile_four)(row, column, &x, matrix, &other_x, other, after, y, stride);
    }
}
#endif

#endif
