/* A whole Swin block with the 1x1 convolution behind it, in bfloat16, forward and backward: the unit of DRCT's dense groups. Without the
 * convolution it is a block of SwinIR and, with a branch e that comes from outside, of HAT.
 *
 *   u = x + f1 proj(attention(qkv(LN1(x)))) + e      v = u + f2 fc2(gelu(fc1(LN2(u))))      y = act(adjust(v)), or v
 *
 * One task is one window: its tokens are gathered from the maps once and stay in the second-level cache through all layers, so
 * the cyclic shift costs nothing and maps are read and written once. Products are of bfloat16 pairs summed in float32 (AVX512_BF16);
 * biases, norms, softmax, GELU and the gradient along the residual are float32. For backward are kept, in the order of windows:
 * q, k and v, the output of attention, its log-sum-exp, u, the MLP before GELU, and v. Nothing else of forward is computed twice
 * but norms, GELU and scores.
 *
 * Channels are padded with zeros to whole vectors wherever rows lie together (C, H, G, Q below are padded counts). Products use the
 * first operand as broadcast pairs and the second as vectors: out[m][n] = sum_k a[m][k] . b[k][n], k counting pairs.
 */
#include "tiles.h"
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
#endif

typedef struct {
    int64_t batch, height, width, window, shift, heads, head_dim;
    int64_t dim, hidden, out;         /* channels of the block, of its MLP, of the 1x1 convolution; out 0: no convolution, y = v */
    int64_t x_stride, y_stride;       /* numbers from one pixel to the next; those of e are dim */
    int64_t keep;                     /* 1: kept tensors hold all windows, 0: one window for each thread */
    int64_t parts;                    /* backward: shares of the windows with sums of their own */
    int64_t residual;                 /* y = x + alpha adjust(v) instead of leaky_relu(adjust(v)) */
    float scale, slope, alpha, eps;
    int32_t threads;
} Block;

typedef struct { /* as torch holds them: matrices (out, in); absent biases are NULL */
    const float *norm1, *norm1_bias, *qkv, *qkv_bias, *proj, *proj_bias, *norm2, *norm2_bias, *fc1, *fc1_bias, *fc2, *fc2_bias, *adjust,
        *adjust_bias;
    const float *bias;     /* relative position bias times log2(e), (heads, w, 2w - 1, w): query x, key y - query y, key x */
    const float *branches; /* (batch, 2): f1 and f2, stochastic depth */
} Parameters;

typedef struct {
    uint16_t *qkv, *attended, *u, *hidden, *v; /* tokens of all windows, rows of Q, C, C, H, C numbers; no v without a convolution */
    float *lse;                                /* (window, head, token), base 2 */
} Kept;

/* Sums of one part, one after the other in this order, rows padded like everything else. */
typedef struct {
    float *norm1, *norm1_bias, *qkv, *qkv_bias, *proj, *proj_bias, *norm2, *norm2_bias, *fc1, *fc1_bias, *fc2, *fc2_bias, *adjust,
        *adjust_bias, *bias;
} Sums;

#ifdef BF16_PRODUCTS
/* ------------------------------------------------------------------------------------------------ numbers */

INLINE vec widen_masked(__mmask16 there, const uint16_t *p) {
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, p)), 16);
}

/* The normal distribution's cumulative function at x, and its density (Abramowitz and Stegun 7.1.26, error below 1e-6). */
INLINE vec normal_cdf(vec x, vec *density) {
    vec z = (vec)_mm512_abs_ps((__m512)x), e = exp2_fast(x * x * splat(-0.5f * LOG2E));
    vec d = splat(1.0f) + z * splat(0.3275911f * 0.70710678f), t = (vec)_mm512_rcp14_ps((__m512)d);
    t = t * (splat(2.0f) - d * t);
    vec p = splat(1.061405429f);
    p = p * t + splat(-1.453152027f);
    p = p * t + splat(1.421413741f);
    p = p * t + splat(-0.284496736f);
    p = p * t + splat(0.254829592f);
    vec tail = splat(0.5f) * p * t * e;
    *density = e * splat(0.3989422804f);
    return (vec)_mm512_mask_sub_ps((__m512)tail, _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_GE_OQ),
                                   _mm512_set1_ps(1.0f), (__m512)tail);
}

/* Mask of the lanes of a last, perhaps partial vector. */
INLINE __mmask16 lanes_left(int64_t left) { return left < LANES ? (__mmask16)((1 << left) - 1) : (__mmask16)-1; }

/* Two rows of 16 numbers each as 16 pairs (first row low); halves: the rounded rows themselves. */
INLINE __m512i round_pair(vec low, vec high, __m512i *halves) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3,
                                           18, 2, 17, 1, 16, 0);
    *halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    return _mm512_permutexvar_epi16(order, *halves);
}

/* ------------------------------------------------------------------------------------------------ matrix products */

typedef enum { ADD, FLOAT, BF16, RESIDUAL, LEAKY, GELU, GELU_BACKWARD } Ending;

typedef struct {
    int64_t m, n, k; /* rows, columns (whole vectors), pairs */
    const uint32_t *a;
    int64_t am, ak; /* pairs from one row, from one step to the next */
    const uint32_t *b;
    int64_t bk;
    const float *bias;
    float *f; /* out or in, float */
    uint16_t *o, *o2;
    int64_t ld; /* of f, o, o2 and r */
    const uint16_t *r;
    float factor;
} Product;

INLINE void finish(Ending end, const Product *p, int64_t m, int64_t n, vec x) {
    int64_t at = m * p->ld + n;
    vec density;
    switch (end) {
    case ADD: store(p->f + at, load(p->f + at) + x); break;
    case FLOAT: store(p->f + at, x); break;
    case BF16:
        if (p->bias) x += load(p->bias + n);
        narrow(p->o + at, x);
        break;
    case RESIDUAL: narrow(p->o + at, widen(p->r + at) + splat(p->factor) * (x + load(p->bias + n))); break;
    case LEAKY:
        x += load(p->bias + n);
        narrow(p->o + at, vmax(x, x * splat(p->factor)));
        break;
    case GELU:
        narrow(p->o + at, x + load(p->bias + n));
        x = widen(p->o + at); /* what backward will see */
        narrow(p->o2 + at, x * normal_cdf(x, &density));
        break;
    case GELU_BACKWARD: { /* o: gradient, o2: GELU again */
        vec h = widen(p->r + at), c = normal_cdf(h, &density);
        narrow(p->o + at, x * (c + h * density));
        narrow(p->o2 + at, h * c);
    }
    }
}

