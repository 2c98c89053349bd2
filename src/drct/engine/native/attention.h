/* One head of one window: room to work in, scores, softmax and products, shared by the kernels of this folder that attend. */
#ifndef DRCT_ATTENTION_H
#define DRCT_ATTENTION_H

#include "memory.h"

#define ROWS (REGISTERS / 4) /* rows of a tile: ROWS x 2 accumulators fill half of the registers */
#define PANEL COLUMNS        /* columns of a tile */
#define BLOCK 16              /* query rows that share what is in the first cache; a multiple of ROWS */

typedef struct {
    int64_t batch, height, width, heads, head_dim, window, shift;
    float scale;
    int32_t bf16; /* type of qkv, out and their gradients: 1 bfloat16, 0 float32 */
    int32_t threads;
    int32_t short_bias; /* how the bias lies, see bias_at() */
} Shape;

typedef struct {
    int n, d, dp; /* positions of a window, channels of a head, channels padded to whole vectors */
    int64_t *token, *ahead; /* pixels of this window, and of the one after it */
    float *q, *k, *v, *kt, *vt, *kp, *vp, *out, *dout, *dq, *dk, *dv, *p, *dp_rows;
    float *masks; /* [kind 0..3][class of the query 0..3][n] */
    /* for bfloat16 products, two numbers in each 32 bits: along channels (c) or along rows (r) */
    uint32_t *q_c, *k_c, *v_c, *dout_c, *kt_c, *vt_c, *q_r, *k_r, *v_r, *dout_r, *p_c, *p_r, *g_c, *g_r;
} Work;

typedef struct {
    float highest, lowest_own; /* of a head's bias: of all, and of a query with itself as the key */
} Range;

/* A head's bias is [query][key] or, where it depends on differences of rows and of columns alone, [column of the query][row of the key -
 * row of the query + window - 1][column of the key]: along the last two lie, from some place on, the biases of one query against all keys.
 * For a window of 16 these are 32 KB instead of 256, so that those of all heads stay in the second cache. Its gradient lies likewise. */
static inline int64_t bias_size(const Shape *s) {
    int64_t n = s->window * s->window;
    return s->short_bias ? (2 * s->window - 1) * n : n * n;
}
/* From one query to the next in its row. */
static inline int64_t bias_step(const Shape *s) {
    return s->short_bias ? (2 * s->window - 1) * s->window : s->window * s->window;
}
/* Where a query's bias against the first key lies. */
static inline int64_t bias_at(const Shape *s, int i) {
    int64_t y = i / s->window, x = i % s->window;
    return s->short_bias ? x * bias_step(s) + (s->window - 1 - y) * s->window : i * bias_step(s);
}

/* Class of a position: bit 0 set when its column, bit 1 when its row came from the other side of the map. */
static inline int wrapped_class(int i, int window, int shift) {
    return ((i % window) >= window - shift ? 1 : 0) | ((i / window) >= window - shift ? 2 : 0);
}

/* What is added to the scores of a query, [kind of window][class of the query][n]. */
static inline void fill_masks(const Shape *s, float *masks) {
    int n = (int)(s->window * s->window);
    for (int kind = 0; kind < 4; kind++)
        for (int c = 0; c < 4; c++)
            for (int j = 0; j < n; j++) {
                int other = (wrapped_class(j, (int)s->window, (int)s->shift) ^ c) & kind;
                masks[(kind * 4 + c) * n + j] = other ? -100.0f * LOG2E : 0.0f;
            }
}

/* Bit 0: the window holds columns from two sides of the map; bit 1: rows. */
static inline int kind_of_window(const Shape *s, int64_t index) {
    int64_t columns = s->width / s->window, rows = s->height / s->window;
    return s->shift ? (index % columns == columns - 1) | (index / columns % rows == rows - 1) << 1 : 0;
}

/* Transposed in panels of PANEL rows, one after the other: out[panel][c][row of the panel], so that a product reads on and on. */
static inline void transpose(const float *rows, int n, int dp, float *out) {
    for (int i0 = 0; i0 < n; i0 += PANEL)
        for (int c0 = 0; c0 < dp; c0 += LANES)
            for (int i = i0; i < i0 + PANEL; i++)
                for (int c = c0; c < c0 + LANES; c++) out[(int64_t)i0 * dp + c * PANEL + i - i0] = rows[(int64_t)i * dp + c];
}

/* A tile of ROWS rows and two vectors of columns, in registers: acc[r] += a[r][t] b[t] over t < depth. Rows of a lie `stride` numbers
 * apart, its columns `step`, rows of b `width`. */
static inline __attribute__((always_inline)) void multiply(vec acc[ROWS][2], int depth, const float *a, int64_t stride, int64_t step,
                                                           const float *b, int64_t width) {
    for (int t = 0; t < depth; t++, a += step, b += width) {
        vec b0 = load(b), b1 = load(b + LANES);
        KEEP(b0);
        KEEP(b1);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            vec x = splat(a[r * stride]);
            acc[r][0] += x * b0;
            acc[r][1] += x * b1;
        }
    }
}
/* The same with one vector of columns. */
static inline __attribute__((always_inline)) void multiply_half(vec acc[ROWS], int depth, const float *a, int64_t stride, int64_t step,
                                                                const float *b, int64_t width) {
    for (int t = 0; t < depth; t++, a += step, b += width) {
        vec b0 = load(b);
        KEEP(b0);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) acc[r] += splat(a[r * stride]) * b0;
    }
}

