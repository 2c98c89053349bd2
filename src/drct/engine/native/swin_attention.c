/* Window attention with its projections on float32 channels-last maps, forward and backward, for training.
 *
 *   a(x) = proj(softmax(scale * q k^T + bias + mask) v),  q, k, v = qkv(x)
 *
 * The result is a(x), or with a norm the first half of a Swin block, x + s a(norm(x)), where s is a factor of each sample, that of
 * stochastic depth.
 *
 * One window after another runs through all of it. Queries, keys and values are kept for backward head by head, as the arithmetic wants
 * them; gathering every head's few numbers from wide rows of a map costs a fifth of the attention's time. Scores and their gradients are
 * those of attention.h; backward computes them anew.
 */
#include "attention.h"
#include "norm.h"
#include "outer.h"

/* Weights as torch has them: qkv (3 * heads * d, C), ordered (q|k|v, head, d), and proj (C, C). A bias may be NULL. */
typedef struct {
    const float *qkv, *qkv_bias, *proj, *proj_bias;
    Norm norm;            /* without gain: none */
    const float *factors; /* of each sample, with a norm; NULL: 1 */
    const float *bias;    /* times log2(e), (heads, window, 2 window - 1, window); see bias_at() */
} Layer;

/* Sums over the windows of one part; rows as wide as lay_out() says, their last numbers without meaning. Without `qkv` only that of the
 * input is wanted, and nothing but `bias`, `gain` and `offset` is there to be written. */
typedef struct {
    float *qkv;      /* (parts, heads, 3, dp, C) */
    float *qkv_bias; /* (parts, heads, 3, dp) */
    float *proj;     /* (parts, C, heads * d) */
    float *proj_bias, *gain, *offset; /* (parts, C) */
    float *bias;     /* (parts, heads, window, 2 window - 1, window) */
} Gradients;

/* What is a matter of sizes alone. Strides are numbers between rows. */
typedef struct {
    int64_t n, d, dp, dim, windows;
    int64_t heads_stride; /* of rows that hold all heads: the last may be written as whole vectors */
    int64_t row;          /* of rows of features */
} Sizes;

static Sizes lay_out(const Shape *s) {
    Sizes z = {.n = s->window * s->window, .d = s->head_dim, .dp = whole(s->head_dim), .dim = s->heads * s->head_dim};
    z.windows = s->batch * (s->height / s->window) * (s->width / s->window);
    z.heads_stride = row_stride(z.dim - z.d + z.dp), z.row = row_stride(z.dim);
    return z;
}

/* Numbers between: heads of saved queries, keys and values; rows of all heads; rows of features. */
void drct_swin_attention_sizes(const Shape *s, int64_t *padded_head, int64_t *heads_stride, int64_t *row) {
    Sizes z = lay_out(s);
    *padded_head = z.dp, *heads_stride = z.heads_stride, *row = z.row;
}

/* Weights in panels, made anew in every call: they change in every step. */
typedef struct {
    float *memory;
    Matrix *parts; /* 3 of each head; forward C to dp, backward dp to C */
    Matrix proj;   /* forward C to C */
    Matrix *proj_parts; /* backward: C to the dp channels of each head */
    Range *ranges;
} Panels;

