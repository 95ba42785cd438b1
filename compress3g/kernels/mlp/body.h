/* A small fully fused perceptron: ReLU between layers, no bias, widths padded to 16.
 *
 * ROWS samples pass through all layers while their activations are in the first-level cache.
 * Every product is one routine: C[m][n] += sum_k A(m, k) B[k][n], vectors along n, with A read
 * by broadcasts, so a transposed A costs nothing.
 */
#ifndef MLP_TYPES
#define MLP_TYPES
#define ROWS 64
#define MAX_WIDTH 128
#define MAX_LAYERS 8
#define PAD16(n) (((n) + 15) / 16 * 16)
#endif

typedef float NAME(vector) __attribute__((vector_size(4 * VECTOR), aligned(4)));
#if VECTOR == 16
#define TILE 4
#else
#define TILE 2
#endif

/* rows x (columns * VECTOR) tile of C, kept in registers over the whole sum. */
INLINE TARGET void NAME(tile)(const float *a, i64 a_row, i64 a_column, const float *b, i64 b_row,
                              float *c, i64 c_row, i64 depth, int rows, int columns, int add)
{
    NAME(vector) sum[4][TILE];
    for (int m = 0; m < rows; m++)
        for (int n = 0; n < columns; n++)
            sum[m][n] = add ? *(const NAME(vector) *)(c + m * c_row + n * VECTOR)
                            : (NAME(vector)){0};
    for (i64 k = 0; k < depth; k++) {
        NAME(vector) right[TILE];
        for (int n = 0; n < columns; n++) right[n] = *(const NAME(vector) *)(b + k * b_row + n * VECTOR);
        for (int m = 0; m < rows; m++) {
            const float left = a[m * a_row + k * a_column];
            for (int n = 0; n < columns; n++) sum[m][n] += left * right[n];
        }
    }
    for (int m = 0; m < rows; m++)
        for (int n = 0; n < columns; n++) *(NAME(vector) *)(c + m * c_row + n * VECTOR) = sum[m][n];
}

static __attribute__((noinline)) TARGET void NAME(tile_full)(
    const float *a, i64 a_row, i64 a_column, const float *b, i64 b_row, float *c, i64 c_row,
    i64 depth, int add)
{
    NAME(tile)(a, a_row, a_column, b, b_row, c, c_row, depth, 4, TILE, add);
}

/* height is a multiple of 4, width of 16. */
INLINE TARGET void NAME(product)(const float *a, i64 a_row, i64 a_column, const float *b, i64 b_row,
                                 float *c, i64 c_row, i64 height, i64 depth, i64 width, int add)
{
    for (i64 m = 0; m < height; m += 4) {
        i64 n = 0;
        for (; n + TILE * VECTOR <= width; n += TILE * VECTOR)
            NAME(tile_full)(a + m * a_row, a_row, a_column, b + n, b_row, c + m * c_row + n, c_row,
                            depth, add);
        for (; n < width; n += VECTOR)
            NAME(tile)(a + m * a_row, a_row, a_column, b + n, b_row, c + m * c_row + n, c_row,
                       depth, 4, 1, add);
    }
}

/* weights: layers one after the other, each [out][in] row-major without padding.
 * input [n][PAD16(width 0)], hidden: per hidden layer [n][PAD16(width)] after ReLU,
 * output [n][PAD16(last width)]; padding columns of the input must be zero. */
EXPORT TARGET void NAME(mlp_forward)(const float *weights, const i64 *widths, i64 layers,
                                     const float *input, float *const *hidden, float *output,
                                     i64 lo, i64 hi)
{
    static __thread float packed[MAX_LAYERS * 64 * 64] __attribute__((aligned(64)));
    float *layer[MAX_LAYERS], *next = packed;
    const float *source = weights;
    for (i64 l = 0; l < layers; l++) { /* transposed copy [in][out], zero padded */
        const i64 in = widths[l], out = widths[l + 1], in_pad = PAD16(in), out_pad = PAD16(out);
        layer[l] = next;
        memset(next, 0, sizeof(float) * in_pad * out_pad);
        for (i64 o = 0; o < out; o++)
            for (i64 i = 0; i < in; i++) next[i * out_pad + o] = source[o * in + i];
        next += in_pad * out_pad;
        source += in * out;
    }
    for (i64 start = lo; start < hi; start += ROWS) {
        const i64 rows = hi - start < ROWS ? hi - start : ROWS;
        float scratch[2][ROWS * MAX_WIDTH] __attribute__((aligned(64)));
        const float *x = input + start * PAD16(widths[0]);
        if (rows < ROWS) { /* the tail goes through a zero-padded copy */
            memset(scratch[1], 0, sizeof scratch[1]);
            memcpy(scratch[1], x, sizeof(float) * rows * PAD16(widths[0]));
            x = scratch[1];
        }
        for (i64 l = 0; l < layers; l++) {
            const i64 in = PAD16(widths[l]), out = PAD16(widths[l + 1]);
            const int last = l == layers - 1;
            float *keep = last ? output : hidden ? hidden[l] : 0;
            if (keep) keep += start * out;
            float *y = keep && rows == ROWS ? keep : scratch[l & 1];
            NAME(product)(x, in, 1, layer[l], out, y, out, ROWS, in, out, 0);
            if (!last)
                for (i64 i = 0; i < ROWS * out; i++) y[i] = 0.0f > y[i] ? 0.0f : y[i]; /* NaN stays */
            if (keep && y != keep) memcpy(keep, y, sizeof(float) * rows * out);
            x = y;
        }
    }
}

