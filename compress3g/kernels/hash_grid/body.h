/* Multi-resolution grid lookup (Instant-NGP 2201.05989, section 3) and its gradient.
 *
 * Level after level over all points, so that one level's entries stay in cache, in blocks of BLOCK
 * points: indices and weights first (vector code), then the memory accesses, which overlap because
 * nothing depends on them. Features are gathered level by level too, [levels][points][features],
 * and change places with [points][levels x features] in a pass of their own: written straight to
 * their place, every level would draw the whole output through the cache.
 *
 * `scratch` holds 3 + levels x features rows of `stride` floats, stride = points rounded up to a
 * multiple of BLOCK: the coordinates of one axis a row, then the features as above.
 */
#ifndef HASH_GRID_TYPES
#define HASH_GRID_TYPES
#define BLOCK 32
#define IN_CACHE (1 << 20) /* bytes; entries of larger levels are fetched ahead */
typedef struct {
    i64 offset;  /* first entry of this level in the table */
    i64 first_rank; /* of this level in `ranks`, -1 when it has none */
    i32 cells;   /* resolution N: cells per axis, N + 1 vertices */
    u32 mask;    /* T - 1 for a hashed level, 0 for a dense one */
} Level;
/* Corner c of point i: entry index[c][i], weight (c & 1 ? x : 1 - x)[i] * yz[c / 2][i]. */
typedef struct {
    u32 index[8][BLOCK];
    float x[BLOCK], yz[4][BLOCK];
} __attribute__((aligned(64))) Corners;
typedef i64 two_floats __attribute__((may_alias, aligned(4)));
typedef i64 two_pairs __attribute__((vector_size(16)));
typedef float f4 __attribute__((vector_size(16)));
#define PAIR(p) (*(two_floats *)(p))
#endif

typedef float NAME(real) __attribute__((vector_size(4 * VECTOR)));
typedef i32 NAME(whole) __attribute__((vector_size(4 * VECTOR)));
typedef u32 NAME(natural) __attribute__((vector_size(4 * VECTOR)));

/* Lower vertex and fraction along one axis. */
INLINE TARGET NAME(natural) NAME(axis)(const float *x, i32 cells, NAME(real) *part)
{
    const NAME(real) top = (NAME(real)){0} + (float)cells;
    NAME(real) p = *(const NAME(real) *)x * top;
    /* Selections by bits. The first also turns NaN into 0: indices stay inside. */
    p = (NAME(real))((NAME(whole))p & (p > (NAME(real)){0}));
    const NAME(whole) below = p < top;
    p = (NAME(real))(((NAME(whole))p & below) | ((NAME(whole))top & ~below));
    NAME(whole) low = __builtin_convertvector(p, NAME(whole));
    low += low >= cells; /* true is -1: the last vertex is the upper one of the last cell */
    *part = p - __builtin_convertvector(low, NAME(real));
    return (NAME(natural))low;
}

/* x: the first of BLOCK coordinates; those of the other axes lie `stride` further on. */
INLINE TARGET void NAME(corners)(const float *x, i64 stride, Level level, const i32 *ranks,
                                 Corners *corners)
{
    const u32 mask = level.mask, side = (u32)level.cells + 1u;
    const u32 step_y = mask ? 2654435761u : side, step_z = mask ? 805459861u : side * side;
    for (int i = 0; i < BLOCK; i += VECTOR) {
        NAME(real) px, py, pz;
        const NAME(natural) x0 = NAME(axis)(x + i, level.cells, &px), x1 = x0 + 1u;
        const NAME(natural) y0 = NAME(axis)(x + stride + i, level.cells, &py) * step_y;
        const NAME(natural) z0 = NAME(axis)(x + 2 * stride + i, level.cells, &pz) * step_z;
        for (int k = 0; k < 4; k++) {
            const NAME(natural) y = k & 1 ? y0 + step_y : y0, z = k & 2 ? z0 + step_z : z0;
            *(NAME(natural) *)&corners->index[2 * k][i] = mask ? (x0 ^ y ^ z) & mask : x0 + y + z;
            *(NAME(natural) *)&corners->index[2 * k + 1][i] =
                mask ? (x1 ^ y ^ z) & mask : x1 + y + z;
        }
        const NAME(real) both = py * pz;
        *(NAME(real) *)&corners->x[i] = px;
        *(NAME(real) *)&corners->yz[0][i] = (1.0f - py) * (1.0f - pz);
        *(NAME(real) *)&corners->yz[1][i] = py - both;
        *(NAME(real) *)&corners->yz[2][i] = pz - both;
        *(NAME(real) *)&corners->yz[3][i] = both;
    }
    if (level.first_rank < 0) return;
    const i32 *rank = ranks + level.first_rank;
    for (int c = 0; c < 8; c++)
        for (i64 i = 0; i < BLOCK; i++)
            corners->index[c][i] = (u32)rank[corners->index[c][i]];
}