static Panels make_panels(const Shape *s, const Sizes *z, const Layer *layer, int backward) {
    int64_t heads = s->heads, dim = z->dim, d = z->d, dp = z->dp, out = whole(dim);
    Panels p = {.memory = aligned(sizeof(float) * (3 * heads * dp * (out + 1) + heads * dp * dim + dim * out + out + 64 * LANES) +
                                  sizeof(Matrix) * 4 * heads + sizeof(Range) * heads)};
    if (!p.memory) return p;
    p.parts = (Matrix *)p.memory, p.proj_parts = p.parts + 3 * heads, p.ranges = (Range *)(p.proj_parts + heads);
    float *cursor = (float *)(p.ranges + heads);
    for (int64_t h = 0; h < heads; h++) {
        p.ranges[h] = range_of(s, layer->bias + h * bias_size(s));
        for (int64_t part = 0; part < 3; part++) {
            const float *weight = layer->qkv + (part * heads + h) * d * dim;
            const float *bias = layer->qkv_bias ? layer->qkv_bias + (part * heads + h) * d : NULL;
            Matrix *m = p.parts + 3 * h + part;
            if (backward) {
                *m = (Matrix){take(&cursor, d * out), NULL, d, out};
                pack(weight, dim, d, 1, dim, (float *)m->weight);
            } else {
                float *packed = take(&cursor, dim * dp), *offset = take(&cursor, dp), factor = part ? 1.0f : s->scale * LOG2E;
                *m = (Matrix){packed, offset, dim, dp};
                pack(weight, d, dim, dim, 1, packed);
                for (int64_t i = 0; i < dim * dp; i++) packed[i] *= factor;
                for (int64_t c = 0; bias && c < d; c++) offset[c] = bias[c] * factor;
            }
        }
        if (backward) {
            Matrix *m = p.proj_parts + h;
            *m = (Matrix){take(&cursor, dim * dp), NULL, dim, dp};
            pack(layer->proj + h * d, d, dim, 1, dim, (float *)m->weight);
        }
    }
    if (!backward) {
        float *offset = take(&cursor, out);
        p.proj = (Matrix){take(&cursor, dim * out), offset, dim, out};
        pack(layer->proj, dim, dim, dim, 1, (float *)p.proj.weight);
        if (layer->proj_bias) memcpy(offset, layer->proj_bias, sizeof(float) * dim);
    }
    return p;
}

/* Where a thread works. */
typedef struct {
    Work attention;
    void *memory;
    float *x, *y, *dx; /* rows of a window: what comes in, what goes out or its gradient, gradient of what came in */
    float *o;          /* BLOCK rows of one head's result */
} Room;

static int open_room(Room *room, const Shape *s, const Sizes *z, int backward) {
    int64_t nd = z->n * z->dp, rows = z->n * z->row;
    int64_t count = (backward ? 8 : 2) * nd + (backward ? 3 : 2) * rows + (2 * BLOCK + 16) * z->n + BLOCK * z->dp + 64 * LANES;
    room->memory = aligned(sizeof(float) * count + sizeof(int64_t) * z->n);
    if (!room->memory) return 0;
    Work *w = &room->attention;
    memset(w, 0, sizeof *w);
    w->token = (int64_t *)room->memory;
    float *cursor = (float *)(w->token + z->n);
    w->n = (int)z->n, w->d = (int)z->d, w->dp = (int)z->dp;
    w->kt = take(&cursor, nd), w->kp = w->vp = take(&cursor, nd);
    w->masks = take(&cursor, 16 * z->n), w->p = take(&cursor, BLOCK * z->n);
    room->x = take(&cursor, rows), room->y = take(&cursor, rows), room->o = take(&cursor, BLOCK * z->dp);
    if (backward) {
        w->vt = take(&cursor, nd), w->dout = take(&cursor, nd), w->dp_rows = take(&cursor, BLOCK * z->n);
        w->dq = take(&cursor, nd), w->dk = take(&cursor, nd), w->dv = take(&cursor, nd);
        room->dx = take(&cursor, rows);
    }
    fill_masks(s, w->masks);
    return 1;
}

/* Rows of a window as the projections take them. */
static void fetch_rows(const Work *w, const Norm *norm, const float *map, int64_t dim, float *rows, int64_t stride) {
    for (int i = 0; i < w->n; i++) {
        const float *from = map + w->token[i] * dim;
        if (norm->gain)
            normalize(from, dim, norm, rows + i * stride);
        else
            memcpy(rows + i * stride, from, sizeof(float) * (size_t)dim);
    }
}

/* to = from + factor * x */
static inline void add_scaled(const float *from, const float *x, float factor, int64_t count, float *to) {
    int64_t c = 0;
    for (; c + LANES <= count; c += LANES) store(to + c, load(from + c) + splat(factor) * load(x + c));
    for (; c < count; c++) to[c] = from[c] + factor * x[c];
}

static inline float factor_of(const Sizes *z, const Shape *s, const Layer *layer, int64_t window) {
    return layer->factors ? layer->factors[window / (z->windows / s->batch)] : 1;
}

