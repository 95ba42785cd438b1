/* h_k = exp((d_k + G_k) A) h_{k-1} + d_k u_k B_k, y_k = C_k . h_k + D u_k, out_k = y_k silu(z_k).
 *
 * VECTOR channels side by side walk through the sequence, one strip after another, their states in
 * registers. The decay over a hole costs one multiply-add per step and channel: G only changes the
 * exponent. The backward pass walks a strip forward once more, keeps its states in a scratch that
 * fits the second-level cache, and walks back; what it sums over strips and sequences goes to
 * places of its own, which Python adds up in a fixed order, so results do not depend on threads.
 */
#include "../_special.h"
#ifndef SELECTIVE_SCAN_TYPES
#define SELECTIVE_SCAN_TYPES
#define MOST_STATES 256
#define KEPT 65536    /* floats of states in the scratch */
#define AHEAD 16      /* steps whose sizes are worked out at once */
#define MOST_STEPS 512 /* between two states that are remembered for the whole sequence */

typedef struct {
    const float *data; /* null: absent; unit stride along the last axis */
    i64 batch, group, step;
} Rows;

enum { NO_GAP, GIVEN, CURRENT, PREVIOUS, MEAN, CONSTANT };

typedef struct {
    Rows u, delta, z, B, C, hole; /* hole: G itself, of GIVEN */
    const float *A, *D, *bias, *state; /* [e][n], [e], [e], [b][e][n] */
    const i64 *gap;                    /* [b][l], number of missing positions */
    i64 steps, channels, states, groups;
    i64 softplus, mode, reverse;
    float *out, *ungated, *last; /* [b][l][e] twice, [b][e][n]; null: not wanted */
} Scan;

typedef struct {
    Rows out, ungated;      /* gradients of the outputs; null: zero */
    const float *last;      /* of the last state [b][e][n] */
    i64 parts;              /* tasks that share the strips of a group */
    float *u, *delta, *z, *hole; /* [b][l][e] */
    float *B, *C;           /* [b][g][parts][l][n], zero on entry */
    float *A, *D, *bias;    /* [b][e][n], [b][e], [b][e] */
    float *state;           /* [b][e][n] */
    float *remembered;      /* [b][strips][blocks - 1][n + 1][VECTOR]; null: one block */
} Gradient;

/* Numbers too small for float32's normal range are taken as 0: arithmetic on them is slow. */
#if COMPRESS3G_X86
#define NO_DENORMALS unsigned csr_before = __builtin_ia32_stmxcsr(); __builtin_ia32_ldmxcsr(csr_before | 0x8040)
#define DENORMALS_AS_BEFORE __builtin_ia32_ldmxcsr(csr_before)
#else
#define NO_DENORMALS
#define DENORMALS_AS_BEFORE
#endif
#endif

/* One strip: VECTOR channels of one sequence, or fewer at a group's end. */
typedef struct {
    const Scan *s;
    i64 batch, group, channel, width, time; /* time: axis position of the step at hand */
    const float *B, *C;
    const i64 *gap;
    V D, bias, constant; /* constant: decay per missing position of MEAN and CONSTANT */
} NAME(Strip);

/* Per step: what the recurrence needs, and what the backward pass keeps of it. */
typedef struct {
    V u, delta, slope, total, gap;
} NAME(Step);

INLINE i64 NAME(strips)(const Scan *s)
{
    return s->groups * ((s->channels / s->groups + VECTOR - 1) / VECTOR);
}

INLINE TARGET V NAME(row)(const Rows *rows, const NAME(Strip) *strip, i64 time)
{
    return NAME(load)(rows->data + strip->batch * rows->batch + time * rows->step + strip->channel,
                      strip->width);
}

/* Axis position of step k. */
INLINE i64 NAME(when)(const Scan *s, i64 k)
{
    return s->reverse ? s->steps - 1 - k : k;
}

INLINE TARGET V NAME(size)(const NAME(Strip) *strip, i64 time, V *slope)
{
    const V raw = NAME(row)(&strip->s->delta, strip, time) + strip->bias;
    if (strip->s->softplus) return NAME(softplus)(raw, slope);
    if (slope) *slope = (V){0} + 1.0f;
    return raw;
}