/* 8 rows by nv vectors in registers. Pairs of one row lie together (am > 1, ak 1), or those of one step do (am 1); k is a multiple
 * of 8. */
INLINE void tile(Ending end, int nv, const Product *p, int64_t m, int64_t n) {
    vec acc[8][3];
    UNROLL for (int i = 0; i < 8; i++) UNROLL for (int j = 0; j < nv; j++) acc[i][j] = splat(0);
    const uint32_t *a = p->a + m * p->am, *b = p->b + n;
    int64_t am = end == ADD ? 1 : p->am, ak = end == ADD ? p->ak : 1, bk = p->bk;
    for (int64_t k = p->k; k > 0; k -= 4) {
        UNROLL for (int step = 0; step < 4; step++) {
            __m512i y[3];
            UNROLL for (int j = 0; j < nv; j++) y[j] = pairs(b + j * LANES);
            UNROLL for (int i = 0; i < 8; i++) {
                __m512i x = pair(a + i * am + step * ak);
                UNROLL for (int j = 0; j < nv; j++) acc[i][j] = dot(acc[i][j], x, y[j]);
            }
            b += bk;
        }
        a += 4 * ak;
    }
    UNROLL for (int i = 0; i < 8; i++) UNROLL for (int j = 0; j < nv; j++) finish(end, p, m + i, n + j * LANES, acc[i][j]);
}

#ifdef TILES
/* Some times 16 rows by 16 columns, by the matrix unit. Pairs of one row lie together for all endings; k is a multiple of 8. */
INLINE void tile_columns(Ending end, int blocks, const Product *p, int64_t m, int64_t n) {
    float sums[4 * SIDE * SIDE] __attribute__((aligned(64)));
    int direct = end == ADD || end == FLOAT; /* without a step through vectors */
    float *to = direct ? p->f + m * p->ld + n : sums;
    int64_t below = direct ? p->ld : SIDE;
    const uint32_t *a = p->a + m * p->am, *b = p->b + n;
#define EACH(do) \
    do(0); \
    if (blocks == 4) { do(1); do(2); do(3); }
#define BEGIN(u) \
    if (end == ADD) TILE_LOAD(u, to + u * SIDE * below, below); \
    else TILE_ZERO(u)
#define STEP(u) TILE_LOAD(LEFT, a + u * SIDE * p->am, p->am); TILE_PRODUCT(u, LEFT, RIGHT)
#define LAST(u) TILE_LOAD(LEFT_REST, a + u * SIDE * p->am, p->am); TILE_PRODUCT(u, LEFT_REST, RIGHT_REST)
#define END(u) TILE_STORE(u, to + u * SIDE * below, below)
    EACH(BEGIN)
    int64_t k = p->k;
    for (; k >= SIDE; k -= SIDE, a += SIDE, b += SIDE * p->bk) {
        TILE_LOAD(RIGHT, b, p->bk);
        EACH(STEP)
    }
    if (k) {
        TILE_LOAD(RIGHT_REST, b, p->bk);
        EACH(LAST)
    }
    EACH(END)
#undef EACH
#undef BEGIN
#undef STEP
#undef LAST
#undef END
    if (!direct)
        for (int i = 0; i < blocks * SIDE; i++) finish(end, p, m + i, n, load(sums + i * SIDE));
}

INLINE void multiply_tiles(Ending end, const Product *p) {
    for (int64_t n = 0; n < p->n; n += SIDE) {
        int64_t m = 0;
        for (; m + 4 * SIDE <= p->m; m += 4 * SIDE) tile_columns(end, 4, p, m, n);
        for (; m < p->m; m += SIDE) tile_columns(end, 1, p, m, n);
    }
}
#endif

INLINE void multiply(Ending end, const Product *p) {
#ifdef TILES
    if (use_tiles) {
        multiply_tiles(end, p);
        return;
    }
#endif
    for (int64_t n = 0; n < p->n;) {
        int64_t left = (p->n - n) / LANES, nv = left == 4 ? 2 : left > 3 ? 3 : left;
        for (int64_t m = 0; m < p->m; m += 8) {
            if (nv == 3) tile(end, 3, p, m, n);
            else if (nv == 2) tile(end, 2, p, m, n);
            else tile(end, 1, p, m, n);
        }
        n += nv * LANES;
    }
}

#define PRODUCT(name, end) \
    __attribute__((noinline)) static void name(Product p) { multiply(end, &p); }
PRODUCT(multiply_add, ADD)
PRODUCT(multiply_float, FLOAT)
PRODUCT(multiply_bf16, BF16)
PRODUCT(multiply_residual, RESIDUAL)
PRODUCT(multiply_leaky, LEAKY)
PRODUCT(multiply_gelu, GELU)
PRODUCT(multiply_gelu_backward, GELU_BACKWARD)

/* ------------------------------------------------------------------------------------------------ parameters */

typedef struct {
    int64_t n, d, dp, half, C, H, G, Q, tile; /* tokens of a window; channels of a head, padded, in pairs; padded rows; rows at once */
    float *norm1, *norm1_bias, *qkv_bias, *proj_bias, *norm2, *norm2_bias, *fc1_bias, *fc2_bias, *adjust_bias;
    uint32_t *qkv, *proj, *fc1, *fc2, *adjust; /* forward: pairs of inputs [in / 2][out]; backward: pairs of outputs [out / 2][in] */
    float *masks;                              /* [kind 0..3][class of the query 0..3][n] */
    const float *bias;
    int64_t bias_size; /* of one head */
} Packed;

typedef struct {
    char *base;
    int64_t used;
} Arena;

/* With base NULL only counts. */
static void *take(Arena *a, int64_t bytes) {
    void *p = a->base ? a->base + a->used : NULL;
    a->used += (bytes + 63) / 64 * 64;
    return p;
}
static int arena_open(Arena *a) {
    void *block = NULL;
    if (posix_memalign(&block, 4096, (size_t)a->used)) return 0;
    memset(block, 0, (size_t)a->used);
    a->base = block;
    a->used = 0;
    return 1;
}

static int wrapped_class(int64_t i, int64_t window, int64_t shift) {
    return ((i % window) >= window - shift ? 1 : 0) | ((i / window) >= window - shift ? 2 : 0);
}

static uint32_t rounded_pair(const float *low, const float *high) {
    return (low ? to_bf16(*low) : 0u) | (uint32_t)(high ? to_bf16(*high) : 0u) << 16;
}

