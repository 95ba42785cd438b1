#define BODY "ray_march/body.h"
#include "../_bodies.h"
