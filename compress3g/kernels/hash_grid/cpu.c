#define BODY "hash_grid/body.h"
#include "../_bodies.h"
