/* Window attention on channels-last maps, forward and backward, for any CPU that the compiler has vectors for.
 *
 * One task is one head of one window. Cutting windows, the cyclic shift, the relative position bias, the mask of shifted
 * windows and the softmax all happen while the window lies in the first-level cache; nothing of size N x N per window ever
 * reaches memory. Arithmetic is float32, whatever the type of the map.
 *
 *   out = softmax(scale * q k^T + bias + mask) v
 *
 * qkv is (B, H, W, 3 * heads * d), its last axis ordered (q|k|v, head, d); out is (B, H, W, heads * d);
 * bias is (heads, N, N) with N = window^2. Backward recomputes the scores, so forward saves nothing.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define LANES 16
#define ROWS 8 /* query rows worked on at once: 8 x 2 accumulators fill half of the AVX-512 registers */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vec splat(float x) { return (vec){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec v) { *(vec *)p = v; }
#ifdef __AVX512F__ /* one instruction each where the compiler would not find it */
static inline vec vmax(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
static inline float reduce_add(vec v) { return _mm512_reduce_add_ps((__m512)v); }
static inline float reduce_max(vec v) { return _mm512_reduce_max_ps((__m512)v); }
#else
static inline vec vmax(vec a, vec b) {
    ivec m = a > b;
    return (vec)(((ivec)a & m) | ((ivec)b & ~m));
}
static inline float reduce_add(vec v) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += v[i];
    return s;
}
static inline float reduce_max(vec v) {
    float s = v[0];
    for (int i = 1; i < LANES; i++) s = v[i] > s ? v[i] : s;
    return s;
}
#endif

/* 2^x for x <= 0: integer part into the exponent, the fraction by a polynomial (relative error below 3e-7). */
static inline vec exp2_nonpositive(vec x) {
    x = vmax(x, splat(-126.0f));
    /* round to nearest by adding 1.5 * 2^23: the integer appears in the low mantissa bits */
    vec shifted = x + splat(12582912.0f);
    vec f = x - (shifted - splat(12582912.0f));
    ivec n = ((ivec)shifted) << 23;
    vec p = splat(1.5403530e-4f);
    p = p * f + splat(1.3333558e-3f);
    p = p * f + splat(9.6181291e-3f);
    p = p * f + splat(5.5504109e-2f);
    p = p * f + splat(2.4022651e-1f);
    p = p * f + splat(6.9314718e-1f);
    p = p * f + splat(1.0f);
    return (vec)((ivec)p + n);
}

static inline float from_bf16(uint16_t x) {
    uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline uint16_t to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

typedef struct {
    int64_t batch, height, width, heads, head_dim, window, shift;
    float scale;
    int32_t bf16; /* type of qkv, out and their gradients: 1 bfloat16, 0 float32 */
    int32_t threads;
} Shape;

typedef struct {
    int n, d, dp; /* positions of a window, channels of a head, channels padded to whole vectors */
    int64_t *token;
    float *q, *k, *v, *kt, *vt, *dout, *dq, *dk, *dv, *p, *dp_rows;
    float *masks; /* [kind 0..3][class of the query 0..3][n] */
} Work;

static float *take(float **cursor, int64_t count) {
    float *p = *cursor;
    *cursor += (count + LANES - 1) / LANES * LANES;
    return p;
}

static const float LOG2E = 1.44269504088896340736f;

/* Class of a position: bit 0 set when its column, bit 1 when its row came from the other side of the map. */
static inline int wrapped_class(int i, int window, int shift) {
    return ((i % window) >= window - shift ? 1 : 0) | ((i / window) >= window - shift ? 2 : 0);
}

static int work_open(Work *w, const Shape *s, int backward) {
    w->n = (int)(s->window * s->window);
    w->d = (int)s->head_dim;
    w->dp = (w->d + LANES - 1) / LANES * LANES;
    int64_t nd = (int64_t)w->n * w->dp, count = 3 * nd + nd + 16 * (int64_t)w->n + ROWS * (int64_t)w->n + 64 * LANES;
    if (backward) count += 5 * nd + ROWS * (int64_t)w->n;
    char *block = NULL;
    if (posix_memalign((void **)&block, 64, sizeof(float) * count + sizeof(int64_t) * w->n)) return 0;
    memset(block, 0, sizeof(float) * count);
    float *cursor = (float *)block;
    w->q = take(&cursor, nd);
    w->k = take(&cursor, nd);
    w->v = take(&cursor, nd);
    w->kt = take(&cursor, nd);
    w->masks = take(&cursor, 16 * w->n);
    w->p = take(&cursor, ROWS * w->n);
    if (backward) {
        w->vt = take(&cursor, nd);
        w->dout = take(&cursor, nd);
        w->dq = take(&cursor, nd);
        w->dk = take(&cursor, nd);
        w->dv = take(&cursor, nd);
        w->dp_rows = take(&cursor, ROWS * w->n);
    }
    w->token = (int64_t *)cursor;
    for (int kind = 0; kind < 4; kind++)
        for (int c = 0; c < 4; c++)
            for (int j = 0; j < w->n; j++) {
                int other = (wrapped_class(j, (int)s->window, (int)s->shift) ^ c) & kind;
                w->masks[(kind * 4 + c) * w->n + j] = other ? -100.0f * LOG2E : 0.0f;
            }
    return 1;
}

static void work_close(Work *w) { free(w->q); }

/* Which pixel of the map each position of a window is; returns the window's kind of mask. */
static int find_tokens(Work *w, const Shape *s, int64_t index) {
    int64_t columns = s->width / s->window, rows = s->height / s->window;
    int64_t wx = index % columns, wy = index / columns % rows, b = index / (columns * rows);
    for (int64_t y = 0; y < s->window; y++)
        for (int64_t x = 0; x < s->window; x++) {
            int64_t row = (wy * s->window + y + s->shift) % s->height;
            int64_t col = (wx * s->window + x + s->shift) % s->width;
            w->token[y * s->window + x] = (b * s->height + row) * s->width + col;
        }
    return s->shift ? (wx == columns - 1) | (wy == rows - 1) << 1 : 0;
}

static inline void gather(const Work *w, const Shape *s, const void *map, int64_t stride, int64_t offset, float scale, float *rows) {
    for (int i = 0; i < w->n; i++) {
        int64_t at = w->token[i] * stride + offset;
        float *to = rows + (int64_t)i * w->dp;
        if (s->bf16) {
            const uint16_t *from = (const uint16_t *)map + at;
            for (int c = 0; c < w->d; c++) to[c] = from_bf16(from[c]) * scale;
        } else {
            const float *from = (const float *)map + at;
            for (int c = 0; c < w->d; c++) to[c] = from[c] * scale;
        }
    }
}

static inline void scatter(const Work *w, const Shape *s, void *map, int64_t stride, int64_t offset, const float *rows) {
    for (int i = 0; i < w->n; i++) {
        int64_t at = w->token[i] * stride + offset;
        const float *from = rows + (int64_t)i * w->dp;
        if (s->bf16) {
            uint16_t *to = (uint16_t *)map + at;
            for (int c = 0; c < w->d; c++) to[c] = to_bf16(from[c]);
        } else {
            float *to = (float *)map + at;
            for (int c = 0; c < w->d; c++) to[c] = from[c];
        }
    }
}

static inline void transpose(const float *rows, int n, int dp, float *out) {
    for (int i0 = 0; i0 < n; i0 += LANES)
        for (int c0 = 0; c0 < dp; c0 += LANES)
            for (int i = i0; i < i0 + LANES; i++)
                for (int c = c0; c < c0 + LANES; c++) out[(int64_t)c * n + i] = rows[(int64_t)i * dp + c];
}

/* out[r][j] = init[r][j] + sum_c a[r][c] bt[c][j] for ROWS rows r and all n columns j. */
static inline void rows_times_transposed(const float *a, int dp, int depth, const float *bt, int n, const float *const *init, float *out) {
    for (int j = 0; j < n; j += 2 * LANES) {
        vec acc[ROWS][2];
        for (int r = 0; r < ROWS; r++) {
            acc[r][0] = init ? load(init[r] + j) : splat(0);
            acc[r][1] = init ? load(init[r] + j + LANES) : splat(0);
        }
        for (int c = 0; c < depth; c++) {
            vec b0 = load(bt + (int64_t)c * n + j), b1 = load(bt + (int64_t)c * n + j + LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                vec x = splat(a[r * dp + c]);
                acc[r][0] += x * b0;
                acc[r][1] += x * b1;
            }
        }
        for (int r = 0; r < ROWS; r++) {
            store(out + (int64_t)r * n + j, acc[r][0]);
            store(out + (int64_t)r * n + j + LANES, acc[r][1]);
        }
    }
}

/* out[r][:] = sum_j a[r][j] b[j][:] for ROWS rows. */
static inline void rows_times_matrix(const float *a, int n, const float *b, int dp, float *out) {
    int c = 0;
    for (; c + 2 * LANES <= dp; c += 2 * LANES) {
        vec acc[ROWS][2];
        for (int r = 0; r < ROWS; r++) acc[r][0] = acc[r][1] = splat(0);
        for (int j = 0; j < n; j++) {
            vec b0 = load(b + (int64_t)j * dp + c), b1 = load(b + (int64_t)j * dp + c + LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                vec x = splat(a[(int64_t)r * n + j]);
                acc[r][0] += x * b0;
                acc[r][1] += x * b1;
            }
        }
        for (int r = 0; r < ROWS; r++) {
            store(out + r * dp + c, acc[r][0]);
            store(out + r * dp + c + LANES, acc[r][1]);
        }
    }
    for (; c < dp; c += LANES) {
        vec acc[ROWS];
        for (int r = 0; r < ROWS; r++) acc[r] = splat(0);
        for (int j = 0; j < n; j++) {
            vec b0 = load(b + (int64_t)j * dp + c);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) acc[r] += splat(a[(int64_t)r * n + j]) * b0;
        }
        for (int r = 0; r < ROWS; r++) store(out + r * dp + c, acc[r]);
    }
}

/* out[j][:] += sum_r a[r][j] b[r][:] over ROWS rows, for all n columns j. */
static inline void add_transposed_rows_times(const float *a, int n, const float *b, int dp, float *out) {
    for (int c = 0; c < dp; c += LANES) {
        vec rows[ROWS];
        for (int r = 0; r < ROWS; r++) rows[r] = load(b + r * dp + c);
        for (int j = 0; j < n; j += 4) {
            vec acc[4];
#pragma GCC unroll 4
            for (int u = 0; u < 4; u++) acc[u] = load(out + (int64_t)(j + u) * dp + c);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
                for (int u = 0; u < 4; u++) acc[u] += splat(a[(int64_t)r * n + j + u]) * rows[r];
            }
#pragma GCC unroll 4
            for (int u = 0; u < 4; u++) store(out + (int64_t)(j + u) * dp + c, acc[u]);
        }
    }
}

