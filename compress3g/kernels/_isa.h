/* One body per instruction set, compiled from the same text.
 *
 * A file `cpu.c` includes its `body.h` once per set with NAME(x), TARGET and the
 * vector width defined here. Nothing needs a special compiler flag: the functions carry
 * their own target attribute, and Python calls the set that `compress3g_isa` names.
 */
#ifndef COMPRESS3G_ISA_H
#define COMPRESS3G_ISA_H
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define COMPRESS3G_X86 1
#define TARGET_AVX2 __attribute__((target("avx2,fma")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define TARGET_ICELAKE                                                                             \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,"              \
                          "avx512vpopcntdq,avx512bitalg,avx2,fma")))
#else
#define COMPRESS3G_X86 0
#endif

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

/* The `for` loops of every body run over [lo, hi) of one parallel axis; see _parallel.py. */
typedef int64_t i64;
typedef int32_t i32;
typedef uint32_t u32;
typedef uint8_t u8;

#endif
