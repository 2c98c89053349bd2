/* Window attention on channels-last maps, forward and backward, for any CPU that the compiler has vectors for.
 *
 * One task is one head of one window. Cutting windows, the cyclic shift, the relative position bias, the mask of shifted
 * windows and the softmax all happen while the window lies in the first-level cache; nothing of size N x N per window ever
 * reaches memory. Arithmetic is float32; for bfloat16 maps, products are bfloat16 where the processor has them.
 *
 *   out = softmax(scale * q k^T + bias + mask) v
 *
 * qkv is (B, H, W, 3 * heads * d), its last axis ordered (q|k|v, head, d); out is (B, H, W, heads * d);
 * bias is (heads, N, N) with N = window^2. Backward recomputes the scores, so forward saves
 * nothing but its result.
 */
#include "attention.h"

static int work_open(Work *w, const Shape *s, int backward) {
    w->n = (int)(s->window * s->window);
    w->d = (int)s->head_dim;
    w->dp = (w->d + LANES - 1) / LANES * LANES;
    int64_t nd = (int64_t)w->n * w->dp, count = 3 * nd + 2 * nd + 16 * (int64_t)w->n + BLOCK * (int64_t)w->n + 64 * LANES;
    if (backward) count += 6 * nd + BLOCK * (int64_t)w->n;
#ifdef BF16_PRODUCTS
    if (s->bf16) count += 5 * nd + 2 * ROWS * (int64_t)w->n + 16 * LANES;
#endif
    char *block = NULL;
    if (posix_memalign((void **)&block, 64, sizeof(float) * count + 2 * sizeof(int64_t) * w->n)) return 0;
    memset(block, 0, sizeof(float) * count);
    float *cursor = (float *)block;
    w->q = take(&cursor, nd);
    w->k = take(&cursor, nd);
    w->v = take(&cursor, nd);
    w->kt = take(&cursor, nd);
    w->kp = w->vp = take(&cursor, nd); /* forward needs the values in panels, backward the keys */
    w->masks = take(&cursor, 16 * w->n);
    w->p = take(&cursor, BLOCK * w->n);
    if (backward) {
        w->vt = take(&cursor, nd);
        w->out = take(&cursor, nd);
        w->dout = take(&cursor, nd);
        w->dq = take(&cursor, nd);
        w->dk = take(&cursor, nd);
        w->dv = take(&cursor, nd);
        w->dp_rows = take(&cursor, BLOCK * w->n);
    }
#ifdef BF16_PRODUCTS
    if (s->bf16) {
        uint32_t **halves[] = {&w->q_c, &w->k_c, &w->v_c, &w->dout_c, &w->kt_c, &w->vt_c, &w->q_r, &w->k_r, &w->v_r, &w->dout_r};
        for (int i = 0; i < 10; i++) *halves[i] = (uint32_t *)take(&cursor, nd / 2);
        uint32_t **rows[] = {&w->p_c, &w->p_r, &w->g_c, &w->g_r};
        for (int i = 0; i < 4; i++) *rows[i] = (uint32_t *)take(&cursor, ROWS * w->n / 2);
    }
#endif
    w->token = (int64_t *)cursor, w->ahead = w->token + w->n;
    fill_masks(s, w->masks);
    return 1;
}

static void work_close(Work *w) { free(w->q); }

/* Finds the pixels of a window and of the one after it; returns the window's kind of mask. */
static int enter_window(Work *w, const Shape *s, int64_t index) {
    int64_t columns = s->width / s->window, rows = s->height / s->window;
    find_tokens(s, index, w->token);
    find_tokens(s, (index + 1) % (s->batch * rows * columns), w->ahead);
    return kind_of_window(s, index);
}

/* Asks for one head of the next window, positions i on, while there is arithmetic to do: its rows lie too far apart for the processor
 * to guess where the next one is. */
