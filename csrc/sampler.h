// The sampler family as plain C++: no torch header here, so that the kernels compile with g++ or nvcc alone whatever
// torch is installed.
//
//   edm_denoise   D = c_skip x + c_out F,   r = sigma - sigma_min,
//                 c_skip = sd^2 / (r^2 + sd^2),   c_out = sd r / sqrt(sigma^2 + sd^2)
//   renoise       y = signal x0 + sigma eps,   eps as normal.h makes it of (element, offset, sample; seed)
//
// All arithmetic is fp32; a result is rounded once to its dtype.
#pragma once
#include <cstdint>

#include "rows.h"

namespace presto {

// A sample is tokens rows of dim elements, whatever its shape was; one row where it lies dense in every tensor.
struct SamplerShape {
  int64_t batch = 0, tokens = 0, dim = 0;
};

// One number a sample; data == nullptr: `value` for all of them.
struct EachFloat {
  const void* data = nullptr;
  DType dtype = DType::F32;
  int64_t stride = 0;
  float value = 0.f;
};
struct EachInt {
  const int64_t* data = nullptr;
  int64_t stride = 0;
  int64_t value = 0;
};

// The key is the seed's 64 bits and the counter (element / 4, the offset's low 32 bits, sample, 0): the sample is its
// place in the batch under one seed for all, and 0 where each sample has a seed of its own.
struct Draw {
  EachInt seed, offset;
};

struct EdmDenoise : SamplerShape {
  Rows model_output, x;
  EachFloat sigma;
  float sigma_data = 0.f, sigma_min = 0.f;
  void* out = nullptr;  // [B, ...] in x's dtype
};

// With q = r^2 + sd^2 and t = sigma^2 + sd^2:
//   dF = c_out g,   dx = c_skip g,   dsigma = sum g (c_skip' x + c_out' F) over a sample,
//   c_skip' = -2 r sd^2 / q^2,   c_out' = sd (sd^2 + sigma_min sigma) / t^(3/2)
// A null output is not wanted; model_output and x are read for dsigma alone.
struct EdmDenoiseBackward : SamplerShape {
  Rows grad, model_output, x;  // grad has x's dtype
  EachFloat sigma;
  float sigma_data = 0.f, sigma_min = 0.f;
  DType output_dtype = DType::F32;  // of F
  void *doutput = nullptr, *dx = nullptr, *dsigma = nullptr;
  float* workspace = nullptr;  // for dsigma: one sum for each chunk
};

struct Renoise : SamplerShape, Draw {
  Rows x0;
  EachFloat sigma;
  float signal = 1.f;
  void* out = nullptr;  // [B, ...] in x0's dtype
};

// dsigma = sum g eps over a sample, the noise drawn again.  (dx0 = signal g needs no kernel.)
struct RenoiseBackward : SamplerShape, Draw {
  Rows grad;
  DType sigma_dtype = DType::F32;
  void* dsigma = nullptr;
  float* workspace = nullptr;  // one sum for each chunk
};

namespace cpu {
// A sample is cut into chunks of this many elements, the last one shorter: a number that depends on nothing, so that
// sums over a sample, added up chunk by chunk, are bitwise the same for every number of threads.  In fp32 a chunk of
// three tensors is 48 KB.
constexpr int64_t kSamplerChunk = 4096;
int64_t sampler_chunks(const SamplerShape& shape);  // of one sample

// Chunks [first, last) of the batch * sampler_chunks(), counted sample by sample.
void edm_denoise(const EdmDenoise& args, int64_t first, int64_t last);
void edm_denoise_backward(const EdmDenoiseBackward& args, int64_t first, int64_t last);
void renoise(const Renoise& args, int64_t first, int64_t last);
void renoise_backward(const RenoiseBackward& args, int64_t first, int64_t last);
// out[b] = the sum of sample b's chunks, in order.
void sampler_sums(const SamplerShape& shape, const float* workspace, DType dtype, void* out);
}  // namespace cpu

namespace cuda {
// Each returns a cudaError_t as int, launches on `stream` only, allocates nothing and asks the device nothing.
int edm_denoise(const EdmDenoise& args, void* stream);
int64_t edm_denoise_backward_workspace(const EdmDenoiseBackward& args);
int edm_denoise_backward(const EdmDenoiseBackward& args, void* stream);
int renoise(const Renoise& args, void* stream);
int64_t renoise_backward_workspace(const RenoiseBackward& args);
int renoise_backward(const RenoiseBackward& args, void* stream);
}  // namespace cuda

}  // namespace presto
