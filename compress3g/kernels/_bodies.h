/* Includes BODY three times, and a fourth time if WITH_ICELAKE is defined; no include guard on purpose. */
#include "_isa.h"

#define NAME(x) JOIN(x, _scalar)
#define TARGET
#define VECTOR 4
#include BODY
#undef NAME
#undef TARGET
#undef VECTOR

#if COMPRESS3G_X86
#define NAME(x) JOIN(x, _avx2)
#define TARGET TARGET_AVX2
#define VECTOR 8
#include BODY
#undef NAME
#undef TARGET
#undef VECTOR

#define NAME(x) JOIN(x, _avx512)
#define TARGET TARGET_AVX512
#define VECTOR 16
#include BODY
#undef NAME
#undef TARGET
#undef VECTOR

#ifdef WITH_ICELAKE
#define NAME(x) JOIN(x, _icelake)
#define TARGET TARGET_ICELAKE
#define VECTOR 16
#define ICELAKE 1
#include BODY
#undef NAME
#undef TARGET
#undef VECTOR
#undef ICELAKE
#endif
#endif
