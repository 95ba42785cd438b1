/* Distances sum_t min_j popcount(q_t xor b_j) of pages of bits.
 *
 * Tokens stand in the 64-bit lanes, so that the minimum over vectors stays in registers. Set bits
 * are counted by vpopcntq, or by two table look-ups of nibbles and one sum of bytes.
 */
#ifndef HAMMING_TYPES
#define HAMMING_TYPES
#include "../_pages.h"
#if COMPRESS3G_X86
#include <immintrin.h>
#endif
#define MOST_BYTE_SUMS 31 /* words of at most 8 set bits a byte that fit an unsigned byte */
#endif

#if VECTOR == 16
#define LANE 8
typedef __m512i NAME(words);
#define LOAD(p) _mm512_loadu_si512(p)
#define BROADCAST(x) _mm512_set1_epi64((i64)(x))
#define XOR(a, b) _mm512_xor_si512(a, b)
#define MINIMUM(a, b) _mm512_min_epi32(a, b)
#define ZERO _mm512_setzero_si512()
#define STORE(p, x) _mm512_storeu_si512(p, x)
#define ADD_BYTES(a, b) _mm512_add_epi8(a, b)
#define ADD_WORDS(a, b) _mm512_add_epi64(a, b)
#define SUM_BYTES(x) _mm512_sad_epu8(x, ZERO)
#elif VECTOR == 8
#define LANE 4
typedef __m256i NAME(words);
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define BROADCAST(x) _mm256_set1_epi64x((i64)(x))
#define XOR(a, b) _mm256_xor_si256(a, b)
#define MINIMUM(a, b) _mm256_min_epi32(a, b)
#define ZERO _mm256_setzero_si256()
#define STORE(p, x) _mm256_storeu_si256((__m256i *)(p), x)
#define ADD_BYTES(a, b) _mm256_add_epi8(a, b)
#define ADD_WORDS(a, b) _mm256_add_epi64(a, b)
#define SUM_BYTES(x) _mm256_sad_epu8(x, ZERO)
#else
#define LANE 1
#endif

#if LANE > 1 && !defined(ICELAKE)
/* Set bits of every byte. */
INLINE TARGET NAME(words) NAME(bytes)(NAME(words) x)
{
#if VECTOR == 16
    const __m512i counts = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i low = _mm512_set1_epi8(15);
    return _mm512_add_epi8(
        _mm512_shuffle_epi8(counts, _mm512_and_si512(x, low)),
        _mm512_shuffle_epi8(counts, _mm512_and_si512(_mm512_srli_epi16(x, 4), low)));
#else
    const __m256i counts = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i low = _mm256_set1_epi8(15);
    return _mm256_add_epi8(
        _mm256_shuffle_epi8(counts, _mm256_and_si256(x, low)),
        _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(x, 4), low)));
#endif
}
#endif

/* Sum of minima of up to `lanes` * LANE tokens, `tokens` of them real, over n vectors. */
INLINE TARGET i64 NAME(block)(const u64 *query, i64 padded, i64 tokens, const u64 *bits, i64 n,
                              const i64 words, const int lanes)
{
#if LANE == 1
    i64 total = 0;
    for (i64 t = 0; t < tokens; t++) {
        i64 best = INT64_MAX;
        for (i64 j = 0; j < n; j++) {
            i64 distance = 0;
            for (i64 w = 0; w < words; w++)
                distance += __builtin_popcountll(query[w * padded + t] ^ bits[j * words + w]);
            best = distance < best ? distance : best;
        }
        total += best;
    }
    return total;
#else
    NAME(words) best[4];
    for (int l = 0; l < lanes; l++) best[l] = BROADCAST(INT32_MAX);
    for (i64 j = 0; j < n; j++) {
        NAME(words) distance[4];
        for (int l = 0; l < lanes; l++) distance[l] = ZERO;
#ifdef ICELAKE
        for (i64 w = 0; w < words; w++) {
            const __m512i word = BROADCAST(bits[j * words + w]);
#pragma GCC unroll 4
            for (int l = 0; l < lanes; l++) {
                const __m512i differ = XOR(word, LOAD(query + w * padded + LANE * l));
                distance[l] = ADD_WORDS(distance[l], _mm512_popcnt_epi64(differ));
            }
        }
#else
        for (i64 from = 0; from < words; from += MOST_BYTE_SUMS) {
            const i64 to = words - from < MOST_BYTE_SUMS ? words : from + MOST_BYTE_SUMS;
            NAME(words) count[4];
            for (int l = 0; l < lanes; l++) count[l] = ZERO;
            for (i64 w = from; w < to; w++) {
                const NAME(words) word = BROADCAST(bits[j * words + w]);
#pragma GCC unroll 4
                for (int l = 0; l < lanes; l++) {
                    const NAME(words) differ = XOR(word, LOAD(query + w * padded + LANE * l));
                    count[l] = ADD_BYTES(count[l], NAME(bytes)(differ));
                }
            }
#pragma GCC unroll 4
            for (int l = 0; l < lanes; l++)
                distance[l] = ADD_WORDS(distance[l], SUM_BYTES(count[l]));
        }
#endif
#pragma GCC unroll 4
        for (int l = 0; l < lanes; l++) best[l] = MINIMUM(best[l], distance[l]);
    }
    i64 least[4 * LANE], total = 0;
    for (int l = 0; l < lanes; l++) STORE(least + LANE * l, best[l]);
    for (i64 t = 0; t < LANE * lanes && t < tokens; t++) total += least[t];
    return total;
#endif
}

INLINE TARGET i64 NAME(distance)(const u64 *query, i64 padded, i64 tokens, const u64 *bits, i64 n,
                                 const i64 words)
{
    i64 total = 0;
#if LANE == 1
    return NAME(block)(query, padded, tokens, bits, n, words, 1);
#endif
    for (i64 t = 0; t < tokens; t += 4 * LANE) {
        const i64 left = tokens - t;
        const u64 *own = query + t;
        if (left > 3 * LANE) total += NAME(block)(own, padded, left, bits, n, words, 4);
        else if (left > 2 * LANE) total += NAME(block)(own, padded, left, bits, n, words, 3);
        else if (left > LANE) total += NAME(block)(own, padded, left, bits, n, words, 2);
        else total += NAME(block)(own, padded, left, bits, n, words, 1);
    }
    return total;
}

/* query: [words][tokens padded to a multiple of 8]. out[i]: distance, -1 for a page without vectors,
 * -2 for a refused one. */
EXPORT TARGET void NAME(hamming_scan)(const u64 *query, i64 tokens, i64 words, const u64 *bits,
                                      const Pages *pages, i32 *out, i64 lo, i64 hi)
{
    const i64 padded = (tokens + 7) / 8 * 8;
    for (i64 i = lo; i < hi; i++) {
        i64 first, n, total = -1;
        if (!page_span(pages, i, &first, &n)) {
            out[i] = -2;
            continue;
        }
        const u64 *own = bits + first * words;
        if (n && words == 2) total = NAME(distance)(query, padded, tokens, own, n, 2);
        else if (n) total = NAME(distance)(query, padded, tokens, own, n, words);
        out[i] = (i32)total;
    }
}
#undef LANE
#undef LOAD
#undef BROADCAST
#undef XOR
#undef MINIMUM
#undef ZERO
#undef STORE
#undef ADD_BYTES
#undef ADD_WORDS
#undef SUM_BYTES
