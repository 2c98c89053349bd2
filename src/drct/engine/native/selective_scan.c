/* The four selective scans of SS2D over channels-last maps, forward and backward, for any CPU that the compiler has vectors for.
 *
 *   h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t,    y_t = C_t . h_t
 *
 * One task is 16 channels of one direction: their 16 states of 16 channels stay in registers along the whole map, and pixels are
 * read in the order of the direction from where they lie, so nothing is transposed or flipped and no state reaches memory.
 * Directions: rows, columns, rows from the end, columns from the end. For training, states are kept every CHUNK pixels.
 *
 * Training takes step sizes that were made before, inference makes them on the way (drct_ss2d_scan).
 *
 * u and dy (B, L, D); delta and ddelta (B, L, 4, D); b and c (B, L, 4, N); a (4, N, D); y and du (B, 4, L, D); L = height * width.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define N 16 /* numbers in the state of a channel */
#define CHUNK 32
#define DIRECTIONS 4
#define LOG2E 1.4426950408889634f

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
    int64_t batch, height, width, dim;
    int32_t threads;
} shape_t;

static inline vec splat(float x) { return (vec){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

static inline ivec splat_int(int32_t x) { return (ivec){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

/* Missing lanes are zero: no step, no input, no gradient. */
static inline vec load(const float *p, int64_t lanes) {
    if (lanes == LANES) return *(const vec *)p;
    vec v = splat(0);
    memcpy(&v, p, 4 * lanes);
    return v;
}
static inline void store(float *p, vec v, int64_t lanes) {
    if (lanes == LANES) *(vec *)p = v;
    else memcpy(p, &v, 4 * lanes);
}
static inline float sum(vec v) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += v[i];
    return s;
}

/* 2^x for x <= 0: integer part into the exponent, the fraction by a polynomial (relative error below 3e-7). */
static inline vec exp2_nonpositive(vec x) {
    ivec low = x < splat(-126.0f);
    x = (vec)(((ivec)x & ~low) | ((ivec)splat(-126.0f) & low));
    vec shifted = x + splat(12582912.0f); /* 1.5 * 2^23: the nearest integer appears in the low mantissa bits */
    vec f = x - (shifted - splat(12582912.0f));
    vec p = splat(1.5403530e-4f);
    p = p * f + splat(1.3333558e-3f);
    p = p * f + splat(9.6181291e-3f);
    p = p * f + splat(5.5504109e-2f);
    p = p * f + splat(2.4022651e-1f);
    p = p * f + splat(6.9314718e-1f);
    p = p * f + splat(1.0f);
    return (vec)((ivec)p + (((ivec)shifted) << 23));
}

/* Pixel that each direction visits at each step: (4, L). */
static int64_t *visiting_order(int64_t height, int64_t width) {
    int64_t length = height * width;
    int64_t *order = malloc(sizeof(int64_t) * DIRECTIONS * length);
    if (!order) return NULL;
    for (int64_t t = 0; t < length; t++) {
        int64_t down = t % height * width + t / height;
        order[t] = order[2 * length + length - 1 - t] = t;
        order[length + t] = order[3 * length + length - 1 - t] = down;
    }
    return order;
}

/* states is NULL or (B, 4, blocks, chunks, N, LANES): what each chunk begins with. Returns 1 when memory is lacking. */
int drct_selective_scan_forward(const shape_t *s, const float *u, const float *delta, const float *a, const float *b,
                                const float *c, float *y, float *states) {
    int64_t length = s->height * s->width, dim = s->dim;
    int64_t blocks = (dim + LANES - 1) / LANES, chunks = (length + CHUNK - 1) / CHUNK;
    int64_t *order = visiting_order(s->height, s->width);
    if (!order) return 1;
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
    for (int64_t task = 0; task < s->batch * DIRECTIONS * blocks; task++) {
        int64_t block = task % blocks, k = task / blocks % DIRECTIONS, i = task / blocks / DIRECTIONS;
        int64_t first = block * LANES, lanes = dim - first < LANES ? dim - first : LANES;
        vec decay[N], h[N];
        for (int n = 0; n < N; n++) {
            decay[n] = load(a + (k * N + n) * dim + first, lanes) * splat(LOG2E);
            h[n] = splat(0);
        }
        for (int64_t t = 0; t < length; t++) {
            if (states && t % CHUNK == 0) memcpy(states + (task * chunks + t / CHUNK) * N * LANES, h, sizeof h);
            int64_t pixel = i * length + order[k * length + t];
            const float *bp = b + (pixel * DIRECTIONS + k) * N, *cp = c + (pixel * DIRECTIONS + k) * N;
            vec step = load(delta + (pixel * DIRECTIONS + k) * dim + first, lanes);
            vec x = step * load(u + pixel * dim + first, lanes);
            vec even = splat(0), odd = splat(0);
#pragma GCC unroll 16
            for (int n = 0; n < N; n += 2) {
                h[n] = exp2_nonpositive(step * decay[n]) * h[n] + x * splat(bp[n]);
                h[n + 1] = exp2_nonpositive(step * decay[n + 1]) * h[n + 1] + x * splat(bp[n + 1]);
                even += h[n] * splat(cp[n]);
                odd += h[n + 1] * splat(cp[n + 1]);
            }
            store(y + ((i * DIRECTIONS + k) * length + order[k * length + t]) * dim + first, even + odd, lanes);
        }
    }
    free(order);
    return 0;
}

/* ln(1 + e^x), as max(x, 0) + ln(1 + e^-|x|); the logarithm is 2 artanh(z / (2 + z)), whose series ends below 1e-8. */
static inline vec softplus(vec x) {
    ivec negative = x < splat(0);
    vec magnitude = (vec)((ivec)x & splat_int(0x7fffffff));
    vec z = exp2_nonpositive(magnitude * splat(-LOG2E));
    vec s = z / (splat(2.0f) + z), square = s * s;
    vec p = splat(2.0f / 13);
    p = p * square + splat(2.0f / 11);
    p = p * square + splat(2.0f / 9);
    p = p * square + splat(2.0f / 7);
    p = p * square + splat(2.0f / 5);
    p = p * square + splat(2.0f / 3);
    p = p * square + splat(2.0f);
    return (vec)((ivec)x & ~negative) + p * s;
}

/* All of SS2D between its x_proj and its norm, without gradients: one task walks 16 channels of an image in all four directions, so
 * that step sizes never reach memory and the directions add up where they meet.
 *
 * u and y (B, L, D); low (B, L, 4, rank + 2 N): rank numbers for the step sizes, then B and C; weight (4, rank, D) and bias (4, D)
 * make the steps before softplus; a (4, N, D); skip (D). */
int drct_ss2d_scan(const shape_t *s, int64_t rank, const float *u, const float *low, const float *weight, const float *bias,
                   const float *a, const float *skip, float *y) {
    int64_t length = s->height * s->width, dim = s->dim, wide = rank + 2 * N;
    int64_t blocks = (dim + LANES - 1) / LANES;
    int64_t *order = visiting_order(s->height, s->width);
    vec *weights = malloc(sizeof(vec) * s->batch * blocks * rank);
    if (!order || !weights) {
        free(order), free(weights);
        return 1;
    }
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
    for (int64_t task = 0; task < s->batch * blocks; task++) {
        int64_t i = task / blocks, first = task % blocks * LANES, lanes = dim - first < LANES ? dim - first : LANES;
        vec *w = weights + task * rank, factor = load(skip + first, lanes);
        for (int k = 0; k < DIRECTIONS; k++) {
            vec decay[N], h[N], start = load(bias + k * dim + first, lanes);
            for (int n = 0; n < N; n++) {
                decay[n] = load(a + (k * N + n) * dim + first, lanes) * splat(LOG2E);
                h[n] = splat(0);
            }
            for (int64_t r = 0; r < rank; r++) w[r] = load(weight + (k * rank + r) * dim + first, lanes);
            for (int64_t t = 0; t < length; t++) {
                int64_t pixel = i * length + order[k * length + t];
                const float *made = low + (pixel * DIRECTIONS + k) * wide, *bp = made + rank, *cp = bp + N;
                vec even = start, odd = splat(0);
                for (int64_t r = 0; r + 1 < rank; r += 2) {
                    even += w[r] * splat(made[r]);
                    odd += w[r + 1] * splat(made[r + 1]);
                }
                if (rank % 2) even += w[rank - 1] * splat(made[rank - 1]);
                vec step = softplus(even + odd), input = load(u + pixel * dim + first, lanes), x = step * input;
                even = factor * input;
                if (k) even = load(y + pixel * dim + first, lanes);
                odd = splat(0);
#pragma GCC unroll 16
                for (int n = 0; n < N; n += 2) {
                    h[n] = exp2_nonpositive(step * decay[n]) * h[n] + x * splat(bp[n]);
                    h[n + 1] = exp2_nonpositive(step * decay[n + 1]) * h[n + 1] + x * splat(bp[n + 1]);
                    even += h[n] * splat(cp[n]);
                    odd += h[n + 1] * splat(cp[n + 1]);
                }
                store(y + pixel * dim + first, even + odd, lanes);
            }
        }
    }
    free(order), free(weights);
    return 0;
}

typedef struct { /* work space of one task */
    vec h[CHUNK + 1][N], decay[CHUNK][N], db[CHUNK][N], dc[CHUNK][N];
} work_t;

/* parts: channels are cut into so many shares, each with its own db and dc of shape (B, L, 4, N); da is (B, 4, N, D). */
int drct_selective_scan_backward(const shape_t *s, const float *u, const float *delta, const float *a, const float *b,
                                 const float *c, const float *states, const float *dy, float *du, float *ddelta, float *da,
                                 float *db, float *dc, int64_t parts) {
    int64_t length = s->height * s->width, dim = s->dim;
    int64_t blocks = (dim + LANES - 1) / LANES, chunks = (length + CHUNK - 1) / CHUNK;
    int64_t *order = visiting_order(s->height, s->width);
    int failed = !order;
    if (failed) return 1;
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
    for (int64_t task = 0; task < s->batch * DIRECTIONS * parts; task++) {
        int64_t part = task % parts, k = task / parts % DIRECTIONS, i = task / parts / DIRECTIONS;
        int64_t begin = blocks * part / parts, end = blocks * (part + 1) / parts;
        work_t *w = malloc(sizeof(work_t));
        vec(*carried)[N] = calloc(end - begin, sizeof *carried), (*sum_a)[N] = calloc(end - begin, sizeof *sum_a);
        if (!w || !carried || !sum_a) {
#pragma omp atomic write
            failed = 1;
            free(w), free(carried), free(sum_a);
            continue;
        }
        for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
            int64_t start = chunk * CHUNK, steps = length - start < CHUNK ? length - start : CHUNK;
            const int64_t *visit = order + k * length + start;
            memset(w->db, 0, sizeof w->db);
            memset(w->dc, 0, sizeof w->dc);
            for (int64_t block = begin; block < end; block++) {
                int64_t first = block * LANES, lanes = dim - first < LANES ? dim - first : LANES;
                vec rate[N], g[N], added_a[N];
                for (int n = 0; n < N; n++) rate[n] = load(a + (k * N + n) * dim + first, lanes);
                memcpy(w->h[0], states + (((i * DIRECTIONS + k) * blocks + block) * chunks + chunk) * N * LANES, sizeof w->h[0]);
                for (int64_t t = 0; t < steps; t++) {
                    int64_t pixel = i * length + visit[t];
                    const float *bp = b + (pixel * DIRECTIONS + k) * N;
                    vec step = load(delta + (pixel * DIRECTIONS + k) * dim + first, lanes);
                    vec x = step * load(u + pixel * dim + first, lanes);
                    vec scaled = step * splat(LOG2E);
                    for (int n = 0; n < N; n++) {
                        vec decay = exp2_nonpositive(scaled * rate[n]);
                        w->decay[t][n] = decay;
                        w->h[t + 1][n] = decay * w->h[t][n] + x * splat(bp[n]);
                    }
                }
                memcpy(g, carried[block - begin], sizeof g);
                memcpy(added_a, sum_a[block - begin], sizeof added_a);
                for (int64_t t = steps - 1; t >= 0; t--) {
                    int64_t pixel = i * length + visit[t];
                    const float *bp = b + (pixel * DIRECTIONS + k) * N, *cp = c + (pixel * DIRECTIONS + k) * N;
                    float *dstep = ddelta + (pixel * DIRECTIONS + k) * dim + first;
                    vec step = load(delta + (pixel * DIRECTIONS + k) * dim + first, lanes);
                    vec input = load(u + pixel * dim + first, lanes), out = load(dy + pixel * dim + first, lanes);
                    vec x = step * input, dx = splat(0), through_a = splat(0);
                    for (int n = 0; n < N; n++) {
                        vec dh = g[n] + splat(cp[n]) * out;
                        w->dc[t][n] += out * w->h[t + 1][n];
                        w->db[t][n] += dh * x;
                        dx += splat(bp[n]) * dh;
                        g[n] = dh * w->decay[t][n];
                        vec exponent = g[n] * w->h[t][n]; /* gradient of delta_t A */
                        added_a[n] += exponent * step;
                        through_a += exponent * rate[n];
                    }
                    store(dstep, through_a + dx * input, lanes);
                    store(du + ((i * DIRECTIONS + k) * length + visit[t]) * dim + first, dx * step, lanes);
                }
                memcpy(carried[block - begin], g, sizeof g);
                memcpy(sum_a[block - begin], added_a, sizeof added_a);
            }
            for (int64_t t = 0; t < steps; t++) {
                int64_t to = (((part * s->batch + i) * length + visit[t]) * DIRECTIONS + k) * N;
                for (int n = 0; n < N; n++) {
                    db[to + n] = sum(w->db[t][n]);
                    dc[to + n] = sum(w->dc[t][n]);
                }
            }
        }
        for (int64_t block = begin; block < end; block++) {
            int64_t first = block * LANES, lanes = dim - first < LANES ? dim - first : LANES;
            for (int n = 0; n < N; n++)
                store(da + ((i * DIRECTIONS + k) * N + n) * dim + first, sum_a[block - begin][n], lanes);
        }
        free(w), free(carried), free(sum_a);
    }
    free(order);
    return failed;
}