static inline void fetch_ahead(const Work *w, const Shape *s, int i, const void *map, int64_t stride, int64_t offset) {
    int64_t size = s->bf16 ? 2 : 4, bytes = size * w->d;
    for (int r = 0; r < BLOCK; r++) {
        const char *row = (const char *)map + (w->ahead[i + r] * stride + offset) * size;
        for (uintptr_t at = (uintptr_t)row & ~63ul; at < (uintptr_t)row + bytes; at += 64) __builtin_prefetch((const void *)at, 0, 3);
    }
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
            if (w->d < LANES)
                for (int c = 0; c < w->d; c++) to[c] = from[c] * scale;
            else
                for (int c = 0; c < w->d; c += LANES) {
                    int last = c < w->d - LANES ? c : w->d - LANES; /* the last vector may overlap the one before */
                    store(to + last, load(from + last) * splat(scale));
                }
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
            if (w->d < LANES)
                for (int c = 0; c < w->d; c++) to[c] = from[c];
            else
                for (int c = 0; c < w->d; c += LANES) {
                    int last = c < w->d - LANES ? c : w->d - LANES;
                    store(to + last, load(from + last));
                }
        }
    }
}

static void forward_task(Work *w, const Shape *s, int64_t window, int64_t head, const void *qkv, const float *bias,
                         const Range *range, void *out) {
    int64_t channels = s->heads * s->head_dim, at = head * s->head_dim;
    int kind = enter_window(w, s, window);
    gather(w, s, qkv, 3 * channels, at, s->scale * LOG2E, w->q);
    gather(w, s, qkv, 3 * channels, at + channels, 1.0f, w->k);
    gather(w, s, qkv, 3 * channels, at + 2 * channels, 1.0f, w->v);
    transpose(w->k, w->n, w->dp, w->kt);
    panels(w->v, w->n, w->dp, w->dp, w->vp);
    int near = scores_near_zero(w, range);
    for (int i = 0; i < w->n; i += BLOCK) {
        float inverse[BLOCK];
        for (int part = 0; part < 3; part++) fetch_ahead(w, s, i, qkv, 3 * channels, at + part * channels);
        softmax_rows(w, s, i, kind, near, bias, inverse);
        float *o = w->q + (int64_t)i * w->dp; /* these query rows are not needed any more */
        rows_times_matrix(w->p, w->n, w->vp, w->dp, o);
        for (int r = 0; r < BLOCK; r++)
            for (int c = 0; c < w->dp; c += LANES) store(o + r * w->dp + c, load(o + r * w->dp + c) * splat(inverse[r]));
    }
    scatter(w, s, out, channels, at, w->q);
    memset(w->q, 0, sizeof(float) * w->n * w->dp); /* padded channels must stay zero */
}

static void backward_task(Work *w, const Shape *s, int64_t window, int64_t head, const void *qkv, const float *bias,
                          const Range *range, const void *out, const void *dout, void *dqkv, float *dbias) {
    int64_t channels = s->heads * s->head_dim, at = head * s->head_dim;
    int n = w->n, dp = w->dp, kind = enter_window(w, s, window);
    gather(w, s, out, channels, at, 1.0f, w->out);
    gather(w, s, dout, channels, at, 1.0f, w->dout);
    gather(w, s, qkv, 3 * channels, at, s->scale * LOG2E, w->q);
    gather(w, s, qkv, 3 * channels, at + channels, 1.0f, w->k);
    gather(w, s, qkv, 3 * channels, at + 2 * channels, 1.0f, w->v);
    transpose(w->k, n, dp, w->kt);
    transpose(w->v, n, dp, w->vt);
    panels(w->k, n, dp, dp, w->kp);
    memset(w->dk, 0, sizeof(float) * n * dp);
    memset(w->dv, 0, sizeof(float) * n * dp);
    int near = scores_near_zero(w, range);
    for (int i = 0; i < n; i += BLOCK) {
        for (int part = 0; part < 3; part++) fetch_ahead(w, s, i, qkv, 3 * channels, at + part * channels);
        fetch_ahead(w, s, i, out, channels, at);
        fetch_ahead(w, s, i, dout, channels, at);
        backward_rows(w, s, i, kind, near, bias, w->out + (int64_t)i * dp, dp, dbias);
    }
    unscale_gradients(w, s);
    scatter(w, s, dqkv, 3 * channels, at, w->dq);
    scatter(w, s, dqkv, 3 * channels, at + channels, w->dk);
    scatter(w, s, dqkv, 3 * channels, at + 2 * channels, w->dv);
}

#ifdef BF16_PRODUCTS
/* The same two tasks for bfloat16 maps: products of bfloat16 numbers, sums, bias and softmax in float32. */

static inline vec dot(vec acc, uint32_t a, const uint32_t *b) {
    return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)_mm512_loadu_si512(b));
}
static inline __m512i widen(const uint16_t *p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }

/* Rows of a map as they are, pairs along channels; channels beyond d stay zero. */
static inline void gather_pairs(const Work *w, const void *map, int64_t stride, int64_t offset, uint32_t *rows) {
    for (int i = 0; i < w->n; i++)
        memcpy((uint16_t *)rows + (int64_t)i * w->dp, (const uint16_t *)map + w->token[i] * stride + offset, 2 * (size_t)w->d);
}
/* Pairs along channels [n][dp/2] to the same pairs transposed [dp/2][n]. */
static inline void transpose_pairs(const uint32_t *in, int n, int half, uint32_t *out) {
    for (int i0 = 0; i0 < n; i0 += LANES)
        for (int c = 0; c < half; c++)
            for (int i = i0; i < i0 + LANES; i++) out[(int64_t)c * n + i] = in[(int64_t)i * half + c];
}
/* Pairs along channels [n][dp/2] to pairs along rows [n/2][dp]. */
static inline void pair_rows(const uint32_t *in, int n, int dp, uint32_t *out) {
    const uint16_t *x = (const uint16_t *)in;
    for (int i = 0; i < n; i += 2)
        for (int c = 0; c < dp; c += LANES) {
            __m512i low = widen(x + (int64_t)i * dp + c), high = widen(x + (int64_t)(i + 1) * dp + c);
            _mm512_storeu_si512(out + (int64_t)(i / 2) * dp + c, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}
/* ROWS float rows of n to bfloat16, as pairs along the row, and if asked for as pairs of rows. */
static inline void round_rows(const float *rows, int n, uint32_t *along, uint32_t *across) {
    uint16_t *to = (uint16_t *)along;
    for (int64_t i = 0; i < (int64_t)ROWS * n; i += LANES)
        _mm256_storeu_si256((__m256i *)(to + i), (__m256i)_mm512_cvtneps_pbh((__m512)load(rows + i)));
    if (across) pair_rows(along, ROWS, n, across);
}

static inline void pairs_times_transposed(const uint32_t *a, int half, int depth, const uint32_t *bt, int n, float *out) {
    for (int j = 0; j < n; j += 2 * LANES) {
        vec acc[ROWS][2];
        for (int r = 0; r < ROWS; r++) acc[r][0] = acc[r][1] = splat(0);
        for (int c = 0; c < depth; c++) {
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                acc[r][0] = dot(acc[r][0], a[r * half + c], bt + (int64_t)c * n + j);
                acc[r][1] = dot(acc[r][1], a[r * half + c], bt + (int64_t)c * n + j + LANES);
            }
        }
        for (int r = 0; r < ROWS; r++) {
            store(out + (int64_t)r * n + j, acc[r][0]);
            store(out + (int64_t)r * n + j + LANES, acc[r][1]);
        }
    }
}
static inline void pairs_times_matrix(const uint32_t *a, int n, const uint32_t *b, int dp, float *out) {
    for (int c = 0; c < dp; c += LANES) {
        vec acc[ROWS];
        for (int r = 0; r < ROWS; r++) acc[r] = splat(0);
        for (int j = 0; j < n / 2; j++) {
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) acc[r] = dot(acc[r], a[(int64_t)r * (n / 2) + j], b + (int64_t)j * dp + c);
        }
        for (int r = 0; r < ROWS; r++) store(out + r * dp + c, acc[r]);
    }
}
static inline void add_transposed_pairs_times(const uint32_t *a, int n, const uint32_t *b, int dp, float *out) {
    for (int c = 0; c < dp; c += LANES)
        for (int j = 0; j < n; j += 8) {
            vec acc[8];
#pragma GCC unroll 8
            for (int u = 0; u < 8; u++) acc[u] = load(out + (int64_t)(j + u) * dp + c);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS / 2; r++) {
#pragma GCC unroll 8
                for (int u = 0; u < 8; u++) acc[u] = dot(acc[u], a[(int64_t)r * n + j + u], b + r * dp + c);
            }
#pragma GCC unroll 8
            for (int u = 0; u < 8; u++) store(out + (int64_t)(j + u) * dp + c, acc[u]);
        }
}

/* Turn the gradients of ROWS rows of probabilities (in dp_rows, query row i first) into those of the scores, add them to dbias, and
 * normalize the probabilities. */
