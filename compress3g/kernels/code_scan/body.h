/* Page scores sum_t max_j table[code_j][t] over rows of bytes.
 *
 * One row is a multiple of 32 bytes, so a vector costs one load and one maximum per 32 tokens; what
 * bounds the scan is loads from the first- or second-level cache. Integers only: all bodies agree.
 *
 * Many queries stand side by side in wider rows ("groups", each query from a multiple of eight
 * columns on, which is what one sum-of-bytes instruction adds up). There a page's codes are first
 * reduced to the different ones, which costs as much as one scan and pays from the third query on.
 */
#ifndef CODE_SCAN_TYPES
#define CODE_SCAN_TYPES
#include "../_pages.h"
#if COMPRESS3G_X86
#include <immintrin.h>
#endif
#define MOST_EIGHTS 128 /* 1024 tokens */
#define BLOCK 256        /* pages between two groups: their codes stay in the cache */

typedef struct {
    const void *codes;
    i64 n;
    int wide;
} List;

typedef struct {
    const u8 *table; /* of all groups, one after the other */
    const i64 *groups; /* [count][4]: first byte, columns, first query, queries */
    const i64 *queries; /* [..][2]: first of its eights within the row, number of eights */
    i64 count;
    i64 results; /* length of one row of the output */
} Batch;

/* Whether codes rise strictly: then none occurs twice. */
INLINE int rises(const void *codes, int wide, i64 n)
{
    u8 falls = 0;
    if (wide) {
        const u16 *code = codes;
        for (i64 j = 1; j < n; j++) falls |= code[j] <= code[j - 1];
    } else {
        const u8 *code = codes;
        for (i64 j = 1; j < n; j++) falls |= code[j] <= code[j - 1];
    }
    return !falls;
}

/* Copies every code once, in order of appearance; `seen` is all zero before and after. */
INLINE i64 different(const void *codes, int wide, i64 n, u8 *seen, u16 *list)
{
    i64 count = 0;
    for (i64 j = 0; j < n; j++) {
        const i64 code = code_at(codes, wide, j);
        list[count] = (u16)code;
        count += !seen[code];
        seen[code] = 1;
    }
    for (i64 j = 0; j < count; j++) seen[list[j]] = 0;
    return count;
}
#endif

/* Largest bytes, over n codes, of 32 * blocks columns from `table` on; their sums by eights. */
#if VECTOR == 4
INLINE TARGET void NAME(largest)(const u8 *table, i64 pitch, const void *codes, int wide, i64 n,
                                 const int blocks, i64 *sums)
{
    for (int b = 0; b < blocks; b++) { /* 32 columns at a time: compilers keep those in registers */
        u8 best[32] = {0};
        for (i64 j = 0; j < n; j++) {
            const u8 *row = table + code_at(codes, wide, j) * pitch + 32 * b;
            for (int c = 0; c < 32; c++) best[c] = row[c] > best[c] ? row[c] : best[c];
        }
        for (int e = 0; e < 4; e++) {
            sums[4 * b + e] = 0;
            for (int c = 0; c < 8; c++) sums[4 * b + e] += best[8 * e + c];
        }
    }
}
#else
#if VECTOR == 16
#define WIDES (blocks / 2)
#define NARROWS (blocks & 1)
#else
#define WIDES 0
#define NARROWS blocks
#endif

/* Maxima with one row; two sets of registers, so that two can be under way. */
#define RAISE_NARROW(row, set)                                                                     \
    _Pragma("GCC unroll 8") for (int b = 0; b < NARROWS; b++) narrow[set][b] = _mm256_max_epu8(    \
        narrow[set][b], _mm256_loadu_si256((const __m256i *)((row) + 64 * WIDES + 32 * b)));
#if VECTOR == 16
#define RAISE(from, set)                                                                           \
    {                                                                                              \
        const u8 *row = (from);                                                                    \
        _Pragma("GCC unroll 4") for (int b = 0; b < WIDES; b++) broad[b] =                         \
            _mm512_max_epu8(broad[b], _mm512_loadu_si512(row + 64 * b));                           \
        RAISE_NARROW(row, set)                                                                     \
    }
