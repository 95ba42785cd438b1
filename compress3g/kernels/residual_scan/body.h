/* Scores sum_t max_j factor_j (base[code_j][t] + gain_j <q_t, r_j>) of candidate pages, r_j decoded.
 *
 * Three ways to <q_t, r_j>, each for up to 32 tokens t at once, which stand in the lanes:
 * "rows": one row of a table per byte of r_j, where a byte stands for several dimensions. Rows of
 *     16-bit integers: 32 tokens are one cache line, and cache lines are what bounds this.
 * "pairs": r_j decoded to 16-bit integers, times a query of 16-bit integers, two dimensions a lane.
 * "products": r_j decoded to floats, times a query of floats.
 * Integer sums times `step` give the float. A page that is refused, or that holds values that are
 * not finite, scores NaN; Python says why.
 */
#ifndef RESIDUAL_SCAN_TYPES
#define RESIDUAL_SCAN_TYPES
#include "../_pages.h"
#if COMPRESS3G_X86
#include <immintrin.h>
#endif

enum { ROWS, HALVES, BYTES, NIBBLES };

typedef int16_t i16;

typedef struct {
    const float *base;      /* [centroids][padded], or null */
    const void *table;      /* ROWS: i16 [bytes][256][pitch]; HALVES: the query, float [dims][padded];
                             * BYTES, NIBBLES: the query, i16 [dims / 2][padded][2] */
    const i16 *levels;      /* NIBBLES: [256][2], the two values of a byte */
    const u8 *stream;       /* [vectors][bytes] */
    const u16 *half_factor; /* [vectors] as float16, or null */
    const float *factor;    /* [vectors], or null */
    const float *scales;    /* ROWS: [2][256] gains and factors, which the last two bytes of a vector
                             * number; or null, and gains are 1 */
    float *all;             /* similarities [n][tokens] of a single page, or null */
    i64 tokens, padded;     /* padded to a multiple of 8 */
    i64 bytes, dims;        /* of one vector */
    i64 kind, pitch;
    float step;
} Decoded;

#define CHUNK 256 /* dimensions decoded at a time; Python scales pairs so that their sum fits 32 bits */
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
    if (decoded->scales)
        return decoded->scales[256 + decoded->stream[(vector + 1) * decoded->bytes - 1]];
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

INLINE TARGET void NAME(add_base)(NAME(Block) *sum, const float *source, const int units)
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
        NAME(add_base)(sum, decoded->base + code * decoded->padded + token, units);
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

/* Integer sums of a block, lane by lane as in Block. */
typedef i32 NAME(wide_sum) __attribute__((vector_size(64), aligned(4)));
typedef i32 NAME(narrow_sum) __attribute__((vector_size(4 * NARROW), aligned(4)));
typedef u32 NAME(unsigned_sum) __attribute__((vector_size(4 * NARROW), aligned(4)));
typedef i16 NAME(narrow_row) __attribute__((vector_size(2 * NARROW), aligned(2)));
typedef struct {
    NAME(wide_sum) wide[2];
    NAME(narrow_sum) narrow[32 / NARROW];
} NAME(Sums);

INLINE TARGET void NAME(clear)(NAME(Sums) *sums, const int units)
{
    for (int b = 0; b < WIDES; b++) sums->wide[b] = (NAME(wide_sum)){0};
    for (int b = 0; b < NARROWS; b++) sums->narrow[b] = (NAME(narrow_sum)){0};
}

INLINE TARGET void NAME(add_sums)(NAME(Block) *block, float step, const NAME(Sums) *sums,
                                  const int units)
{
    for (int b = 0; b < WIDES; b++)
        block->wide[b] += step * __builtin_convertvector(sums->wide[b], NAME(wide));
    for (int b = 0; b < NARROWS; b++)
        block->narrow[b] += step * __builtin_convertvector(sums->narrow[b], NAME(narrow));
}

INLINE TARGET void NAME(add_row)(NAME(Sums) *sums, const i16 *row, const int units)
{
#if VECTOR == 4
    for (int b = 0; b < NARROWS; b++)
        sums->narrow[b] += __builtin_convertvector(*(const NAME(narrow_row) *)(row + NARROW * b),
                                                   NAME(narrow_sum));
#else
#if VECTOR == 16
#pragma GCC unroll 2
    for (int b = 0; b < WIDES; b++, row += 16)
        sums->wide[b] += (NAME(wide_sum))_mm512_cvtepi16_epi32(_mm256_loadu_si256((const void *)row));
#endif
#pragma GCC unroll 4
    for (int b = 0; b < NARROWS; b++, row += 8)
        sums->narrow[b] += (NAME(narrow_sum))_mm256_cvtepi16_epi32(_mm_loadu_si128((const void *)row));
#endif
}