INLINE TARGET NAME(Strip) NAME(open)(const Scan *s, i64 batch, i64 number)
{
    const i64 share = s->channels / s->groups, per_group = (share + VECTOR - 1) / VECTOR;
    const i64 first = number % per_group * VECTOR;
    NAME(Strip) strip = {.s = s, .batch = batch, .group = number / per_group};
    strip.channel = strip.group * share + first;
    strip.width = share - first < VECTOR ? share - first : VECTOR;
    strip.B = s->B.data + batch * s->B.batch + strip.group * s->B.group;
    strip.C = s->C.data + batch * s->C.batch + strip.group * s->C.group;
    strip.gap = s->gap ? s->gap + batch * s->steps : 0;
    strip.D = s->D ? NAME(load)(s->D + strip.channel, strip.width) : (V){0};
    strip.bias = s->bias ? NAME(load)(s->bias + strip.channel, strip.width) : (V){0};
    strip.constant = (V){0};
    if (s->mode == CONSTANT)
        strip.constant = s->softplus ? NAME(softplus)(strip.bias, 0) : strip.bias;
    if (s->mode == MEAN) {
        for (i64 k = 0; k < s->steps; k++) strip.constant += NAME(size)(&strip, k, 0);
        strip.constant /= (float)s->steps;
    }
    return strip;
}

INLINE TARGET NAME(Step) NAME(step)(const NAME(Strip) *strip, i64 time, V previous, int backward)
{
    const Scan *s = strip->s;
    NAME(Step) now;
    now.u = NAME(row)(&s->u, strip, time);
    if (!backward) now.slope = (V){0};
    now.delta = NAME(size)(strip, time, backward ? &now.slope : 0);
    now.gap = strip->gap ? (V){0} + (float)strip->gap[time] : (V){0};
    now.total = now.delta;
    if (s->mode == CURRENT) now.total = now.gap * now.delta + now.delta;
    else if (s->mode == PREVIOUS) now.total = now.gap * previous + now.delta;
    else if (s->mode == GIVEN) now.total = now.delta + NAME(row)(&s->hole, strip, time);
    else if (s->mode != NO_GAP) now.total = now.gap * strip->constant + now.delta;
    return now;
}

/* The next AHEAD steps, before `to`, in one go: one alone takes longer than all states of a step. */
INLINE TARGET V NAME(look_ahead)(const NAME(Strip) *strip, i64 k, i64 to, V previous,
                                 NAME(Step) *ahead, int backward)
{
    for (i64 i = 0; i < AHEAD && k + i < to; i++) {
        ahead[i] = NAME(step)(strip, NAME(when)(strip->s, k + i), previous, backward);
        previous = ahead[i].delta;
    }
    return previous;
}

/* [e][n] of the strip to [n][VECTOR] times `scale`, and back. */
INLINE TARGET void NAME(turn)(const float *from, i64 states, i64 width, float scale, V *to)
{
    for (i64 n = 0; n < states; n++) {
        float lanes[VECTOR] = {0};
        for (i64 c = 0; c < width; c++) lanes[c] = from[c * states + n] * scale;
        to[n] = *(const V *)lanes;
    }
}

INLINE TARGET void NAME(turn_back)(const V *from, i64 states, i64 width, float *to)
{
    for (i64 n = 0; n < states; n++)
        for (i64 c = 0; c < width; c++) to[c * states + n] = ((const float *)&from[n])[c];
}

INLINE TARGET void NAME(state_at_start)(const NAME(Strip) *strip, i64 states, V *h)
{
    const Scan *s = strip->s;
    if (s->state)
        NAME(turn)(s->state + (strip->batch * s->channels + strip->channel) * states, states,
                   strip->width, 1.0f, h);
    else
        memset(h, 0, sizeof(V) * states);
}

/* The largest |A| of each channel: how far a step may reach before exp2 has to look at its range. */
INLINE TARGET V NAME(steepest)(const V *A, i64 states)
{
    V most = {0};
    for (i64 n = 0; n < states; n++) {
        const V size = NAME(choose)(A[n] < (V){0}, -A[n], A[n]);
        most = NAME(choose)(most < size, size, most);
    }
    return most;
}

/* One state over one step: h, and C h onto y. The backward pass keeps what it was, and exp(...). */
#define ADVANCE(n, sum, within)                                                                    \
    do {                                                                                           \
        const V factor = NAME(exp2_of_product)(total, A[n], within);                               \
        if (before) before[n] = h[n], decay[n] = factor;                                           \
        h[n] = factor * h[n] + drive * B[n];                                                       \
        sum += h[n] * C[n];                                                                        \
    } while (0)

