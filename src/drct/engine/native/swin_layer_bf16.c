/* A whole Swin block as in swin_layer.c, with products of bfloat16 pairs summed in float32 (AVX512_BF16). Between the products numbers are
 * float32; what enters one is rounded: normalized rows, queries, keys, values, powers of scores, attention's results, u and the MLP.
 */
#include "attention.h"
#include "linear_bf16.h"

#ifdef BF16_PRODUCTS
#include "swin_layer.h"

/* Where a window's numbers lie while it is worked on. */
typedef struct {
    int64_t n, d, dp, half, heads; /* positions; channels of a head, in whole vectors, pairs of them that are not zero */
    int64_t x_stride, a_stride, f_stride, h_stride, y_stride; /* in numbers */
    uint16_t *normed, *attended, *qkv, *p, *rounded, *z, *h;
    uint32_t *kt, *vr; /* keys: panels of COLUMNS positions, in each pairs of channels; values: pairs of positions */
    float *scores, *u, *y;
    int64_t inputs, count; /* floats of the rows that enter products, which come first, and of all */
} Room;

static uint16_t *take_halves(float **cursor, int64_t count) { return (uint16_t *)take(cursor, (count + 1) / 2); }

static int64_t widest(int64_t a, int64_t b) { return a > b ? a : b; }

static Room furnish(const Layer *layer, float *at) {
    int64_t n = layer->window * layer->window, d = layer->head_dim, dp = whole(d);
    Room r = {.n = n, .d = d, .dp = dp, .half = (d + 1) / 2, .heads = layer->heads};
    r.x_stride = 2 * layer->qkv.in, r.a_stride = widest(whole((layer->heads - 1) * d + dp), 2 * layer->proj.in);
    r.f_stride = whole(layer->dim), r.h_stride = widest(whole(layer->hidden), 2 * layer->last.in), r.y_stride = whole(layer->out);
    float *cursor = at;
    r.normed = take_halves(&cursor, n * r.x_stride), r.attended = take_halves(&cursor, n * r.a_stride);
    r.rounded = take_halves(&cursor, SHARE * 2 * r.x_stride), r.z = take_halves(&cursor, SHARE * r.x_stride);
    r.h = take_halves(&cursor, SHARE * r.h_stride);
    r.inputs = cursor - at;
    r.qkv = take_halves(&cursor, n * 3 * dp), r.p = take_halves(&cursor, BLOCK * n);
    r.kt = (uint32_t *)take(&cursor, n * dp / 2), r.vr = (uint32_t *)take(&cursor, n * dp / 2);
    r.scores = take(&cursor, BLOCK * n);
    r.u = take(&cursor, SHARE * r.f_stride), r.y = take(&cursor, SHARE * r.y_stride);
    r.count = cursor - at;
    return r;
}

/* float32 to bfloat16, and from y + width on what the rounding lost. */
static inline void split_row(const float *x, int64_t count, uint16_t *y, int64_t width) {
    uint16_t *lost = y + width;
    int64_t c = 0;
    for (; c + LANES <= count; c += LANES) {
        narrow(y + c, load(x + c));
        narrow(lost + c, load(x + c) - widen(y + c));
    }
    for (; c < count; c++) y[c] = to_bf16(x[c]), lost[c] = to_bf16(x[c] - from_bf16(y[c]));
}

/* As normalize() of norm.h, into bfloat16. */
static inline void normalize_rounded(const float *x, int64_t dim, const Norm *norm, uint16_t *y) {
    Moments m = moments(x, dim, norm->eps);
    int64_t c = 0;
    for (; c + LANES <= dim; c += LANES)
        narrow(y + c, (load(x + c) - splat(m.mean)) * splat(m.inverse) * load(norm->gain + c) + load(norm->offset + c));
    for (; c < dim; c++) y[c] = to_bf16((x[c] - m.mean) * m.inverse * norm->gain[c] + norm->offset[c]);
}

