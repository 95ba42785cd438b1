/* Marching through a bit grid: samples on the lattice t = (k + jitter) * step, only where a bit is set.
 *
 * VECTOR lattice points are looked up at once: cheaper than a walk from cell to cell, each of which
 * waits for the last. Only cells larger than that are left in one stride to their far wall. k stays
 * an integer, so a sample does not move when a neighbouring cell opens or closes.
 */
#ifndef RAY_MARCH_TYPES
#define RAY_MARCH_TYPES
typedef struct {
    float step, near;
    i32 side;  /* cells per axis */
    i32 limit; /* most samples per ray */
} March;
#define MOST_STEPS 16777216.0f /* a float counts lattice steps exactly up to here */
#endif

INLINE TARGET int NAME(box)(const float *o, const float *d, float near, float *enter, float *leave)
{
    *enter = near;
    *leave = INFINITY;
    for (int a = 0; a < 3; a++) {
        if (d[a] == 0.0f) {
            if (o[a] < 0.0f || o[a] > 1.0f) return 0;
            continue;
        }
        const float inverse = 1.0f / d[a], t0 = -o[a] * inverse, t1 = (1.0f - o[a]) * inverse;
        const float low = t0 < t1 ? t0 : t1, high = t0 < t1 ? t1 : t0;
        if (low > *enter) *enter = low;
        if (high < *leave) *leave = high;
    }
    return *enter < *leave;
}

typedef float NAME(reals) __attribute__((vector_size(4 * VECTOR)));
typedef i32 NAME(wholes) __attribute__((vector_size(4 * VECTOR)));

/* VECTOR lattice points from k on: distances, positions in the cube, cells. */
typedef struct {
    NAME(reals) t, p[3];
    NAME(wholes) cell[3], bit;
} NAME(Points);

INLINE TARGET NAME(reals) NAME(clamped)(NAME(reals) v, float top)
{
    const NAME(reals) most = (NAME(reals)){0} + top;
    v = (NAME(reals))((NAME(wholes))v & (v > (NAME(reals)){0})); /* NaN becomes 0 */
    const NAME(wholes) below = v < most;
    return (NAME(reals))(((NAME(wholes))v & below) | ((NAME(wholes))most & ~below));
}

INLINE TARGET void NAME(place)(const float *o, const float *d, float jitter, i64 k, const March *march,
                               NAME(Points) *points)
{
    NAME(reals) number;
    for (int j = 0; j < VECTOR; j++) number[j] = (float)j;
    points->t = (number + (float)k + jitter) * march->step;
    for (int a = 0; a < 3; a++) {
        const NAME(reals) p = o[a] + points->t * d[a];
        const NAME(reals) q = NAME(clamped)(p * (float)march->side, (float)march->side - 1.0f);
        points->cell[a] = __builtin_convertvector(q, NAME(wholes));
        points->p[a] = NAME(clamped)(p, 1.0f);
    }
    points->bit =
        points->cell[0] + march->side * (points->cell[1] + march->side * points->cell[2]);
}

/* Lattice steps after an empty block that end in its last cell too. The one nearest to the far wall
 * does not count: rounding may put it on either side. */
INLINE TARGET i64 NAME(stride)(const float *o, const float *d, const March *march,
                               const NAME(Points) *points)
{
    const int last = VECTOR - 1;
    const float side = (float)march->side, t = points->t[last];
    float far_wall = INFINITY;
    for (int a = 0; a < 3; a++) {
        if (d[a] == 0.0f) continue;
        const float wall = (float)(points->cell[a][last] + (d[a] > 0.0f));
        const float reach = (wall - (o[a] + t * d[a]) * side) / (d[a] * side);
        if (reach < far_wall) far_wall = reach;
    }
    const float steps = far_wall / march->step - 1.0f;
    return steps > 0.0f && steps < MOST_STEPS ? (i64)steps : 0;
}

/* Number of samples of one ray; positions and distances are written when x is not null.
 * Never inlined or cloned: counting and filling must round alike, or filling overruns. */
static __attribute__((noinline, noclone)) TARGET i64 NAME(walk)(
    const float *o, const float *d, float jitter, const u8 *bits, March march, float *x, float *distance)
{
    float enter, leave;
    if (!NAME(box)(o, d, march.near, &enter, &leave)) return 0;
    if (!(leave < march.step * MOST_STEPS)) return 0; /* also infinity and NaN: no end, no loop */
    const int large_cells = VECTOR * march.step * (float)march.side < 1.0f;
    NAME(Points) points;
    i64 n = 0;
    for (i64 k = (i64)ceilf(enter / march.step - jitter); n < march.limit; k += VECTOR) {
        NAME(place)(o, d, jitter, k, &march, &points);
        u32 hits = 0;
        for (int j = 0; j < VECTOR; j++)
            hits |= (u32)(bits[points.bit[j] >> 3] >> (points.bit[j] & 7) & 1) << j;
        const int empty = !hits;
        for (; hits && n < march.limit; hits &= hits - 1) {
            const int j = __builtin_ctz(hits);
            if (points.t[j] >= leave) return n;
            if (x) {
                for (int a = 0; a < 3; a++) x[3 * n + a] = points.p[a][j];
                distance[n] = points.t[j];
            }
            n++;
        }
        if (points.t[VECTOR - 1] >= leave) break;
        if (large_cells && empty) k += NAME(stride)(o, d, &march, &points);
    }
    return n;
}

EXPORT TARGET void NAME(ray_march_count)(const float *origin, const float *direction, const float *jitter,
                                         const u8 *bits, const March *march, i64 *count,
                                         i64 lo, i64 hi)
{
    for (i64 r = lo; r < hi; r++)
        count[r] = NAME(walk)(origin + 3 * r, direction + 3 * r, jitter[r], bits, *march, 0, 0);
}

EXPORT TARGET void NAME(ray_march_fill)(const float *origin, const float *direction, const float *jitter,
                                        const u8 *bits, const March *march, const i64 *offset,
                                        float *x, float *distance, i64 *ray, i64 lo, i64 hi)
{
    for (i64 r = lo; r < hi; r++) {
        const i64 first = offset[r];
        NAME(walk)(origin + 3 * r, direction + 3 * r, jitter[r], bits, *march, x + 3 * first,
                   distance + first);
        for (i64 k = first; k < offset[r + 1]; k++) ray[k] = r;
    }
}