/* Probabilities of ROWS query rows from row i on, times their row sum; the reciprocal sums go to inverse[]. */
static inline void softmax_rows(const Work *w, const Shape *s, int i, int kind, const float *bias, float *inverse) {
    const float *init[ROWS];
    int n = w->n;
    for (int r = 0; r < ROWS; r++) init[r] = bias + (int64_t)(i + r) * n;
    rows_times_transposed(w->q + (int64_t)i * w->dp, w->dp, w->d, w->kt, n, init, w->p);
    for (int r = 0; r < ROWS; r++) {
        float *row = w->p + (int64_t)r * n;
        vec top = splat(-INFINITY);
        if (kind) {
            const float *mask = w->masks + (kind * 4 + wrapped_class(i + r, (int)s->window, (int)s->shift)) * n;
            for (int j = 0; j < n; j += LANES) store(row + j, load(row + j) + load(mask + j));
        }
        for (int j = 0; j < n; j += LANES) top = vmax(top, load(row + j));
        vec highest = splat(reduce_max(top)), total = splat(0);
        for (int j = 0; j < n; j += LANES) {
            vec e = exp2_nonpositive(load(row + j) - highest);
            total += e;
            store(row + j, e);
        }
        inverse[r] = 1.0f / reduce_add(total);
    }
}