/* y: two sums, of even and of odd states, which the caller adds up. */
INLINE TARGET void NAME(advance)(V *h, V *y, const V *A, V steepest, const NAME(Step) *now,
                                 const float *B, const float *C, V *before, V *decay,
                                 const i64 states)
{
    const V total = now->total, drive = now->delta * now->u;
#if VECTOR < 16
    if (!NAME(within)(total, steepest)) { /* rare, and kept small: registers are for the other loop */
#pragma GCC unroll 1
        for (i64 n = 0; n < states; n++) {
            ADVANCE(n, y[0], 0);
            const V other = y[1];
            y[1] = y[0], y[0] = other;
        }
        return;
    }
#endif
#pragma GCC unroll 16
    for (i64 n = 0; n < states; n++) ADVANCE(n, y[n % 2], 1);
}
#undef ADVANCE

/* `states` is a constant wherever this is inlined for a common number of them. */
INLINE TARGET void NAME(forward_strip)(const Scan *s, i64 batch, i64 number, const i64 states)
{
    const NAME(Strip) strip = NAME(open)(s, batch, number);
    V A[MOST_STATES], ends[MOST_STATES], h[MOST_STATES];
    NAME(turn)(s->A + strip.channel * states, states, strip.width, LOG2E, A);
    NAME(state_at_start)(&strip, states, ends);
    const V steepest = NAME(steepest)(A, states);
#pragma GCC unroll 16
    for (i64 n = 0; n < states; n++) h[n] = ends[n]; /* only ever indexed by constants: registers */
    NAME(Step) ahead[AHEAD];
    V previous = {0};
    for (i64 k = 0; k < s->steps; k++) {
        if (k % AHEAD == 0) previous = NAME(look_ahead)(&strip, k, s->steps, previous, ahead, 0);
        const i64 time = NAME(when)(s, k), at = (batch * s->steps + time) * s->channels;
        const NAME(Step) *now = ahead + k % AHEAD;
        const float *B = strip.B + time * s->B.step, *C = strip.C + time * s->C.step;
        V y[2] = {strip.D * now->u, {0}};
        NAME(advance)(h, y, A, steepest, now, B, C, 0, 0, states);
        const V sum = y[0] + y[1];
        if (s->ungated) NAME(store)(s->ungated + at + strip.channel, sum, strip.width);
        if (s->z.data) {
            const V z = NAME(row)(&s->z, &strip, time);
            NAME(store)(s->out + at + strip.channel, sum * z * NAME(sigmoid)(z), strip.width);
        } else if (s->out) {
            NAME(store)(s->out + at + strip.channel, sum, strip.width);
        }
    }
#pragma GCC unroll 16
    for (i64 n = 0; n < states; n++) ends[n] = h[n];
    if (s->last)
        NAME(turn_back)(ends, states, strip.width,
                        s->last + (batch * s->channels + strip.channel) * states);
}

/* A function each, or the compiler merges them into one with a variable number of states. */
#define FORWARD(name, count)                                                                       \
    static __attribute__((noinline)) TARGET void NAME(name)(const Scan *s, i64 lo, i64 hi)         \
    {                                                                                              \
        const i64 strips = NAME(strips)(s);                                                        \
        for (i64 i = lo; i < hi; i++) NAME(forward_strip)(s, i / strips, i % strips, count);       \
    }
FORWARD(forward_1, 1)
FORWARD(forward_16, 16)
FORWARD(forward_any, s->states)
#undef FORWARD

/* lo .. hi-1: strips of all sequences. */
EXPORT TARGET void NAME(selective_scan_forward)(const Scan *s, i64 lo, i64 hi)
{
    NO_DENORMALS;
    if (s->states == 16) NAME(forward_16)(s, lo, hi);
    else if (s->states == 1) NAME(forward_1)(s, lo, hi);
    else NAME(forward_any)(s, lo, hi);
    DENORMALS_AS_BEFORE;
}

