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

#ifdef TILES
#include <sys/syscall.h>
#include <unistd.h>

enum { SIDE = 16 }; /* rows of a tile, and its columns of 32 bits */
enum { LEFT = 4, RIGHT = 5, LEFT_REST = 6, RIGHT_REST = 7 }; /* tiles 0 to 3 are sums; the last two hold what is left of k */

static int use_tiles;

/* The system keeps the tiles of programs that ask for them, and ends those that do not. */
static __attribute__((constructor)) void ask_for_tiles(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    use_tiles = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
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

/* Of every library that includes this file: whether products are left to the matrix unit, which `wanted` 0 forbids and 1 allows. */
int drct_matrix_unit(int wanted) {
#ifdef TILES
    static int granted = -1;
    if (granted < 0) granted = use_tiles;
    return use_tiles = granted && wanted;
#else
    (void)wanted;
    return 0;
#endif
}

#endif