static void forward_task(Work *w, const Shape *s, int64_t window, int64_t head, const void *qkv, const float *bias, void *out) {
    int64_t channels = s->heads * s->head_dim, at = head * s->head_dim;
    int kind = find_tokens(w, s, window);
    gather(w, s, qkv, 3 * channels, at, s->scale * LOG2E, w->q);
    gather(w, s, qkv, 3 * channels, at + channels, 1.0f, w->k);
    gather(w, s, qkv, 3 * channels, at + 2 * channels, 1.0f, w->v);
    transpose(w->k, w->n, w->dp, w->kt);
    for (int i = 0; i < w->n; i += ROWS) {
        float inverse[ROWS];
        softmax_rows(w, s, i, kind, bias, inverse);
        float *o = w->q + (int64_t)i * w->dp; /* these query rows are not needed any more */
        rows_times_matrix(w->p, w->n, w->v, w->dp, o);
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < w->dp; c += LANES) store(o + r * w->dp + c, load(o + r * w->dp + c) * splat(inverse[r]));
    }
    scatter(w, s, out, channels, at, w->q);
    memset(w->q, 0, sizeof(float) * w->n * w->dp); /* padded channels must stay zero */
}

static void backward_task(Work *w, const Shape *s, int64_t window, int64_t head, const void *qkv, const float *bias, const void *dout,
                          void *dqkv, float *dbias) {
    int64_t channels = s->heads * s->head_dim, at = head * s->head_dim;
    int n = w->n, dp = w->dp, kind = find_tokens(w, s, window);
    gather(w, s, qkv, 3 * channels, at, s->scale * LOG2E, w->q);
    gather(w, s, qkv, 3 * channels, at + channels, 1.0f, w->k);
    gather(w, s, qkv, 3 * channels, at + 2 * channels, 1.0f, w->v);
    gather(w, s, dout, channels, at, 1.0f, w->dout);
    transpose(w->k, n, dp, w->kt);
    transpose(w->v, n, dp, w->vt);
    memset(w->dk, 0, sizeof(float) * n * dp);
    memset(w->dv, 0, sizeof(float) * n * dp);
    for (int i = 0; i < n; i += ROWS) {
        float inverse[ROWS];
        softmax_rows(w, s, i, kind, bias, inverse);
        rows_times_transposed(w->dout + (int64_t)i * dp, dp, w->d, w->vt, n, NULL, w->dp_rows);
        for (int r = 0; r < ROWS; r++) {
            float *p = w->p + (int64_t)r * n, *g = w->dp_rows + (int64_t)r * n, *db = dbias + (int64_t)(i + r) * n;
            vec inv = splat(inverse[r]), mean = splat(0);
            for (int j = 0; j < n; j += LANES) {
                vec x = load(p + j) * inv;
                store(p + j, x);
                mean += x * load(g + j);
            }
            mean = splat(reduce_add(mean));
            for (int j = 0; j < n; j += LANES) {
                vec x = load(p + j) * (load(g + j) - mean);
                store(g + j, x);
                store(db + j, load(db + j) + x);
            }
        }
        rows_times_matrix(w->dp_rows, n, w->k, dp, w->dq + (int64_t)i * dp);
        add_transposed_rows_times(w->p, n, w->dout + (int64_t)i * dp, dp, w->dv);
        add_transposed_rows_times(w->dp_rows, n, w->q + (int64_t)i * dp, dp, w->dk);
    }
    for (int64_t i = 0; i < (int64_t)n * dp; i += LANES) {
        store(w->dq + i, load(w->dq + i) * splat(s->scale));
        store(w->dk + i, load(w->dk + i) * splat(1.0f / LOG2E)); /* q carried scale * log2(e) */
    }
    scatter(w, s, dqkv, 3 * channels, at, w->dq);
    scatter(w, s, dqkv, 3 * channels, at + channels, w->dk);
    scatter(w, s, dqkv, 3 * channels, at + 2 * channels, w->dv);
}

