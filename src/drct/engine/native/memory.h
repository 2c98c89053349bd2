/* Work space, and rows laid out in panels. */
#ifndef DRCT_MEMORY_H
#define DRCT_MEMORY_H

#include "simd.h"

#define COLUMNS (2 * LANES) /* of a panel; the last one may be half as wide */
#define SHARE 96 /* rows that go through one panel after another while they are in the second cache; a multiple of every TALL */

/* Zeros; NULL when memory ran out. */
static inline void *aligned(int64_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, (size_t)bytes)) return NULL;
    memset(memory, 0, (size_t)bytes);
    return memory;
}

/* Numbers from row to row of so many columns: whole vectors, and no multiple of 64, else columns of all rows would meet in few places of
 * the first cache. */
static inline int64_t row_stride(int64_t columns) { return whole(columns) + (whole(columns) % 64 ? 0 : LANES); }

static inline float *take(float **cursor, int64_t count) {
    float *p = *cursor;
    *cursor += whole(count);
    return p;
}

/* Rows in panels of COLUMNS columns, one after the other; the last may be half as wide. */
static inline void panels(const float *rows, int n, int64_t stride, int64_t columns, float *out) {
    for (int64_t c0 = 0; c0 < columns; c0 += COLUMNS) {
        int64_t width = columns - c0 < COLUMNS ? columns - c0 : COLUMNS;
        for (int i = 0; i < n; i++)
            for (int64_t c = 0; c < width; c += LANES) store(out + c0 * n + i * width + c, load(rows + i * stride + c0 + c));
    }
}

#endif