/* sums[t] += pair[0] * query[t][0] + pair[1] * query[t][1] */
INLINE TARGET void NAME(add_pair)(NAME(Sums) *sums, const i16 *pair, const i16 *query, const int units)
{
#if VECTOR == 4 && COMPRESS3G_X86
    i32 both;
    memcpy(&both, pair, 4);
    for (int b = 0; b < NARROWS; b++, query += 8)
        sums->narrow[b] += (NAME(narrow_sum))_mm_madd_epi16(_mm_set1_epi32(both),
                                                            _mm_loadu_si128((const void *)query));
#elif VECTOR == 4
    for (int b = 0; b < NARROWS; b++, query += 8) {
        const NAME(narrow_sum) both = *(const NAME(narrow_sum) *)query;
        const NAME(narrow_sum) low = (NAME(narrow_sum))((NAME(unsigned_sum))both << 16) >> 16;
        sums->narrow[b] += pair[0] * low + pair[1] * (both >> 16);
    }
#else
    i32 both;
    memcpy(&both, pair, 4);
#if VECTOR == 16
#pragma GCC unroll 2
    for (int b = 0; b < WIDES; b++, query += 32) {
        const __m512i left = _mm512_set1_epi32(both), right = _mm512_loadu_si512(query);
#ifdef ICELAKE
        sums->wide[b] = (NAME(wide_sum))_mm512_dpwssd_epi32((__m512i)sums->wide[b], left, right);
#else
        sums->wide[b] += (NAME(wide_sum))_mm512_madd_epi16(left, right);
#endif
    }
#endif
#pragma GCC unroll 8
    for (int b = 0; b < NARROWS; b++, query += 16) {
        const __m256i left = _mm256_set1_epi32(both), right = _mm256_loadu_si256((const void *)query);
#ifdef ICELAKE
        sums->narrow[b] = (NAME(narrow_sum))_mm256_dpwssd_epi32((__m256i)sums->narrow[b], left, right);
#else
        sums->narrow[b] += (NAME(narrow_sum))_mm256_madd_epi16(left, right);
#endif
    }
#endif
}

/* Rows of the table of all bytes of `count` vectors. */
INLINE TARGET void NAME(rows)(const Decoded *decoded, const u8 *const *vectors, const int count,
                              i64 token, NAME(Block) *blocks, const int units)
{
    const i64 pitch = decoded->pitch, bytes = decoded->bytes - (decoded->scales ? 2 : 0);
    const i16 *table = (const i16 *)decoded->table + token;
    NAME(Sums) sums[MOST_VECTORS];
    for (int v = 0; v < count; v++) NAME(clear)(sums + v, units);
    i64 b = 0;
    for (; b + 8 <= bytes; b += 8) {
        u64 word[MOST_VECTORS];
        for (int v = 0; v < count; v++) memcpy(word + v, vectors[v] + b, 8);
#pragma GCC unroll 8
        for (int s = 0; s < 8; s++, table += 256 * pitch)
#pragma GCC unroll 4
            for (int v = 0; v < count; v++) {
                NAME(add_row)(sums + v, table + (i64)(word[v] & 255) * pitch, units);
                word[v] >>= 8;
            }
    }
    for (; b < bytes; b++, table += 256 * pitch)
        for (int v = 0; v < count; v++) NAME(add_row)(sums + v, table + vectors[v][b] * pitch, units);
    for (int v = 0; v < count; v++) {
        const float gain = decoded->scales ? decoded->scales[vectors[v][bytes]] : 1.0f;
        NAME(add_sums)(blocks + v, decoded->step * gain, sums + v, units);
    }
}

/* Dimensions d .. d + n - 1 of one vector as integers, and a zero after an odd n. */
INLINE TARGET void NAME(whole)(const Decoded *decoded, const u8 *vector, i64 d, i64 n, i16 *out)
{
    if (decoded->kind == BYTES) {
        const int8_t *byte = (const int8_t *)vector + d;
        for (i64 k = 0; k < n; k++) out[k] = byte[k];
    } else {
        for (i64 k = 0; k < n / 2; k++)
            memcpy(out + 2 * k, decoded->levels + 2 * vector[d / 2 + k], 4);
    }
    if (n & 1) out[n] = 0;
}

INLINE TARGET void NAME(pairs)(const Decoded *decoded, const u8 *const *vectors, const int count,
                               i64 token, NAME(Block) *blocks, const int units)
{
    i16 value[MOST_VECTORS][CHUNK];
    for (i64 d = 0; d < decoded->dims; d += CHUNK) {
        const i64 n = decoded->dims - d < CHUNK ? decoded->dims - d : CHUNK;
        const i16 *query = (const i16 *)decoded->table + d * decoded->padded + 2 * token;
        NAME(Sums) sums[MOST_VECTORS];
        for (int v = 0; v < count; v++) {
            NAME(clear)(sums + v, units);
            NAME(whole)(decoded, vectors[v], d, n, value[v]);
        }
        for (i64 k = 0; k < n; k += 2, query += 2 * decoded->padded)
#pragma GCC unroll 8
            for (int v = 0; v < count; v++) NAME(add_pair)(sums + v, value[v] + k, query, units);
        for (int v = 0; v < count; v++) NAME(add_sums)(blocks + v, decoded->step, sums + v, units);
    }
}