static uint32_t *pack_matrix(Arena *a, const float *w, int64_t out, int64_t in, int backward) {
    int64_t O = whole(out), I = whole(in);
    uint32_t *to = take(a, O * I * 2);
    if (!a->base || !w) return to;
    if (backward)
        for (int64_t o = 0; o < out; o += 2)
            for (int64_t i = 0; i < in; i++)
                to[o / 2 * I + i] = rounded_pair(w + o * in + i, o + 1 < out ? w + (o + 1) * in + i : NULL);
    else
        for (int64_t i = 0; i < in; i += 2)
            for (int64_t o = 0; o < out; o++) to[i / 2 * O + o] = rounded_pair(w + o * in + i, i + 1 < in ? w + o * in + i + 1 : NULL);
    return to;
}
static float *pack_vector(Arena *a, const float *v, int64_t n) {
    float *to = take(a, 4 * whole(n));
    if (a->base && v) memcpy(to, v, 4 * (size_t)n);
    return to;
}

static void pack(Arena *a, Packed *p, const Block *s, const Parameters *w, int backward) {
    int64_t c = s->dim;
    p->n = s->window * s->window;
    p->d = s->head_dim;
    p->dp = whole(p->d);
    p->half = (p->d + 1) / 2;
    p->C = whole(c), p->H = whole(s->hidden), p->G = whole(s->out), p->Q = whole(3 * c);
    p->tile = p->n % 128 ? 64 : 128;
    p->norm1 = pack_vector(a, w->norm1, c), p->norm1_bias = pack_vector(a, w->norm1_bias, c);
    p->norm2 = pack_vector(a, w->norm2, c), p->norm2_bias = pack_vector(a, w->norm2_bias, c);
    p->qkv_bias = pack_vector(a, w->qkv_bias, 3 * c), p->proj_bias = pack_vector(a, w->proj_bias, c);
    p->fc1_bias = pack_vector(a, w->fc1_bias, s->hidden), p->fc2_bias = pack_vector(a, w->fc2_bias, c);
    p->adjust_bias = pack_vector(a, w->adjust_bias, s->out);
    p->qkv = pack_matrix(a, w->qkv, 3 * c, c, backward);
    p->proj = pack_matrix(a, w->proj, c, c, backward);
    p->fc1 = pack_matrix(a, w->fc1, s->hidden, c, backward);
    p->fc2 = pack_matrix(a, w->fc2, c, s->hidden, backward);
    p->adjust = pack_matrix(a, w->adjust, s->out, c, backward);
    p->masks = take(a, 4 * 16 * p->n);
    p->bias = w->bias;
    p->bias_size = s->window * s->window * (2 * s->window - 1);
    if (!a->base) return;
    for (int kind = 0; kind < 4; kind++)
        for (int class = 0; class < 4; class++)
            for (int64_t j = 0; j < p->n; j++)
                p->masks[(kind * 4 + class) * p->n + j] = (wrapped_class(j, s->window, s->shift) ^ class) & kind ? -100.0f * LOG2E : 0.0f;
}

/* ------------------------------------------------------------------------------------------------ work space of a thread */

typedef struct {
    int64_t *token; /* pixel of each position of the window */
    int kind;       /* which borders of the shifted map cross it: 1 columns, 2 rows */
    uint16_t *x, *norm, *wide; /* tiles: rows of C, C, H */
    /* attention of one head: rows of bfloat16, pairs along channels transposed [dp/2][n], pairs of rows [n/2][dp] */
    uint16_t *heads[4];           /* room for the next four */
    const uint16_t *q, *k, *v, *dout;
    int64_t qkv_ld, dout_ld;      /* numbers from row to row of theirs; dp but for the matrix unit */
    uint32_t *kt, *vt, *q_r, *k_r, *v_r, *dout_r;
    float *scores, *rows_out; /* 16 rows of n; 32 rows of dp */
    uint16_t *p_c, *g_c;      /* 16 or 32 rows of probabilities, of gradients of scores: pairs along the row, blocks of 16 keys */
    uint32_t *p_r, *g_r;      /* and pairs of rows */
    float *dk, *dv, *delta, *turned;
    /* backward, tokens */
    uint16_t *d_narrow, *d_wide, *d_small, *d_attended, *d_qkv; /* C, H, G; whole window: C, Q */
    uint32_t *rows_a, *rows_b;                                   /* pairs of rows */
    float *dx, *dn;                                              /* whole window, tile: C */
} Work;

static void lay_out(Arena *a, Work *w, const Packed *p, int backward) {
    int64_t n = p->n, t = p->tile, nd = n * p->dp;
    w->token = take(a, 8 * n);
    w->x = take(a, 2 * t * p->C);
    w->norm = take(a, 2 * t * p->C);
    w->wide = take(a, 2 * t * p->H);
    for (int i = 0; i < 4; i++) w->heads[i] = i < 3 || backward ? take(a, 2 * nd) : NULL;
    w->kt = take(a, 2 * nd);
    w->rows_out = take(a, 4 * 32 * p->dp);
    if (!backward) {
        w->p_c = take(a, 2 * 16 * n);
        w->v_r = take(a, 2 * nd);
        w->scores = take(a, 4 * 16 * n);
        return;
    }
    w->vt = take(a, 2 * nd);
    w->q_r = take(a, 2 * nd), w->k_r = take(a, 2 * nd), w->dout_r = take(a, 2 * nd);
    w->g_c = take(a, 2 * 32 * n);
    w->p_r = take(a, 4 * 16 * n), w->g_r = take(a, 4 * 16 * n);
    w->turned = take(a, 2 * 4 * nd);
    w->dk = take(a, 4 * nd), w->dv = take(a, 4 * nd), w->delta = take(a, 4 * n);
    int64_t widest = p->Q > p->H ? p->Q : p->H;
    w->d_narrow = take(a, 2 * t * p->C), w->d_wide = take(a, 2 * t * p->H), w->d_small = take(a, 2 * t * p->G);
    w->d_attended = take(a, 2 * n * p->C), w->d_qkv = take(a, 2 * n * p->Q);
    w->rows_a = take(a, 2 * t * widest), w->rows_b = take(a, 2 * t * widest);
    w->dx = take(a, 4 * n * p->C), w->dn = take(a, 4 * t * p->C);
}

static int64_t find_tokens(Work *w, const Block *s, int64_t index) {
    int64_t columns = s->width / s->window, rows = s->height / s->window;
    int64_t wx = index % columns, wy = index / columns % rows, b = index / (columns * rows);
    for (int64_t y = 0; y < s->window; y++)
        for (int64_t x = 0; x < s->window; x++)
            w->token[y * s->window + x] =
                (b * s->height + (wy * s->window + y + s->shift) % s->height) * s->width + (wx * s->window + x + s->shift) % s->width;
    w->kind = s->shift ? (wx == columns - 1) | (wy == rows - 1) << 1 : 0;
    return b;
}