/* out[r][:] = sum_j a[r][j] b[j][:] for BLOCK rows; b in panels. */
static inline void rows_times_matrix(const float *a, int n, const float *b, int dp, float *out) {
    int c = 0;
    for (; c + PANEL <= dp; c += PANEL)
        for (int i = 0; i < BLOCK; i += ROWS) {
            float *to = out + i * dp + c;
            vec acc[ROWS][2];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) acc[r][0] = acc[r][1] = splat(0);
            multiply(acc, n, a + i * n, n, 1, b + (int64_t)c * n, PANEL);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) store(to + r * dp, acc[r][0]), store(to + r * dp + LANES, acc[r][1]);
        }
    if (c < dp)
        for (int i = 0; i < BLOCK; i += ROWS) {
            vec acc[ROWS];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) acc[r] = splat(0);
            multiply_half(acc, n, a + i * n, n, 1, b + (int64_t)c * n, LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) store(out + (i + r) * dp + c, acc[r]);
        }
}

/* Probabilities of BLOCK query rows from row i on, times their row sum; the reciprocal sums go to inverse[].
 *
 * Where no score is far from zero (`near`), its power is taken as it stands while it lies in a register; else the row's highest score
 * is found and subtracted first. */
static inline void softmax_rows(const Work *w, const Shape *s, int i, int kind, int near, const float *bias, float *inverse) {
    int64_t n = w->n, dp = w->dp;
    int64_t step = bias_step(s);
    const float *masks[BLOCK], *biases[BLOCK / ROWS];
    vec total[BLOCK], top[BLOCK];
    for (int r = 0; r < BLOCK; r += ROWS) biases[r / ROWS] = bias + bias_at(s, i + r);
    for (int r = 0; r < BLOCK; r++) {
        masks[r] = w->masks + (kind * 4 + (kind ? wrapped_class(i + r, (int)s->window, (int)s->shift) : 0)) * n;
        total[r] = splat(0), top[r] = splat(-INFINITY);
    }
    for (int j = 0; j < n; j += PANEL)
        for (int r0 = 0; r0 < BLOCK; r0 += ROWS) { /* a panel of keys stays in the first cache for all of them */
            const float *b = biases[r0 / ROWS] + j;
            float *to = w->p + r0 * n + j;
            vec acc[ROWS][2];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                acc[r][0] = load(b + r * step), acc[r][1] = load(b + r * step + LANES);
                if (kind) acc[r][0] += load(masks[r0 + r] + j), acc[r][1] += load(masks[r0 + r] + j + LANES);
            }
            multiply(acc, w->d, w->q + (i + r0) * dp, dp, 1, w->kt + j * dp, PANEL);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                if (near) {
                    acc[r][0] = exp2_below_127(acc[r][0]), acc[r][1] = exp2_below_127(acc[r][1]);
                    total[r0 + r] += acc[r][0] + acc[r][1];
                } else
                    top[r0 + r] = vmax(top[r0 + r], vmax(acc[r][0], acc[r][1]));
                store(to + r * n, acc[r][0]), store(to + r * n + LANES, acc[r][1]);
            }
        }
    for (int r = 0; r < BLOCK; r++) {
        if (!near) {
            vec highest = splat(reduce_max(top[r]));
            for (int j = 0; j < n; j += LANES) {
                vec e = exp2_below_127(load(w->p + r * n + j) - highest);
                total[r] += e;
                store(w->p + r * n + j, e);
            }
        }
        inverse[r] = 1.0f / reduce_add(total[r]);
    }
}

/* Longest of n rows, as a Euclidean norm. */
static inline float longest(const float *rows, int n, int dp) {
    float most = 0;
    for (int i = 0; i < n; i++) {
        vec sum = splat(0);
        for (int c = 0; c < dp; c += LANES) sum += load(rows + (int64_t)i * dp + c) * load(rows + (int64_t)i * dp + c);
        float square = reduce_add(sum);
        if (square > most) most = square; /* NaN stands back: its scores are NaN whichever way they are taken */
    }
    return sqrtf(most);
}

/* Whether no power of two of a score leaves float32: none is above 60, and every row has one above -60, that of the query itself,
 * which no mask covers. `most` bounds the products of queries and keys. */
static inline int near_zero(float most, const Range *bias) { return most + bias->highest <= 60 && most - bias->lowest_own <= 60; }

static inline int scores_near_zero(const Work *w, const Range *bias) {
    return near_zero(longest(w->q, w->n, w->dp) * longest(w->k, w->n, w->dp), bias);
}

