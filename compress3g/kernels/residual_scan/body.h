/* Scores sum_t max_j factor_j (base[code_j][t] + <q_t, r_j>) of candidate pages, r_j decoded.
 *
 * Two ways to <q_t, r_j>, both for up to 32 tokens t at once (a token stands in one lane):
 * "rows" adds one row of a table per byte of r_j, when a byte stands for several dimensions;
 * "products" decodes a few r_j to floats and multiplies them with the query.
 * A page that is refused, or that holds values that are not finite, scores NaN; Python says why.
 */
#ifndef RESIDUAL_SCAN_TYPES
#define RESIDUAL_SCAN_TYPES
#include "../_pages.h"
#if COMPRESS3G_X86
#include <immintrin.h>
#endif

enum { ROWS, HALVES, BYTES, NIBBLES };

typedef struct {
    const float *base;      /* [centroids][padded], or null */
    const float *table;     /* ROWS: [bytes][256][padded]; else the query, [dims][padded] */
    const float *levels;    /* NIBBLES: [256][2], the two values of a byte */
    const u8 *stream;       /* [vectors][bytes] */
    const u16 *half_factor; /* [vectors] as float16, or null */
    const float *factor;    /* [vectors], or null */
    float *all;             /* similarities [n][tokens] of a single page, or null */
    i64 tokens, padded;     /* padded to a multiple of 8 */
    i64 bytes, dims;        /* of one vector */
    i64 kind;
} Decoded;

#define PRODUCT_DIMS 256 /* decoded at a time */
#define MOST_VECTORS 8

