#define BODY "selective_scan/body.h"
#include "../_bodies.h"
