#define BODY "residual_scan/body.h"
#include "../_bodies.h"
