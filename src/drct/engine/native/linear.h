/* Linear layers on float32 rows whose weights are laid out in panels: the columns of one tile, input by input, one panel after another. */
#ifndef DRCT_LINEAR_H
#define DRCT_LINEAR_H

#include "memory.h"

#if REGISTERS == 32
#define TALL 12 /* rows of a tile: TALL x 2 sums, and what is multiplied, fill the registers */
#else
#define TALL 6
#endif

typedef struct {
    const float *weight, *bias; /* bias may be NULL */
    int64_t in, out;            /* out is a multiple of LANES: columns beyond a layer's own are zero */
} Matrix;

typedef struct {
    const float *at;
    int64_t stride;
} Rows;

typedef enum { SET, ADD, GELU } After; /* what a product does to y: y = p, y = y + p, y = gelu(p) */

/* Panels of the matrix whose number for output o and input i lies at weight[o * out_step + i * in_step]; outputs beyond `outputs`, up to
 * whole vectors, are zero. */
static void pack(const float *weight, int64_t outputs, int64_t inputs, int64_t out_step, int64_t in_step, float *packed) {
    for (int64_t column = 0; column < outputs; column += COLUMNS) {
        int64_t left = outputs - column, width = left > LANES ? COLUMNS : LANES, own = left < width ? left : width;
        const float *from = weight + column * out_step;
        for (int64_t i = 0; i < inputs; i++, packed += width) {
            for (int64_t c = 0; c < own; c++) packed[c] = from[c * out_step + i * in_step];
            for (int64_t c = own; c < width; c++) packed[c] = 0;
        }
    }
}

static inline __attribute__((always_inline)) void add_product(vec sum[TALL][2], int rows, int vectors, const Rows *x, int64_t row,
                                                              int64_t in, const float *weight) {
    const float *a = x->at + row * x->stride;
    for (int64_t c = 0; c < in; c++, weight += vectors * LANES) {
        vec w0 = load(weight), w1 = load(weight + (vectors - 1) * LANES);
        KEEP(w0);
        if (vectors == 2) {
            KEEP(w1);
        }
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            vec v = splat(a[r * x->stride + c]);
            sum[r][0] += v * w0;
            if (vectors == 2) sum[r][1] += v * w1;
        }
    }
}

/* One tile: y = after(x matrix + other_x other + bias). */
static inline __attribute__((always_inline)) void tile(int rows, int vectors, int64_t row, int64_t column, const Rows *x,
                                                       const Matrix *matrix, const Rows *other_x, const Matrix *other, After after,
                                                       float *y, int64_t stride) {
    vec sum[TALL][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) sum[r][v] = matrix->bias ? load(matrix->bias + column + v * LANES) : splat(0);
    add_product(sum, rows, vectors, x, row, matrix->in, matrix->weight + column * matrix->in);
    if (other) add_product(sum, rows, vectors, other_x, row, other->in, other->weight + column * other->in);
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            float *to = y + r * stride + v * LANES;
            vec p = sum[r][v];
            if (after == ADD) p += load(to);
            if (after == GELU) p = gelu(p);
            store(to, p);
        }
}

#define TILE(name, rows, vectors)                                                                                                        \
    static __attribute__((noinline)) void name(int64_t row, int64_t column, const Rows *x, const Matrix *matrix, const Rows *other_x,   \
                                               const Matrix *other, After after, float *y, int64_t stride) {                            \
        tile(rows, vectors, row, column, x, matrix, other_x, other, after, y, stride);                                                   \
    }
TILE(tile_full, TALL, 2)
TILE(tile_full_half, TALL, 1)
TILE(tile_four, 4, 2)
TILE(tile_four_half, 4, 1)
TILE(tile_two, 2, 2)
TILE(tile_two_half, 2, 1)
TILE(tile_one, 1, 2)
TILE(tile_one_half, 1, 1)
#undef TILE

/* y = after(x matrix + other_x other + bias); `other` may be NULL. Rows of y lie `stride` numbers apart;
 * panel p of its columns begins `panel_step` numbers after the one before, and with `tight` a last panel of half the width has rows of
 * half the stride. */
static void linear(int64_t rows, Rows x, const Matrix *matrix, Rows other_x, const Matrix *other, After after, float *y, int64_t stride,
                   int64_t panel_step, int tight) {
    for (int64_t column = 0; column < matrix->out; column += COLUMNS, y += panel_step) {
        int half = matrix->out - column < COLUMNS;
        int64_t row = 0, step = half && tight ? stride / 2 : stride;
        for (; row + TALL <= rows; row += TALL)
            (half ? tile_full_half : tile_full)(row, column, &x, matrix, &other_x, other, after, y + row * step, step);
        for (; row + 4 <= rows; row += 4)
            (half ? tile_four_half : tile_four)(row, column, &x, matrix, &other_x, other, after, y + row * step, step);
        for (; row + 2 <= rows; row += 2)
            (half ? tile_two_half : tile_two)(row, column, &x, matrix, &other_x, other, after, y + row * step, step);
        if (row < rows) (half ? tile_one_half : tile_one)(row, column, &x, matrix, &other_x, other, after, y + row * step, step);
    }
}

#endif
