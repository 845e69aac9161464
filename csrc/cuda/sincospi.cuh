// Sine and cosine of an angle in quarter turns and in half turns, bit for bit those of the CPU's vectors; sincospi.h
// explains the steps.  A product that is added to something is an fmaf, whatever the compiler would have contracted.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "sincospi.h"

namespace presto::cuda {

struct SinCos {
  float sin, cos;
};

// Of (pi / 2) (quadrant + z), |z| <= 1/2.
__device__ inline SinCos sin_cos_quarters(int32_t quadrant, float z) {
  using namespace sincospi;
  const float w = z * z;
  const float s = z * fmaf(fmaf(fmaf(kS3, w, kS2), w, kS1), w, kS0);
  const float c = fmaf(fmaf(fmaf(fmaf(kC3, w, kC2), w, kC1), w, kC0), w, 1.f);
  const float cosine = quadrant & 1 ? s : c, sine = quadrant & 1 ? c : s;
  return {quadrant & 2 ? -sine : sine, (quadrant + 1) & 2 ? -cosine : cosine};
}

// Of pi x; NaN where x is not finite.
__device__ inline SinCos sin_cos_pi(float x) {
  const float turn = fmaf(rintf(0.5f * x), -2.f, x), quadrant = rintf(2.f * turn);
  return sin_cos_quarters(static_cast<int32_t>(quadrant), fmaf(turn, 2.f, -quadrant));
}

}  // namespace presto::cuda
