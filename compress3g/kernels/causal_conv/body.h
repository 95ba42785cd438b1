/* y_m = bias + sum_d w_d x(p_m - d), d = 0 .. taps-1 positions back in the order of the scan, then
 * silu. Which token stands at p_m - d is found row by row, for all channels together; holes are
 * skipped ("zero") or read the token before them ("hold"). Nothing is scattered to the full length.
 */
#include "../_special.h"
#ifndef CAUSAL_CONV_TYPES
#define CAUSAL_CONV_TYPES
#define MOST_TAPS 16

typedef struct {
    const float *x; /* unit stride along channels */
    i64 x_batch, x_step;
    const float *weight, *bias; /* [taps][e], w_d = weight[taps-1-d]; [e] or null */
    const i64 *position;        /* [b][l], null: no holes */
    i64 batches, steps, channels, taps;
    i64 hold, reverse, silu;
    const float *upstream; /* [b][l][e], contiguous, of the backward pass */
} Conv;

/* Distance from token m to the token j steps before it in the order of the scan, -1 at the end. */
INLINE i64 distance(const Conv *c, i64 batch, i64 m, i64 j)
{
    const i64 other = c->reverse ? m + j : m - j;
    if (other < 0 || other >= c->steps) return -1;
    if (!c->position) return j;
    const i64 *position = c->position + batch * c->steps;
    return c->reverse ? position[other] - position[m] : position[m] - position[other];
}

/* source[d]: steps back to the token that tap d of token m reads, -1 for none. */
INLINE void find_sources(const Conv *c, i64 batch, i64 m, i64 *source)
{
    i64 j = 0, far = 0;
    for (i64 d = 0; d < c->taps; d++) {
        while (far >= 0 && far < d) far = distance(c, batch, m, ++j);
        source[d] = far == d || (far > d && c->hold) ? j : -1;
    }
}

INLINE i64 back(const Conv *c, i64 m, i64 j) { return c->reverse ? m + j : m - j; }
#endif

/* A sum of products of rows; offsets of both in floats, from the first channel on. */
typedef struct {
    const float *row[MOST_TAPS * MOST_TAPS], *weight[MOST_TAPS * MOST_TAPS];
    i64 count;
} NAME(Terms);

INLINE void NAME(terms)(const Conv *c, i64 batch, i64 m, NAME(Terms) *terms)
{
    i64 source[MOST_TAPS];
    find_sources(c, batch, m, source);
    terms->count = 0;
    for (i64 d = 0; d < c->taps; d++) {
        if (source[d] < 0) continue;
        terms->row[terms->count] = c->x + batch * c->x_batch + back(c, m, source[d]) * c->x_step;
        terms->weight[terms->count++] = c->weight + (c->taps - 1 - d) * c->channels;
    }
}

INLINE TARGET V NAME(total)(const NAME(Terms) *terms, V sum, i64 channel, i64 width)
{
    for (i64 i = 0; i < terms->count; i++)
        sum += NAME(load)(terms->row[i] + channel, width) *
               NAME(load)(terms->weight[i] + channel, width);
    return sum;
}

/* out: y, or with an upstream gradient that before the activation. Tokens lo .. hi-1. */
EXPORT TARGET void NAME(causal_conv_forward)(const Conv *c, float *out, i64 lo, i64 hi)
{
    NAME(Terms) terms;
    for (i64 r = lo; r < hi; r++) {
        NAME(terms)(c, r / c->steps, r % c->steps, &terms);
        for (i64 e = 0; e < c->channels; e += VECTOR) {
            const i64 width = c->channels - e < VECTOR ? c->channels - e : VECTOR;
            V y = c->bias ? NAME(load)(c->bias + e, width) : (V){0};
            y = NAME(total)(&terms, y, e, width);
            if (c->silu) {
                const V open = NAME(sigmoid)(y);
                if (c->upstream)
                    y = NAME(load)(c->upstream + r * c->channels + e, width) * open *
                        (1.0f + y * (1.0f - open));
                else
                    y *= open;
            }
            NAME(store)(out + r * c->channels + e, y, width);
        }
    }
}

/* upstream: before the activation. Token i takes part in at most `taps` tokens from itself on. */
EXPORT TARGET void NAME(causal_conv_input_grad)(const Conv *c, float *out, i64 lo, i64 hi)
{
    NAME(Terms) terms;
    for (i64 r = lo; r < hi; r++) {
        const i64 batch = r / c->steps, i = r % c->steps;
        terms.count = 0;
        for (i64 j = 0; j < c->taps; j++) {
            const i64 m = c->reverse ? i - j : i + j;
            i64 source[MOST_TAPS];
            if (m < 0 || m >= c->steps) break;
            find_sources(c, batch, m, source);
            for (i64 d = 0; d < c->taps; d++) {
                if (source[d] != j) continue;
                terms.row[terms.count] = c->upstream + (batch * c->steps + m) * c->channels;
                terms.weight[terms.count++] = c->weight + (c->taps - 1 - d) * c->channels;
            }
        }
        for (i64 e = 0; e < c->channels; e += VECTOR) {
            const i64 width = c->channels - e < VECTOR ? c->channels - e : VECTOR;
            NAME(store)(out + r * c->channels + e, NAME(total)(&terms, (V){0}, e, width), width);
        }
    }
}

/* Sums over all tokens in their order; lo .. hi-1: strips of 4 vectors of channels.
 * weight_grad [taps][e], bias_grad [e]. */
EXPORT TARGET void NAME(causal_conv_weight_grad)(const Conv *c, float *weight_grad,
                                                 float *bias_grad, i64 lo, i64 hi)
{
    for (i64 strip = lo; strip < hi; strip++) {
        const i64 first = strip * 4 * VECTOR;
        V sum[MOST_TAPS + 1][4];
        memset(sum, 0, sizeof sum);
        for (i64 r = 0; r < c->batches * c->steps; r++) {
            const i64 batch = r / c->steps, m = r % c->steps;
            i64 source[MOST_TAPS];
            find_sources(c, batch, m, source);
            for (i64 i = 0; i < 4 && first + i * VECTOR < c->channels; i++) {
                const i64 e = first + i * VECTOR;
                const i64 width = c->channels - e < VECTOR ? c->channels - e : VECTOR;
                const V up = NAME(load)(c->upstream + r * c->channels + e, width);
                sum[c->taps][i] += up;
                for (i64 d = 0; d < c->taps; d++) {
                    if (source[d] < 0) continue;
                    const float *x = c->x + batch * c->x_batch + back(c, m, source[d]) * c->x_step;
                    sum[c->taps - 1 - d][i] += up * NAME(load)(x + e, width);
                }
            }
        }
        for (i64 i = 0; i < 4 && first + i * VECTOR < c->channels; i++) {
            const i64 e = first + i * VECTOR;
            const i64 width = c->channels - e < VECTOR ? c->channels - e : VECTOR;
            for (i64 d = 0; d < c->taps; d++)
                NAME(store)(weight_grad + d * c->channels + e, sum[d][i], width);
            NAME(store)(bias_grad + e, sum[c->taps][i], width);
        }
    }
}
#undef V
#undef LOG2E
#undef LN2
