#define BODY "hamming/body.h"
#define WITH_ICELAKE
#include "../_bodies.h"
