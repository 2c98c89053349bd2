/* Gradients of the weights of linear layers: sums of outer products over rows. */
#ifndef DRCT_OUTER_H
#define DRCT_OUTER_H

#include "linear.h"

/* A tile of to += a^T b over n rows, b being one panel. */
static inline __attribute__((always_inline)) void outer_tile(int rows, int vectors, int64_t n, const float *a, int64_t a_stride,
                                                             const float *b, float *to, int64_t to_stride) {
    vec sum[TALL][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) sum[r][v] = load(to + r * to_stride + v * LANES);
    for (int64_t i = 0; i < n; i++, a += a_stride, b += vectors * LANES) {
        vec b0 = load(b), b1 = load(b + (vectors - 1) * LANES);
        KEEP(b0);
        if (vectors == 2) {
            KEEP(b1);
        }
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            vec x = splat(a[r]);
            sum[r][0] += x * b0;
            if (vectors == 2) sum[r][1] += x * b1;
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) store(to + r * to_stride + v * LANES, sum[r][v]);
}

#define OUTER(name, rows, vectors)                                                                                                       \
    static __attribute__((noinline)) void name(int64_t n, const float *a, int64_t a_stride, const float *b, float *to,                   \
                                               int64_t to_stride) {                                                                      \
        outer_tile(rows, vectors, n, a, a_stride, b, to, to_stride);                                                                     \
    }
OUTER(outer_full, TALL, 2)
OUTER(outer_full_half, TALL, 1)
OUTER(outer_four, 4, 2)
OUTER(outer_four_half, 4, 1)
OUTER(outer_two, 2, 2)
OUTER(outer_two_half, 2, 1)
OUTER(outer_one, 1, 2)
OUTER(outer_one_half, 1, 1)
#undef OUTER

/* to (a's columns x b's columns) += a^T b over n rows; b in panels, see panels(). */
static void add_outer(int64_t n, Rows a, int64_t a_columns, const float *b, int64_t b_columns, float *to, int64_t to_stride) {
    for (int64_t c = 0; c < b_columns; c += COLUMNS) {
        int half = b_columns - c < COLUMNS;
        int64_t r = 0;
        for (; r + TALL <= a_columns; r += TALL)
            (half ? outer_full_half : outer_full)(n, a.at + r, a.stride, b + c * n, to + r * to_stride + c, to_stride);
        for (; r + 4 <= a_columns; r += 4)
            (half ? outer_four_half : outer_four)(n, a.at + r, a.stride, b + c * n, to + r * to_stride + c, to_stride);
        for (; r + 2 <= a_columns; r += 2)
            (half ? outer_two_half : outer_two)(n, a.at + r, a.stride, b + c * n, to + r * to_stride + c, to_stride);
        if (r < a_columns) (half ? outer_one_half : outer_one)(n, a.at + r, a.stride, b + c * n, to + r * to_stride + c, to_stride);
    }
}

/* to += the sum of n rows; whole vectors of columns. */
static void add_column_sums(int64_t n, const float *rows, int64_t stride, int64_t columns, float *to) {
    for (int64_t c = 0; c < columns; c += LANES) {
        vec sum = load(to + c);
        for (int64_t i = 0; i < n; i++) sum += load(rows + i * stride + c);
        store(to + c, sum);
    }
}

#endif
