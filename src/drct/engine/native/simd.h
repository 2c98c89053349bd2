/* Vectors of 16 numbers and bfloat16, shared by the kernels of this folder. Any compiler that knows vector types takes it; where the
 * processor has AVX-512, what the compiler would not find by itself is written out.
 */
#ifndef DRCT_SIMD_H
#define DRCT_SIMD_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#if defined(__AVX512F__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define BF16_PRODUCTS /* the processor multiplies pairs of bfloat16 and sums them in float32, at twice the rate */
#endif

#define LANES 16
#define LOG2E 1.44269504088896340736f

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vec splat(float x) { return (vec){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec v) { *(vec *)p = v; }
#ifdef __AVX512F__ /* one instruction each where the compiler would not find it */
static inline vec vmax(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
static inline float reduce_add(vec v) { return _mm512_reduce_add_ps((__m512)v); }
static inline float reduce_max(vec v) { return _mm512_reduce_max_ps((__m512)v); }
#else
static inline vec vmax(vec a, vec b) {
    ivec m = a > b;
    return (vec)(((ivec)a & m) | ((ivec)b & ~m));
}
static inline float reduce_add(vec v) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += v[i];
    return s;
}
static inline float reduce_max(vec v) {
    float s = v[0];
    for (int i = 1; i < LANES; i++) s = v[i] > s ? v[i] : s;
    return s;
}
#endif

/* 2^x for x <= 0: integer part into the exponent, the fraction by a polynomial (relative error below 3e-7). */
static inline vec exp2_nonpositive(vec x) {
    x = vmax(x, splat(-126.0f));
    /* round to nearest by adding 1.5 * 2^23: the integer appears in the low mantissa bits */
    vec shifted = x + splat(12582912.0f);
    vec f = x - (shifted - splat(12582912.0f));
    ivec n = ((ivec)shifted) << 23;
    vec p = splat(1.5403530e-4f);
    p = p * f + splat(1.3333558e-3f);
    p = p * f + splat(9.6181291e-3f);
    p = p * f + splat(5.5504109e-2f);
    p = p * f + splat(2.4022651e-1f);
    p = p * f + splat(6.9314718e-1f);
    p = p * f + splat(1.0f);
    return (vec)((ivec)p + n);
}

static inline float from_bf16(uint16_t x) {
    uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline uint16_t to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

#endif