/* `rows` pixels of a map into rows of ld numbers; what lies beyond `count` stays as it is (zero). */
static void gather(const uint16_t *map, int64_t stride, const int64_t *token, int64_t rows, int64_t count, uint16_t *to, int64_t ld) {
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * ld, map + token[i] * stride, 2 * (size_t)count);
}

/* ------------------------------------------------------------------------------------------------ LayerNorm */

INLINE void moments(const uint16_t *x, int64_t C, int64_t c, float eps, vec *mean, vec *inverse) {
    vec sum = splat(0), squares = splat(0);
    for (int64_t i = 0; i < C; i += LANES) sum += widen(x + i);
    float m = reduce_add(sum) / (float)c;
    for (int64_t i = 0; i < C; i += LANES) {
        vec y = widen(x + i) - splat(m);
        squares += y * y;
    }
    float variance = (reduce_add(squares) - (float)(C - c) * m * m) / (float)c; /* padding is zero, not the mean */
    *mean = splat(m);
    *inverse = splat(1.0f / sqrtf(variance + eps));
}

static void normalize(const uint16_t *x, int64_t rows, int64_t C, int64_t c, float eps, const float *gain, const float *bias, uint16_t *out) {
    for (int64_t r = 0; r < rows; r++, x += C, out += C) {
        vec mean, inverse;
        moments(x, C, c, eps, &mean, &inverse);
        for (int64_t i = 0; i < C; i += LANES) narrow(out + i, (widen(x + i) - mean) * inverse * load(gain + i) + load(bias + i));
    }
}

/* dx += what dn (float, through the norm) says; dgain and dbias grow. */
static void normalize_backward(const uint16_t *x, int64_t rows, int64_t C, int64_t c, float eps, const float *gain, const float *dn,
                               float *dx, float *dgain, float *dbias) {
    for (int64_t r = 0; r < rows; r++, x += C, dn += C, dx += C) {
        vec mean, inverse, sum = splat(0), product = splat(0);
        moments(x, C, c, eps, &mean, &inverse);
        for (int64_t i = 0; i < C; i += LANES) {
            vec d = load(dn + i), unit = (widen(x + i) - mean) * inverse, g = d * load(gain + i);
            store(dgain + i, load(dgain + i) + d * unit);
            store(dbias + i, load(dbias + i) + d);
            sum += g;
            product += g * unit;
        }
        sum = splat(reduce_add(sum) / (float)c);
        product = splat(reduce_add(product) / (float)c);
        for (int64_t i = 0; i < C; i += LANES) {
            vec unit = (widen(x + i) - mean) * inverse;
            store(dx + i, load(dx + i) + inverse * (load(dn + i) * load(gain + i) - sum - unit * product));
        }
    }
}

/* ------------------------------------------------------------------------------------------------ attention of one head */

/* Rows of one head as pairs of channels, [dp / 2][n]. */
__attribute__((noinline)) static void transpose_pairs(const uint16_t *in, int64_t ld, int64_t n, int64_t dp, uint32_t *out) {
    for (int64_t i = 0; i < n; i += LANES)
        for (int64_t c = 0; c < dp / 2; c += LANES / 2) {
            __m512i x[LANES];
            UNROLL for (int r = 0; r < LANES; r++)
                x[r] = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(in + (i + r) * ld + 2 * c)));
            turn(x);
            UNROLL for (int r = 0; r < LANES / 2; r++) _mm512_storeu_si512(out + (c + r) * n + i, x[r]);
        }
}

/* Rows of one head, in whole vectors; *ld numbers from row to row. The matrix unit takes them where they are, if they fill vectors. */
static const uint16_t *find_head(const uint16_t *rows, int64_t from, int64_t at, const Packed *p, uint16_t *room, int64_t *ld) {
#ifdef TILES
    if (use_tiles && p->d == p->dp) {
        *ld = from;
        return rows + at;
    }
#endif
    for (int64_t i = 0; i < p->n; i++)
        for (int64_t c = 0; c < p->d; c += LANES) {
            __mmask16 there = lanes_left(p->d - c);
            _mm256_storeu_si256((__m256i *)(room + i * p->dp + c), _mm256_maskz_loadu_epi16(there, rows + i * from + at + c));
        }
    *ld = p->dp;
    return room;
}

static void find_heads(Work *w, const Block *s, const Packed *p, int64_t at, const uint16_t *qkv) {
    w->q = find_head(qkv, p->Q, at, p, w->heads[0], &w->qkv_ld);
    w->k = find_head(qkv, p->Q, at + s->dim, p, w->heads[1], &w->qkv_ld);
    w->v = find_head(qkv, p->Q, at + 2 * s->dim, p, w->heads[2], &w->qkv_ld);
}

/* Bias of query i against key 0; keys follow. */
INLINE int64_t bias_at(int64_t i, int64_t window) { return (i % window * (2 * window - 1) + window - 1 - i / window) * window; }


/* 16 queries from row i on. Rows of scores are blocked by 16 keys, [n / 16][16 rows][16], so that all offsets within a block are
 * constants; so are those along channels where the caller gives constants for dp (channels, padded) and half (pairs of them). */
typedef struct {
    const float *bias[2], *mask[16]; /* bias of the first of 8 rows; that of the next lies bias_step further */
    int64_t bias_step;
} Rows;

INLINE Rows find_rows(const Work *w, const Block *s, const Packed *p, int64_t head, int64_t i) {
    Rows rows = {.bias_step = (2 * s->window - 1) * s->window};
    for (int part = 0; part < 2; part++) { /* bias of a query against key 0; keys follow. 8 queries lie side by side */
        int64_t x = (i + 8 * part) % s->window, y = (i + 8 * part) / s->window;
        rows.bias[part] = p->bias + head * p->bias_size + x * rows.bias_step + (s->window - 1 - y) * s->window;
    }
    for (int r = 0; r < 16; r++) rows.mask[r] = p->masks + (w->kind * 4 + wrapped_class(i + r, s->window, s->shift)) * p->n;
    return rows;
}

