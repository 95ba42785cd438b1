#define BODY "residual_scan/body.h"
#define WITH_ICELAKE
#include "../_bodies.h"
