/* Products of bfloat16 pairs summed in float32 by the processor's matrix unit (AMX): tiles of 16 rows of 64 bytes. A product adds to 16 x 16
 * sums what 16 rows of 32 numbers give with 16 rows of 16 pairs; pairs lie as bf16.h has them, [k / 2][n], so both ways read the same packed
 * matrices. Eight times the rate of AVX512_BF16, at most.
 */
#ifndef DRCT_TILES_H
#define DRCT_TILES_H

#include "bf16.h"

#if defined(BF16_PRODUCTS) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define TILES
#endif

enum { SIDE = 16 }; /* rows of a tile, and its columns of 32 bits */

#ifdef TILES
#include <sys/syscall.h>
#include <unistd.h>

enum { LEFT = 4, RIGHT = 5, LEFT_REST = 6, RIGHT_REST = 7 }; /* tiles 0 to 3 are sums; the last two hold what is left of k */

static int tiles_granted, use_tiles;

/* The system keeps the tiles of programs that ask for them, and ends those that do not. */
static __attribute__((constructor)) void ask_for_tiles(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    tiles_granted = use_tiles = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* Shapes of this thread's tiles; `rest` (0 to 16) pairs are what whole tiles leave of k. */
static void shape_tiles(int rest) {
    struct {
        uint8_t palette, row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape __attribute__((aligned(64))) = {.palette = 1};
    for (int t = 0; t < 6; t++) shape.rows[t] = SIDE, shape.bytes[t] = 4 * SIDE;
    if (rest) {
        shape.rows[LEFT_REST] = SIDE, shape.bytes[LEFT_REST] = (uint16_t)(4 * rest);
        shape.rows[RIGHT_REST] = (uint8_t)rest, shape.bytes[RIGHT_REST] = 4 * SIDE;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(shape) : "memory");
}
static void release_tiles(void) { __asm__ volatile("tilerelease" ::: "memory"); }

/* The compiler's own of these do not say that they read memory. Strides are in units of 32 bits; t, sum, a and b are constants. */
#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm%c0" ::"i"(t) : "memory")
#define TILE_LOAD(t, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"((int64_t)(stride)*4), "i"(t) : "memory")
#define TILE_STORE(t, to, stride) \
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride)*4), "i"(t) : "memory")
#define TILE_PRODUCT(sum, a, b) __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b) : "memory")

/* 16 rows of p, blocks of 16 x 32 keys, times 16 columns of the values, pairs of keys in rows of dp: four squares to be added up, so that
 * no product waits for the one before. n is a multiple of 64. */
INLINE void weigh_squares(const uint32_t *p, const uint32_t *values, int64_t n, int64_t dp, float squares[4][SIDE * SIDE]) {
#define STEP(u) \
    TILE_LOAD(RIGHT, values + u * SIDE * dp, dp); \
    TILE_LOAD(LEFT, p + u * SIDE * SIDE, SIDE); \
    TILE_PRODUCT(u, LEFT, RIGHT)
    TILE_ZERO(0); TILE_ZERO(1); TILE_ZERO(2); TILE_ZERO(3);
    int64_t key = 0;
    for (; key + 128 <= n; key += 128, p += 4 * SIDE * SIDE, values += 4 * SIDE * dp) { STEP(0); STEP(1); STEP(2); STEP(3); }
    if (key < n) { STEP(0); STEP(1); }
    TILE_STORE(0, squares[0], SIDE); TILE_STORE(1, squares[1], SIDE); TILE_STORE(2, squares[2], SIDE); TILE_STORE(3, squares[3], SIDE);
#undef STEP
}
INLINE vec add_squares(float squares[4][SIDE * SIDE], int row) {
    vec a = load(squares[0] + row * SIDE) + load(squares[1] + row * SIDE), b = load(squares[2] + row * SIDE) + load(squares[3] + row * SIDE);
    return a + b;
}

/* Rows of bfloat16 as columns: [n][rows]; adds the sums over rows to sums unless NULL. Rows are a multiple of 32, n of 16. */
static void turn_rows(const uint16_t *in, int64_t ld, int64_t rows, int64_t n, uint16_t *out, float *sums) {
    const __m512i ones = _mm512_set1_epi32(0x3f803f80);
    for (int64_t c = 0; c < n; c += SIDE) {
        vec total = splat(0);
        for (int64_t i = 0; i < rows; i += 2 * SIDE) {
            __m512i x[SIDE];
            UNROLL for (int r = 0; r < SIDE; r++) {
                const uint16_t *at = in + (i + 2 * r) * ld + c;
                __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at));
                __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(at + ld)));
                x[r] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
                total = dot(total, x[r], ones);
            }
            turn(x);
            UNROLL for (int r = 0; r < SIDE; r++) _mm512_storeu_si512(out + (c + r) * rows + i, x[r]);
        }
        if (sums) store(sums + c, load(sums + c) + total);
    }
}
#endif

/* This thread's tiles, for products of which whole tiles leave `rest` pairs of k, and back again; nothing where vectors multiply. */
static inline void take_tiles(int64_t rest) {
#ifdef TILES
    if (use_tiles) shape_tiles((int)rest);
#else
    (void)rest;
#endif
}
static inline void give_tiles(void) {
#ifdef TILES
    if (use_tiles) release_tiles();
#endif
}

/* Of every library that includes this file: whether there is a matrix unit that may be used. */
int drct_matrix_unit(void) {
#ifdef TILES
    return tiles_granted;
#else
    return 0;
#endif
}

/* Leaves products to the matrix unit, as from the beginning, or to vectors: for comparisons. */
void drct_use_matrix_unit(int wanted) {
#ifdef TILES
    use_tiles = tiles_granted && wanted;
#else
    (void)wanted;
#endif
}

#endif
