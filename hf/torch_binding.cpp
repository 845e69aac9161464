// What Python imports for kernel-builder's `_ops.py` to find the operators, which register themselves (csrc/*_ops.cpp).
#include "registration.h"

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