static inline void score_gradients(Work *w, int i, const float *inverse, float *dbias) {
    int n = w->n;
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
}

static inline void softmax_pairs(const Work *w, const Shape *s, int i, int kind, const float *bias, float *inverse) {
    int n = w->n;
    vec factor = splat(s->scale * LOG2E);
    pairs_times_transposed(w->q_c + (int64_t)i * w->dp / 2, w->dp / 2, (w->d + 1) / 2, w->kt_c, n, w->p);
    for (int r = 0; r < ROWS; r++) {
        float *row = w->p + (int64_t)r * n;
        const float *b = bias + (int64_t)(i + r) * n;
        vec top = splat(-INFINITY), total = splat(0);
        if (kind) {
            const float *mask = w->masks + (kind * 4 + wrapped_class(i + r, (int)s->window, (int)s->shift)) * n;
            for (int j = 0; j < n; j += LANES) {
                vec x = load(row + j) * factor + load(b + j) + load(mask + j);
                top = vmax(top, x);
                store(row + j, x);
            }
        } else
            for (int j = 0; j < n; j += LANES) {
                vec x = load(row + j) * factor + load(b + j);
                top = vmax(top, x);
                store(row + j, x);
            }
        vec highest = splat(reduce_max(top));
        for (int j = 0; j < n; j += LANES) {
            vec e = exp2_below_127(load(row + j) - highest);
            total += e;
            store(row + j, e);
        }
        inverse[r] = 1.0f / reduce_add(total);
    }
}

static void forward_task_pairs(Work *w, const Shape *s, int64_t window, int64_t head, const void *qkv, const float *bias, void *out) {
    int64_t channels = s->heads * s->head_dim, at = head * s->head_dim;
    int kind = enter_window(w, s, window);
    gather_pairs(w, qkv, 3 * channels, at, w->q_c);
    gather_pairs(w, qkv, 3 * channels, at + channels, w->k_c);
    gather_pairs(w, qkv, 3 * channels, at + 2 * channels, w->v_c);
    transpose_pairs(w->k_c, w->n, w->dp / 2, w->kt_c);
    pair_rows(w->v_c, w->n, w->dp, w->v_r);
    for (int i = 0; i < w->n; i += ROWS) {
        float inverse[ROWS], *o = w->q + (int64_t)i * w->dp;
        softmax_pairs(w, s, i, kind, bias, inverse);
        round_rows(w->p, w->n, w->p_c, NULL);
        pairs_times_matrix(w->p_c, w->n, w->v_r, w->dp, o);
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < w->dp; c += LANES) store(o + r * w->dp + c, load(o + r * w->dp + c) * splat(inverse[r]));
    }
    scatter(w, s, out, channels, at, w->q);
}

static void backward_task_pairs(Work *w, const Shape *s, int64_t window, int64_t head, const void *qkv, const float *bias,
                                const void *dout, void *dqkv, float *dbias) {
    int64_t channels = s->heads * s->head_dim, at = head * s->head_dim;
    int n = w->n, dp = w->dp, kind = enter_window(w, s, window);
    gather_pairs(w, qkv, 3 * channels, at, w->q_c);
    gather_pairs(w, qkv, 3 * channels, at + channels, w->k_c);
    gather_pairs(w, qkv, 3 * channels, at + 2 * channels, w->v_c);
    gather_pairs(w, dout, channels, at, w->dout_c);
    transpose_pairs(w->k_c, n, dp / 2, w->kt_c);
    transpose_pairs(w->v_c, n, dp / 2, w->vt_c);
    pair_rows(w->q_c, n, dp, w->q_r);
    pair_rows(w->k_c, n, dp, w->k_r);
    pair_rows(w->dout_c, n, dp, w->dout_r);
    memset(w->dk, 0, sizeof(float) * n * dp);
    memset(w->dv, 0, sizeof(float) * n * dp);
    for (int i = 0; i < n; i += ROWS) {
        float inverse[ROWS];
        softmax_pairs(w, s, i, kind, bias, inverse);
        pairs_times_transposed(w->dout_c + (int64_t)i * dp / 2, dp / 2, (w->d + 1) / 2, w->vt_c, n, w->dp_rows);
        score_gradients(w, i, inverse, dbias);
        round_rows(w->p, n, w->p_c, w->p_r);
        round_rows(w->dp_rows, n, w->g_c, w->g_r);
        pairs_times_matrix(w->g_c, n, w->k_r, dp, w->dq + (int64_t)i * dp);
        add_transposed_pairs_times(w->p_r, n, w->dout_r + (int64_t)i / 2 * dp, dp, w->dv);
        add_transposed_pairs_times(w->g_r, n, w->q_r + (int64_t)i / 2 * dp, dp, w->dk);
    }
    for (int64_t i = 0; i < (int64_t)n * dp; i += LANES) {
        store(w->dq + i, load(w->dq + i) * splat(s->scale));
        store(w->dk + i, load(w->dk + i) * splat(s->scale));
    }
    scatter(w, s, dqkv, 3 * channels, at, w->dq);
    scatter(w, s, dqkv, 3 * channels, at + channels, w->dk);
    scatter(w, s, dqkv, 3 * channels, at + 2 * channels, w->dv);
}
#endif

