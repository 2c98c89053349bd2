/* The four selective scans of SS2D over channels-last maps, forward and backward, for any CPU that the compiler has vectors for.
 *
 *   h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t,    y_t = C_t . h_t
 *
 * One task is 16 channels of an image, forward in all directions, which add up where they meet: their 16 states stay at hand along
 * the whole map, and pixels are read in the order of the direction from where they lie, so nothing is transposed or flipped and no
 * state goes further than the first cache.
 * Directions: rows, columns, rows from the end, columns from the end. For training, states are kept every CHUNK pixels.
 *
 * Training takes step sizes that were made before, inference makes them on the way (drct_ss2d_scan).
 *
 * u and dy (B, L, D); delta and ddelta (B, L, 4, D); b and c (B, L, 4, N); a (4, N, D); y (B, L, D); du (B, 4, L, D); L = height * width.
 */
#include "simd.h"

#define N 16 /* numbers in the state of a channel */
#define WIDE 16 /* channels of a task: a whole line of the cache, so that none is fetched twice */
#define VECTORS (WIDE / LANES)
#define CHUNK 32
#define AHEAD 6 /* steps between the fetching of a pixel and its use: columns of a map lie far apart */
#define DIRECTIONS 4
#define EACH(v) for (int v = 0; v < VECTORS; v++)

typedef struct {
    int64_t batch, height, width, dim;
    int32_t threads;
} shape_t;

typedef struct { /* one number of each channel of a task */
    vec v[VECTORS];
} wide;