INLINE void attend_rows(int masked, int64_t dp, int64_t half, int64_t n, const Rows *rows, vec factor, const Work *w, int64_t i, float *out,
                        float *lse) {
    const uint32_t *q = (const uint32_t *)w->q + i * (dp / 2), *kt = w->kt, *v = w->v_r;
    uint32_t *probabilities = (uint32_t *)w->p_c;
    float *scores = w->scores, inverse[16];
    for (int part = 0; part < 2; part++, q += 8 * (dp / 2)) {
        const float *bias = rows->bias[part];
        int64_t step = rows->bias_step;
        vec top[8];
        UNROLL for (int r = 0; r < 8; r++) top[r] = splat(-INFINITY);
        for (int64_t j = 0; j < n; j += 2 * LANES) {
            vec x[8][2];
            UNROLL for (int r = 0; r < 8; r++) x[r][0] = x[r][1] = splat(0);
            UNROLL for (int64_t c = 0; c < half; c++) {
                __m512i k0 = pairs(kt + c * n + j), k1 = pairs(kt + c * n + j + LANES);
                UNROLL for (int r = 0; r < 8; r++) {
                    __m512i a = pair(q + r * (dp / 2) + c);
                    x[r][0] = dot(x[r][0], a, k0);
                    x[r][1] = dot(x[r][1], a, k1);
                }
            }
            UNROLL for (int r = 0; r < 8; r++) UNROLL for (int h = 0; h < 2; h++) {
                vec y = x[r][h] * factor + load(bias + r * step + j + h * LANES);
                if (masked) y += load(rows->mask[8 * part + r] + j + h * LANES);
                store(scores + j * 8 + (h * 8 + r) * LANES, y);
                top[r] = vmax(top[r], y);
            }
        }
        vec total[8];
        UNROLL for (int r = 0; r < 8; r++) {
            top[r] = splat(reduce_max(top[r]));
            total[r] = splat(0);
        }
        for (int64_t j = 0; j < n; j += LANES) {
            UNROLL for (int r = 0; r < 8; r++) {
                vec e = exp2_fast(load(scores + j * 8 + r * LANES) - top[r]);
                total[r] += e;
                narrow((uint16_t *)(probabilities + j * 8 + (8 * part + r) * 8), e);
            }
        }
        UNROLL for (int r = 0; r < 8; r++) {
            float sum = reduce_add(total[r]);
            inverse[8 * part + r] = 1.0f / sum;
            lse[i + 8 * part + r] = top[r][0] + log2f(sum);
        }
    }
    for (int64_t c = 0; c < dp; c += LANES) {
        vec acc[16];
        UNROLL for (int r = 0; r < 16; r++) acc[r] = splat(0);
        for (int64_t j = 0; j < n; j += LANES)
            UNROLL for (int u = 0; u < LANES / 2; u++) {
                __m512i y = pairs(v + (j / 2 + u) * dp + c);
                UNROLL for (int r = 0; r < 16; r++) acc[r] = dot(acc[r], pair(probabilities + j * 8 + r * 8 + u), y);
            }
        UNROLL for (int r = 0; r < 16; r++) store(out + r * dp + c, acc[r] * splat(inverse[r]));
    }
}

#include "swin_bf16_tiles.h"

/* Rows of a head, float, into rows of bfloat16 of all heads. */
INLINE void join_head(const float *rows, int64_t count, int64_t d, int64_t dp, float factor, uint16_t *to, int64_t ld) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t c = 0; c < d; c += LANES)
            _mm256_mask_storeu_epi16(to + i * ld + c, lanes_left(d - c),
                                     (__m256i)_mm512_cvtneps_pbh((__m512)(load(rows + i * dp + c) * splat(factor))));
}

__attribute__((noinline)) static void attend(Work *w, const Block *s, const Packed *p, int64_t head, const uint16_t *qkv, uint16_t *out,
                                             float *lse) {
    int64_t n = p->n, dp = p->dp, half = p->half, at = head * p->d;
    find_heads(w, s, p, at, qkv);
    transpose_pairs(w->k, w->qkv_ld, n, dp, w->kt);
    pair_rows(w->v, w->qkv_ld, n, dp, w->v_r, NULL);
    vec factor = splat(s->scale * LOG2E);
    for (int64_t i = 0; i < n; i += 16) {
        Rows rows = find_rows(w, s, p, head, i);
#ifdef TILES
        if (use_tiles) {
            if (w->kind) attend_tiles(1, dp, n, &rows, factor, w, i, w->rows_out, lse);
            else attend_tiles(0, dp, n, &rows, factor, w, i, w->rows_out, lse);
        } else
#endif
        if (half != 8) attend_rows(1, dp, half, n, &rows, factor, w, i, w->rows_out, lse);
        else if (w->kind) attend_rows(1, LANES, 8, n, &rows, factor, w, i, w->rows_out, lse);
        else attend_rows(0, LANES, 8, n, &rows, factor, w, i, w->rows_out, lse);
        join_head(w->rows_out, 16, p->d, dp, 1.0f, out + i * p->C + at, p->C);
    }
}

/* out[j][:] += sum over 8 pairs of rows of a[.][j] . b[.][:], for all n rows j; a blocked by 16 j. */
INLINE void add_outer(const uint32_t *a, const uint32_t *b, int64_t n, int64_t dp, float *out) {
    for (int64_t c = 0; c < dp; c += LANES) {
        __m512i y[8];
        UNROLL for (int r = 0; r < 8; r++) y[r] = pairs(b + r * dp + c);
        for (int64_t j = 0; j < n; j += LANES) {
            vec acc[LANES];
            UNROLL for (int u = 0; u < LANES; u++) acc[u] = load(out + (j + u) * dp + c);
            UNROLL for (int r = 0; r < 8; r++) {
                UNROLL for (int u = 0; u < LANES; u++) acc[u] = dot(acc[u], pair(a + j * 8 + r * LANES + u), y[r]);
            }
            UNROLL for (int u = 0; u < LANES; u++) store(out + (j + u) * dp + c, acc[u]);
        }
    }
}

