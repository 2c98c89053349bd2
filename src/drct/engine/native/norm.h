/* Layer norm of one row of float32 numbers, forward and backward. */
#ifndef DRCT_NORM_H
#define DRCT_NORM_H

#include "simd.h"

typedef struct {
    const float *gain, *offset;
    float eps;
} Norm;

typedef struct {
    float mean, inverse; /* of a row, and of its standard deviation */
} Moments;

static inline Moments moments(const float *x, int64_t dim, float eps) {
    vec sums = splat(0);
    int64_t c = 0;
    for (; c + LANES <= dim; c += LANES) sums += load(x + c);
    float sum = reduce_add(sums);
    for (; c < dim; c++) sum += x[c];
    float mean = sum / dim;
    vec squares = splat(0), center = splat(mean);
    for (c = 0; c + LANES <= dim; c += LANES) squares += (load(x + c) - center) * (load(x + c) - center);
    float square = reduce_add(squares);
    for (; c < dim; c++) square += (x[c] - mean) * (x[c] - mean);
    return (Moments){mean, 1.0f / sqrtf(square / dim + eps)};
}

/* One row to mean 0 and variance 1, times gain plus offset. */
static inline void normalize(const float *x, int64_t dim, const Norm *norm, float *y) {
    Moments m = moments(x, dim, norm->eps);
    int64_t c = 0;
    for (; c + LANES <= dim; c += LANES)
        store(y + c, (load(x + c) - splat(m.mean)) * splat(m.inverse) * load(norm->gain + c) + load(norm->offset + c));
    for (; c < dim; c++) y[c] = (x[c] - m.mean) * m.inverse * norm->gain[c] + norm->offset[c];
}

/* Adds the gradient of the row to dx, and those of gain and offset to theirs; dy is that of the result. */
static inline void normalize_backward(const float *x, const float *dy, int64_t dim, const Norm *norm, float *dx, float *dgain,
                                      float *doffset) {
    Moments m = moments(x, dim, norm->eps);
    vec sums = splat(0), products = splat(0);
    int64_t c = 0;
    for (; c + LANES <= dim; c += LANES) {
        vec unit = (load(x + c) - splat(m.mean)) * splat(m.inverse), d = load(dy + c), g = d * load(norm->gain + c);
        sums += g, products += g * unit;
        store(dgain + c, load(dgain + c) + d * unit);
        store(doffset + c, load(doffset + c) + d);
    }
    float sum = reduce_add(sums), product = reduce_add(products);
    for (; c < dim; c++) {
        float unit = (x[c] - m.mean) * m.inverse, g = dy[c] * norm->gain[c];
        sum += g, product += g * unit;
        dgain[c] += dy[c] * unit, doffset[c] += dy[c];
    }
    sum /= dim, product /= dim;
    for (c = 0; c + LANES <= dim; c += LANES) {
        vec unit = (load(x + c) - splat(m.mean)) * splat(m.inverse), g = load(dy + c) * load(norm->gain + c);
        store(dx + c, load(dx + c) + splat(m.inverse) * (g - splat(sum) - unit * splat(product)));
    }
    for (; c < dim; c++)
        dx[c] += m.inverse * (dy[c] * norm->gain[c] - sum - (x[c] - m.mean) * m.inverse * product);
}

#endif
