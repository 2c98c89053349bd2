/* A Swin block as the kernels for whole blocks take it, and the maps they run on. Include after a header with Matrix and Range. */
#ifndef DRCT_SWIN_LAYER_H
#define DRCT_SWIN_LAYER_H

#include "norm.h"

typedef struct {
    int64_t window, shift, heads, head_dim, dim, hidden, out;
    Norm norm1, norm2;
    Matrix qkv;   /* head after head: queries times scale * log2(e), keys, values, each filled up to whole vectors */
    Matrix proj;  /* dim to dim */
    Matrix fc1;   /* dim to hidden */
    Matrix residual, last; /* dim and hidden to out; without weights `residual` is the identity */
    float slope;           /* of negative results; 1 leaves them */
    const float *bias;     /* of each head, the short one of attention.h, times log2(e) */
    const Range *ranges;   /* of each head's bias; in bfloat16 the lowest of all stands for that of a query itself */
    const float *masks;    /* [kind of window][class of the query][N], see attention.h */
} Layer;

typedef struct {
    const float *source;
    const void *normed; /* what norm1 makes of the source in the type of the products, where it is there already, else NULL */
    float *target;
    int64_t source_stride, normed_stride, target_stride;
    const int64_t *order; /* row of each position, window after window; NULL: they lie one after the other */
    const int32_t *kinds; /* mask of each window; NULL: none */
    int32_t add;          /* to the target */
} Maps;

static inline void write_row(const Layer *layer, const float *y, float *to, int add) {
    int64_t c = 0;
    for (; c + LANES <= layer->out; c += LANES) {
        vec v = load(y + c), low = v * splat(layer->slope);
        v = (vec)(((ivec)v & (v > 0)) | ((ivec)low & ~(v > 0)));
        if (add) v += load(to + c);
        store(to + c, v);
    }
    for (; c < layer->out; c++) {
        float v = y[c] > 0 ? y[c] : y[c] * layer->slope;
        to[c] = add ? to[c] + v : v;
    }
}

#endif
