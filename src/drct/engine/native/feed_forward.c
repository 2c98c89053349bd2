/* The second half of a Swin block on float32 rows, with the linear layer behind it in DRCT, forward and backward, for training.
 *
 *   y = u residual + residual_bias + s (gelu(norm(u) fc1 + fc1_bias) last + last_bias)
 *
 * s is a factor of each sample, that of stochastic depth. A share of rows runs through all of it while it is in the second cache; what
 * gelu is given is kept for backward, the rest is computed anew from it and from u.
 */
#include "norm.h"
#include "outer.h"

#define SHARE_BACK (2 * SHARE) /* rows of backward, where every share adds to the gradients of all weights */

typedef struct {
    int64_t batch, rows, dim, hidden, out; /* rows of one sample */
    int32_t threads;
} Sizes;

/* Weights as torch has them, (outputs, inputs); biases may be NULL. Without `residual` u itself is added: out is dim then. */
typedef struct {
    Norm norm;
    const float *fc1, *fc1_bias, *residual, *residual_bias, *last, *last_bias;
    const float *factors; /* of each sample; NULL: 1 */
} Layer;

/* Sums over the rows of one part; rows as wide as row_stride() says, their last numbers without meaning. Without `fc1` only that of the
 * input is wanted, and nothing but `gain` and `offset` is there to be written. */
typedef struct {
    float *gain, *offset; /* (parts, dim) */
    float *fc1;           /* (parts, hidden, dim) */
    float *residual;      /* (parts, out, dim) */
    float *last;          /* (parts, out, hidden) */
    float *fc1_bias;      /* (parts, hidden) */
    float *bias;          /* (parts, 2, out): of residual_bias and last_bias */
} Gradients;

int64_t drct_feed_forward_row(int64_t columns) { return row_stride(columns); }

static Matrix make_matrix(float **cursor, const float *weight, int64_t outputs, int64_t inputs, int64_t out_step, int64_t in_step) {
    Matrix m = {take(cursor, inputs * whole(outputs)), NULL, inputs, whole(outputs)};
    pack(weight, outputs, inputs, out_step, in_step, (float *)m.weight);
    return m;
}

/* Weights in panels, made anew in every call: they change in every step. */
typedef struct {
    void *memory;
    Matrix fc1, residual, last; /* backward: transposed */
    float *biases;              /* forward: of y, for each sample */
} Panels;

static Panels make_panels(const Sizes *z, const Layer *layer, int backward) {
    int64_t dim = whole(z->dim), hidden = whole(z->hidden), out = whole(z->out);
    Panels p = {.memory = aligned(sizeof(float) * (dim * hidden + dim * out + hidden * out + hidden + z->batch * out + 8 * LANES))};
    float *cursor = p.memory;
    if (!cursor) return p;
    if (backward) {
        p.fc1 = make_matrix(&cursor, layer->fc1, z->dim, z->hidden, 1, z->dim);
        p.last = make_matrix(&cursor, layer->last, z->hidden, z->out, 1, z->hidden);
        if (layer->residual) p.residual = make_matrix(&cursor, layer->residual, z->dim, z->out, 1, z->dim);
        return p;
    }
    p.fc1 = make_matrix(&cursor, layer->fc1, z->hidden, z->dim, z->dim, 1);
    p.last = make_matrix(&cursor, layer->last, z->out, z->hidden, z->hidden, 1);
    if (layer->residual) p.residual = make_matrix(&cursor, layer->residual, z->out, z->dim, z->dim, 1);
    float *fc1_bias = take(&cursor, hidden);
    if (layer->fc1_bias) memcpy(fc1_bias, layer->fc1_bias, sizeof(float) * z->hidden);
    p.fc1.bias = fc1_bias;
    p.biases = take(&cursor, z->batch * out);
    for (int64_t b = 0; b < z->batch; b++)
        for (int64_t c = 0; c < z->out; c++)
            p.biases[b * out + c] = (layer->residual_bias ? layer->residual_bias[c] : 0) +
                                    (layer->last_bias ? layer->last_bias[c] : 0) * (layer->factors ? layer->factors[b] : 1);
    return p;
}

/* Where a thread works: rows of a share, and in backward what outer products want in panels. */
typedef struct {
    void *memory;
    float *z, *h, *y;                                   /* normalized, hidden, out */
    float *slope, *dz, *du, *z_panels, *u_panels, *h_panels; /* backward */
} Room;