#else
#define RAISE(from, set)                                                                           \
    {                                                                                              \
        const u8 *row = (from);                                                                    \
        RAISE_NARROW(row, set)                                                                     \
    }
#endif
/* With the rows of the codes in eight bytes. */
#define RAISE_WORD(from)                                                                           \
    {                                                                                              \
        u64 word;                                                                                  \
        memcpy(&word, from, 8);                                                                    \
        _Pragma("GCC unroll 8") for (int s = 0; s < (wide ? 4 : 8); s++)                           \
            RAISE(table + (i64)(word >> s * (wide ? 16 : 8) & (wide ? 0xffff : 0xff)) * pitch,     \
                  s & 1)                                                                           \
    }
INLINE TARGET void NAME(largest)(const u8 *table, i64 pitch, const void *codes, int wide, i64 n,
                                 const int blocks, i64 *sums)
{
    __m256i narrow[2][8];
    for (int b = 0; b < 8; b++) narrow[0][b] = narrow[1][b] = _mm256_setzero_si256();
#if VECTOR == 16
    __m512i broad[4];
    for (int b = 0; b < 4; b++) broad[b] = _mm512_setzero_si512();
#endif
    const u8 *next = codes, *end = next + (n << wide), *last_word = end - 8;
    for (; next <= last_word; next += 8) RAISE_WORD(next)
    /* A maximum may be taken twice: what is left is part of the last whole word. */
    if (next < end && end - (const u8 *)codes >= 8) RAISE_WORD(last_word)
    else
        for (; next < end; next += 1 << wide) RAISE(table + code_at(next, wide, 0) * pitch, 0)
#if VECTOR == 16
#pragma GCC unroll 4
    for (int b = 0; b < WIDES; b++)
        _mm512_storeu_si512(sums + 8 * b, _mm512_sad_epu8(broad[b], _mm512_setzero_si512()));
    sums += 8 * WIDES;
#endif
#pragma GCC unroll 8
    for (int b = 0; b < NARROWS; b++) {
        const __m256i best = _mm256_max_epu8(narrow[0][b], narrow[1][b]);
        _mm256_storeu_si256((__m256i *)(sums + 4 * b), _mm256_sad_epu8(best, _mm256_setzero_si256()));
    }
}
#undef WIDES
#undef NARROWS
#undef RAISE
#undef RAISE_WORD
#undef RAISE_NARROW
#endif

INLINE TARGET void NAME(columns)(const u8 *table, i64 pitch, const void *codes, const int wide,
                                 i64 n, i64 blocks, i64 *sums)
{
    switch (blocks) {
    case 1:
        if (pitch == 32) NAME(largest)(table, 32, codes, wide, n, 1, sums);
        else NAME(largest)(table, pitch, codes, wide, n, 1, sums);
        break;
    case 2: NAME(largest)(table, pitch, codes, wide, n, 2, sums); break;
    case 3: NAME(largest)(table, pitch, codes, wide, n, 3, sums); break;
    case 4: NAME(largest)(table, pitch, codes, wide, n, 4, sums); break;
    case 5: NAME(largest)(table, pitch, codes, wide, n, 5, sums); break;
    case 6: NAME(largest)(table, pitch, codes, wide, n, 6, sums); break;
    case 7: NAME(largest)(table, pitch, codes, wide, n, 7, sums); break;
    default: NAME(largest)(table, pitch, codes, wide, n, 8, sums); break;
    }
}

/* Sums by eights of a whole row of `pitch` columns; n is at least 1. */
static __attribute__((noinline)) TARGET void NAME(eights)(const u8 *table, i64 pitch,
                                                          const List *list, i64 *sums)
{
    for (i64 c = 0; c < pitch; c += 256) {
        const i64 blocks = pitch - c < 256 ? (pitch - c) / 32 : 8;
        if (list->wide) NAME(columns)(table + c, pitch, list->codes, 1, list->n, blocks, sums + c / 8);
        else NAME(columns)(table + c, pitch, list->codes, 0, list->n, blocks, sums + c / 8);
    }
}

