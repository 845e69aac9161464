#pragma once
#include "cuda_runtime.h"

struct __nv_bfloat162 {
  uint16_t x, y;
};
inline uint16_t to_bfloat16(float a) {
  if (a != a) return 0x7fff;
  uint32_t bits;
  memcpy(&bits, &a, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {to_bfloat16(a), to_bfloat16(b)}; }