/* Missing channels are zero: no step, no input, no gradient. */
static inline wide load_wide(const float *p, int64_t channels) {
    wide x;
    if (channels == WIDE) EACH(v) x.v[v] = load(p + v * LANES);
    else {
        EACH(v) x.v[v] = splat(0);
        memcpy(&x, p, 4 * channels);
    }
    return x;
}
static inline void store_wide(float *p, const wide *x, int64_t channels) {
    if (channels == WIDE) EACH(v) store(p + v * LANES, x->v[v]);
    else memcpy(p, x, 4 * channels);
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

/* One step of all states of a task: h = exp(step decay) h + x B, and C . h is added to y. */
static inline __attribute__((always_inline)) void advance(wide h[N], const wide decay[N], const wide *step, const wide *x, const float *b,
                                                          const float *c, wide *y) {
    wide odd;
    EACH(v) odd.v[v] = splat(0);
#pragma GCC unroll 1
    for (int n = 0; n < N; n += 2) {
        vec b0 = splat(b[n]), c0 = splat(c[n]), b1 = splat(b[n + 1]), c1 = splat(c[n + 1]);
        EACH(v) {
            h[n].v[v] = exp2_below_127(step->v[v] * decay[n].v[v]) * h[n].v[v] + x->v[v] * b0;
            y->v[v] += h[n].v[v] * c0;
            h[n + 1].v[v] = exp2_below_127(step->v[v] * decay[n + 1].v[v]) * h[n + 1].v[v] + x->v[v] * b1;
            odd.v[v] += h[n + 1].v[v] * c1;
        }
    }
    EACH(v) y->v[v] += odd.v[v];
}

/* states is NULL or (B, 4, blocks, chunks, N, WIDE): what each chunk begins with. Returns 1 when memory is lacking. */
int drct_selective_scan_forward(const shape_t *s, const float *u, const float *delta, const float *a, const float *b,
                                const float *c, float *y, float *states) {
    int64_t length = s->height * s->width, dim = s->dim;
    int64_t blocks = (dim + WIDE - 1) / WIDE, chunks = (length + CHUNK - 1) / CHUNK;
    int64_t *order = visiting_order(s->height, s->width);
    if (!order) return 1;
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
    for (int64_t task = 0; task < s->batch * blocks; task++) {
        unsigned control = take_tiny_for_zero();
        int64_t i = task / blocks, block = task % blocks, first = block * WIDE;
        int64_t channels = dim - first < WIDE ? dim - first : WIDE;
        for (int k = 0; k < DIRECTIONS; k++) {
            const int64_t *visit = order + k * length;
            float *keep = states ? states + ((i * DIRECTIONS + k) * blocks + block) * chunks * N * WIDE : NULL;
            wide decay[N], h[N];
            for (int n = 0; n < N; n++) {
                decay[n] = load_wide(a + (k * N + n) * dim + first, channels);
                EACH(v) decay[n].v[v] *= splat(LOG2E);
                EACH(v) h[n].v[v] = splat(0);
            }
            for (int64_t t = 0; t < length; t++) {
                if (keep && t % CHUNK == 0) memcpy(keep + t / CHUNK * N * WIDE, h, sizeof h);
                int64_t pixel = i * length + visit[t], later = i * length + visit[t + AHEAD < length ? t + AHEAD : t];
                __builtin_prefetch(delta + (later * DIRECTIONS + k) * dim + first);
                __builtin_prefetch(u + later * dim + first);
                __builtin_prefetch(y + later * dim + first, 1);
                wide step = load_wide(delta + (pixel * DIRECTIONS + k) * dim + first, channels);
                wide x = load_wide(u + pixel * dim + first, channels), out;
                EACH(v) x.v[v] *= step.v[v];
                if (k) out = load_wide(y + pixel * dim + first, channels);
                else EACH(v) out.v[v] = splat(0);
                advance(h, decay, &step, &x, b + (pixel * DIRECTIONS + k) * N, c + (pixel * DIRECTIONS + k) * N, &out);
                store_wide(y + pixel * dim + first, &out, channels);
            }
        }
        take_tiny_as_before(control);
    }
    free(order);
    return 0;
}

/* ln(1 + e^x), as max(x, 0) + ln(1 + e^-|x|); the logarithm is 2 artanh(z / (2 + z)), whose series ends below 1e-8. */
static inline vec softplus(vec x) {
    vec positive = vmax(x, splat(0)), magnitude = vmax(x, -x);
    vec z = exp2_below_127(magnitude * splat(-LOG2E));
    vec s = z / (splat(2.0f) + z), square = s * s;
    vec p = splat(2.0f / 13);
    p = p * square + splat(2.0f / 11);
    p = p * square + splat(2.0f / 9);
    p = p * square + splat(2.0f / 7);
    p = p * square + splat(2.0f / 5);
    p = p * square + splat(2.0f / 3);
    p = p * square + splat(2.0f);
    return positive + p * s;
}

/* All of SS2D between its x_proj and its norm, without gradients: one task walks its channels of an image in all four directions, so
 * that step sizes never reach memory and the directions add up where they meet.
 *
 * u and y (B, L, D); low (B, L, 4, rank + 2 N): rank numbers for the step sizes, then B and C; weight (4, rank, D) and bias (4, D)
 * make the steps before softplus; a (4, N, D); skip (D). */
int drct_ss2d_scan(const shape_t *s, int64_t rank, const float *u, const float *low, const float *weight, const float *bias,
                   const float *a, const float *skip, float *y) {
    int64_t length = s->height * s->width, dim = s->dim, made_size = rank + 2 * N;
    int64_t blocks = (dim + WIDE - 1) / WIDE;
    int64_t *order = visiting_order(s->height, s->width);
    wide *weights = malloc(sizeof(wide) * s->batch * blocks * rank);
    if (!order || !weights) {
        free(order), free(weights);
        return 1;
    }
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
    for (int64_t task = 0; task < s->batch * blocks; task++) {
        unsigned control = take_tiny_for_zero();
        int64_t i = task / blocks, first = task % blocks * WIDE, channels = dim - first < WIDE ? dim - first : WIDE;
        wide *w = weights + task * rank, factor = load_wide(skip + first, channels);
        for (int k = 0; k < DIRECTIONS; k++) {
            const int64_t *visit = order + k * length;
            wide decay[N], h[N], start = load_wide(bias + k * dim + first, channels);
            for (int n = 0; n < N; n++) {
                decay[n] = load_wide(a + (k * N + n) * dim + first, channels);
                EACH(v) decay[n].v[v] *= splat(LOG2E);
                EACH(v) h[n].v[v] = splat(0);
            }
            for (int64_t r = 0; r < rank; r++) w[r] = load_wide(weight + (k * rank + r) * dim + first, channels);
            for (int64_t t = 0; t < length; t++) {
                int64_t pixel = i * length + visit[t], later = i * length + visit[t + AHEAD < length ? t + AHEAD : t];
                __builtin_prefetch(u + later * dim + first);
                __builtin_prefetch(y + later * dim + first, 1);
                __builtin_prefetch(low + (later * DIRECTIONS + k) * made_size);
                __builtin_prefetch(low + (later * DIRECTIONS + k) * made_size + 16);
                const float *made = low + (pixel * DIRECTIONS + k) * made_size, *bp = made + rank, *cp = bp + N;
                wide step = start, odd, x = load_wide(u + pixel * dim + first, channels), out;
                EACH(v) odd.v[v] = splat(0);
                for (int64_t r = 0; r + 1 < rank; r += 2) {
                    vec even_made = splat(made[r]), odd_made = splat(made[r + 1]);
                    EACH(v) step.v[v] += w[r].v[v] * even_made;
                    EACH(v) odd.v[v] += w[r + 1].v[v] * odd_made;
                }
                if (rank % 2) EACH(v) step.v[v] += w[rank - 1].v[v] * splat(made[rank - 1]);
                EACH(v) step.v[v] = softplus(step.v[v] + odd.v[v]);
                if (k) out = load_wide(y + pixel * dim + first, channels);
                else EACH(v) out.v[v] = factor.v[v] * x.v[v];
                EACH(v) x.v[v] *= step.v[v];
                advance(h, decay, &step, &x, bp, cp, &out);
                store_wide(y + pixel * dim + first, &out, channels);
            }
        }
        take_tiny_as_before(control);
    }
    free(order), free(weights);
    return 0;
}

typedef struct { /* work space of one task */
    wide h[CHUNK + 1][N], decay[CHUNK][N];
    vec db[CHUNK][N], dc[CHUNK][N]; /* summed over the vectors of a task at once, over their lanes at the end */
} work_t;

/* parts: channels are cut into so many shares, each with its own db and dc of shape (B, L, 4, N); da is (B, 4, N, D). */
int drct_selective_scan_backward(const shape_t *s, const float *u, const float *delta, const float *a, const float *b,
                                 const float *c, const float *states, const float *dy, float *du, float *ddelta, float *da,
                                 float *db, float *dc, int64_t parts) {
    int64_t length = s->height * s->width, dim = s->dim;
    int64_t blocks = (dim + WIDE - 1) / WIDE, chunks = (length + CHUNK - 1) / CHUNK;
    int64_t *order = visiting_order(s->height, s->width);
    int failed = !order;
    if (failed) return 1;
#pragma omp parallel for num_threads(s->threads) schedule(dynamic)
    for (int64_t task = 0; task < s->batch * DIRECTIONS * parts; task++) {
        unsigned control = take_tiny_for_zero();
        int64_t part = task % parts, k = task / parts % DIRECTIONS, i = task / parts / DIRECTIONS;
        int64_t begin = blocks * part / parts, end = blocks * (part + 1) / parts;
        work_t *w = malloc(sizeof(work_t));
        wide(*carried)[N] = calloc(end - begin, sizeof *carried), (*sum_a)[N] = calloc(end - begin, sizeof *sum_a);
        if (!w || !carried || !sum_a) {
#pragma omp atomic write
            failed = 1;
            free(w), free(carried), free(sum_a);
            take_tiny_as_before(control);
            continue;
        }
        for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
            int64_t start = chunk * CHUNK, steps = length - start < CHUNK ? length - start : CHUNK;
            const int64_t *visit = order + k * length + start;
            memset(w->db, 0, sizeof w->db);
            memset(w->dc, 0, sizeof w->dc);
            for (int64_t block = begin; block < end; block++) {
                int64_t first = block * WIDE, channels = dim - first < WIDE ? dim - first : WIDE;
                wide rate[N], g[N], added_a[N];
                for (int n = 0; n < N; n++) rate[n] = load_wide(a + (k * N + n) * dim + first, channels);
                memcpy(w->h[0], states + (((i * DIRECTIONS + k) * blocks + block) * chunks + chunk) * N * WIDE, sizeof w->h[0]);
                for (int64_t t = 0; t < steps; t++) {
                    int64_t pixel = i * length + visit[t], later = i * length + visit[t + AHEAD < steps ? t + AHEAD : t];
                    __builtin_prefetch(delta + (later * DIRECTIONS + k) * dim + first);
                    __builtin_prefetch(u + later * dim + first);
                    __builtin_prefetch(dy + later * dim + first);
                    const float *bp = b + (pixel * DIRECTIONS + k) * N;
                    wide step = load_wide(delta + (pixel * DIRECTIONS + k) * dim + first, channels);
                    wide x = load_wide(u + pixel * dim + first, channels);
                    EACH(v) x.v[v] *= step.v[v];
                    EACH(v) step.v[v] *= splat(LOG2E);
#pragma GCC unroll 1
                    for (int n = 0; n < N; n++) {
                        vec factor = splat(bp[n]);
                        EACH(v) {
                            vec decay = exp2_below_127(step.v[v] * rate[n].v[v]);
                            w->decay[t][n].v[v] = decay;
                            w->h[t + 1][n].v[v] = decay * w->h[t][n].v[v] + x.v[v] * factor;
                        }
                    }
                }
                memcpy(g, carried[block - begin], sizeof g);
                memcpy(added_a, sum_a[block - begin], sizeof added_a);
                for (int64_t t = steps - 1; t >= 0; t--) {
                    int64_t pixel = i * length + visit[t];
                    const float *bp = b + (pixel * DIRECTIONS + k) * N, *cp = c + (pixel * DIRECTIONS + k) * N;
                    wide step = load_wide(delta + (pixel * DIRECTIONS + k) * dim + first, channels);
                    wide input = load_wide(u + pixel * dim + first, channels), out = load_wide(dy + pixel * dim + first, channels);
                    wide x, dx, through_a;
                    EACH(v) x.v[v] = step.v[v] * input.v[v];
                    EACH(v) dx.v[v] = through_a.v[v] = splat(0);
#pragma GCC unroll 1
                    for (int n = 0; n < N; n++) {
                        vec bn = splat(bp[n]), cn = splat(cp[n]), db_n = w->db[t][n], dc_n = w->dc[t][n];
                        EACH(v) {
                            vec dh = g[n].v[v] + cn * out.v[v];
                            dc_n += out.v[v] * w->h[t + 1][n].v[v];
                            db_n += dh * x.v[v];
                            dx.v[v] += bn * dh;
                            g[n].v[v] = dh * w->decay[t][n].v[v];
                            vec exponent = g[n].v[v] * w->h[t][n].v[v]; /* gradient of delta_t A */
                            added_a[n].v[v] += exponent * step.v[v];
                            through_a.v[v] += exponent * rate[n].v[v];
                        }
                        w->db[t][n] = db_n;
                        w->dc[t][n] = dc_n;
                    }
                    EACH(v) through_a.v[v] += dx.v[v] * input.v[v];
                    EACH(v) dx.v[v] *= step.v[v];
                    store_wide(ddelta + (pixel * DIRECTIONS + k) * dim + first, &through_a, channels);
                    store_wide(du + ((i * DIRECTIONS + k) * length + visit[t]) * dim + first, &dx, channels);
                }
                memcpy(carried[block - begin], g, sizeof g);
                memcpy(sum_a[block - begin], added_a, sizeof added_a);
            }
            for (int64_t t = 0; t < steps; t++) {
                int64_t to = (((part * s->batch + i) * length + visit[t]) * DIRECTIONS + k) * N;
                for (int n = 0; n < N; n++) {
                    db[to + n] = reduce_add(w->db[t][n]);
                    dc[to + n] = reduce_add(w->dc[t][n]);
                }
            }
        }
        for (int64_t block = begin; block < end; block++) {
            int64_t first = block * WIDE, channels = dim - first < WIDE ? dim - first : WIDE;
            for (int n = 0; n < N; n++) store_wide(da + ((i * DIRECTIONS + k) * N + n) * dim + first, &sum_a[block - begin][n], channels);
        }
        free(w), free(carried), free(sum_a);
        take_tiny_as_before(control);
    }
    free(order);
    return failed;
}