INLINE void attend_rows_backward(int masked, int64_t dp, int64_t half, int64_t n, const Rows *rows, vec factor, const Work *w, int64_t i,
                                 float *dq, const float *lse, int64_t dbias) {
    const uint32_t *q = (const uint32_t *)w->q + i * (dp / 2), *d = (const uint32_t *)w->dout + i * (dp / 2), *kt = w->kt, *vt = w->vt;
    uint32_t *p_r = w->p_r, *g_r = w->g_r, *g_c = (uint32_t *)w->g_c;
    const float *delta = w->delta + i;
    lse += i;
    for (int part = 0; part < 2; part++, q += 8 * (dp / 2), d += 8 * (dp / 2), lse += 8, delta += 8) {
        const float *bias = rows->bias[part];
        int64_t step = rows->bias_step;
        for (int64_t j = 0; j < n; j += LANES) {
            vec x[8], g[8];
            UNROLL for (int r = 0; r < 8; r++) x[r] = g[r] = splat(0);
            UNROLL for (int64_t c = 0; c < half; c++) {
                __m512i k = pairs(kt + c * n + j), v = pairs(vt + c * n + j);
                UNROLL for (int r = 0; r < 8; r++) {
                    x[r] = dot(x[r], pair(q + r * (dp / 2) + c), k);
                    g[r] = dot(g[r], pair(d + r * (dp / 2) + c), v);
                }
            }
            UNROLL for (int r = 0; r < 8; r += 2) {
                UNROLL for (int u = r; u < r + 2; u++) {
                    x[u] = x[u] * factor + (load(bias + u * step + j) - splat(lse[u]));
                    if (masked) x[u] += load(rows->mask[8 * part + u] + j);
                    x[u] = exp2_fast(x[u]);
                    g[u] = x[u] * (g[u] - splat(delta[u]));
                    float *db = (float *)bias + dbias + u * step + j;
                    store(db, load(db) + g[u]);
                }
                __m512i halves;
                _mm512_storeu_si512(p_r + j * 8 + (4 * part + r / 2) * LANES, round_pair(x[r], x[r + 1], &halves));
                _mm512_storeu_si512(g_r + j * 8 + (4 * part + r / 2) * LANES, round_pair(g[r], g[r + 1], &halves));
                _mm512_storeu_si512(g_c + j * 8 + (8 * part + r) * 8, halves);
            }
        }
    }
    for (int64_t c = 0; c < dp; c += LANES) {
        vec acc[16];
        UNROLL for (int r = 0; r < 16; r++) acc[r] = splat(0);
        for (int64_t j = 0; j < n; j += LANES)
            UNROLL for (int u = 0; u < LANES / 2; u++) {
                __m512i y = pairs(w->k_r + (j / 2 + u) * dp + c);
                UNROLL for (int r = 0; r < 16; r++) acc[r] = dot(acc[r], pair(g_c + j * 8 + r * 8 + u), y);
            }
        UNROLL for (int r = 0; r < 16; r++) store(dq + r * dp + c, acc[r]);
    }
    add_outer(p_r, w->dout_r + i / 2 * dp, n, dp, w->dv);
    add_outer(g_r, w->q_r + i / 2 * dp, n, dp, w->dk);
}

__attribute__((noinline)) static void attend_backward(Work *w, const Block *s, const Packed *p, int64_t head, const uint16_t *qkv,
                                                      const uint16_t *out, const float *lse, float *dbias) {
    int64_t n = p->n, dp = p->dp, half = p->half, at = head * p->d;
    find_heads(w, s, p, at, qkv);
    w->dout = find_head(w->d_attended, p->C, at, p, w->heads[3], &w->dout_ld);
    for (int64_t i = 0; i < n; i++) { /* delta = sum of out times its gradient = sum over keys of p dp */
        vec total = splat(0);
        for (int64_t c = 0; c < p->d; c += LANES)
            total += widen_masked(lanes_left(p->d - c), out + i * p->C + at + c) * widen(w->dout + i * w->dout_ld + c);
        w->delta[i] = reduce_add(total);
    }
    transpose_pairs(w->k, w->qkv_ld, n, dp, w->kt);
    transpose_pairs(w->v, w->qkv_ld, n, dp, w->vt);
    pair_rows(w->k, w->qkv_ld, n, dp, w->k_r, NULL);
    memset(w->dk, 0, 4 * (size_t)(n * dp));
    memset(w->dv, 0, 4 * (size_t)(n * dp));
    vec factor = splat(s->scale * LOG2E);
    uint16_t *dq = w->d_qkv + at, *dk = dq + s->dim, *dv = dk + s->dim;
    const float *dk_rows = w->dk, *dv_rows = w->dv;
    int64_t to_dbias = dbias - p->bias;
#ifdef TILES
    if (use_tiles) {
        turn_rows(w->q, w->qkv_ld, n, dp, (uint16_t *)w->q_r, NULL);
        turn_rows(w->dout, w->dout_ld, n, dp, (uint16_t *)w->dout_r, NULL);
        for (int64_t i = 0; i < n; i += 32) {
            Rows rows[2] = {find_rows(w, s, p, head, i), find_rows(w, s, p, head, i + 16)};
            if (w->kind) attend_tiles_backward(1, dp, n, rows, factor, w, i, w->rows_out, lse, to_dbias);
            else attend_tiles_backward(0, dp, n, rows, factor, w, i, w->rows_out, lse, to_dbias);
            join_head(w->rows_out, 32, p->d, dp, s->scale, dq + i * p->Q, p->Q);
        }
        rows_of_squares(w->dk, n, dp, w->turned), rows_of_squares(w->dv, n, dp, w->turned + n * dp);
        dk_rows = w->turned, dv_rows = w->turned + n * dp;
    } else
#endif
    {
        pair_rows(w->q, dp, n, dp, w->q_r, NULL);
        pair_rows(w->dout, dp, n, dp, w->dout_r, NULL);
        for (int64_t i = 0; i < n; i += 16) {
            Rows rows = find_rows(w, s, p, head, i);
            if (half != 8) attend_rows_backward(1, dp, half, n, &rows, factor, w, i, w->rows_out, lse, to_dbias);
            else if (w->kind) attend_rows_backward(1, LANES, 8, n, &rows, factor, w, i, w->rows_out, lse, to_dbias);
            else attend_rows_backward(0, LANES, 8, n, &rows, factor, w, i, w->rows_out, lse, to_dbias);
            join_head(w->rows_out, 16, p->d, dp, s->scale, dq + i * p->Q, p->Q);
        }
    }
    join_head(dk_rows, n, p->d, dp, s->scale, dk, p->Q);
    join_head(dv_rows, n, p->d, dp, 1.0f, dv, p->Q);
}

/* ------------------------------------------------------------------------------------------------ one window, forward */

/* rows (m x in, bfloat16) times a packed matrix. */
#define ROWS_TIMES(rows, in, matrix, outs) \
    .m = t, .n = outs, .k = (in) / 2, .a = (const uint32_t *)(rows), .am = (in) / 2, .ak = 1, .b = matrix, .bk = outs, .ld = outs

/* Pixels of a map of `count` channels, added to rows of ld numbers. */
static void add_rows(const uint16_t *map, const int64_t *token, int64_t rows, int64_t count, uint16_t *to, int64_t ld) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < count; c += LANES)
            narrow(to + i * ld + c, widen(to + i * ld + c) + widen_masked(lanes_left(count - c), map + token[i] * count + c));
}

