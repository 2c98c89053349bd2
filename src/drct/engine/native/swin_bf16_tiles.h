/* Attention of swin_bf16.c by the matrix unit. Include where Work and its Rows are known. */
#ifndef DRCT_SWIN_BF16_TILES_H
#define DRCT_SWIN_BF16_TILES_H

#ifdef TILES
/* out (16 x dp) = a (16 x n, blocks of 32) times b ([n / 2][dp]). */
INLINE void weigh_rows(const uint32_t *a, const uint32_t *b, int64_t n, int64_t dp, float *out) {
    float squares[4][SIDE * SIDE] __attribute__((aligned(64)));
    for (int64_t c = 0; c < dp; c += SIDE) {
        weigh_squares(a, b + c, n, dp, squares);
        UNROLL for (int r = 0; r < SIDE; r++) store(out + r * dp + c, add_squares(squares, r));
    }
}

/* As attend_rows(). Scores lie in squares, probabilities in blocks of 16 rows of 32 keys. */
INLINE void attend_tiles(int masked, int64_t dp, int64_t n, const Rows *rows, vec factor, const Work *w, int64_t i, float *out, float *lse) {
    int64_t ld = w->qkv_ld / 2;
    const uint32_t *q = (const uint32_t *)w->q + i * ld, *kt = w->kt;
    uint16_t *probabilities = w->p_c;
    float *scores = w->scores;
    for (int64_t j = 0; j < n; j += 4 * SIDE) {
#define STEP(u) TILE_LOAD(RIGHT, kt + c * n + j + u * SIDE, n); TILE_PRODUCT(u, LEFT, RIGHT)
#define LAST(u) TILE_LOAD(RIGHT_REST, kt + c * n + j + u * SIDE, n); TILE_PRODUCT(u, LEFT_REST, RIGHT_REST)
        TILE_ZERO(0); TILE_ZERO(1); TILE_ZERO(2); TILE_ZERO(3);
        int64_t c = 0;
        for (; c + SIDE <= dp / 2; c += SIDE) {
            TILE_LOAD(LEFT, q + c, ld);
            STEP(0); STEP(1); STEP(2); STEP(3);
        }
        if (c < dp / 2) {
            TILE_LOAD(LEFT_REST, q + c, ld);
            LAST(0); LAST(1); LAST(2); LAST(3);
        }
#undef STEP
#undef LAST
        float *to = scores + j * SIDE;
        TILE_STORE(0, to, SIDE); TILE_STORE(1, to + 256, SIDE); TILE_STORE(2, to + 512, SIDE); TILE_STORE(3, to + 768, SIDE);
    }
    float inverse[SIDE];
    for (int part = 0; part < SIDE; part += 8) {
        const float *bias = rows->bias[part / 8];
        int64_t step = rows->bias_step;
        vec top[8], total[8];
        UNROLL for (int r = 0; r < 8; r++) top[r] = splat(-INFINITY), total[r] = splat(0);
        for (int64_t j = 0; j < n; j += LANES) {
            float *at = scores + j * SIDE + part * SIDE;
            UNROLL for (int r = 0; r < 8; r++) {
                vec y = load(at + r * SIDE) * factor + load(bias + r * step + j);
                if (masked) y += load(rows->mask[part + r] + j);
                store(at + r * SIDE, y);
                top[r] = vmax(top[r], y);
            }
        }
        UNROLL for (int r = 0; r < 8; r++) top[r] = splat(reduce_max(top[r]));
        for (int64_t j = 0; j < n; j += 2 * LANES) {
            const float *at = scores + j * SIDE + part * SIDE;
            UNROLL for (int r = 0; r < 8; r++) {
                vec low = exp2_fast(load(at + r * SIDE) - top[r]), high = exp2_fast(load(at + (SIDE + r) * SIDE) - top[r]);
                total[r] += low + high;
                _mm512_storeu_si512(probabilities + j * SIDE + (part + r) * 2 * SIDE, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
            }
        }
        UNROLL for (int r = 0; r < 8; r++) {
            float sum = reduce_add(total[r]);
            inverse[part + r] = 1.0f / sum;
            lse[i + part + r] = top[r][0] + log2f(sum);
        }
    }
    weigh_rows((const uint32_t *)probabilities, w->v_r, n, dp, out);
    for (int r = 0; r < SIDE; r++)
        for (int64_t c = 0; c < dp; c += LANES) store(out + r * dp + c, load(out + r * dp + c) * splat(inverse[r]));
}
/* Sums of squares grow by columns (16 of dp rows x 32 queries) times `pairs`, squares of 16 pairs of queries x 16 keys. */
INLINE void add_keys(const uint16_t *columns, const uint32_t *pairs, int64_t n, int64_t dp, float *sums) {
    for (int64_t c = 0; c < dp; c += SIDE, columns += SIDE * n, sums += SIDE * n) {
        TILE_LOAD(LEFT, columns, n / 2);
        for (int64_t j = 0; j < n; j += 4 * SIDE) {
#define STEP(u) \
    TILE_LOAD(u, sums + (j + u * SIDE) * SIDE, SIDE); TILE_LOAD(RIGHT, pairs + (j + u * SIDE) * SIDE, SIDE); TILE_PRODUCT(u, LEFT, RIGHT); \
    TILE_STORE(u, sums + (j + u * SIDE) * SIDE, SIDE)
            STEP(0); STEP(1); STEP(2); STEP(3);
#undef STEP
        }
    }
}

/* Scores of 32 queries with 16 keys, and what their gradients begin from: squares, two of each. */
INLINE void tile_scores(const Work *w, int64_t dp, int64_t n, int64_t i, int64_t j, float *squares) {
    int64_t c = 0, q_ld = w->qkv_ld / 2, d_ld = w->dout_ld / 2;
    const uint32_t *q = (const uint32_t *)w->q + i * q_ld, *d = (const uint32_t *)w->dout + i * d_ld;
    const uint32_t *kt = w->kt + j, *vt = w->vt + j;
    TILE_ZERO(0); TILE_ZERO(1); TILE_ZERO(2); TILE_ZERO(3);
#define STEP(u, left, right, from, ld) TILE_LOAD(left, from, ld); TILE_PRODUCT(u, left, right)
    for (; c + SIDE <= dp / 2; c += SIDE) {
        TILE_LOAD(RIGHT, kt + c * n, n); STEP(0, LEFT, RIGHT, q + c, q_ld); STEP(1, LEFT, RIGHT, q + c + SIDE * q_ld, q_ld);
        TILE_LOAD(RIGHT, vt + c * n, n); STEP(2, LEFT, RIGHT, d + c, d_ld); STEP(3, LEFT, RIGHT, d + c + SIDE * d_ld, d_ld);
    }
    if (c < dp / 2) {
        TILE_LOAD(RIGHT_REST, kt + c * n, n); STEP(0, LEFT_REST, RIGHT_REST, q + c, q_ld); STEP(1, LEFT_REST, RIGHT_REST, q + c + SIDE * q_ld, q_ld);
        TILE_LOAD(RIGHT_REST, vt + c * n, n); STEP(2, LEFT_REST, RIGHT_REST, d + c, d_ld); STEP(3, LEFT_REST, RIGHT_REST, d + c + SIDE * d_ld, d_ld);
    }
#undef STEP
    TILE_STORE(0, squares, SIDE); TILE_STORE(1, squares + 256, SIDE); TILE_STORE(2, squares + 512, SIDE); TILE_STORE(3, squares + 768, SIDE);
}

/* As attend_rows_backward(), of 32 queries from row i on; sums of keys and values are columns, [dp / 16][n / 16] squares. */
INLINE void attend_tiles_backward(int masked, int64_t dp, int64_t n, const Rows rows[2], vec factor, const Work *w, int64_t i, float *dq,
                                  const float *lse, int64_t dbias) {
    float squares[2][4 * SIDE * SIDE] __attribute__((aligned(64)));
    uint32_t *p_r = w->p_r, *g_r = w->g_r, *g_c = (uint32_t *)w->g_c;
    const float *delta = w->delta + i;
    lse += i;
    tile_scores(w, dp, n, i, 0, squares[0]);
    for (int64_t j = 0; j < n; j += SIDE) {
        /* the products of the next keys run meanwhile */
        if (j + SIDE < n) tile_scores(w, dp, n, i, j + SIDE, squares[(j / SIDE + 1) % 2]);
        const float *scores = squares[j / SIDE % 2];
        for (int part = 0; part < 4; part++) {
            const Rows *of = rows + part / 2;
            const float *bias = of->bias[part % 2], *at = scores + part * 8 * SIDE;
            int64_t step = of->bias_step;
            UNROLL for (int r = 0; r < 8; r += 2) {
                vec x[2], g[2];
                UNROLL for (int u = 0; u < 2; u++) {
                    x[u] = load(at + (r + u) * SIDE) * factor + (load(bias + (r + u) * step + j) - splat(lse[8 * part + r + u]));
                    if (masked) x[u] += load(of->mask[part % 2 * 8 + r + u] + j);
                    x[u] = exp2_fast(x[u]);
                    g[u] = x[u] * (load(at + 512 + (r + u) * SIDE) - splat(delta[8 * part + r + u]));
                    float *db = (float *)bias + dbias + (r + u) * step + j;
                    store(db, load(db) + g[u]);
                }
                __m512i halves;
                _mm512_storeu_si512(p_r + j * SIDE + (4 * part + r / 2) * SIDE, round_pair(x[0], x[1], &halves));
                _mm512_storeu_si512(g_r + j * SIDE + (4 * part + r / 2) * SIDE, round_pair(g[0], g[1], &halves));
                uint32_t *to = g_c + part / 2 * (n * 8) + (j / 32 * 16 + part % 2 * 8 + r) * SIDE + j % 32 / 2;
                _mm256_storeu_si256((__m256i *)to, _mm512_castsi512_si256(halves));
                _mm256_storeu_si256((__m256i *)(to + SIDE), _mm512_extracti64x4_epi64(halves, 1));
            }
        }
    }
    weigh_rows(g_c, w->k_r, n, dp, dq);
    weigh_rows(g_c + n * 8, w->k_r, n, dp, dq + SIDE * dp);
    add_keys((const uint16_t *)w->dout_r + i, p_r, n, dp, w->dv);
    add_keys((const uint16_t *)w->q_r + i, g_r, n, dp, w->dk);
}

/* Sums of add_keys() as rows of dp. */
static void rows_of_squares(const float *squares, int64_t n, int64_t dp, float *rows) {
    for (int64_t c = 0; c < dp; c += SIDE)
        for (int64_t j = 0; j < n; j += SIDE) {
            __m512i x[SIDE];
            UNROLL for (int r = 0; r < SIDE; r++) x[r] = _mm512_loadu_si512(squares + c * n + j * SIDE + r * SIDE);
            turn(x);
            UNROLL for (int r = 0; r < SIDE; r++) _mm512_storeu_si512(rows + (j + r) * dp + c, x[r]);
        }
}
#endif

#endif
