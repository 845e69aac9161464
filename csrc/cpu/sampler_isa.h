// What one instruction set offers to csrc/cpu/sampler.cpp.
#pragma once
#include "sampler.h"

namespace presto::cpu {

struct SamplerKernels {
  void (*edm_denoise)(const EdmDenoise&, int64_t first_chunk, int64_t last_chunk);
  void (*edm_denoise_backward)(const EdmDenoiseBackward&, int64_t first_chunk, int64_t last_chunk);
  void (*renoise)(const Renoise&, int64_t first_chunk, int64_t last_chunk);
  void (*renoise_backward)(const RenoiseBackward&, int64_t first_chunk, int64_t last_chunk);
  void (*sums)(const SamplerShape&, const float* workspace, DType dtype, void* out);
};

namespace avx2 {
extern const SamplerKernels kSamplerKernels;
}
namespace avx512 {
extern const SamplerKernels kSamplerKernels;
}
namespace avx512bf16 {
extern const SamplerKernels kSamplerKernels;
}

}  // namespace presto::cpu