INLINE float NAME(weight)(const Corners *corners, int c, i64 i)
{
    const float x = corners->x[i];
    return (c & 1 ? x : 1.0f - x) * corners->yz[c >> 1][i];
}

INLINE void NAME(fetch)(const float *entries, const Corners *next, i64 i, i64 features)
{
    for (int c = 0; c < 8; c++)
        __builtin_prefetch(entries + features * (i64)next->index[c][i]);
}

/* next: the coming block, whose entries are fetched meanwhile, or null. */
INLINE TARGET void NAME(gather)(const float *table, const Corners *corners, const Corners *next,
                                int features, float *out)
{
    for (i64 i = 0; i < BLOCK; i++) {
        if (next) NAME(fetch)(table, next, i, features);
        for (int f = 0; f < features; f++) {
            float sum = 0.0f;
            for (int c = 0; c < 8; c++)
                sum += NAME(weight)(corners, c, i) *
                       table[features * (i64)corners->index[c][i] + f];
            out[i * features + f] = sum;
        }
    }
}

/* Two features: both entries along x in one register, {low pair, high pair}. */
INLINE TARGET void NAME(gather2)(const float *table, const Corners *corners, const Corners *next,
                                 float *out)
{
    for (i64 i = 0; i < BLOCK; i++) {
        if (next) NAME(fetch)(table, next, i, 2);
        f4 sum = {0};
        for (int k = 0; k < 4; k++) {
            const two_pairs pairs = {PAIR(table + 2 * (i64)corners->index[2 * k][i]),
                                     PAIR(table + 2 * (i64)corners->index[2 * k + 1][i])};
            sum += corners->yz[k][i] * (f4)pairs;
        }
        const f4 high = {sum[2], sum[3], sum[2], sum[3]};
        sum = sum - corners->x[i] * sum + corners->x[i] * high; /* exact at vertices */
        PAIR(out + 2 * i) = ((two_pairs)sum)[0];
    }
}

INLINE TARGET void NAME(scatter)(float *grad, const Corners *corners, const Corners *next,
                                 int features, const float *upstream)
{
    for (i64 i = 0; i < BLOCK; i++) {
        if (next) NAME(fetch)(grad, next, i, features);
        for (int f = 0; f < features; f++) {
            const float g = upstream[i * features + f];
            if (g == 0.0f) continue;
            for (int c = 0; c < 8; c++)
                grad[features * (i64)corners->index[c][i] + f] += NAME(weight)(corners, c, i) * g;
        }
    }
}

/* The two entries along x differ always, hashed or dense: no sum is lost by reading both first. */
INLINE TARGET void NAME(scatter2)(float *grad, const Corners *corners, const Corners *next,
                                  const float *upstream)
{
    const f4 sign = {-1.0f, -1.0f, 1.0f, 1.0f}, one = {1.0f, 1.0f, 0.0f, 0.0f};
    for (i64 i = 0; i < BLOCK; i++) {
        if (next) NAME(fetch)(grad, next, i, 2);
        const i64 bits = PAIR(upstream + 2 * i);
        if (!(bits & 0x7fffffff7fffffff)) continue; /* both +0 or -0 */
        const two_pairs twice = {bits, bits};
        const f4 g = (f4)twice * (corners->x[i] * sign + one);
        for (int k = 0; k < 4; k++) {
            float *low = grad + 2 * (i64)corners->index[2 * k][i];
            float *high = grad + 2 * (i64)corners->index[2 * k + 1][i];
            const f4 share = corners->yz[k][i] * g;
            if (low == high) { /* only where ranks say so */
                low[0] += share[0] + share[2];
                low[1] += share[1] + share[3];
                continue;
            }
            const two_pairs pairs = {PAIR(low), PAIR(high)};
            const two_pairs sum = (two_pairs)((f4)pairs + share);
            PAIR(low) = sum[0];
            PAIR(high) = sum[1];
        }
    }
}

/* One block of coordinates to one row per axis; zeros behind the last point. */
INLINE void NAME(spread)(const float *x, i64 points, i64 start, float *rows, i64 stride)
{
    for (i64 i = start; i < start + BLOCK; i++)
        for (int a = 0; a < 3; a++) rows[a * stride + i] = i < points ? x[3 * i + a] : 0.0f;
}