/* weight_grad [chunks][...like weights] gets += from chunk lo..hi of `chunk` rows each;
 * input_grad [n][PAD16(width 0)] is overwritten when not null. */
EXPORT TARGET void NAME(mlp_backward)(const float *weights, const i64 *widths, i64 layers,
                                      const float *input, float *const *hidden,
                                      const float *upstream, float *weight_grad, float *input_grad,
                                      i64 n, i64 chunk, i64 total, i64 lo, i64 hi)
{
    static __thread float packed[MAX_LAYERS * 64 * 64] __attribute__((aligned(64)));
    static __thread float sums[MAX_LAYERS * 64 * 64] __attribute__((aligned(64)));
    float *layer[MAX_LAYERS], *sum[MAX_LAYERS];
    i64 used = 0;
    const float *source = weights;
    for (i64 l = 0; l < layers; l++) { /* [out][in], zero padded */
        const i64 in = widths[l], out = widths[l + 1], in_pad = PAD16(in), out_pad = PAD16(out);
        layer[l] = packed + used;
        sum[l] = sums + used;
        memset(layer[l], 0, sizeof(float) * in_pad * out_pad);
        for (i64 o = 0; o < out; o++)
            for (i64 i = 0; i < in; i++) layer[l][o * in_pad + i] = source[o * in + i];
        used += in_pad * out_pad;
        source += in * out;
    }
    for (i64 part = lo; part < hi; part++) {
        memset(sums, 0, sizeof(float) * used);
        const i64 end = (part + 1) * chunk < n ? (part + 1) * chunk : n;
        for (i64 start = part * chunk; start < end; start += ROWS) {
            const i64 rows = end - start < ROWS ? end - start : ROWS;
            float scratch[2][ROWS * MAX_WIDTH] __attribute__((aligned(64)));
            float tail[ROWS * MAX_WIDTH] __attribute__((aligned(64)));
            const i64 last_width = PAD16(widths[layers]);
            const float *g = upstream + start * last_width;
            if (rows < ROWS) {
                memset(scratch[1], 0, sizeof scratch[1]);
                memcpy(scratch[1], g, sizeof(float) * rows * last_width);
                g = scratch[1];
            }
            for (i64 l = layers - 1; l >= 0; l--) {
                const i64 in = PAD16(widths[l]), out = PAD16(widths[l + 1]);
                const float *x = (l ? hidden[l - 1] : input) + start * in;
                if (rows < ROWS) {
                    memset(tail, 0, sizeof(float) * ROWS * in);
                    memcpy(tail, x, sizeof(float) * rows * in);
                    x = tail;
                }
                /* dW[o][i] += sum_s g[s][o] x[s][i] */
                NAME(product)(g, 1, out, x, in, sum[l], in, out, ROWS, in, 1);
                if (l == 0 && !input_grad) break;
                float *keep = l ? 0 : input_grad + start * in;
                float *back = keep && rows == ROWS ? keep : scratch[(layers - 1 - l) & 1];
                NAME(product)(g, out, 1, layer[l], in, back, in, ROWS, out, in, 0);
                if (l)
                    for (i64 i = 0; i < ROWS * in; i++) back[i] = x[i] > 0.0f ? back[i] : 0.0f;
                else if (back != keep)
                    memcpy(keep, back, sizeof(float) * rows * in);
                g = back;
            }
        }
        float *target = weight_grad + part * total;
        for (i64 l = 0; l < layers; l++) {
            const i64 in = widths[l], out = widths[l + 1], in_pad = PAD16(in);
            for (i64 o = 0; o < out; o++)
                for (i64 i = 0; i < in; i++) target[o * in + i] += sum[l][o * in_pad + i];
            target += in * out;
        }
    }
}
#undef TILE