static void forward_window(Work *w, const Block *s, const Packed *p, const Parameters *par, int64_t index, int64_t slot,
                           const uint16_t *x_map, const uint16_t *e_map, uint16_t *y_map, const Kept *kept) {
    int64_t b = find_tokens(w, s, index), n = p->n, t = p->tile, C = p->C, H = p->H;
    uint16_t *qkv = kept->qkv + slot * n * p->Q, *attended = kept->attended + slot * n * C;
    for (int64_t i = 0; i < n; i += t) {
        gather(x_map, s->x_stride, w->token + i, t, s->dim, w->x, C);
        normalize(w->x, t, C, s->dim, s->eps, p->norm1, p->norm1_bias, w->norm);
        multiply_bf16((Product){ROWS_TIMES(w->norm, C, p->qkv, p->Q), .bias = p->qkv_bias, .o = qkv + i * p->Q});
    }
    for (int64_t head = 0; head < s->heads; head++) attend(w, s, p, head, qkv, attended, kept->lse + (slot * s->heads + head) * n);
    for (int64_t i = 0; i < n; i += t) {
        uint16_t *u = kept->u + (slot * n + i) * C, *hidden = kept->hidden + (slot * n + i) * H;
        uint16_t *v = s->out ? kept->v + (slot * n + i) * C : w->norm;
        gather(x_map, s->x_stride, w->token + i, t, s->dim, w->x, C);
        if (e_map) add_rows(e_map, w->token + i, t, s->dim, w->x, C);
        multiply_residual((Product){ROWS_TIMES(attended + i * C, C, p->proj, C), .bias = p->proj_bias, .o = u, .r = w->x,
                                    .factor = par->branches[2 * b]});
        normalize(u, t, C, s->dim, s->eps, p->norm2, p->norm2_bias, w->norm);
        multiply_gelu((Product){ROWS_TIMES(w->norm, C, p->fc1, H), .bias = p->fc1_bias, .o = hidden, .o2 = w->wide});
        multiply_residual((Product){ROWS_TIMES(w->wide, H, p->fc2, C), .bias = p->fc2_bias, .o = v, .r = u,
                                    .factor = par->branches[2 * b + 1]});
        uint16_t *y = v;
        int64_t Y = C, count = s->dim;
        if (s->out) {
            y = w->norm, Y = p->G, count = s->out; /* not wider than the block */
            if (s->residual) {
                for (int64_t r = 0; r < t; r++) memmove(w->x + r * Y, w->x + r * C, 2 * (size_t)Y);
                multiply_residual((Product){ROWS_TIMES(v, C, p->adjust, Y), .bias = p->adjust_bias, .o = y, .r = w->x, .factor = s->alpha});
            } else
                multiply_leaky((Product){ROWS_TIMES(v, C, p->adjust, Y), .bias = p->adjust_bias, .o = y, .factor = s->slope});
        }
        for (int64_t r = 0; r < t; r++) memcpy(y_map + w->token[i + r] * s->y_stride, y + r * Y, 2 * (size_t)count);
        if (C != s->dim) memset(w->x, 0, 2 * (size_t)(t * C)); /* padding may have moved */
    }
}

/* ------------------------------------------------------------------------------------------------ one window, backward */

/* dw (outs x ins) += the sum over t rows of d^T x; dbias += that of d. */
static void add_weights(const Work *w, int64_t t, const uint16_t *d, int64_t outs, const uint16_t *x, int64_t ins, float *dw, float *dbias) {
    Product p = {.m = outs, .n = ins, .k = t / 2, .a = w->rows_a, .am = 1, .ak = outs, .b = w->rows_b, .bk = ins, .f = dw, .ld = ins};
    pair_rows(x, ins, t, ins, w->rows_b, NULL);
#ifdef TILES
    if (use_tiles) {
        turn_rows(d, outs, t, outs, (uint16_t *)w->rows_a, dbias);
        p.am = t / 2, p.ak = 1;
        multiply_add(p);
        return;
    }
#endif
    pair_rows(d, outs, t, outs, w->rows_a, dbias);
    multiply_add(p);
}

static void scaled(const float *x, float factor, int64_t count, uint16_t *to) {
    for (int64_t i = 0; i < count; i += LANES) narrow(to + i, load(x + i) * splat(factor));
}

