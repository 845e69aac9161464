// Compiled once per instruction set (setup.py gives the flags and PRESTO_ISA).
#include "sampler_isa.h"

#include "sampler_kernels.h"

namespace presto::cpu::PRESTO_ISA {
namespace {

void run_edm_denoise(const EdmDenoise& args, int64_t first, int64_t last) {
  with_type(args.x.dtype, [&](auto x) {
    with_type(args.model_output.dtype,
              [&](auto output) { edm_denoise<decltype(x), decltype(output)>(args, first, last); });
  });
}

void run_edm_denoise_backward(const EdmDenoiseBackward& args, int64_t first, int64_t last) {
  with_type(args.grad.dtype, [&](auto x) {
    with_type(args.output_dtype,
              [&](auto output) { edm_denoise_backward<decltype(x), decltype(output)>(args, first, last); });
  });
}

void run_renoise(const Renoise& args, int64_t first, int64_t last) {
  with_type(args.x0.dtype, [&](auto x) { renoise<decltype(x)>(args, first, last); });
}

void run_renoise_backward(const RenoiseBackward& args, int64_t first, int64_t last) {
  with_type(args.grad.dtype, [&](auto x) { renoise_backward<decltype(x)>(args, first, last); });
}

}  // namespace

extern const SamplerKernels kSamplerKernels = {run_edm_denoise, run_edm_denoise_backward, run_renoise,
                                               run_renoise_backward, sampler_sums};

}  // namespace presto::cpu::PRESTO_ISA