/* The lane sums of VECTOR vectors, in order, as one vector. */
INLINE TARGET V NAME(sums)(V *x)
{
#if VECTOR == 4
#define LOW (NAME(ints)){0, 4, 1, 5}
#define HIGH (NAME(ints)){2, 6, 3, 7}
#elif VECTOR == 8
#define LOW (NAME(ints)){0, 8, 1, 9, 4, 12, 5, 13}
#define HIGH (NAME(ints)){2, 10, 3, 11, 6, 14, 7, 15}
#else
#define LOW (NAME(ints)){0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29}
#define HIGH (NAME(ints)){2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31}
#endif
    /* Within each quarter of 4 lanes, x[i] and x[i+2], then x[i] and x[i+1]. */
    V four[VECTOR / 4];
#pragma GCC unroll 4
    for (int i = 0; i < VECTOR / 4; i++) {
        V *v = x + 4 * i;
        const V even = __builtin_shuffle(v[0], v[2], LOW) + __builtin_shuffle(v[0], v[2], HIGH);
        const V odd = __builtin_shuffle(v[1], v[3], LOW) + __builtin_shuffle(v[1], v[3], HIGH);
        four[i] = __builtin_shuffle(even, odd, LOW) + __builtin_shuffle(even, odd, HIGH);
    }
#undef LOW
#undef HIGH
#if VECTOR == 4
    return four[0];
#elif VECTOR == 8
    return __builtin_shuffle(four[0], four[1], (NAME(ints)){0, 1, 2, 3, 8, 9, 10, 11}) +
           __builtin_shuffle(four[0], four[1], (NAME(ints)){4, 5, 6, 7, 12, 13, 14, 15});
#else
    const NAME(ints) even = {0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27};
    const NAME(ints) odd = {4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31};
    const V a = __builtin_shuffle(four[0], four[1], even) + __builtin_shuffle(four[0], four[1], odd);
    const V b = __builtin_shuffle(four[2], four[3], even) + __builtin_shuffle(four[2], four[3], odd);
    return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
#endif
}

/* What a block of steps leaves for the way back: h before each step and after the last, exp(...). */
typedef struct {
    V *before, *decay;
    V above[MOST_STEPS]; /* dL/dy */
    NAME(Step) steps[MOST_STEPS];
} NAME(Block);

/* dL/dy of a step whose y is known; the gradient of the gate on the way. */
INLINE TARGET V NAME(above)(const NAME(Strip) *strip, const Gradient *g, i64 time, V y)
{
    const Scan *s = strip->s;
    V above = g->out.data ? NAME(row)(&g->out, strip, time) : (V){0};
    if (s->z.data) {
        const V z = NAME(row)(&s->z, strip, time), open = NAME(sigmoid)(z);
        const i64 at = (strip->batch * s->steps + time) * s->channels + strip->channel;
        NAME(store)(g->z + at, above * y * open * (1.0f + z * (1.0f - open)), strip->width);
        above *= z * open;
    }
    return g->ungated.data ? above + NAME(row)(&g->ungated, strip, time) : above;
}

/* Steps from .. to-1; `previous`: size of the step before, on return of the last one. */
INLINE TARGET void NAME(replay)(const NAME(Strip) *strip, const Gradient *g, const V *A, V *ends,
                                V *previous, i64 from, i64 to, NAME(Block) *block, int last,
                                const i64 states)
{
    const Scan *s = strip->s;
    V *before = block->before, *decay = block->decay, h[MOST_STATES];
    const V steepest = NAME(steepest)(A, states);
#pragma GCC unroll 16
    for (i64 n = 0; n < states; n++) h[n] = ends[n];
    NAME(Step) ahead[AHEAD];
    for (i64 k = from; k < to; k++, before += states, decay += states) {
        const i64 time = NAME(when)(s, k), at = (k - from) % AHEAD;
        if (at == 0) *previous = NAME(look_ahead)(strip, k, to, *previous, ahead, 1);
        const float *B = strip->B + time * s->B.step, *C = strip->C + time * s->C.step;
        V y[2] = {strip->D * ahead[at].u, {0}};
        NAME(advance)(h, y, A, steepest, ahead + at, B, C, before, decay, states);
        if (!last) continue; /* only for the state at the end */
        block->steps[k - from] = ahead[at];
        block->above[k - from] = NAME(above)(strip, g, time, y[0] + y[1]);
    }
#pragma GCC unroll 16
    for (i64 n = 0; n < states; n++) before[n] = ends[n] = h[n];
}

/* What the way back carries from step to step. */
typedef struct {
    V D, bias, constant, later; /* later: gap times the gradient of the decay, one step after */
} NAME(Sums);

