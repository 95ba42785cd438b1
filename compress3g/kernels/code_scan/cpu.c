#define BODY "code_scan/body.h"
#include "../_bodies.h"
