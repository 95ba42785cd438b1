/* Marching through a bit grid: samples on the lattice t = (k + jitter) * step, only where a bit is set.
 *
 * Empty cells are left in one stride to their far wall, but k stays an integer, so a sample does
 * not move when a neighbouring cell opens or closes.
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

/* Number of samples of one ray; positions and distances are written when x is not null.
 * Never inlined or cloned: counting and filling must round alike, or filling overruns. */
static __attribute__((noinline, noclone)) TARGET i64 NAME(walk)(
    const float *o, const float *d, float jitter, const u8 *bits, March march, float *x, float *distance)
{
    float enter, leave;
    if (!NAME(box)(o, d, march.near, &enter, &leave)) return 0;
    if (!(leave < march.step * MOST_STEPS)) return 0; /* also infinity and NaN: no end, no loop */
    const float side = (float)march.side, top = side - 1.0f;
    float inverse[3];
    for (int a = 0; a < 3; a++) inverse[a] = d[a] == 0.0f ? INFINITY : 1.0f / (d[a] * side);
    i64 n = 0;
    for (i64 k = (i64)ceilf(enter / march.step - jitter); n < march.limit;) {
        const float t = ((float)k + jitter) * march.step;
        if (t >= leave) break;
        float p[3], far_wall = INFINITY;
        i32 cell[3];
        for (int a = 0; a < 3; a++) {
            p[a] = o[a] + t * d[a];
            float q = p[a] * side;
            q = q > 0.0f ? q : 0.0f;
            q = q < top ? q : top;
            cell[a] = (i32)q;
        }
        const i64 bit = cell[0] + (i64)march.side * (cell[1] + (i64)march.side * cell[2]);
        if (bits[bit >> 3] >> (bit & 7) & 1) {
            if (x) {
                for (int a = 0; a < 3; a++) {
                    float inside = p[a] > 0.0f ? p[a] : 0.0f;
                    x[3 * n + a] = inside < 1.0f ? inside : 1.0f;
                }
                distance[n] = t;
            }
            n++;
            k++;
            continue;
        }
        for (int a = 0; a < 3; a++) {
            const float wall = (float)(cell[a] + (d[a] > 0.0f));
            const float reach = (wall - p[a] * side) * inverse[a];
            if (d[a] != 0.0f && reach < far_wall) far_wall = reach;
        }
        const i64 next = (i64)ceilf((t + far_wall) / march.step - jitter);
        k = next > k ? next : k + 1;
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
