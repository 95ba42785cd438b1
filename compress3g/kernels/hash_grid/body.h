/* Multi-resolution grid lookup (Instant-NGP 2201.05989, section 3) and its gradient.
 *
 * Blocks of BLOCK points per level in two phases: indices and weights first (vector code),
 * then the memory accesses, which overlap because nothing depends on them.
 */
#ifndef HASH_GRID_TYPES
#define HASH_GRID_TYPES
#define BLOCK 64
typedef struct {
    i64 offset; /* first entry of this level in the table */
    i64 first_rank; /* of this level in `ranks`, -1 when it has none */
    i32 cells;  /* resolution N: cells per axis, N + 1 vertices */
    u32 mask;   /* T - 1 for a hashed level, 0 for a dense or ranked one */
} Level;
typedef float f2 __attribute__((vector_size(8), aligned(4)));
#endif

/* Corner c of point i: entry index[c][i] with trilinear weight weight[c][i]. */
INLINE TARGET void NAME(corners)(const float *x, i64 n, Level level, const i32 *ranks,
                                 u32 index[8][BLOCK], float weight[8][BLOCK])
{
    float position[3][BLOCK];
    for (i64 i = 0; i < n; i++)
        for (int a = 0; a < 3; a++) position[a][i] = x[3 * i + a];
    for (i64 i = n; i < BLOCK; i++)
        for (int a = 0; a < 3; a++) position[a][i] = 0.0f;

    const float cells = (float)level.cells;
    const u32 side = (u32)level.cells + 1u, mask = level.mask;
    for (i64 i = 0; i < BLOCK; i++) {
        u32 low[3];
        float high_part[3];
        for (int a = 0; a < 3; a++) {
            float p = position[a][i] * cells;
            p = p > 0.0f ? p : 0.0f; /* also turns NaN into 0: indices stay inside */
            p = p < cells ? p : cells;
            i32 floor_p = (i32)p;
            floor_p = floor_p < level.cells ? floor_p : level.cells - 1;
            low[a] = (u32)floor_p;
            high_part[a] = p - (float)floor_p;
        }
        for (int c = 0; c < 8; c++) {
            const u32 ix = low[0] + (c & 1), iy = low[1] + (c >> 1 & 1), iz = low[2] + (c >> 2);
            const float wx = c & 1 ? high_part[0] : 1.0f - high_part[0];
            const float wy = c & 2 ? high_part[1] : 1.0f - high_part[1];
            const float wz = c & 4 ? high_part[2] : 1.0f - high_part[2];
            const u32 hashed = (ix ^ iy * 2654435761u ^ iz * 805459861u) & mask;
            const u32 dense = ix + side * (iy + side * iz);
            index[c][i] = mask ? hashed : dense;
            weight[c][i] = wx * wy * wz;
        }
    }
    if (level.first_rank < 0) return;
    const i32 *rank = ranks + level.first_rank;
    for (int c = 0; c < 8; c++)
        for (i64 i = 0; i < BLOCK; i++) index[c][i] = (u32)rank[index[c][i]];
}

INLINE TARGET void NAME(gather2)(const float *table, u32 index[8][BLOCK], float weight[8][BLOCK],
                                 i64 n, float *out, i64 stride)
{
    for (i64 i = 0; i < n; i++) {
        f2 sum = {0.0f, 0.0f};
        for (int c = 0; c < 8; c++) sum += weight[c][i] * *(const f2 *)(table + 2 * (i64)index[c][i]);
        *(f2 *)(out + i * stride) = sum;
    }
}

INLINE TARGET void NAME(gather)(const float *table, u32 index[8][BLOCK], float weight[8][BLOCK],
                                i64 n, int features, float *out, i64 stride)
{
    for (i64 i = 0; i < n; i++)
        for (int f = 0; f < features; f++) {
            float sum = 0.0f;
            for (int c = 0; c < 8; c++) sum += weight[c][i] * table[features * (i64)index[c][i] + f];
            out[i * stride + f] = sum;
        }
}

INLINE TARGET void NAME(scatter2)(float *grad, u32 index[8][BLOCK], float weight[8][BLOCK],
                                  i64 n, const float *upstream, i64 stride)
{
    for (i64 i = 0; i < n; i++) {
        const f2 g = *(const f2 *)(upstream + i * stride);
        if (g[0] == 0.0f && g[1] == 0.0f) continue;
        for (int c = 0; c < 8; c++) *(f2 *)(grad + 2 * (i64)index[c][i]) += weight[c][i] * g;
    }
}

INLINE TARGET void NAME(scatter)(float *grad, u32 index[8][BLOCK], float weight[8][BLOCK],
                                 i64 n, int features, const float *upstream, i64 stride)
{
    for (i64 i = 0; i < n; i++)
        for (int f = 0; f < features; f++) {
            const float g = upstream[i * stride + f];
            if (g == 0.0f) continue;
            for (int c = 0; c < 8; c++) grad[features * (i64)index[c][i] + f] += weight[c][i] * g;
        }
}

/* out[n, L * features] for points lo..hi. */
EXPORT TARGET void NAME(hash_grid_forward)(const float *table, const float *x, const Level *levels, const i32 *ranks,
                                           i64 count, i64 features, float *out, i64 lo, i64 hi)
{
    u32 index[8][BLOCK];
    float weight[8][BLOCK];
    const i64 stride = count * features;
    for (i64 l = 0; l < count; l++) {
        const float *entries = table + levels[l].offset * features;
        for (i64 start = lo; start < hi; start += BLOCK) {
            const i64 n = hi - start < BLOCK ? hi - start : BLOCK;
            float *target = out + start * stride + l * features;
            NAME(corners)(x + 3 * start, n, levels[l], ranks, index, weight);
            if (features == 2) NAME(gather2)(entries, index, weight, n, target, stride);
            else NAME(gather)(entries, index, weight, n, (int)features, target, stride);
        }
    }
}

/* grad += d(loss)/d(table) for levels count-1-hi .. count-1-lo (finest first): one owner per
 * level, so no atomics and the same sum in every run. */
EXPORT TARGET void NAME(hash_grid_backward)(const float *upstream, const float *x, const Level *levels, const i32 *ranks,
                                            i64 count, i64 features, float *grad, i64 points,
                                            i64 lo, i64 hi)
{
    u32 index[8][BLOCK];
    float weight[8][BLOCK];
    const i64 stride = count * features;
    for (i64 reverse = lo; reverse < hi; reverse++) {
        const i64 l = count - 1 - reverse;
        float *entries = grad + levels[l].offset * features;
        for (i64 start = 0; start < points; start += BLOCK) {
            const i64 n = points - start < BLOCK ? points - start : BLOCK;
            const float *source = upstream + start * stride + l * features;
            NAME(corners)(x + 3 * start, n, levels[l], ranks, index, weight);
            if (features == 2) NAME(scatter2)(entries, index, weight, n, source, stride);
            else NAME(scatter)(entries, index, weight, n, (int)features, source, stride);
        }
    }
}
