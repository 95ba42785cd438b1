/* Adam (1412.6980) that leaves alone every number whose gradient is exactly zero, and clears the
 * gradient it has read: one pass over memory instead of four for a table mostly untouched. */
#ifndef ADAM_TYPES
#define ADAM_TYPES
typedef struct {
    float rate;            /* learning rate / (1 - beta1^t) */
    float beta1, beta2;
    float root_correction; /* 1 / sqrt(1 - beta2^t) */
    float epsilon;
} Adam;
#endif

EXPORT TARGET void NAME(adam_sparse)(float *value, float *grad, float *first, float *second,
                                     const Adam *adam, i64 lo, i64 hi)
{
    const Adam s = *adam;
    i64 i = lo;
    for (; i + 16 <= hi; i += 16) {
        int any = 0;
        for (int j = 0; j < 16; j++) any |= grad[i + j] != 0.0f;
        if (!any) continue;
        for (int j = 0; j < 16; j++) {
            const float g = grad[i + j], m = first[i + j], v = second[i + j];
            const float m1 = s.beta1 * m + (1.0f - s.beta1) * g;
            const float v1 = s.beta2 * v + (1.0f - s.beta2) * g * g;
            const float step = s.rate * m1 / (sqrtf(v1) * s.root_correction + s.epsilon);
            const int touched = g != 0.0f;
            first[i + j] = touched ? m1 : m;
            second[i + j] = touched ? v1 : v;
            value[i + j] -= touched ? step : 0.0f;
            grad[i + j] = 0.0f;
        }
    }
    for (; i < hi; i++) {
        const float g = grad[i];
        if (g == 0.0f) continue;
        first[i] = s.beta1 * first[i] + (1.0f - s.beta1) * g;
        second[i] = s.beta2 * second[i] + (1.0f - s.beta2) * g * g;
        value[i] -= s.rate * first[i] / (sqrtf(second[i]) * s.root_correction + s.epsilon);
        grad[i] = 0.0f;
    }
}