/* One step back through the states: dL/d(drive) and dL/d(total). */
INLINE TARGET void NAME(states_back)(const V *A, V *grad, V *A_grad, const V *before, const V *decay,
                                     V above, V drive, V total, const float *B, const float *C,
                                     float *B_grad, float *C_grad, V *drive_grad, V *total_grad,
                                     const i64 states)
{
    V to_drive = {0}, to_total = {0};
    for (i64 first = 0; first < states; first += VECTOR) {
        const i64 count = states - first < VECTOR ? states - first : VECTOR;
        V for_B[VECTOR], for_C[VECTOR];
#pragma GCC unroll 16
        for (i64 j = 0; j < VECTOR; j++) {
            const i64 n = first + j;
            if (j >= count) {
                for_B[j] = for_C[j] = (V){0};
                continue;
            }
            const V whole = above * C[n] + grad[n], back = whole * decay[n];
            const V to_exponent = back * before[n];
            for_C[j] = above * before[states + n];
            for_B[j] = whole * drive;
            to_drive += whole * B[n];
            to_total += to_exponent * A[n];
            A_grad[n] += to_exponent * total;
            grad[n] = back;
        }
        NAME(store)(B_grad + first, NAME(load)(B_grad + first, count) + NAME(sums)(for_B), count);
        NAME(store)(C_grad + first, NAME(load)(C_grad + first, count) + NAME(sums)(for_C), count);
    }
    *drive_grad = to_drive;
    *total_grad = to_total * LN2; /* A is in powers of two */
}

INLINE TARGET void NAME(step_back)(const NAME(Strip) *strip, const Gradient *g, const V *A,
                                   const NAME(Block) *block, i64 k, i64 i, i64 part, V *grad,
                                   V *A_grad, NAME(Sums) *sums, const i64 states)
{
    const Scan *s = strip->s;
    const i64 time = NAME(when)(s, k), width = strip->width;
    const i64 at = (strip->batch * s->steps + time) * s->channels + strip->channel;
    const i64 few = ((strip->batch * s->groups + strip->group) * g->parts + part) * s->steps + time;
    const NAME(Step) now = block->steps[i];
    const V above = block->above[i], u = now.u;
    V drive_grad, total_grad;
    NAME(states_back)(A, grad, A_grad, block->before + i * states, block->decay + i * states, above,
                      now.delta * u, now.total, strip->B + time * s->B.step,
                      strip->C + time * s->C.step, g->B + few * states, g->C + few * states,
                      &drive_grad, &total_grad, states);
    V delta_grad = drive_grad * u + total_grad;
    if (s->mode == CURRENT) delta_grad += now.gap * total_grad;
    if (s->mode == PREVIOUS) delta_grad += sums->later;
    sums->later = now.gap * total_grad;
    sums->constant += sums->later;
    if (g->hole) NAME(store)(g->hole + at, total_grad, width);
    delta_grad *= now.slope;
    sums->bias += delta_grad;
    sums->D += above * u;
    NAME(store)(g->delta + at, delta_grad, width);
    NAME(store)(g->u + at, drive_grad * now.delta + above * strip->D, width);
}

/* The mean and the bias took part in every hole. */
INLINE TARGET void NAME(spread)(const NAME(Strip) *strip, const Gradient *g, NAME(Sums) *sums)
{
    const Scan *s = strip->s;
    V slope = (V){0} + 1.0f;
    if (s->mode == CONSTANT) {
        if (s->softplus) NAME(softplus)(strip->bias, &slope);
        sums->bias += sums->constant * slope;
    }
    if (s->mode != MEAN) return;
    const V each = sums->constant / (float)s->steps;
    for (i64 k = 0; k < s->steps; k++) {
        const i64 time = NAME(when)(s, k);
        float *delta = g->delta + (strip->batch * s->steps + time) * s->channels + strip->channel;
        NAME(size)(strip, time, &slope);
        sums->bias += each * slope;
        NAME(store)(delta, NAME(load)(delta, strip->width) + each * slope, strip->width);
    }
}