/* bias must have been multiplied by log2(e). Returns 0, or 1 when memory ran out. */
int drct_window_attention_forward(const Shape *s, const void *qkv, const float *bias, void *out) {
    int64_t windows = s->batch * (s->height / s->window) * (s->width / s->window), nn = s->window * s->window * s->window * s->window;
    int failed = 0;
#pragma omp parallel num_threads(s->threads)
    {
        Work w;
        if (work_open(&w, s, 0)) {
#pragma omp for collapse(2) schedule(static)
            for (int64_t h = 0; h < s->heads; h++)
                for (int64_t i = 0; i < windows; i++) forward_task(&w, s, i, h, qkv, bias + h * nn, out);
            work_close(&w);
        } else {
#pragma omp atomic write
            failed = 1;
        }
    }
    return failed;
}

/* dbias is (parts, heads, N, N), zero on entry: part p sums its share of the windows, so the sum over parts does not depend on
 * which thread ran first. bias must have been multiplied by log2(e). Returns 0, or 1 when memory ran out. */
int drct_window_attention_backward(const Shape *s, const void *qkv, const float *bias, const void *dout, void *dqkv, float *dbias,
                                   int64_t parts) {
    int64_t windows = s->batch * (s->height / s->window) * (s->width / s->window), nn = s->window * s->window * s->window * s->window;
    int failed = 0;
#pragma omp parallel num_threads(s->threads)
    {
        Work w;
        if (work_open(&w, s, 1)) {
#pragma omp for collapse(2) schedule(dynamic)
            for (int64_t h = 0; h < s->heads; h++)
                for (int64_t part = 0; part < parts; part++)
                    for (int64_t i = windows * part / parts; i < windows * (part + 1) / parts; i++)
                        backward_task(&w, s, i, h, qkv, bias + h * nn, dout, dqkv, dbias + (part * s->heads + h) * nn);
            work_close(&w);
        } else {
#pragma omp atomic write
            failed = 1;
        }
    }
    return failed;
}