/* Which pixel of the map each position of a window is. */
static void find_tokens(const Shape *s, int64_t index, int64_t *token) {
    int64_t columns = s->width / s->window, rows = s->height / s->window;
    int64_t wx = index % columns, wy = index / columns % rows, b = index / (columns * rows);
    for (int64_t y = 0; y < s->window; y++) {
        int64_t row = wy * s->window + y + s->shift, col = wx * s->window + s->shift;
        row -= row >= s->height ? s->height : 0;
        for (int64_t x = 0; x < s->window; x++, col++)
            *token++ = (b * s->height + row) * s->width + col - (col >= s->width ? s->width : 0);
    }
}

static Range range_of(const Shape *s, const float *bias) {
    int n = (int)(s->window * s->window);
    vec top = splat(-INFINITY);
    for (int64_t i = 0; i < bias_size(s); i += LANES) top = vmax(top, load(bias + i));
    Range range = {reduce_max(top), INFINITY};
    for (int i = 0; i < n; i++) range.lowest_own = fminf(range.lowest_own, bias[bias_at(s, i) + i]);
    return range;
}

/* out[j][:] += sum_i a[i][j] b[i][:] over BLOCK rows i, for all n columns j. */
static inline void add_transposed_rows_times(const float *a, int n, const float *b, int dp, float *out) {
    int c = 0;
    for (; c + PANEL <= dp; c += PANEL)
        for (int j = 0; j < n; j += ROWS) {
            float *to = out + (int64_t)j * dp + c;
            vec acc[ROWS][2];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) acc[r][0] = load(to + r * dp), acc[r][1] = load(to + r * dp + LANES);
            multiply(acc, BLOCK, a + j, 1, n, b + c, dp);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) store(to + r * dp, acc[r][0]), store(to + r * dp + LANES, acc[r][1]);
        }
    if (c < dp)
        for (int j = 0; j < n; j += ROWS) {
            float *to = out + (int64_t)j * dp + c;
            vec acc[ROWS];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) acc[r] = load(to + r * dp);
            multiply_half(acc, BLOCK, a + j, 1, n, b + c, dp);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) store(to + r * dp, acc[r]);
        }
}

/* Gradients of the scores of BLOCK query rows from row i on, into dp_rows and added to dbias: p (dout v^T - mean), where dout has been
 * divided by the row's sum and `mean` is what the row's gradients sum to when weighed by p. */
static inline void gradient_rows(const Work *w, const Shape *s, int i, const float *dout, const float *mean, float *dbias) {
    int n = w->n, dp = w->dp;
    int64_t step = bias_step(s);
    float *biases[BLOCK / ROWS];
    for (int r = 0; r < BLOCK; r += ROWS) biases[r / ROWS] = dbias + bias_at(s, i + r);
    for (int j = 0; j < n; j += PANEL)
        for (int r0 = 0; r0 < BLOCK; r0 += ROWS) {
            const float *p = w->p + r0 * n + j;
            float *to = w->dp_rows + r0 * n + j, *db = biases[r0 / ROWS] + j;
            vec acc[ROWS][2];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) acc[r][0] = acc[r][1] = splat(-mean[r0 + r]);
            multiply(acc, w->d, dout + r0 * dp, dp, 1, w->vt + (int64_t)j * dp, PANEL);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
                for (int half = 0; half < 2; half++) {
                    int64_t at = r * n + half * LANES, bias = r * step + half * LANES;
                    vec x = acc[r][half] * load(p + at);
                    store(to + at, x);
                    store(db + bias, load(db + bias) + x);
                }
        }
}

/* Gradients that come from BLOCK query rows, from row i on: those of the queries, and what they add to those of keys, values and bias.
 * `out` are the results of these rows, `dout` is divided by the rows' sums on the way. */
static inline void backward_rows(Work *w, const Shape *s, int i, int kind, int near, const float *bias, const float *out,
                                 int64_t out_stride, float *dbias) {
    int n = w->n, dp = w->dp;
    float inverse[BLOCK], mean[BLOCK], *g = w->dout + (int64_t)i * dp;
    softmax_rows(w, s, i, kind, near, bias, inverse);
    for (int r = 0; r < BLOCK; r++) {
        vec sum = splat(0);
        for (int c = 0; c < dp; c += LANES) {
            vec x = load(g + r * dp + c) * splat(inverse[r]);
            store(g + r * dp + c, x);
            sum += x * load(out + r * out_stride + c);
        }
        mean[r] = reduce_add(sum);
    }
    gradient_rows(w, s, i, g, mean, dbias);
    rows_times_matrix(w->dp_rows, n, w->kp, dp, w->dq + (int64_t)i * dp);
    add_transposed_rows_times(w->p, n, g, dp, w->dv);
    add_transposed_rows_times(w->dp_rows, n, w->q + (int64_t)i * dp, dp, w->dk);
}

/* Makes gradients of the scaled queries, which carry scale * log2(e), those of the unscaled ones; likewise of the keys. */
static inline void unscale_gradients(Work *w, const Shape *s) {
    for (int64_t i = 0; i < (int64_t)w->n * w->dp; i += LANES) {
        store(w->dq + i, load(w->dq + i) * splat(s->scale));
        store(w->dk + i, load(w->dk + i) * splat(1.0f / LOG2E));
    }
}

#endif