INLINE TARGET void NAME(backward_strip)(const Scan *s, const Gradient *g, i64 batch, i64 number,
                                        i64 part, NAME(Block) *block, const i64 states)
{
    const NAME(Strip) strip = NAME(open)(s, batch, number);
    const i64 channel = batch * s->channels + strip.channel, width = strip.width;
    const i64 most = KEPT / (states * VECTOR), length = most < MOST_STEPS ? most : MOST_STEPS;
    const i64 blocks = (s->steps + length - 1) / length;
    V A[MOST_STATES], h[MOST_STATES], grad[MOST_STATES], A_grad[MOST_STATES], previous = {0};
    NAME(Sums) sums = {{0}};
    NAME(turn)(s->A + strip.channel * states, states, width, LOG2E, A);
    NAME(state_at_start)(&strip, states, h);
    if (g->last) NAME(turn)(g->last + channel * states, states, width, 1.0f, grad);
    else memset(grad, 0, sizeof(V) * states);
    memset(A_grad, 0, sizeof(V) * states);
    V *remembered = (V *)g->remembered;
    if (remembered) remembered += (batch * NAME(strips)(s) + number) * (blocks - 1) * (states + 1);
    for (i64 b = 0; b < blocks - 1; b++, remembered += states + 1) {
        memcpy(remembered, h, sizeof(V) * states);
        remembered[states] = previous;
        NAME(replay)(&strip, g, A, h, &previous, b * length, (b + 1) * length, block, 0, states);
    }
    for (i64 b = blocks - 1; b >= 0; b--) {
        const i64 from = b * length, to = from + length < s->steps ? from + length : s->steps;
        if (b < blocks - 1) {
            remembered -= states + 1;
            memcpy(h, remembered, sizeof(V) * states);
            previous = remembered[states];
        }
        NAME(replay)(&strip, g, A, h, &previous, from, to, block, 1, states);
        for (i64 k = to - 1; k >= from; k--)
            NAME(step_back)(&strip, g, A, block, k, k - from, part, grad, A_grad, &sums, states);
    }
    NAME(spread)(&strip, g, &sums);
    NAME(turn_back)(A_grad, states, width, g->A + channel * states);
    if (g->state) NAME(turn_back)(grad, states, width, g->state + channel * states);
    NAME(store)(g->D + channel, sums.D, width);
    NAME(store)(g->bias + channel, sums.bias, width);
}

#define BACKWARD(name, count)                                                                      \
    static __attribute__((noinline)) TARGET void NAME(name)(const Scan *s, const Gradient *g,      \
                                                            NAME(Block) *block, i64 lo, i64 hi)    \
    {                                                                                              \
        const i64 per_group = NAME(strips)(s) / s->groups;                                         \
        for (i64 i = lo; i < hi; i++) {                                                            \
            const i64 part = i % g->parts, group = i / g->parts % s->groups;                       \
            const i64 batch = i / g->parts / s->groups, end = (part + 1) * per_group / g->parts;   \
            for (i64 j = part * per_group / g->parts; j < end; j++)                                \
                NAME(backward_strip)(s, g, batch, group * per_group + j, part, block, count);      \
        }                                                                                          \
    }
BACKWARD(backward_1, 1)
BACKWARD(backward_16, 16)
BACKWARD(backward_any, s->states)
#undef BACKWARD

/* lo .. hi-1: parts of the strips of every group of every sequence. */
EXPORT TARGET void NAME(selective_scan_backward)(const Scan *s, const Gradient *g, i64 lo, i64 hi)
{
    static __thread float before[KEPT + MOST_STATES * VECTOR] __attribute__((aligned(64)));
    static __thread float decay[KEPT] __attribute__((aligned(64)));
    static __thread NAME(Block) block;
    block.before = (V *)before;
    block.decay = (V *)decay;
    NO_DENORMALS;
    if (s->states == 16) NAME(backward_16)(s, g, &block, lo, hi);
    else if (s->states == 1) NAME(backward_1)(s, g, &block, lo, hi);
    else NAME(backward_any)(s, g, &block, lo, hi);
    DENORMALS_AS_BEFORE;
}

/* out[o][i] = parts[o][0][i] + parts[o][1][i] + ..., always in this order. */
EXPORT TARGET void NAME(selective_scan_sum)(const float *parts, i64 count, i64 size, float *out,
                                            i64 lo, i64 hi)
{
    for (i64 o = lo; o < hi; o++) {
        const float *from = parts + o * count * size;
        float *to = out + o * size;
        memcpy(to, from, sizeof(float) * size);
        for (i64 p = 1; p < count; p++)
            for (i64 i = 0; i < size; i++) to[i] += from[p * size + i];
    }
}
#undef V
#undef LOG2E
#undef LN2
