// The slope of tanh, as csrc/cpu/simd_math.h has it; tanh itself is CUDA's accurate tanhf.
#pragma once
#include <cuda_runtime.h>

namespace presto::cuda {

// 1 - tanh(x)^2 without its cancellation where tanh is near 1: q (2 - q), q = 1 - tanh|x|.
__device__ inline float tanh_slope(float x) {
  const float q = 2.f / (1.f + expf(2.f * fabsf(x)));
  return q * (2.f - q);
}

}  // namespace presto::cuda
