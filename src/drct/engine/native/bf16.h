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

/* 2^x as in simd.h with fewer terms (relative error 1.0e-4), which what is rounded to bfloat16 does not see; no clipping. */
INLINE vec exp2_short(vec x) {
    vec shifted = x + splat(12582912.0f), f = x - (shifted - splat(12582912.0f));
    vec p = ((splat(5.500893295e-2f) * f + splat(2.422109693e-1f)) * f + splat(6.932829022e-1f)) * f + splat(1.0f);
    return (vec)((ivec)p + (((ivec)shifted) << 23));
}

/* x Phi(x) to 5e-5: Phi(-z) = e / (1 + e) with e = 2^-(z (a + b z^2 + c z^4)), the constants of least error. */
INLINE vec gelu_short(vec x) {
    vec z = vmax(x, -x), square = (vec)_mm512_min_ps((__m512)(z * z), _mm512_set1_ps(64.0f)); /* beyond 8 the polynomial turns */
    vec t = (splat(1.014263114e-3f) * square - splat(1.067757245e-1f)) * square - splat(2.301121339f);
    vec e = exp2_short(vmax(splat(-126.0f), z * t));
    return vmax(x, splat(0)) - z * e * (vec)_mm512_rcp14_ps((__m512)(splat(1.0f) + e));
}
#endif

#endif