/* A float16 as float: subnormals, infinities and NaN too, without branches. */
INLINE float half_to_float(u16 half)
{
    union {
        u32 bits;
        float value;
    } number;
    number.bits = (u32)(half & 0x7fff) << 13;
    number.value *= 0x1p112f;
    number.bits |= (half & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
    number.bits |= (u32)(half & 0x8000) << 16;
    return number.value;
}

INLINE float factor_of(const Decoded *decoded, i64 vector)
{
    if (decoded->half_factor) return half_to_float(decoded->half_factor[vector]);
    return decoded->factor ? decoded->factor[vector] : 1.0f;
}
#endif

/* A block of `units` eights of tokens is WIDES vectors of 16 floats and NARROWS narrower ones. */
#if VECTOR == 16
#define NARROW 8
#define WIDES (units / 2)
#define NARROWS (units & 1)
#define AT_ONCE 8
#else
#define NARROW VECTOR
#define WIDES 0
#define NARROWS (units * 8 / NARROW)
#define AT_ONCE (VECTOR == 8 ? (units == 4 ? 3 : 4) : 1)
#endif
typedef float NAME(wide) __attribute__((vector_size(64), aligned(4)));
typedef float NAME(narrow) __attribute__((vector_size(4 * NARROW), aligned(4)));
#define WIDE_AT(p) (*(const NAME(wide) *)(p))
#define NARROW_AT(p) (*(const NAME(narrow) *)(p))

typedef struct {
    NAME(wide) wide[2];
    NAME(narrow) narrow[32 / NARROW];
} NAME(Block);

INLINE TARGET void NAME(fill)(NAME(Block) *block, float value, const int units)
{
    for (int b = 0; b < WIDES; b++) block->wide[b] = value - (NAME(wide)){0};
    for (int b = 0; b < NARROWS; b++) block->narrow[b] = value - (NAME(narrow)){0};
}

/* sum += scale * (floats from `source` on) */
INLINE TARGET void NAME(add)(NAME(Block) *sum, float scale, const float *source, const int units)
{
#pragma GCC unroll 2
    for (int b = 0; b < WIDES; b++) sum->wide[b] += scale * WIDE_AT(source + 16 * b);
#pragma GCC unroll 8
    for (int b = 0; b < NARROWS; b++)
        sum->narrow[b] += scale * NARROW_AT(source + 16 * WIDES + NARROW * b);
}

INLINE TARGET void NAME(add_row)(NAME(Block) *sum, const float *source, const int units)
{
#pragma GCC unroll 2
    for (int b = 0; b < WIDES; b++) sum->wide[b] += WIDE_AT(source + 16 * b);
#pragma GCC unroll 8
    for (int b = 0; b < NARROWS; b++) sum->narrow[b] += NARROW_AT(source + 16 * WIDES + NARROW * b);
}

INLINE TARGET void NAME(store)(const NAME(Block) *block, float *target, const int units)
{
    for (int b = 0; b < WIDES; b++) *(NAME(wide) *)(target + 16 * b) = block->wide[b];
    for (int b = 0; b < NARROWS; b++)
        *(NAME(narrow) *)(target + 16 * WIDES + NARROW * b) = block->narrow[b];
}

INLINE TARGET NAME(narrow) NAME(larger)(NAME(narrow) a, NAME(narrow) b)
{
#if VECTOR >= 8
    return (NAME(narrow))_mm256_max_ps((__m256)a, (__m256)b);
#else
    for (int l = 0; l < NARROW; l++) a[l] = a[l] > b[l] ? a[l] : b[l];
    return a;
#endif
}

/* A finished sum of one vector: base and factor, then the maxima; bad stays 0 while all is finite. */
INLINE TARGET void NAME(finish)(const Decoded *decoded, const Pages *pages, i64 vector, i64 row,
                                i64 token, NAME(Block) *sum, NAME(Block) *best, NAME(Block) *bad,
                                const int units)
{
    if (decoded->base) {
        const i64 code = code_at(pages->codes, (int)pages->wide, vector);
        NAME(add_row)(sum, decoded->base + code * decoded->padded + token, units);
    }
    const float factor = factor_of(decoded, vector);
#if VECTOR == 16
    for (int b = 0; b < WIDES; b++) {
        sum->wide[b] *= factor;
        bad->wide[b] += 0.0f * sum->wide[b];
        best->wide[b] = (NAME(wide))_mm512_max_ps((__m512)sum->wide[b], (__m512)best->wide[b]);
    }
#endif
    for (int b = 0; b < NARROWS; b++) {
        sum->narrow[b] *= factor;
        bad->narrow[b] += 0.0f * sum->narrow[b];
        best->narrow[b] = NAME(larger)(sum->narrow[b], best->narrow[b]);
    }
    if (decoded->all) {
        float lane[32];
        NAME(store)(sum, lane, units);
        for (i64 t = token; t < token + 8 * units && t < decoded->tokens; t++)
            decoded->all[row * decoded->tokens + t] = lane[t - token];
    }
}

/* Rows of the table of all bytes of `count` vectors, which lie `bytes` apart. */
INLINE TARGET void NAME(rows)(const Decoded *decoded, const u8 *const *vectors, const int count,
                              i64 token, NAME(Block) *sums, const int units)
{
    const i64 padded = decoded->padded;
    const float *table = decoded->table + token;
    i64 b = 0;
    for (; b + 8 <= decoded->bytes; b += 8) {
        u64 word[2];
        for (int v = 0; v < count; v++) memcpy(word + v, vectors[v] + b, 8);
#pragma GCC unroll 8
        for (int s = 0; s < 8; s++, table += 256 * padded)
#pragma GCC unroll 2
            for (int v = 0; v < count; v++) {
                NAME(add_row)(sums + v, table + (i64)(word[v] & 255) * padded, units);
                word[v] >>= 8;
            }
    }
    for (; b < decoded->bytes; b++, table += 256 * padded)
        for (int v = 0; v < count; v++)
            NAME(add_row)(sums + v, table + vectors[v][b] * padded, units);
}

/* Dimensions d .. d + n - 1 of one vector as floats. */
INLINE TARGET void NAME(decode)(const Decoded *decoded, const u8 *vector, i64 d, i64 n, float *out)
{
    if (decoded->kind == HALVES) {
        const u16 *half = (const u16 *)vector + d;
        i64 k = 0;
#if VECTOR == 16
        for (; k + 16 <= n; k += 16)
            _mm512_storeu_ps(out + k, _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(half + k))));
#endif
        for (; k < n; k++) out[k] = half_to_float(half[k]);
    } else if (decoded->kind == BYTES) {
        const int8_t *byte = (const int8_t *)vector + d;
        for (i64 k = 0; k < n; k++) out[k] = byte[k];
    } else {
        for (i64 k = 0; k < n / 2; k++)
            memcpy(out + 2 * k, decoded->levels + 2 * vector[d / 2 + k], 8);
    }
}

