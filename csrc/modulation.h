// The AdaLN family ("the seam" between two branches of a DiT), as plain C++: no torch header here, so that the
// kernels compile with g++ or nvcc alone whatever torch is installed.
//
//   x'   = x + g(gate) * branch + residual2          rounded to x's dtype, g = identity or sigmoid(1 - gate)
//   h    = (norm(x') * weight + bias) * (1 + scale) + shift        norm taken of x' as stored
//   norm = (x' - mean) * rstd   (layer)   or   x' * rstd   (rms, mean = 0)   or   tanh(alpha * x')   (dyt, no stats)
//
// All arithmetic is fp32.  Without a branch x' is x itself; without a norm only x' is written.
#pragma once
#include <cstdint>

#include "rows.h"

namespace presto {

enum class Norm : int32_t { None = 0, Layer = 1, Rms = 2, Dyt = 3 };
enum class GateFn : int32_t { Identity = 0, SigmoidOneMinus = 1 };

constexpr bool has_stats(Norm norm) { return norm == Norm::Layer || norm == Norm::Rms; }

// gate, scale, shift, weight, bias, residual2: [D], [B|1, D] or [B|1, 1|N, D].  A stride is 0 where the tensor is
// shared, and per_sample / per_token say over which axes its gradient is *not* summed.
struct Modulation : Rows {
  bool per_sample = false;
  bool per_token = false;
};

struct SeamShape {
  int64_t batch = 0, tokens = 0, dim = 0;
  Norm norm = Norm::Layer;
  GateFn gate_fn = GateFn::Identity;
  float eps = 0.f;
};

struct SeamInputs {
  Modulation gate, scale, shift, weight, bias, residual2;
  Modulation alpha;  // one element; there with Norm::Dyt
  Rows branch;
};

struct SeamForward : SeamShape, SeamInputs {
  Rows x;
  void* x_new = nullptr;   // [B, N, D] in x's dtype; null without a branch
  void* h = nullptr;       // [B, N, D] in x's dtype; null without a norm
  float* stats = nullptr;  // [B, N, 2]: mean, rstd; null without a norm that has any
};

// With y = norm(x'), A = weight * (1 + scale), dy = grad_h * A:
//   dx      = grad_x + rstd * (dy - mean(dy) - y * mean(dy * y))          (rms: without mean(dy))
//   dbranch = g(gate) * dx                dgate  = sum g'(gate) * branch * dx
//   dscale  = sum grad_h * (y * weight + bias)      dshift = sum grad_h
//   dweight = sum grad_h * y * (1 + scale)          dbias  = sum grad_h * (1 + scale)
//   dresidual2 = sum dx
//   dyt: dx = grad_x + alpha * (1 - y^2) * dy       dalpha = sum dy * (1 - y^2) * x'   over all elements
// dx is taken unrounded in dbranch, dgate and dresidual2.  Every sum runs over the axes that the tensor is shared on,
// in a fixed order that depends on the shape alone.  Gradients have the shape and dtype of what they belong to and are
// contiguous; a null output is not wanted.
struct SeamBackward : SeamShape, SeamInputs {
  Rows grad_x;  // gradient of x'; null when x' was not used
  Rows grad_h;  // gradient of h; null without a norm
  Rows x;       // x' as stored (x itself without a branch); its dtype is the dtype of dx
  const float* stats = nullptr;
  void *dx = nullptr, *dbranch = nullptr, *dgate = nullptr, *dscale = nullptr, *dshift = nullptr, *dweight = nullptr,
       *dbias = nullptr, *dalpha = nullptr, *dresidual2 = nullptr;
  float* workspace = nullptr;  // seam_backward_workspace() floats
};

namespace cpu {
// Rows [first, last) of the B * N rows, counted sample by sample.
void seam_forward(const SeamForward& args, int64_t first, int64_t last);

// The backward runs in four calls.  Rows are cut into seam_backward_chunks() chunks of one sample each, a number that
// depends on the shape alone; each chunk leaves its column sums in the workspace, and seam_backward_columns adds
// them for columns [first, last) in chunk order; seam_backward_alpha, where dalpha is wanted, adds the columns' sums of
// it.  So the result is bitwise the same for every number of threads.
int64_t seam_backward_chunks(const SeamBackward& args);
int64_t seam_backward_workspace(const SeamBackward& args);
void seam_backward_rows(const SeamBackward& args, int64_t first_chunk, int64_t last_chunk);
void seam_backward_columns(const SeamBackward& args, int64_t first, int64_t last);
void seam_backward_alpha(const SeamBackward& args);
}  // namespace cpu

namespace cuda {
// Each returns a cudaError_t as int, launches on `stream` only, allocates nothing and asks the device nothing.
int seam_forward(const SeamForward& args, void* stream);
int64_t seam_backward_workspace(const SeamBackward& args, int multiprocessors);
int seam_backward(const SeamBackward& args, int multiprocessors, void* stream);
}  // namespace cuda

}  // namespace presto
