/* Emission-absorption rendering of packed samples, one ray at a time.
 *
 *   alpha_k = 1 - exp(-sigma_k d_k)     T_k = prod_{j<k} (1 - alpha_j)     w_k = T_k alpha_k
 *   C = sum_k w_k c_k + T_end b
 */

/* weight[n] and left[r] = T_end for rays lo..hi. */
EXPORT TARGET void NAME(composite_weights)(const float *sigma, const float *length, const i64 *offset,
                                           float *weight, float *left, i64 lo, i64 hi)
{
    for (i64 r = lo; r < hi; r++) {
        float transmittance = 1.0f;
        for (i64 k = offset[r]; k < offset[r + 1]; k++) {
            const float passed = expf(-sigma[k] * length[r]);
            weight[k] = transmittance * (1.0f - passed);
            transmittance *= passed;
        }
        left[r] = transmittance;
    }
}

EXPORT TARGET void NAME(composite_forward)(const float *weight, const float *left, const float *colour,
                                           const float *background, const i64 *offset, float *out,
                                           i64 lo, i64 hi)
{
    for (i64 r = lo; r < hi; r++) {
        float sum[3];
        for (int c = 0; c < 3; c++) sum[c] = left[r] * background[3 * r + c];
        for (i64 k = offset[r]; k < offset[r + 1]; k++)
            for (int c = 0; c < 3; c++) sum[c] += weight[k] * colour[3 * k + c];
        for (int c = 0; c < 3; c++) out[3 * r + c] = sum[c];
    }
}

/* With g = dL/dC and S_k = sum_{j>=k} w_j <g, c_j> + T_end <g, b>:
 *   dL/dsigma_k = d_k (T_{k+1} <g, c_k> - S_{k+1}),   dL/dc_k = w_k g. */
EXPORT TARGET void NAME(composite_backward)(const float *upstream, const float *weight, const float *left,
                                            const float *colour, const float *background,
                                            const float *length, const i64 *offset,
                                            float *sigma_grad, float *colour_grad, i64 lo, i64 hi)
{
    for (i64 r = lo; r < hi; r++) {
        const float *g = upstream + 3 * r, *b = background + 3 * r;
        float suffix = left[r] * (g[0] * b[0] + g[1] * b[1] + g[2] * b[2]);
        float after = left[r]; /* T_{k+1} */
        for (i64 k = offset[r + 1] - 1; k >= offset[r]; k--) {
            const float *c = colour + 3 * k;
            const float along = g[0] * c[0] + g[1] * c[1] + g[2] * c[2];
            sigma_grad[k] = length[r] * (after * along - suffix);
            for (int a = 0; a < 3; a++) colour_grad[3 * k + a] = weight[k] * g[a];
            suffix += weight[k] * along;
            after += weight[k];
        }
    }
}
