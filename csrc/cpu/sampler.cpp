// The family's kernels for the instruction set in use.
#include "sampler.h"

#include "cpu/isa.h"
#include "cpu/sampler_isa.h"

namespace presto::cpu {
namespace {

const SamplerKernels& kernels() { return PRESTO_CPU_KERNELS(kSamplerKernels); }

}  // namespace

int64_t sampler_chunks(const SamplerShape& shape) {
  return (shape.tokens * shape.dim + kSamplerChunk - 1) / kSamplerChunk;
}

void edm_denoise(const EdmDenoise& args, int64_t first, int64_t last) { kernels().edm_denoise(args, first, last); }

void edm_denoise_backward(const EdmDenoiseBackward& args, int64_t first, int64_t last) {
  kernels().edm_denoise_backward(args, first, last);
}

void renoise(const Renoise& args, int64_t first, int64_t last) { kernels().renoise(args, first, last); }

void renoise_backward(const RenoiseBackward& args, int64_t first, int64_t last) {
  kernels().renoise_backward(args, first, last);
}

void sampler_sums(const SamplerShape& shape, const float* workspace, DType dtype, void* out) {
  kernels().sums(shape, workspace, dtype, out);
}

}  // namespace presto::cpu