static void backward_window(Work *w, const Block *s, const Packed *p, const Parameters *par, int64_t index, const uint16_t *x_map,
                            const uint16_t *y_map, const uint16_t *dy_map, uint16_t *dx_map, uint16_t *de_map, const Kept *kept,
                            const Sums *sums) {
    int64_t b = find_tokens(w, s, index), n = p->n, t = p->tile, C = p->C, H = p->H, G = p->G, Q = p->Q;
    const uint16_t *qkv = kept->qkv + index * n * Q, *attended = kept->attended + index * n * C;
    for (int64_t i = 0; i < n; i += t) {
        const uint16_t *u = kept->u + (index * n + i) * C, *hidden = kept->hidden + (index * n + i) * H;
        float *dx = w->dx + i * C;
        if (s->out) {
            const uint16_t *v = kept->v + (index * n + i) * C;
            for (int64_t r = 0; r < t; r++) {
                uint16_t *d = w->d_small + r * G;
                const uint16_t *dy = dy_map + w->token[i + r] * s->y_stride, *y = y_map + w->token[i + r] * s->y_stride;
                for (int64_t c = 0; c < s->out; c += LANES) {
                    __mmask16 there = lanes_left(s->out - c);
                    vec g = widen_masked(there, dy + c);
                    __mmask16 negative = _mm512_cmp_ps_mask((__m512)widen_masked(there, y + c), _mm512_setzero_ps(), _CMP_LE_OQ);
                    float below = s->residual ? s->alpha : s->slope, above = s->residual ? s->alpha : 1.0f;
                    narrow(d + c, g * (vec)_mm512_mask_blend_ps(negative, _mm512_set1_ps(above), _mm512_set1_ps(below)));
                }
            }
            add_weights(w, t, w->d_small, G, v, C, sums->adjust, sums->adjust_bias);
            multiply_float((Product){ROWS_TIMES(w->d_small, G, p->adjust, C), .f = dx});
        } else
            for (int64_t r = 0; r < t; r++)
                for (int64_t c = 0; c < C; c += LANES)
                    store(dx + r * C + c, widen_masked(lanes_left(s->dim - c), dy_map + w->token[i + r] * s->y_stride + c));
        /* MLP */
        scaled(dx, par->branches[2 * b + 1], t * C, w->d_narrow);
        multiply_gelu_backward((Product){ROWS_TIMES(w->d_narrow, C, p->fc2, H), .o = w->d_wide, .o2 = w->wide, .r = hidden});
        add_weights(w, t, w->d_narrow, C, w->wide, H, sums->fc2, sums->fc2_bias);
        normalize(u, t, C, s->dim, s->eps, p->norm2, p->norm2_bias, w->norm);
        add_weights(w, t, w->d_wide, H, w->norm, C, sums->fc1, sums->fc1_bias);
        multiply_float((Product){ROWS_TIMES(w->d_wide, H, p->fc1, C), .f = w->dn});
        normalize_backward(u, t, C, s->dim, s->eps, p->norm2, w->dn, dx, sums->norm2, sums->norm2_bias);
        if (de_map)
            for (int64_t r = 0; r < t; r++)
                for (int64_t c = 0; c < s->dim; c += LANES)
                    _mm256_mask_storeu_epi16(de_map + w->token[i + r] * s->dim + c, lanes_left(s->dim - c),
                                             (__m256i)_mm512_cvtneps_pbh((__m512)load(dx + r * C + c)));
        /* projection */
        scaled(dx, par->branches[2 * b], t * C, w->d_narrow);
        add_weights(w, t, w->d_narrow, C, attended + i * C, C, sums->proj, sums->proj_bias);
        multiply_bf16((Product){ROWS_TIMES(w->d_narrow, C, p->proj, C), .o = w->d_attended + i * C});
    }
    for (int64_t head = 0; head < s->heads; head++)
        attend_backward(w, s, p, head, qkv, attended, kept->lse + (index * s->heads + head) * n, sums->bias);
    for (int64_t i = 0; i < n; i += t) {
        float *dx = w->dx + i * C;
        gather(x_map, s->x_stride, w->token + i, t, s->dim, w->x, C);
        normalize(w->x, t, C, s->dim, s->eps, p->norm1, p->norm1_bias, w->norm);
        add_weights(w, t, w->d_qkv + i * Q, Q, w->norm, C, sums->qkv, sums->qkv_bias);
        multiply_float((Product){ROWS_TIMES(w->d_qkv + i * Q, Q, p->qkv, C), .f = w->dn});
        normalize_backward(w->x, t, C, s->dim, s->eps, p->norm1, w->dn, dx, sums->norm1, sums->norm1_bias);
        for (int64_t r = 0; r < t; r++) {
            uint16_t *to = dx_map + w->token[i + r] * s->x_stride;
            int64_t c = 0;
            for (; c + LANES <= s->dim; c += LANES) narrow(to + c, widen(to + c) + load(dx + r * C + c));
            for (; c < s->dim; c++) to[c] = to_bf16(from_bf16(to[c]) + dx[r * C + c]);
        }
    }
}
#endif

/* ------------------------------------------------------------------------------------------------ entries */

enum { LEFT_OF_PAIRS = SIDE / 2 }; /* by tiles, since pairs are counted in whole vectors */

/* x and y may be slices of one map (the dense features); e may be NULL. Returns 0, or 1 when memory ran out, or 2 on a processor without the products. */
int drct_swin_bf16_forward(const Block *s, const Parameters *par, const uint16_t *x, const uint16_t *e, uint16_t *y, const Kept *kept) {
#ifdef BF16_PRODUCTS
    Packed p;
    Arena memory = {0};
    pack(&memory, &p, s, par, 0);
    if (!arena_open(&memory)) return 1;
    pack(&memory, &p, s, par, 0);
    int64_t windows = s->batch * (s->height / s->window) * (s->width / s->window);
    int failed = 0;
#pragma omp parallel num_threads(s->threads)
    {
        Work w;
        Arena own = {0};
        unsigned control = take_tiny_for_zero();
        lay_out(&own, &w, &p, 0);
        int opened = arena_open(&own);
        if (all_opened(opened, &failed)) {
            lay_out(&own, &w, &p, 0);
            take_tiles(LEFT_OF_PAIRS);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < windows; i++) forward_window(&w, s, &p, par, i, s->keep ? i : omp_get_thread_num(), x, e, y, kept);
            give_tiles();
        }
        if (opened) free(own.base);
        take_tiny_as_before(control);
    }
    free(memory.base);
    return failed;
#else
    (void)s, (void)par, (void)x, (void)e, (void)y, (void)kept;
    return 2;
#endif
}

/* Adds to dx, whose pixels lie as those of x; dy and y lie alike. Writes de unless it is NULL. sums is (parts, numbers of a Sums), zero on entry: part p takes its
 * share of the windows, so that results do not depend on which thread ran first. */
int drct_swin_bf16_backward(const Block *s, const Parameters *par, const uint16_t *x, const uint16_t *y, const uint16_t *dy, uint16_t *dx,
                            uint16_t *de, const Kept *kept, float *sums, int64_t size) {
#ifdef BF16_PRODUCTS
    Packed p;
    Arena memory = {0};
    pack(&memory, &p, s, par, 1);
    if (!arena_open(&memory)) return 1;
    pack(&memory, &p, s, par, 1);
    int64_t windows = s->batch * (s->height / s->window) * (s->width / s->window);
    int failed = 0;
#pragma omp parallel num_threads(s->threads)
    {
        Work w;
        Arena own = {0};
        unsigned control = take_tiny_for_zero();
        lay_out(&own, &w, &p, 1);
        int opened = arena_open(&own);
        if (all_opened(opened, &failed)) {
            lay_out(&own, &w, &p, 1);
            take_tiles(LEFT_OF_PAIRS);
#pragma omp for schedule(dynamic)
            for (int64_t part = 0; part < s->parts; part++) {
                Sums g;
                float *f = sums + part * size, **to = (float **)&g;
                int64_t C = p.C, counts[] = {C, C, p.Q * C, p.Q, C * C, C, C, C, p.H * C, p.H, C * p.H, C, p.G * C, p.G};
                for (int i = 0; i < 14; i++) to[i] = f, f += counts[i];
                g.bias = f;
                for (int64_t i = windows * part / s->parts; i < windows * (part + 1) / s->parts; i++)
                    backward_window(&w, s, &p, par, i, x, y, dy, dx, de, kept, &g);
            }
            give_tiles();
        }
        if (opened) free(own.base);
        take_tiny_as_before(control);
    }
    free(memory.base);
    return failed;
#else
    (void)s, (void)par, (void)x, (void)y, (void)dy, (void)dx, (void)de, (void)kept, (void)sums, (void)size;
    return 2;
#endif
}