static void transpose_keys(const uint16_t *keys, int64_t stride, const Room *room) {
    for (int64_t i0 = 0; i0 < room->n; i0 += COLUMNS)
        for (int64_t c = 0; c < room->half; c++)
            UNROLL for (int64_t i = 0; i < COLUMNS; i++)
                memcpy(room->kt + i0 * room->half + c * COLUMNS + i, keys + (i0 + i) * stride + 2 * c, 4);
}

static float longest_rounded(const uint16_t *rows, int64_t stride, const Room *room) {
    float most = 0;
    for (int64_t i = 0; i < room->n; i++) {
        vec sum = splat(0);
        for (int64_t c = 0; c < room->dp; c += LANES) sum += widen(rows + i * stride + c) * widen(rows + i * stride + c);
        float square = reduce_add(sum);
        if (square > most) most = square; /* NaN stands back, as in attention.h */
    }
    return sqrtf(most);
}

/* Powers of the scores of BLOCK queries into room->p and the reciprocals of their sums, as softmax_rows() of attention.h; that some
 * arguments are constants where it is called makes it fast. */
INLINE void softmax_pairs(const Room *room, int near, int masked, int64_t n, int64_t half, const uint32_t *q, const float *const *biases,
                          int64_t step, const float *const *masks, float *inverse) {
    int64_t q_stride = 3 * room->dp / 2;
    vec total[BLOCK], top[BLOCK];
    for (int r = 0; r < BLOCK; r++) total[r] = splat(0), top[r] = splat(-INFINITY);
    for (int64_t j = 0; j < n; j += COLUMNS)
        for (int r0 = 0; r0 < BLOCK; r0 += ROWS) {
            const float *bias = biases[r0 / ROWS] + j;
            vec acc[ROWS][2];
            UNROLL for (int r = 0; r < ROWS; r++)
                UNROLL for (int v = 0; v < 2; v++) {
                    acc[r][v] = load(bias + r * step + v * LANES);
                    if (masked) acc[r][v] += load(masks[r0 + r] + j + v * LANES);
                }
            const uint32_t *keys = room->kt + j * half, *queries = q + r0 * q_stride;
            for (int64_t c = 0; c < half; c++) {
                __m512i k0 = pairs(keys + c * COLUMNS), k1 = pairs(keys + c * COLUMNS + LANES);
                UNROLL for (int r = 0; r < ROWS; r++) {
                    __m512i x = pair(queries + r * q_stride + c);
                    acc[r][0] = dot(acc[r][0], x, k0), acc[r][1] = dot(acc[r][1], x, k1);
                }
            }
            UNROLL for (int r = 0; r < ROWS; r++) {
                if (near) {
                    acc[r][0] = exp2_short(acc[r][0]), acc[r][1] = exp2_short(acc[r][1]);
                    total[r0 + r] += acc[r][0] + acc[r][1];
                    _mm512_storeu_si512(room->p + (r0 + r) * n + j,
                                        (__m512i)_mm512_cvtne2ps_pbh((__m512)acc[r][1], (__m512)acc[r][0]));
                } else {
                    top[r0 + r] = vmax(top[r0 + r], vmax(acc[r][0], acc[r][1]));
                    store(room->scores + (r0 + r) * n + j, acc[r][0]), store(room->scores + (r0 + r) * n + j + LANES, acc[r][1]);
                }
            }
        }
    for (int r = 0; r < BLOCK; r++) {
        if (!near) {
            vec highest = splat(reduce_max(top[r]));
            for (int64_t j = 0; j < n; j += LANES) {
                vec e = exp2_short(load(room->scores + r * n + j) - highest);
                total[r] += e;
                narrow(room->p + r * n + j, e);
            }
        }
        inverse[r] = 1.0f / reduce_add(total[r]);
    }
}