/* One block between [levels][stride][features] and [points][levels x features], `to` or from. */
INLINE void NAME(exchange)(float *by_level, i64 stride, float *by_point, i64 points, i64 start,
                           i64 count, i64 features, int to)
{
    const i64 end = start + BLOCK < points ? start + BLOCK : points;
    for (i64 l = 0; l < count; l++)
        for (i64 i = start; i < end; i++) {
            float *a = by_level + (l * stride + i) * features;
            float *b = by_point + (i * count + l) * features;
            if (features == 2 && to) PAIR(b) = PAIR(a);
            else if (features == 2) PAIR(a) = PAIR(b);
            else memcpy(to ? b : a, to ? a : b, sizeof(float) * features);
        }
}

static i64 NAME(padded)(i64 points) { return (points + BLOCK - 1) / BLOCK * BLOCK; }

static int NAME(fits)(Level level, i64 features)
{
    const i64 side = (i64)level.cells + 1, entries = level.mask ? level.mask : side * side * side;
    return entries * features * (i64)sizeof(float) <= IN_CACHE;
}

/* out [points][levels x features] for blocks lo..hi of points. */
EXPORT TARGET void NAME(hash_grid_forward)(const float *table, const float *x, const Level *levels,
                                           const i32 *ranks, i64 count, i64 features, float *out, float *scratch,
                                           i64 points, i64 lo, i64 hi)
{
    Corners corners[2];
    const i64 stride = NAME(padded)(points);
    float *by_level = scratch + 3 * stride;
    for (i64 b = lo; b < hi; b++) NAME(spread)(x, points, b * BLOCK, scratch, stride);
    for (i64 l = 0; l < count; l++) {
        const float *entries = table + levels[l].offset * features;
        const int ahead = !NAME(fits)(levels[l], features);
        NAME(corners)(scratch + lo * BLOCK, stride, levels[l], ranks, &corners[0]);
        for (i64 b = lo, now = 0; b < hi; b++, now ^= 1) {
            float *target = by_level + (l * stride + b * BLOCK) * features;
            if (b + 1 < hi)
                NAME(corners)(scratch + (b + 1) * BLOCK, stride, levels[l], ranks, &corners[!now]);
            const Corners *next = ahead && b + 1 < hi ? &corners[!now] : 0;
            if (features == 2) NAME(gather2)(entries, &corners[now], next, target);
            else NAME(gather)(entries, &corners[now], next, (int)features, target);
        }
    }
    for (i64 b = lo; b < hi; b++)
        NAME(exchange)(by_level, stride, out, points, b * BLOCK, count, features, 1);
}

/* Fills `scratch` for the backward pass, blocks lo..hi of points. */
EXPORT TARGET void NAME(hash_grid_split)(const float *upstream, const float *x, i64 count,
                                         i64 features, float *scratch, i64 points, i64 lo, i64 hi)
{
    const i64 stride = NAME(padded)(points);
    float *by_level = scratch + 3 * stride;
    for (i64 b = lo; b < hi; b++) {
        NAME(spread)(x, points, b * BLOCK, scratch, stride);
        NAME(exchange)(by_level, stride, (float *)upstream, points, b * BLOCK, count, features, 0);
    }
    for (i64 l = 0; l < count && hi * BLOCK > points; l++)
        memset(by_level + (l * stride + points) * features, 0,
               sizeof(float) * (stride - points) * features);
}

/* grad += d(loss)/d(table) for levels count-1-hi .. count-1-lo (finest first): one owner per
 * level, so no atomics and the same sum in every run. */
EXPORT TARGET void NAME(hash_grid_backward)(const float *scratch, const Level *levels,
                                            const i32 *ranks, i64 count, i64 features, float *grad, i64 points, i64 lo, i64 hi)
{
    Corners corners[2];
    const i64 stride = NAME(padded)(points), blocks = stride / BLOCK;
    for (i64 reverse = lo; reverse < hi; reverse++) {
        const i64 l = count - 1 - reverse;
        float *entries = grad + levels[l].offset * features;
        const int ahead = !NAME(fits)(levels[l], features);
        NAME(corners)(scratch, stride, levels[l], ranks, &corners[0]);
        for (i64 b = 0, now = 0; b < blocks; b++, now ^= 1) {
            const float *source = scratch + 3 * stride + (l * stride + b * BLOCK) * features;
            if (b + 1 < blocks)
                NAME(corners)(scratch + (b + 1) * BLOCK, stride, levels[l], ranks, &corners[!now]);
            const Corners *next = ahead && b + 1 < blocks ? &corners[!now] : 0;
            if (features == 2) NAME(scatter2)(entries, &corners[now], next, source);
            else NAME(scatter)(entries, &corners[now], next, (int)features, source);
        }
    }
}
