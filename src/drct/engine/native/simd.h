/* Vectors as wide as the processor's registers, and bfloat16, shared by the kernels of this folder. Any compiler that knows vector
 * types takes it; what compilers do not find by themselves is written out for AVX-512 and AVX2. Wider vectors than registers would
 * work, too, but gcc keeps those in memory, which makes kernels twenty times as slow.
 */
#ifndef DRCT_SIMD_H
#define DRCT_SIMD_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define BF16_PRODUCTS /* the processor multiplies pairs of bfloat16 and sums them in float32, at twice the rate */
#endif

#ifdef __AVX512F__
#define LANES 16
#define REGISTERS 32
#elif defined(__AVX2__)
#define LANES 8
#define REGISTERS 16
#else /* SSE2, NEON */
#define LANES 4
#define REGISTERS 16
#endif
#define LOG2E 1.44269504088896340736f

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Keeps a vector in its register. Without it gcc, which thinks that loads cost nothing, reads it from memory in every product. */
#if defined(__AVX512F__)
#define KEEP(x) __asm__("" : "+v"(x))
#elif defined(__AVX2__)
#define KEEP(x) __asm__("" : "+x"(x))
#else
#define KEEP(x)
#endif

/* The next multiple of a vector's length. */
static inline int64_t whole(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec v) { *(vec *)p = v; }
#ifdef __AVX512F__
static inline vec splat(float x) { return (vec)_mm512_set1_ps(x); }
static inline vec vmax(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
static inline float reduce_add(vec v) { return _mm512_reduce_add_ps((__m512)v); }
static inline float reduce_max(vec v) { return _mm512_reduce_max_ps((__m512)v); }
#elif defined(__AVX2__)
static inline vec splat(float x) { return (vec)_mm256_set1_ps(x); }
static inline vec vmax(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
static inline float reduce_add(vec v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
static inline float reduce_max(vec v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
#else
static inline vec splat(float x) { return (vec){x, x, x, x}; }
static inline vec vmax(vec a, vec b) {
    ivec m = a > b;
    return (vec)(((ivec)a & m) | ((ivec)b & ~m));
}
static inline float reduce_add(vec v) { return (v[0] + v[1]) + (v[2] + v[3]); }
static inline float reduce_max(vec v) {
    float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}
#endif

/* From here on this thread takes numbers below the normal range of float32 for zero, until take_tiny_as_before(). Intel's processors need
 * a hundred times as long for each, and the powers of masked scores leave many. */
static inline unsigned take_tiny_for_zero(void) {
#ifdef __SSE__
    unsigned control = _mm_getcsr();
    _mm_setcsr(control | 0x8040);
    return control;
#else
    return 0;
#endif
}
static inline void take_tiny_as_before(unsigned control) {
#ifdef __SSE__
    _mm_setcsr(control);
#else
    (void)control;
#endif
}

/* Whether all threads of a team got their room; each calls it once. A loop that they share is for all of them or for none. */
static inline int all_opened(int opened, int *failed) {
    if (!opened) {
#pragma omp atomic write
        *failed = 1;
    }
#pragma omp barrier
    int lacking;
#pragma omp atomic read
    lacking = *failed;
    return !lacking;
}

/* 2^x for x < 127, below -126 as at -126: the integer part goes into the exponent, the fraction (-0.5 to 0.5) through the polynomial
 * with p(0) = 1 whose greatest relative error is least, 9.2e-8. */
static inline vec exp2_below_127(vec x) {
    x = vmax(splat(-126.0f), x); /* in this order NaN stays NaN */
    /* round to nearest by adding 1.5 * 2^23: the integer appears in the low mantissa bits */
    vec shifted = x + splat(12582912.0f);
    vec f = x - (shifted - splat(12582912.0f));
    ivec n = ((ivec)shifted) << 23;
    vec square = f * f, low = splat(6.931469776e-1f) * f + splat(1.0f); /* in pairs: half as long a wait as one after the other */
    vec middle = splat(5.550733743e-2f) * f + splat(2.402224209e-1f), high = splat(1.326472714e-3f) * f + splat(9.671512640e-3f);
    vec p = (high * square + middle) * square + low;
    return (vec)((ivec)p + n);
}

/* What the normal distribution has beyond `magnitude`, by the error function (Abramowitz and Stegun 7.1.26, absolute error below 1e-7);
 * e is exp(-magnitude^2 / 2). */
static inline vec normal_tail(vec magnitude, vec e) {
    vec t = splat(1.0f) / (splat(1.0f) + magnitude * splat(0.3275911f * 0.70710678f));
    vec p = splat(0.5f * 1.061405429f);
    p = p * t + splat(0.5f * -1.453152027f);
    p = p * t + splat(0.5f * 1.421413741f);
    p = p * t + splat(0.5f * -0.284496736f);
    p = p * t + splat(0.5f * 0.254829592f);
    return p * t * e;
}

/* x Phi(x) */
static inline vec gelu(vec x) {
    vec magnitude = vmax(x, -x), e = exp2_below_127(x * x * splat(-0.5f * LOG2E));
    return vmax(x, splat(0)) - magnitude * normal_tail(magnitude, e);
}

/* The same, and its slope Phi(x) + x phi(x). */
static inline vec gelu_and_slope(vec x, vec *slope) {
    vec magnitude = vmax(x, -x), e = exp2_below_127(x * x * splat(-0.5f * LOG2E)), tail = normal_tail(magnitude, e);
    ivec positive = x > 0;
    vec phi = (vec)(((ivec)(splat(1.0f) - tail) & positive) | ((ivec)tail & ~positive));
    *slope = phi + x * e * splat(0.398942280f);
    return vmax(x, splat(0)) - magnitude * tail;
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