/* Columns c to c + vectors * LANES of BLOCK rows of attention's results. */
INLINE void weigh_values(int rows, int vectors, int64_t n, const Room *room, int64_t c, const float *inverse, uint16_t *to) {
    for (int r0 = 0; r0 < BLOCK; r0 += rows) {
        const uint32_t *p = (const uint32_t *)room->p + r0 * n / 2, *values = room->vr + c;
        vec acc[BLOCK][2];
        UNROLL for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = splat(0);
        for (int64_t j = 0; j < n / 2; j++, values += room->dp) {
            __m512i v0 = pairs(values), v1 = pairs(values + (vectors - 1) * LANES);
            UNROLL for (int r = 0; r < rows; r++) {
                __m512i x = pair(p + r * n / 2 + j);
                acc[r][0] = dot(acc[r][0], x, v0);
                if (vectors == 2) acc[r][1] = dot(acc[r][1], x, v1);
            }
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vectors; v++)
                narrow(to + (r0 + r) * room->a_stride + c + v * LANES, acc[r][v] * splat(inverse[r0 + r]));
    }
}

#ifdef TILES
/* Scores of BLOCK queries without bias, in squares of 16 keys. */
INLINE void tile_scores(const Room *room, int64_t n, int64_t half, const uint32_t *q) {
    int64_t ld = 3 * room->dp / 2;
    for (int64_t j = 0; j < n; j += 4 * SIDE) {
        const uint32_t *keys = room->kt + j * half, *queries = q;
        int64_t c = 0;
        TILE_ZERO(0); TILE_ZERO(1); TILE_ZERO(2); TILE_ZERO(3);
#define PRODUCTS(left, right) \
    TILE_LOAD(left, queries, ld); \
    TILE_LOAD(right, keys, COLUMNS); TILE_PRODUCT(0, left, right); \
    TILE_LOAD(right, keys + SIDE, COLUMNS); TILE_PRODUCT(1, left, right); \
    TILE_LOAD(right, keys + half * COLUMNS, COLUMNS); TILE_PRODUCT(2, left, right); \
    TILE_LOAD(right, keys + half * COLUMNS + SIDE, COLUMNS); TILE_PRODUCT(3, left, right)
        for (; c + SIDE <= half; c += SIDE, queries += SIDE, keys += SIDE * COLUMNS) { PRODUCTS(LEFT, RIGHT); }
        if (c < half) { PRODUCTS(LEFT_REST, RIGHT_REST); }
#undef PRODUCTS
        float *to = room->scores + j * SIDE;
        TILE_STORE(0, to, SIDE); TILE_STORE(1, to + 256, SIDE); TILE_STORE(2, to + 512, SIDE); TILE_STORE(3, to + 768, SIDE);
    }
}

/* As softmax_pairs(), but powers lie in blocks of 32 keys. */
INLINE void softmax_tiles(const Room *room, int near, int masked, int64_t n, const float *const *biases, int64_t step,
                          const float *const *masks, float *inverse) {
    for (int r0 = 0; r0 < BLOCK; r0 += ROWS) {
        const float *bias = biases[r0 / ROWS];
        vec total[ROWS], top[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) total[r] = top[r] = splat(0);
        if (!near) {
            UNROLL for (int r = 0; r < ROWS; r++) top[r] = splat(-INFINITY);
            for (int64_t j = 0; j < n; j += LANES)
                UNROLL for (int r = 0; r < ROWS; r++) {
                    vec score = load(room->scores + j * SIDE + (r0 + r) * SIDE) + load(bias + r * step + j);
                    if (masked) score += load(masks[r0 + r] + j);
                    top[r] = vmax(top[r], score);
                }
            UNROLL for (int r = 0; r < ROWS; r++) top[r] = splat(reduce_max(top[r]));
        }
        for (int64_t j = 0; j < n; j += COLUMNS)
            UNROLL for (int r = 0; r < ROWS; r++) {
                vec e[2];
                UNROLL for (int v = 0; v < 2; v++) {
                    int64_t key = j + v * LANES;
                    e[v] = load(room->scores + key * SIDE + (r0 + r) * SIDE) + load(bias + r * step + key);
                    if (masked) e[v] += load(masks[r0 + r] + key);
                    e[v] = exp2_short(e[v] - top[r]); /* 0 where near */
                }
                total[r] += e[0] + e[1];
                _mm512_storeu_si512(room->p + j * BLOCK + (r0 + r) * COLUMNS, (__m512i)_mm512_cvtne2ps_pbh((__m512)e[1], (__m512)e[0]));
            }
        UNROLL for (int r = 0; r < ROWS; r++) inverse[r0 + r] = 1.0f / reduce_add(total[r]);
    }
}

