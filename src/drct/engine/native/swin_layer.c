/* A whole Swin block on float32 rows, forward, and the linear layer that follows it in DRCT.
 *
 *   u = x + attention(norm1(x)) proj,  y = leaky(u residual + gelu(norm2(u) fc1) hidden)
 *
 * One window after another runs through all of it, so that nothing but the features themselves is read from memory or written to it:
 * of a window with 256 positions everything between lies in the second cache, where separate operations on all windows would each fill
 * the last one. Scores and softmax are those of attention.h.
 */
#include "attention.h"
#include "linear.h"
#include "swin_layer.h"

/* Attention of one window from its normalized rows: (n, dim) to columns of `attended`, head by head. */
static void attend(Work *w, const Shape *s, const Layer *layer, Rows normed, int kind, float *attended, int64_t stride) {
    int64_t d = w->d, dp = w->dp, n = w->n, part = dp * layer->dim;
    for (int64_t head = 0; head < layer->heads; head++) {
        Matrix q = layer->qkv, k, v;
        q.out = dp, q.weight += 3 * part * head, q.bias += 3 * dp * head;
        k = q, k.weight += part, k.bias += dp;
        v = k, v.weight += part, v.bias += dp;
        linear(n, normed, &q, normed, NULL, SET, w->q, dp, COLUMNS, 0);
        linear(n, normed, &k, normed, NULL, SET, w->k, dp, COLUMNS, 0);
        linear(n, normed, &v, normed, NULL, SET, w->vp, COLUMNS, COLUMNS * n, 1);
        transpose(w->k, (int)n, (int)dp, w->kt);
        const Range *range = layer->ranges + head;
        const float *bias = layer->bias + head * bias_size(s);
        int near = scores_near_zero(w, range);
        for (int i = 0; i < n; i += BLOCK) {
            float inverse[BLOCK], *o = w->q + i * dp; /* these query rows are not needed any more */
            softmax_rows(w, s, i, kind, near, bias, inverse);
            rows_times_matrix(w->p, (int)n, w->vp, (int)dp, o);
            for (int r = 0; r < BLOCK; r++) /* what a vector writes beyond the head the next head overwrites */
                for (int64_t c = 0; c < dp; c += LANES)
                    store(attended + (i + r) * stride + head * d + c, load(o + r * dp + c) * splat(inverse[r]));
        }
    }
}

/* Where a window's numbers lie while it is worked on. */
typedef struct {
    Work attention;
    float *normed, *attended, *u, *z, *h, *y;
    int64_t a_stride, u_stride, h_stride, y_stride, count; /* in floats */
} Room;

static Room furnish(const Layer *layer, float *at) {
    int64_t n = layer->window * layer->window, d = layer->head_dim, dp = whole(d), dim = layer->dim;
    Room room = {.a_stride = whole((layer->heads - 1) * d + dp), .u_stride = whole(dim), .h_stride = whole(layer->hidden)};
    room.y_stride = whole(layer->out);
    float *cursor = at;
    Work *w = &room.attention;
    w->n = (int)n, w->d = (int)d, w->dp = (int)dp, w->masks = (float *)layer->masks;
    w->q = take(&cursor, n * dp), w->k = take(&cursor, n * dp), w->vp = take(&cursor, n * dp), w->kt = take(&cursor, n * dp);
    w->p = take(&cursor, BLOCK * n);
    room.normed = take(&cursor, n * dim), room.attended = take(&cursor, n * room.a_stride);
    room.u = take(&cursor, SHARE * room.u_stride), room.z = take(&cursor, SHARE * dim);
    room.h = take(&cursor, SHARE * room.h_stride), room.y = take(&cursor, SHARE * room.y_stride);
    room.count = cursor - at;
    return room;
}

int64_t drct_swin_layer_room(const Layer *layer) { return furnish(layer, NULL).count; }

/* Runs windows 0 to `windows` of the maps, in a room of drct_swin_layer_room floats. */
void drct_swin_layer(const Layer *layer, const Maps *maps, int64_t windows, float *floats) {
    Shape shape = {.window = layer->window, .shift = layer->shift, .short_bias = 1};
    Room room = furnish(layer, floats);
    int64_t n = room.attention.n, dim = layer->dim;
    int folded = layer->residual.weight != NULL;
    float *result = folded ? room.y : room.u;
    int64_t stride = folded ? room.y_stride : room.u_stride;
    Rows none = {NULL, 0}, of_u = {room.u, room.u_stride}, of_z = {room.z, dim}, of_h = {room.h, room.h_stride};
    unsigned control = take_tiny_for_zero();
    memset(room.u, 0, sizeof(float) * SHARE * room.u_stride); /* columns beyond dim are added to and never read */
    for (int64_t window = 0; window < windows; window++) {
#define ROW(i) (maps->order ? maps->order[window * n + (i)] : window * n + (i))
        for (int64_t i = 0; i < n; i++) {
            if (maps->normed)
                memcpy(room.normed + i * dim, (const float *)maps->normed + ROW(i) * maps->normed_stride, sizeof(float) * dim);
            else
                normalize(maps->source + ROW(i) * maps->source_stride, dim, &layer->norm1, room.normed + i * dim);
        }
        attend(&room.attention, &shape, layer, (Rows){room.normed, dim}, maps->kinds ? maps->kinds[window] : 0, room.attended,
               room.a_stride);
        for (int64_t i = 0; i < n; i += SHARE) {
            int64_t rows = n - i < SHARE ? n - i : SHARE;
            Rows of_attended = {room.attended + i * room.a_stride, room.a_stride};
            for (int64_t r = 0; r < rows; r++)
                memcpy(room.u + r * room.u_stride, maps->source + ROW(i + r) * maps->source_stride, sizeof(float) * dim);
            linear(rows, of_attended, &layer->proj, none, NULL, ADD, room.u, room.u_stride, COLUMNS, 0);
            for (int64_t r = 0; r < rows; r++) normalize(room.u + r * room.u_stride, dim, &layer->norm2, room.z + r * dim);
            linear(rows, of_z, &layer->fc1, none, NULL, GELU, room.h, room.h_stride, COLUMNS, 0);
            linear(rows, of_h, &layer->last, of_u, folded ? &layer->residual : NULL, folded ? SET : ADD, result, stride, COLUMNS, 0);
            for (int64_t r = 0; r < rows; r++)
                write_row(layer, result + r * stride, maps->target + ROW(i + r) * maps->target_stride, maps->add);
        }
#undef ROW
    }
    take_tiny_as_before(control);
}

int drct_swin_layer_lanes(void) { return LANES; }