/* As codes_fit. A page has so few different codes that a loop over single ones at its end is felt. */
INLINE TARGET int NAME(fit)(const Pages *pages, i64 first, i64 n)
{
#if VECTOR == 16
    if (pages->wide && pages->rows < 65536) {
        const u16 *codes = (const u16 *)pages->codes + first;
        __m512i most = _mm512_maskz_loadu_epi16(n < 32 ? ((u32)1 << n) - 1 : ~(u32)0, codes);
        for (i64 j = 32; j + 32 <= n; j += 32)
            most = _mm512_max_epu16(most, _mm512_loadu_si512(codes + j));
        if (n > 32) most = _mm512_max_epu16(most, _mm512_loadu_si512(codes + n - 32));
        return !_mm512_cmpge_epu16_mask(most, _mm512_set1_epi16((short)pages->rows));
    }
#endif
    return codes_fit(pages, first, n);
}

/* Codes of result i; 0 when its page is refused. */
INLINE TARGET int NAME(codes_of)(const Pages *pages, i64 i, List *list)
{
    i64 first;
    if (!page_span(pages, i, &first, &list->n) || !NAME(fit)(pages, first, list->n)) return 0;
    list->codes = (const u8 *)pages->codes + (first << pages->wide);
    list->wide = (int)pages->wide;
    return 1;
}

/* out[i]: score, -1 for a page without vectors, -2 for a refused one. */
EXPORT TARGET void NAME(code_scan)(const u8 *table, i64 pitch, const Pages *pages, i32 *out, i64 lo,
                                   i64 hi)
{
    i64 sums[MOST_EIGHTS];
    for (i64 i = lo; i < hi; i++) {
        List list;
        if (!NAME(codes_of)(pages, i, &list)) {
            out[i] = -2;
            continue;
        }
        i64 total = 0;
        if (list.n) NAME(eights)(table, pitch, &list, sums);
        else total = -1;
        for (i64 e = 0; list.n && e < pitch / 8; e++) total += sums[e];
        out[i] = (i32)total;
    }
}

INLINE TARGET void NAME(score_group)(const Batch *batch, const i64 *group, const List *list, i32 *out)
{
    i64 sums[MOST_EIGHTS];
    if (list->n > 0) NAME(eights)(batch->table + group[0], group[1], list, sums);
    for (i64 q = group[2]; q < group[2] + group[3]; q++) {
        i64 total = list->n > 0 ? 0 : list->n - 1;
        const i64 *own = batch->queries + 2 * q;
        for (i64 e = own[0]; list->n > 0 && e < own[0] + own[1]; e++) total += sums[e];
        out[q * batch->results] = (i32)total;
    }
}

/* out[q][i] as above. seen: one zero byte per row of the table; list: `room` codes, more than the table
 * has rows. */
EXPORT TARGET void NAME(code_scan_batch)(const Batch *batch, const Pages *pages, i32 *out, u8 *seen,
                                         u16 *list, i64 room, i64 lo, i64 hi)
{
    List lists[BLOCK];
    for (i64 i = lo; i < hi;) {
        i64 used = 0, held = 0;
        for (; held < BLOCK && i + held < hi; held++) {
            List *own = lists + held;
            if (!NAME(codes_of)(pages, i + held, own)) {
                own->n = -1;
                continue;
            }
            if (rises(own->codes, own->wide, own->n)) continue;
            if (used + (own->n <= pages->rows ? own->n : pages->rows + 1) > room) break;
            own->n = different(own->codes, own->wide, own->n, seen, list + used);
            own->codes = list + used;
            own->wide = 1;
            used += own->n;
        }
        for (i64 g = 0; g < batch->count; g++)
            for (i64 k = 0; k < held; k++)
                NAME(score_group)(batch, batch->groups + 4 * g, lists + k, out + i + k);
        i += held;
    }
}
