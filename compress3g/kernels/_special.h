/* exp2, softplus and the logistic function of one vector; for bodies that define VECTOR and TARGET.
 *
 * Minimax polynomials of this project. exp2(0) is exactly 1: a step of size 0 changes no state.
 * Relative errors against double: exp2 1.7e-7, softplus 3e-7, sigmoid 4e-7.
 */
#if COMPRESS3G_X86
#include <immintrin.h>
#endif
#define LOG2E 1.44269504088896341f
#define LN2 0.693147180559945309f

typedef float NAME(vector) __attribute__((vector_size(4 * VECTOR), aligned(4)));
typedef i32 NAME(ints) __attribute__((vector_size(4 * VECTOR), aligned(4)));
#define V NAME(vector)

/* Lanes of a where the comparison `mask` holds, of b elsewhere. */
INLINE TARGET V NAME(choose)(NAME(ints) mask, V a, V b)
{
    return (V)((mask & (NAME(ints))a) | (~mask & (NAME(ints))b));
}

/* x between `low` and `high`; NaN stays (the instructions give their second operand then). */
INLINE TARGET V NAME(between)(V low, V high, V x)
{
#if COMPRESS3G_X86 && VECTOR == 8
    return (V)_mm256_min_ps((__m256)high, _mm256_max_ps((__m256)low, (__m256)x));
#elif COMPRESS3G_X86 && VECTOR == 4
    return (V)_mm_min_ps((__m128)high, _mm_max_ps((__m128)low, (__m128)x));
#else
    x = NAME(choose)(x < low, low, x);
    return NAME(choose)(x > high, high, x);
#endif
}

#if VECTOR < 16
#define MAGIC ((V){0} + 12582912.0f) /* x + MAGIC: the integer next to x in the last bits */

/* 2^(k + f), where t = k + MAGIC, |f| <= 1/2. */
INLINE TARGET V NAME(exp2_of_parts)(V t, V f)
{
    V p = 0x1.5bba14p-10f * f + 0x1.3cea88p-7f;
    p = p * f + 0x1.c6b752p-5f;
    p = p * f + 0x1.ebf9bcp-3f;
    p = p * f + 0x1.62e42ap-1f;
    p = p * f + 1.0f;
    return (V)((NAME(ints))p + ((NAME(ints))t << 23));
}
#endif

INLINE TARGET V NAME(exp2)(V x)
{
#if VECTOR == 16
    const V f = (V)_mm512_reduce_ps((__m512)x, 1); /* x - floor(x) */
    V p = 0x1.e974fap-10f * f + 0x1.277856p-7f;
    p = p * f + 0x1.c91ce6p-5f;
    p = p * f + 0x1.ebdb56p-3f;
    p = p * f + 0x1.62e4bap-1f;
    p = p * f + 1.0f;
    return (V)_mm512_scalef_ps((__m512)p, (__m512)x); /* p 2^floor(x) */
#else
    /* Out of range, 0 and infinity become 1e-38 and 2e38; NaN passes. */
    x = NAME(between)((V){0} - 126.0f, (V){0} + 127.4999f, x);
    const V t = x + MAGIC;
    return NAME(exp2_of_parts)(t, x - (t - MAGIC));
#endif
}

/* 2^(a b); `within`: known that no |a b| is above 126. The same bits either way. */
INLINE TARGET V NAME(exp2_of_product)(V a, V b, const int within)
{
#if VECTOR == 16
    (void)within;
    return NAME(exp2)(a * b);
#else
    V t = a * b + MAGIC;
    if (!within) t = NAME(between)(MAGIC - 126.0f, MAGIC + 127.0f, t);
    V f = a * b - (t - MAGIC);
    if (!within) f = NAME(between)((V){0} - 0.5f, (V){0} + 0.5f, f);
    return NAME(exp2_of_parts)(t, f);
#endif
}
#undef MAGIC

/* Whether every lane of |a| times b >= 0 is at most 126, or NaN. */
INLINE TARGET int NAME(within)(V a, V b)
{
    const NAME(ints) beyond = (a * b > (V){0} + 126.0f) | (a * b < (V){0} - 126.0f);
#if COMPRESS3G_X86 && VECTOR == 8
    return !_mm256_movemask_ps((__m256)beyond);
#elif COMPRESS3G_X86 && VECTOR == 4
    return !_mm_movemask_ps((__m128)beyond);
#else
    int any = 0;
    for (int i = 0; i < VECTOR; i++) any |= beyond[i];
    return !any;
#endif
}

INLINE TARGET V NAME(sigmoid)(V x) { return 1.0f / (1.0f + NAME(exp2)(x * -LOG2E)); }

/* log(1 + exp(x)) = max(x, 0) + log(1 + t), t = exp(-|x|); `slope` is its derivative. */
INLINE TARGET V NAME(softplus)(V x, V *slope)
{
    const V zero = {0}, size = NAME(choose)(x < zero, x, -x);
    const V t = NAME(exp2)(size * LOG2E);
    V q = 0.005232694f * t - 0.029505238f;
    q = q * t + 0.078225955f;
    q = q * t - 0.13663246f;
    q = q * t + 0.19106007f;
    q = q * t - 0.24842982f;
    q = q * t + 0.33319098f;
    q = q * t - 0.49999493f;
    q = q * t + 0.99999994f;
    if (slope) {
        const V part = 1.0f / (1.0f + t);
        *slope = NAME(choose)(x < zero, t * part, part);
    }
    return NAME(choose)(x < zero, zero, x) + t * q;
}

/* `width` of VECTOR numbers, zeros beyond. */
INLINE TARGET V NAME(load)(const float *from, i64 width)
{
#if VECTOR == 16
    return (V)_mm512_maskz_loadu_ps((__mmask16)((1u << width) - 1), from);
#else
    if (width == VECTOR) return *(const V *)from;
    float some[VECTOR] = {0};
    for (i64 i = 0; i < width; i++) some[i] = from[i];
    return *(const V *)some;
#endif
}

INLINE TARGET void NAME(store)(float *to, V x, i64 width)
{
#if VECTOR == 16
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << width) - 1), (__m512)x);
#else
    if (width == VECTOR) {
        *(V *)to = x;
        return;
    }
    float some[VECTOR];
    *(V *)some = x;
    for (i64 i = 0; i < width; i++) to[i] = some[i];
#endif
}
