#define BODY "composite/body.h"
#include "../_bodies.h"