/* Queries, keys and values of one head of one window, where they are kept. */
static void point_at(Work *w, const Shape *s, float *kept, int64_t window, int64_t head) {
    int64_t nd = (int64_t)w->n * w->dp;
    w->q = kept + (window * s->heads + head) * 3 * nd, w->k = w->q + nd, w->v = w->k + nd;
}

static void forward_window(Room *room, const Shape *s, const Sizes *z, const Layer *layer, const Panels *panels_, int64_t window,
                           const float *x, float *kept, float *attended, float *y) {
    Work *w = &room->attention;
    int n = w->n, dp = w->dp, kind = kind_of_window(s, window);
    Rows none = {NULL, 0}, of_x = {room->x, z->row}, of_all = {attended + window * n * z->heads_stride, z->heads_stride};
    find_tokens(s, window, w->token);
    fetch_rows(w, &layer->norm, x, z->dim, room->x, z->row);
    for (int64_t head = 0; head < s->heads; head++) {
        point_at(w, s, kept, window, head);
        float *parts[3] = {w->q, w->k, w->v};
        for (int part = 0; part < 3; part++)
            linear(n, of_x, panels_->parts + 3 * head + part, none, NULL, SET, parts[part], dp, COLUMNS, 0);
        transpose(w->k, n, dp, w->kt);
        panels(w->v, n, dp, dp, w->vp);
        int near = scores_near_zero(w, panels_->ranges + head);
        for (int i = 0; i < n; i += BLOCK) {
            float inverse[BLOCK];
            softmax_rows(w, s, i, kind, near, layer->bias + head * bias_size(s), inverse);
            rows_times_matrix(w->p, n, w->vp, dp, room->o);
            for (int r = 0; r < BLOCK; r++) /* what a vector writes beyond the head the next head overwrites */
                for (int c = 0; c < dp; c += LANES)
                    store((float *)of_all.at + (i + r) * z->heads_stride + head * z->d + c, load(room->o + r * dp + c) * splat(inverse[r]));
        }
    }
    linear(n, of_all, &panels_->proj, none, NULL, SET, room->y, z->row, COLUMNS, 0);
    float factor = factor_of(z, s, layer, window);
    for (int i = 0; i < n; i++) {
        int64_t at = w->token[i] * z->dim;
        if (layer->norm.gain)
            add_scaled(x + at, room->y + i * z->row, factor, z->dim, y + at);
        else
            memcpy(y + at, room->y + i * z->row, sizeof(float) * (size_t)z->dim);
    }
}

static void backward_window(Room *room, const Shape *s, const Sizes *z, const Layer *layer, const Panels *panels_, int64_t window,
                            const float *x, float *kept, const float *attended, const float *dy, float *dx, const Gradients *g) {
    Work *w = &room->attention;
    int n = w->n, dp = w->dp, kind = kind_of_window(s, window);
    const float *all = attended + window * n * z->heads_stride;
    int64_t tall = (z->d + TALL - 1) / TALL * TALL, columns = tall < dp ? tall : dp; /* of a head, in tall tiles where zeros fill them up */
    Rows none = {NULL, 0}, of_dy = {room->y, z->row};
    find_tokens(s, window, w->token);
    float factor = factor_of(z, s, layer, window);
    for (int i = 0; i < n; i++)
        for (int64_t c = 0; c < z->dim; c++) room->y[i * z->row + c] = dy[w->token[i] * z->dim + c] * factor;
    if (g->qkv) {
        add_column_sums(n, room->y, z->row, whole(z->dim), g->proj_bias);
        panels(all, n, z->heads_stride, whole(z->dim), room->x);
        add_outer(n, of_dy, z->dim, room->x, whole(z->dim), g->proj, z->heads_stride);
        fetch_rows(w, &layer->norm, x, z->dim, room->dx, z->row);
        panels(room->dx, n, z->row, whole(z->dim), room->x);
    }
    memset(room->dx, 0, sizeof(float) * n * z->row);
    for (int64_t head = 0; head < s->heads; head++) {
        const float *bias = layer->bias + head * bias_size(s);
        point_at(w, s, kept, window, head);
        linear(n, of_dy, panels_->proj_parts + head, none, NULL, SET, w->dout, dp, COLUMNS, 0);
        transpose(w->k, n, dp, w->kt);
        transpose(w->v, n, dp, w->vt);
        panels(w->k, n, dp, dp, w->kp);
        memset(w->dk, 0, sizeof(float) * n * dp);
        memset(w->dv, 0, sizeof(float) * n * dp);
        int near = scores_near_zero(w, panels_->ranges + head);
        for (int i = 0; i < n; i += BLOCK)
            backward_rows(w, s, i, kind, near, bias, all + i * z->heads_stride + head * z->d, z->heads_stride,
                          g->bias + head * bias_size(s));
        unscale_gradients(w, s);
        float *parts[3] = {w->dq, w->dk, w->dv};
        for (int part = 0; part < 3; part++) {
            Rows of_part = {parts[part], dp};
            linear(n, of_part, panels_->parts + 3 * head + part, none, NULL, ADD, room->dx, z->row, COLUMNS, 0);
            if (!g->qkv) continue;
            add_outer(n, of_part, columns, room->x, whole(z->dim), g->qkv + (3 * head + part) * dp * z->row, z->row);
            add_column_sums(n, parts[part], dp, dp, g->qkv_bias + (3 * head + part) * dp);
        }
    }
    for (int i = 0; i < n; i++) {
        int64_t at = w->token[i] * z->dim;
        if (layer->norm.gain) {
            memcpy(dx + at, dy + at, sizeof(float) * (size_t)z->dim);
            normalize_backward(x + at, room->dx + i * z->row, z->dim, &layer->norm, dx + at, g->gain, g->offset);
        } else
            memcpy(dx + at, room->dx + i * z->row, sizeof(float) * (size_t)z->dim);
    }
}