/* Dimensions d .. d + n - 1 of one vector as floats. */
INLINE TARGET void NAME(floats)(const u16 *half, i64 n, float *out)
{
    i64 k = 0;
#if VECTOR == 16
    for (; k + 16 <= n; k += 16)
        _mm512_storeu_ps(out + k, _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(half + k))));
#endif
    for (; k < n; k++) out[k] = half_to_float(half[k]);
}

INLINE TARGET void NAME(products)(const Decoded *decoded, const u8 *const *vectors, const int count,
                                  i64 token, NAME(Block) *blocks, const int units)
{
    float value[MOST_VECTORS][CHUNK];
    for (i64 d = 0; d < decoded->dims; d += CHUNK) {
        const i64 n = decoded->dims - d < CHUNK ? decoded->dims - d : CHUNK;
        const float *query = (const float *)decoded->table + d * decoded->padded + token;
        for (int v = 0; v < count; v++) NAME(floats)((const u16 *)vectors[v] + d, n, value[v]);
        for (i64 k = 0; k < n; k++, query += decoded->padded)
#pragma GCC unroll 8
            for (int v = 0; v < count; v++) NAME(add)(blocks + v, value[v][k], query, units);
    }
}

/* Maxima of `units` eights of tokens over n vectors of a page; returns their sum, or NaN. */
INLINE TARGET double NAME(block)(const Decoded *decoded, const Pages *pages, i64 first, i64 n,
                                 i64 token, const int units, const int way)
{
    const int count = way == ROWS ? 2 : AT_ONCE;
    NAME(Block) best, bad;
    NAME(fill)(&best, -INFINITY, units);
    NAME(fill)(&bad, 0.0f, units);
    for (i64 j = 0; j < n; j += count) {
        NAME(Block) blocks[MOST_VECTORS];
        const u8 *vectors[MOST_VECTORS];
        i64 row[MOST_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < count; v++) { /* the last one again: a maximum does not mind */
            row[v] = j + v < n ? j + v : n - 1;
            vectors[v] = decoded->stream + (first + row[v]) * decoded->bytes;
            NAME(fill)(blocks + v, 0.0f, units);
        }
        if (way == ROWS) NAME(rows)(decoded, vectors, count, token, blocks, units);
        else if (way == HALVES) NAME(products)(decoded, vectors, count, token, blocks, units);
        else NAME(pairs)(decoded, vectors, count, token, blocks, units);
#pragma GCC unroll 8
        for (int v = 0; v < count; v++)
            NAME(finish)(decoded, pages, first + row[v], row[v], token, blocks + v, &best, &bad,
                         units);
    }
    float largest[32], flaw[32];
    NAME(store)(&best, largest, units);
    NAME(store)(&bad, flaw, units);
    double total = 0.0;
    for (i64 t = 0; t < 8 * units && token + t < decoded->tokens; t++)
        total += (double)largest[t] + (double)flaw[t];
    return total;
}

#define WAY(function, way)                                                                         \
    static __attribute__((noinline)) TARGET double NAME(function)(                                 \
        const Decoded *decoded, const Pages *pages, i64 first, i64 n, i64 token, i64 units)        \
    {                                                                                              \
        switch (units) {                                                                           \
        case 1: return NAME(block)(decoded, pages, first, n, token, 1, way);                       \
        case 2: return NAME(block)(decoded, pages, first, n, token, 2, way);                       \
        case 3: return NAME(block)(decoded, pages, first, n, token, 3, way);                       \
        default: return NAME(block)(decoded, pages, first, n, token, 4, way);                      \
        }                                                                                          \
    }
WAY(by_rows, ROWS)
WAY(by_products, HALVES)
WAY(by_pairs, BYTES)
#undef WAY

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
            if (decoded->kind == ROWS)
                total += NAME(by_rows)(decoded, pages, first, n, token, units);
            else if (decoded->kind == HALVES)
                total += NAME(by_products)(decoded, pages, first, n, token, units);
            else
                total += NAME(by_pairs)(decoded, pages, first, n, token, units);
        }
        out[i] = (float)total;
    }
}
#undef NARROW
#undef WIDES
#undef NARROWS
#undef AT_ONCE
#undef WIDE_AT
#undef NARROW_AT