static int open_room(Room *room, const Sizes *z, int backward) {
    int64_t n = backward ? SHARE_BACK : SHARE;
    int64_t dim = n * row_stride(z->dim), hidden = n * row_stride(z->hidden), out = n * row_stride(z->out);
    room->memory = aligned(sizeof(float) * ((backward ? 5 : 1) * dim + (backward ? 3 : 1) * hidden + out));
    if (!room->memory) return 0;
    float *cursor = room->memory;
    room->z = take(&cursor, dim), room->h = take(&cursor, hidden), room->y = take(&cursor, out);
    if (backward) {
        room->dz = take(&cursor, dim), room->du = take(&cursor, dim);
        room->z_panels = take(&cursor, dim), room->u_panels = take(&cursor, dim);
        room->slope = take(&cursor, hidden), room->h_panels = take(&cursor, hidden);
    }
    return 1;
}

static void forward_share(Room *room, const Sizes *z, const Layer *layer, const Panels *p, int64_t sample, int64_t n, const float *u,
                          float *kept, float *y) {
    float factor = layer->factors ? layer->factors[sample] : 1;
    int64_t wide = row_stride(z->dim), hidden = row_stride(z->hidden), out = row_stride(z->out);
    Rows none = {NULL, 0}, of_u = {u, z->dim}, of_z = {room->z, wide}, of_h = {room->h, hidden};
    Matrix last = p->last;
    last.bias = p->biases + sample * whole(z->out);
    for (int64_t i = 0; i < n; i++) normalize(u + i * z->dim, z->dim, &layer->norm, room->z + i * wide);
    linear(n, of_z, &p->fc1, none, NULL, SET, kept, hidden, COLUMNS, 0);
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < z->hidden; c += LANES)
            store(room->h + i * hidden + c, gelu(load(kept + i * hidden + c)) * splat(factor));
    linear(n, of_h, &last, of_u, layer->residual ? &p->residual : NULL, SET, room->y, out, COLUMNS, 0);
    for (int64_t i = 0; i < n; i++) {
        const float *from = room->y + i * out, *own = u + i * z->dim;
        if (layer->residual)
            memcpy(y + i * z->out, from, sizeof(float) * z->out);
        else
            for (int64_t c = 0; c < z->out; c++) y[i * z->out + c] = from[c] + own[c];
    }
}

static void backward_share(Room *room, const Sizes *z, const Layer *layer, const Panels *p, int64_t sample, int64_t n, const float *u,
                           const float *kept, const float *dy, float *du, const Gradients *g) {
    float factor = layer->factors ? layer->factors[sample] : 1;
    int64_t wide = row_stride(z->dim), hidden = row_stride(z->hidden), out = row_stride(z->out);
    Rows none = {NULL, 0}, of_dy = {room->y, out}, of_dh = {room->h, hidden};
    for (int64_t i = 0; i < n; i++) { /* into rows whose last vectors are whole */
        memcpy(room->y + i * out, dy + i * z->out, sizeof(float) * z->out);
        memcpy(room->du + i * wide, u + i * z->dim, sizeof(float) * z->dim);
        if (g->fc1) normalize(u + i * z->dim, z->dim, &layer->norm, room->z + i * wide);
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < z->hidden; c += LANES) {
            vec slope, h = gelu_and_slope(load(kept + i * hidden + c), &slope);
            store(room->h + i * hidden + c, h * splat(factor));
            store(room->slope + i * hidden + c, slope * splat(factor));
        }
    if (g->fc1) {
        panels(room->h, n, hidden, whole(z->hidden), room->h_panels);
        add_outer(n, of_dy, z->out, room->h_panels, whole(z->hidden), g->last, hidden);
        float *sums = g->bias; /* of residual_bias, then of last_bias */
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < z->out; c += LANES) {
                vec d = load(room->y + i * out + c);
                store(sums + c, load(sums + c) + d);
                store(sums + out + c, load(sums + out + c) + d * splat(factor));
            }
    }
    linear(n, of_dy, &p->last, none, NULL, SET, room->h, hidden, COLUMNS, 0);
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < z->hidden; c += LANES)
            store(room->h + i * hidden + c, load(room->h + i * hidden + c) * load(room->slope + i * hidden + c));
    if (g->fc1) {
        add_column_sums(n, room->h, hidden, whole(z->hidden), g->fc1_bias);
        panels(room->z, n, wide, whole(z->dim), room->z_panels);
        add_outer(n, of_dh, z->hidden, room->z_panels, whole(z->dim), g->fc1, wide);
    }
    linear(n, of_dh, &p->fc1, none, NULL, SET, room->dz, wide, COLUMNS, 0);
    if (layer->residual) {
        if (g->fc1) {
            panels(room->du, n, wide, whole(z->dim), room->u_panels);
            add_outer(n, of_dy, z->out, room->u_panels, whole(z->dim), g->residual, wide);
        }
        linear(n, of_dy, &p->residual, none, NULL, SET, room->du, wide, COLUMNS, 0);
    } else
        memcpy(room->du, room->y, sizeof(float) * n * wide);
    for (int64_t i = 0; i < n; i++) {
        normalize_backward(u + i * z->dim, room->dz + i * wide, z->dim, &layer->norm, room->du + i * wide, g->gain, g->offset);
        memcpy(du + i * z->dim, room->du + i * wide, sizeof(float) * z->dim);
    }
}

