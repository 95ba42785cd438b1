#define BODY "causal_conv/body.h"
#include "../_bodies.h"