/* kept receives (windows, heads, 3, N, dp), attended (windows, N, heads_stride). Returns 0, or 1 when memory ran out. */
int drct_swin_attention_forward(const Shape *s, const Layer *layer, const float *x, float *kept, float *attended, float *y) {
    Sizes z = lay_out(s);
    Panels panels_ = make_panels(s, &z, layer, 0);
    int failed = !panels_.memory;
    if (failed) return 1;
#pragma omp parallel num_threads(s->threads)
    {
        unsigned control = take_tiny_for_zero();
        Room room;
        int opened = open_room(&room, s, &z, 0);
        if (all_opened(opened, &failed)) {
#pragma omp for schedule(static)
            for (int64_t window = 0; window < z.windows; window++)
                forward_window(&room, s, &z, layer, &panels_, window, x, kept, attended, y);
        }
        if (opened) free(room.memory);
        take_tiny_as_before(control);
    }
    free(panels_.memory);
    return failed;
}

/* The gradients are zero on entry. Part p sums its share of the windows, so what the parts add up to does not depend on which thread ran
 * first. Returns 0, or 1 when memory ran out. */
int drct_swin_attention_backward(const Shape *s, const Layer *layer, const float *x, float *kept, const float *attended, const float *dy,
                                 float *dx, const Gradients *gradients, int64_t parts) {
    Sizes z = lay_out(s);
    Panels panels_ = make_panels(s, &z, layer, 1);
    int failed = !panels_.memory;
    if (failed) return 1;
#pragma omp parallel num_threads(s->threads)
    {
        unsigned control = take_tiny_for_zero();
        Room room;
        int opened = open_room(&room, s, &z, 1);
        if (all_opened(opened, &failed)) {
#pragma omp for schedule(static)
            for (int64_t part = 0; part < parts; part++) {
                Gradients g = *gradients;
                if (g.qkv) {
                    g.qkv += part * 3 * s->heads * z.dp * z.row, g.qkv_bias += part * 3 * s->heads * z.dp;
                    g.proj += part * z.dim * z.heads_stride, g.proj_bias += part * z.row;
                }
                g.gain += part * z.row, g.offset += part * z.row;
                g.bias += part * s->heads * bias_size(s);
                for (int64_t window = z.windows * part / parts; window < z.windows * (part + 1) / parts; window++)
                    backward_window(&room, s, &z, layer, &panels_, window, x, kept, attended, dy, dx, &g);
            }
        }
        if (opened) free(room.memory);
        take_tiny_as_before(control);
    }
    free(panels_.memory);
    return failed;
}

int drct_swin_attention_lanes(void) { return LANES; }