/* kept receives what gelu is given, (rows of all samples, row_stride(hidden)). Returns 0, or 1 when memory ran out. */
int drct_feed_forward(const Sizes *z, const Layer *layer, const float *u, float *kept, float *y) {
    Panels p = make_panels(z, layer, 0);
    int64_t shares = (z->rows + SHARE - 1) / SHARE, hidden = row_stride(z->hidden);
    int failed = !p.memory;
    if (failed) return 1;
#pragma omp parallel num_threads(z->threads)
    {
        unsigned control = take_tiny_for_zero();
        Room room;
        int opened = open_room(&room, z, 0);
        if (all_opened(opened, &failed)) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < z->batch * shares; i++) {
                int64_t sample = i / shares, start = i % shares * SHARE, n = z->rows - start < SHARE ? z->rows - start : SHARE;
                int64_t at = sample * z->rows + start;
                forward_share(&room, z, layer, &p, sample, n, u + at * z->dim, kept + at * hidden, y + at * z->out);
            }
        }
        if (opened) free(room.memory);
        take_tiny_as_before(control);
    }
    free(p.memory);
    return failed;
}

/* The gradients are zero on entry. Part p sums its share of the rows, so what the parts add up to does not depend on which thread ran
 * first. Returns 0, or 1 when memory ran out. */
int drct_feed_forward_backward(const Sizes *z, const Layer *layer, const float *u, const float *kept, const float *dy, float *du,
                               const Gradients *gradients, int64_t parts) {
    Panels p = make_panels(z, layer, 1);
    int64_t shares = (z->rows + SHARE_BACK - 1) / SHARE_BACK, all = z->batch * shares;
    int64_t wide = row_stride(z->dim), hidden = row_stride(z->hidden), out = row_stride(z->out);
    int failed = !p.memory;
    if (failed) return 1;
#pragma omp parallel num_threads(z->threads)
    {
        unsigned control = take_tiny_for_zero();
        Room room;
        int opened = open_room(&room, z, 1);
        if (all_opened(opened, &failed)) {
#pragma omp for schedule(static)
            for (int64_t part = 0; part < parts; part++) {
                Gradients g = *gradients;
                g.gain += part * wide, g.offset += part * wide;
                if (g.fc1) {
                    g.fc1 += part * z->hidden * wide, g.fc1_bias += part * hidden;
                    g.last += part * z->out * hidden, g.bias += part * 2 * out;
                    if (g.residual) g.residual += part * z->out * wide;
                }
                for (int64_t i = all * part / parts; i < all * (part + 1) / parts; i++) {
                    int64_t sample = i / shares, start = i % shares * SHARE_BACK;
                    int64_t n = z->rows - start < SHARE_BACK ? z->rows - start : SHARE_BACK, at = sample * z->rows + start;
                    backward_share(&room, z, layer, &p, sample, n, u + at * z->dim, kept + at * hidden, dy + at * z->out,
                                   du + at * z->dim, &g);
                }
            }
        }
        if (opened) free(room.memory);
        take_tiny_as_before(control);
    }
    free(p.memory);
    return failed;
}

int drct_feed_forward_lanes(void) { return LANES; }
