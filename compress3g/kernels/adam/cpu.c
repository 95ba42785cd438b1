#define BODY "adam/body.h"
#include "../_bodies.h"
