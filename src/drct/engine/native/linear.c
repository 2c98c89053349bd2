/* One linear layer on float32 rows, and its weights in panels; see linear.h. */
#include "linear.h"

typedef struct {
    const float *x;
    float *y;
    int64_t rows, columns, x_stride, y_stride; /* columns that y has, of those that the matrix makes */
    int32_t threads;
} Product;

void drct_pack(const float *weight, int64_t outputs, int64_t inputs, int64_t out_step, int64_t in_step, float *packed) {
    pack(weight, outputs, inputs, out_step, in_step, packed);
}

void drct_linear(const Product *p, const Matrix *matrix) {
    int64_t blocks = (p->rows + SHARE - 1) / SHARE, inner = p->columns / LANES * LANES, rest = p->columns - inner;
    int64_t beside = inner % COLUMNS ? LANES : 0; /* columns of the last panel that lie before those that fill no vector */
    inner -= rest ? beside : 0;
    Rows none = {NULL, 0};
#pragma omp parallel for num_threads(p->threads) schedule(static) if (p->threads > 1)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t start = block * SHARE, rows = p->rows - start < SHARE ? p->rows - start : SHARE;
        Rows x = {p->x + start * p->x_stride, p->x_stride};
        float *y = p->y + start * p->y_stride;
        Matrix part = *matrix;
        part.out = inner;
        linear(rows, x, &part, none, NULL, SET, y, p->y_stride, COLUMNS, 0);
        if (rest) {
            float edge[SHARE * COLUMNS];
            int64_t own = p->columns - inner;
            part.weight += inner * part.in, part.out = matrix->out - inner;
            if (part.bias) part.bias += inner;
            linear(rows, x, &part, none, NULL, SET, edge, COLUMNS, COLUMNS, 0);
            for (int64_t r = 0; r < rows; r++) memcpy(y + r * p->y_stride + inner, edge + r * COLUMNS, sizeof(float) * own);
        }
    }
}

int drct_linear_lanes(void) { return LANES; }