INLINE TARGET void NAME(products)(const Decoded *decoded, const u8 *const *vectors, const int count,
                                  i64 token, NAME(Block) *sums, const int units)
{
    float value[MOST_VECTORS][PRODUCT_DIMS];
    for (i64 d = 0; d < decoded->dims; d += PRODUCT_DIMS) {
        const i64 n = decoded->dims - d < PRODUCT_DIMS ? decoded->dims - d : PRODUCT_DIMS;
        for (int v = 0; v < count; v++) NAME(decode)(decoded, vectors[v], d, n, value[v]);
        const float *query = decoded->table + d * decoded->padded + token;
        for (i64 k = 0; k < n; k++, query += decoded->padded)
#pragma GCC unroll 8
            for (int v = 0; v < count; v++) NAME(add)(sums + v, value[v][k], query, units);
    }
}

/* Maxima of `units` eights of tokens over n vectors of a page; returns their sum, or NaN. */
INLINE TARGET double NAME(block)(const Decoded *decoded, const Pages *pages, i64 first, i64 n,
                                 i64 token, const int units, const int by_rows)
{
    const int count = by_rows ? 2 : AT_ONCE;
    NAME(Block) best, bad;
    NAME(fill)(&best, -INFINITY, units);
    NAME(fill)(&bad, 0.0f, units);
    for (i64 j = 0; j < n; j += count) {
        NAME(Block) sums[MOST_VECTORS];
        const u8 *vectors[MOST_VECTORS];
        i64 row[MOST_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < count; v++) { /* the last one again: a maximum does not mind */
            row[v] = j + v < n ? j + v : n - 1;
            vectors[v] = decoded->stream + (first + row[v]) * decoded->bytes;
            NAME(fill)(sums + v, 0.0f, units);
        }
        if (by_rows) NAME(rows)(decoded, vectors, count, token, sums, units);
        else NAME(products)(decoded, vectors, count, token, sums, units);
#pragma GCC unroll 8
        for (int v = 0; v < count; v++)
            NAME(finish)(decoded, pages, first + row[v], row[v], token, sums + v, &best, &bad, units);
    }
    float largest[32], flaw[32];
    NAME(store)(&best, largest, units);
    NAME(store)(&bad, flaw, units);
    double total = 0.0;
    for (i64 t = 0; t < 8 * units && token + t < decoded->tokens; t++)
        total += (double)largest[t] + (double)flaw[t];
    return total;
}

#define BLOCKS(by_rows)                                                                            \
    switch (units) {                                                                               \
    case 1: return NAME(block)(decoded, pages, first, n, token, 1, by_rows);                       \
    case 2: return NAME(block)(decoded, pages, first, n, token, 2, by_rows);                       \
    case 3: return NAME(block)(decoded, pages, first, n, token, 3, by_rows);                       \
    default: return NAME(block)(decoded, pages, first, n, token, 4, by_rows);                      \
    }

static __attribute__((noinline)) TARGET double NAME(by_rows)(const Decoded *decoded,
                                                             const Pages *pages, i64 first, i64 n,
                                                             i64 token, i64 units)
{
    BLOCKS(1)
}

static __attribute__((noinline)) TARGET double NAME(by_products)(const Decoded *decoded,
                                                                 const Pages *pages, i64 first,
                                                                 i64 n, i64 token, i64 units)
{
    BLOCKS(0)
}

/* out[i]: the score, -inf for a page without vectors, NaN for a refused one. */
EXPORT TARGET void NAME(residual_scan)(const Decoded *decoded, const Pages *pages, float *out, i64 lo,
                                       i64 hi)
{
    for (i64 i = lo; i < hi; i++) {
        i64 first, n;
        if (!page_span(pages, i, &first, &n) || (decoded->base && !codes_fit(pages, first, n))) {
            out[i] = NAN;
            continue;
        }
        double total = n ? 0.0 : -INFINITY;
        for (i64 token = 0; n && token < decoded->tokens; token += 32) {
            const i64 left = (decoded->padded - token) / 8, units = left < 4 ? left : 4;
            total += decoded->kind == ROWS
                         ? NAME(by_rows)(decoded, pages, first, n, token, units)
                         : NAME(by_products)(decoded, pages, first, n, token, units);
        }
        out[i] = (float)total;
    }
}
#undef BLOCKS
#undef NARROW
#undef WIDES
#undef NARROWS
#undef AT_ONCE
#undef WIDE_AT
#undef NARROW_AT