static void forward_any(Work *w, const Shape *s, int64_t window, int64_t head, const void *qkv, const float *bias, const Range *range,
                        void *out) {
#ifdef BF16_PRODUCTS
    if (s->bf16) {
        forward_task_pairs(w, s, window, head, qkv, bias, out);
        return;
    }
#endif
    forward_task(w, s, window, head, qkv, bias, range, out);
}

static void backward_any(Work *w, const Shape *s, int64_t window, int64_t head, const void *qkv, const float *bias, const Range *range,
                         const void *out, const void *dout, void *dqkv, float *dbias) {
#ifdef BF16_PRODUCTS
    if (s->bf16) {
        backward_task_pairs(w, s, window, head, qkv, bias, dout, dqkv, dbias);
        return;
    }
#endif
    backward_task(w, s, window, head, qkv, bias, range, out, dout, dqkv, dbias);
}

/* bias must have been multiplied by log2(e). Returns 0, or 1 when memory ran out. */
int drct_window_attention_forward(const Shape *s, const void *qkv, const float *bias, void *out) {
    int64_t windows = s->batch * (s->height / s->window) * (s->width / s->window), nn = s->window * s->window * s->window * s->window;
    int failed = 0;
#pragma omp parallel num_threads(s->threads)
    {
        unsigned control = take_tiny_for_zero();
        Work w;
        Range range;
        int64_t known = -1; /* the head whose range it is */
        int opened = work_open(&w, s, 0);
        if (all_opened(opened, &failed)) {
#pragma omp for collapse(2) schedule(static)
            for (int64_t h = 0; h < s->heads; h++)
                for (int64_t i = 0; i < windows; i++) {
                    if (h != known) range = range_of(s, bias + h * nn), known = h;
                    forward_any(&w, s, i, h, qkv, bias + h * nn, &range, out);
                }
        }
        if (opened) work_close(&w);
        take_tiny_as_before(control);
    }
    return failed;
}

/* out is what forward returned, bias must have been multiplied by log2(e). dbias is (parts, heads, N, N), zero on entry: part p sums its
 * share of the windows, so the sum over parts does not depend on which thread ran first. Returns 0, or 1 when memory ran out. */
int drct_window_attention_backward(const Shape *s, const void *qkv, const float *bias, const void *out, const void *dout, void *dqkv,
                                   float *dbias, int64_t parts) {
    int64_t windows = s->batch * (s->height / s->window) * (s->width / s->window), nn = s->window * s->window * s->window * s->window;
    int failed = 0;
#pragma omp parallel num_threads(s->threads)
    {
        unsigned control = take_tiny_for_zero();
        Work w;
        Range range;
        int64_t known = -1; /* the head whose range it is */
        int opened = work_open(&w, s, 1);
        if (all_opened(opened, &failed)) {
#pragma omp for collapse(2) schedule(dynamic)
            for (int64_t h = 0; h < s->heads; h++)
                for (int64_t part = 0; part < parts; part++) {
                    if (h != known) range = range_of(s, bias + h * nn), known = h;
                    for (int64_t i = windows * part / parts; i < windows * (part + 1) / parts; i++)
                        backward_any(&w, s, i, h, qkv, bias + h * nn, &range, out, dout, dqkv, dbias + (part * s->heads + h) * nn);
                }
        }
        if (opened) work_close(&w);
        take_tiny_as_before(control);
    }
    return failed;
}
