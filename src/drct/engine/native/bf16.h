/* Products of bfloat16 pairs summed in float32 (AVX512_BF16), and functions whose results are rounded to bfloat16. A product broadcasts one
 * pair of the first operand and takes 16 pairs of the second as a vector. */
#ifndef DRCT_BF16_H
#define DRCT_BF16_H

#include "simd.h"

/* Of every library that includes this file: whether it was built for a processor with such products. */
int drct_bf16_products(void) {
#ifdef BF16_PRODUCTS
    return 1;
#else
    return 0;
#endif
}

#ifdef BF16_PRODUCTS
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE vec dot(vec acc, __m512i a, __m512i b) { return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b); }
INLINE __m512i pair(const uint32_t *p) {
    int both;
    memcpy(&both, p, 4); /* the numbers were written one by one, as another type */
    return _mm512_set1_epi32(both);
}
INLINE __m512i pairs(const uint32_t *p) { return _mm512_loadu_si512(p); }
INLINE vec widen(const uint16_t *p) {
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}
INLINE void narrow(uint16_t *p, vec x) { _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)x)); }

/* A square of 32-bit numbers, mirrored at its diagonal. */
INLINE void turn(__m512i x[LANES]) {
    __m512i a[LANES], b[LANES];
    UNROLL for (int i = 0; i < LANES; i += 2) {
        a[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    UNROLL for (int i = 0; i < LANES; i += 4) UNROLL for (int h = 0; h < 2; h++) { /* b[i + c]: columns c, 4 + c, 8 + c, 12 + c of four rows */
        b[i + 2 * h] = _mm512_unpacklo_epi64(a[i + h], a[i + 2 + h]);
        b[i + 2 * h + 1] = _mm512_unpackhi_epi64(a[i + h], a[i + 2 + h]);
    }
    UNROLL for (int c = 0; c < 4; c++) {
        __m512i even = _mm512_shuffle_i32x4(b[c], b[4 + c], 0x88), even_below = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0x88);
        __m512i odd = _mm512_shuffle_i32x4(b[c], b[4 + c], 0xdd), odd_below = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0xdd);
        x[c] = _mm512_shuffle_i32x4(even, even_below, 0x88);
        x[4 + c] = _mm512_shuffle_i32x4(odd, odd_below, 0x88);
        x[8 + c] = _mm512_shuffle_i32x4(even, even_below, 0xdd);
        x[12 + c] = _mm512_shuffle_i32x4(odd, odd_below, 0xdd);
    }
}

/* Rows of bfloat16 as pairs of rows: [rows / 2][n]; adds the sums over rows to sums unless NULL. */
__attribute__((noinline)) static void pair_rows(const uint16_t *in, int64_t ld, int64_t rows, int64_t n, uint32_t *out, float *sums) {
    const __m512i ones = _mm512_set1_epi32(0x3f803f80);
    for (int64_t c = 0; c < n; c += LANES) {
        vec total = splat(0);
        for (int64_t i = 0; i < rows; i += 2) {
            __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(in + i * ld + c)));
            __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(in + (i + 1) * ld + c)));
            __m512i both = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
            _mm512_storeu_si512(out + i / 2 * n + c, both);
            total = dot(total, both, ones);
        }
        if (sums) store(sums + c, load(sums + c) + total);
    }
}

/* 2^x for what is rounded to bfloat16: the polynomials of least greatest relative error for its fraction, 7.5e-5 and 2.6e-6; what is too
 * small becomes 0. */
INLINE vec exp2_short(vec x) {
    vec f = (vec)_mm512_reduce_ps((__m512)x, 0x09); /* above the integer below */
    vec p = ((splat(7.802452332e-2f) * f + splat(2.260671590e-1f)) * f + splat(6.958335367e-1f)) * f + splat(9.999252192e-1f);
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)x);
}
INLINE vec exp2_fast(vec x) {
    vec f = (vec)_mm512_reduce_ps((__m512)x, 0x09);
    vec p = ((splat(1.353416800e-2f) * f + splat(5.201146108e-2f)) * f + splat(2.414427561e-1f)) * f + splat(6.930038348e-1f);
    return (vec)_mm512_scalef_ps((__m512)(p * f + splat(1.000002593f)), (__m512)x);
}

/* x Phi(x) to 5e-5: Phi(-z) = e / (1 + e) with e = 2^-(z (a + b z^2 + c z^4)), the constants of least error. */
INLINE vec gelu_short(vec x) {
    vec z = vmax(x, -x), square = (vec)_mm512_min_ps((__m512)(z * z), _mm512_set1_ps(64.0f)); /* beyond 8 the polynomial turns */
    vec t = (splat(1.014263114e-3f) * square - splat(1.067757245e-1f)) * square - splat(2.301121339f);
    vec e = exp2_short(z * t);
    return vmax(x, splat(0)) - z * e * (vec)_mm512_rcp14_ps((__m512)(splat(1.0f) + e));
}
#endif

#endif
