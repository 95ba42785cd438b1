#define BODY "mlp/body.h"
#include "../_bodies.h"