/* BLOCK rows of attention's results. */
INLINE void weigh_tiles(int64_t n, const Room *room, const float *inverse, uint16_t *to) {
    float squares[4][SIDE * SIDE] __attribute__((aligned(64)));
    for (int64_t c = 0; c < room->dp; c += SIDE) {
        weigh_squares((const uint32_t *)room->p, room->vr + c, n, room->dp, squares);
        UNROLL for (int r = 0; r < BLOCK; r++) narrow(to + r * room->a_stride + c, add_squares(squares, r) * splat(inverse[r]));
    }
}
#endif

/* One head of one window: to its columns of room->attended and, up to whole vectors, to those of the next. */
INLINE void attend_head(const Layer *layer, const Room *room, int64_t n, int64_t half, int64_t head, int kind) {
    int64_t dp = room->dp, stride = 3 * dp;
    Matrix qkv = layer->qkv;
    qkv.out = stride, qkv.weight += head * stride * qkv.in, qkv.bias += head * stride;
    Rows normed = {(const uint32_t *)room->normed, room->x_stride / 2};
    linear(n, normed, &qkv, normed, NULL, ROUND, room->qkv, stride);
    transpose_keys(room->qkv + dp, stride, room);
    pair_rows(room->qkv + 2 * dp, stride, n, dp, room->vr, NULL);
    const Shape shape = {.window = layer->window, .short_bias = 1};
    int64_t step = bias_step(&shape);
    float most = longest_rounded(room->qkv, stride, room) * longest_rounded(room->qkv + dp, stride, room);
    int near = near_zero(most, layer->ranges + head);
    for (int64_t i = 0; i < n; i += BLOCK) {
        float inverse[BLOCK];
        const float *biases[BLOCK / ROWS], *masks[BLOCK];
        const uint32_t *q = (const uint32_t *)(room->qkv + i * stride);
        for (int r = 0; r < BLOCK; r++)
            masks[r] = layer->masks + (kind * 4 + (kind ? wrapped_class(i + r, (int)layer->window, (int)layer->shift) : 0)) * n;
        for (int r = 0; r < BLOCK; r += ROWS) biases[r / ROWS] = layer->bias + head * bias_size(&shape) + bias_at(&shape, (int)i + r);
        uint16_t *to = room->attended + i * room->a_stride + head * room->d;
#ifdef TILES
        if (use_tiles) {
            tile_scores(room, n, half, q);
            if (near && !kind) softmax_tiles(room, 1, 0, n, biases, step, masks, inverse);
            else if (near) softmax_tiles(room, 1, 1, n, biases, step, masks, inverse);
            else softmax_tiles(room, 0, 1, n, biases, step, masks, inverse);
            weigh_tiles(n, room, inverse, to);
            continue;
        }
#endif
        if (near && !kind) softmax_pairs(room, 1, 0, n, half, q, biases, step, masks, inverse);
        else if (near) softmax_pairs(room, 1, 1, n, half, q, biases, step, masks, inverse);
        else softmax_pairs(room, 0, 1, n, half, q, biases, step, masks, inverse);
        int64_t c = 0;
        for (; c + COLUMNS <= dp; c += COLUMNS) weigh_values(ROWS, 2, n, room, c, inverse, to);
        if (c < dp) weigh_values(BLOCK, 1, n, room, c, inverse, to);
    }
}

