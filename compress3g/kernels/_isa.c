#include "_isa.h"

/* 0 scalar, 1 AVX2 + FMA, 2 AVX-512 F/BW/DQ/VL, 3 Ice Lake's: the widest set this processor runs. */
EXPORT int compress3g_isa(void)
{
#if COMPRESS3G_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 2 + (__builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
                    __builtin_cpu_supports("avx512vpopcntdq") &&
                    __builtin_cpu_supports("avx512bitalg"));
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return 1;
#endif
    return 0;
}

/* Raised with every change of a signature below; Python refuses a library of another one. */
EXPORT int compress3g_abi(void) { return 3; }