static __attribute__((noinline)) void attend_light(const Layer *layer, const Room *room, int64_t head, int kind) {
    attend_head(layer, room, 256, 8, head, kind);
}
static __attribute__((noinline)) void attend_published(const Layer *layer, const Room *room, int64_t head, int kind) {
    attend_head(layer, room, 256, room->half, head, kind);
}
static __attribute__((noinline)) void attend_any(const Layer *layer, const Room *room, int64_t head, int kind) {
    attend_head(layer, room, room->n, room->half, head, kind);
}

int64_t drct_swin_layer_bf16_room(const Layer *layer) { return furnish(layer, NULL).count; }

/* Runs windows 0 to `windows` of the maps, in a room of drct_swin_layer_bf16_room floats. */
void drct_swin_layer_bf16(const Layer *layer, const Maps *maps, int64_t windows, float *floats) {
    Room room = furnish(layer, floats);
    int64_t n = room.n, dim = layer->dim;
    int folded = layer->residual.weight != NULL;
    float *result = folded ? room.y : room.u;
    int64_t stride = folded ? room.y_stride : room.f_stride;
    Rows none = {NULL, 0}, of_u = {(uint32_t *)room.rounded, room.x_stride}, of_z = {(uint32_t *)room.z, room.x_stride / 2},
         of_h = {(uint32_t *)room.h, room.h_stride / 2};
    unsigned control = take_tiny_for_zero();
    memset(floats, 0, sizeof(float) * (size_t)room.inputs); /* products read columns beyond those that are written */
    memset(room.u, 0, sizeof(float) * SHARE * room.f_stride); /* columns beyond dim are added to and never read */
    take_tiles(room.half % SIDE);
    for (int64_t window = 0; window < windows; window++) {
#define ROW(i) (maps->order ? maps->order[window * n + (i)] : window * n + (i))
        for (int64_t i = 0; i < n; i++) {
            uint16_t *to = room.normed + i * room.x_stride;
            if (maps->normed) memcpy(to, (const uint16_t *)maps->normed + ROW(i) * maps->normed_stride, 2 * (size_t)dim);
            else
                normalize_rounded(maps->source + ROW(i) * maps->source_stride, dim, &layer->norm1, to);
        }
        int kind = maps->kinds ? maps->kinds[window] : 0;
        for (int64_t head = 0; head < layer->heads; head++)
            (n != 256 ? attend_any : room.half == 8 ? attend_light : attend_published)(layer, &room, head, kind);
        for (int64_t i = 0; i < n; i += SHARE) {
            int64_t rows = n - i < SHARE ? n - i : SHARE;
            Rows of_attended = {(uint32_t *)(room.attended + i * room.a_stride), room.a_stride / 2};
            for (int64_t r = 0; r < rows; r++)
                memcpy(room.u + r * room.f_stride, maps->source + ROW(i + r) * maps->source_stride, sizeof(float) * dim);
            linear(rows, of_attended, &layer->proj, none, NULL, ADD, room.u, room.f_stride);
            for (int64_t r = 0; r < rows; r++) {
                const float *u = room.u + r * room.f_stride;
                normalize_rounded(u, dim, &layer->norm2, room.z + r * room.x_stride);
                if (folded) split_row(u, dim, room.rounded + r * 2 * room.x_stride, room.x_stride);
            }
            linear(rows, of_z, &layer->fc1, none, NULL, GELU, room.h, room.h_stride);
            linear(rows, of_h, &layer->last, of_u, folded ? &layer->residual : NULL, folded ? SET : ADD, result, stride);
            for (int64_t r = 0; r < rows; r++)
                write_row(layer, result + r * stride, maps->target + ROW(i + r) * maps->target_stride, maps->add);
        }
#undef ROW
    }
    give_tiles();
    take_tiny_as_before(control);
}
#endif
