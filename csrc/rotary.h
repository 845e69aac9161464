// Head norm and rotary embedding of queries and keys, as plain C++: no torch header here, so that the kernels compile
// with g++ or nvcc alone whatever torch is installed.
//
//   y   = norm(x) * weight + bias                            per head, over its Dh elements
//   out = y turned by its position:  y1 cos - y2 sin  and  y2 cos + y1 sin  on the first R elements, y on the others
//
//   norm = x * rstd (rms), (x - mean) * rstd (layer), x / max(|x|, eps) (l2), tanh(alpha x) (DyT) or x.  The pairs
//   (y1, y2) are elements (i, i + R/2), or (2i, 2i + 1) when interleaved.
//
// All arithmetic is fp32, and out is rounded once to x's dtype.  q and k are two sides of one call.
#pragma once
#include <cstdint>

#include "rows.h"

namespace presto {

enum class HeadNorm : int32_t { None = 0, Layer = 1, Rms = 2, L2 = 3, DyT = 4 };

// Element [b, n, h, d] is data[b * batch_stride + n * token_stride + h * head_stride + d].
struct Heads {
  const void* data = nullptr;
  DType dtype = DType::F32;
  int64_t batch_stride = 0, token_stride = 0, head_stride = 0;
};

// [Dh], or [1] for alpha, contiguous; null where not given.
struct HeadVector {
  const void* data = nullptr;
  DType dtype = DType::F32;
};

struct RotaryShape {
  int64_t batch = 0, dim = 0, half = 0;  // half = R/2; 0 without rotary
  HeadNorm norm = HeadNorm::Rms;
  bool interleaved = false;
  float eps = 0.f;
};

// What q and k each bring.  cos and sin: [tokens, R/2] fp32, rows `table_stride` apart.
struct RotarySide {
  int64_t tokens = 0, heads = 0;
  Heads x;  // in the backward null where there is neither norm nor weight
  const float *cos = nullptr, *sin = nullptr;
  int64_t cos_stride = 0, sin_stride = 0;
  HeadVector weight, bias, alpha;  // alpha with DyT alone
};

struct RotaryForwardSide : RotarySide {
  void* out = nullptr;  // [B, tokens, heads, Dh] in x's dtype
};

struct RotaryForward : RotaryShape {
  RotaryForwardSide sides[2];  // q, k; a side that is not there has no tokens
};

// With dy = grad turned back (by -sin) and n = norm(x):
//   dweight = sum dy * n            dbias = sum dy            dn = dy * weight
//   dx = rstd * (dn - mean(dn) - n * mean(dn * n))            (rms: without mean(dn))
//   dx = (dn - n * sum(dn * n)) / |x|  where |x| >= eps, else dn / eps        (l2)
//   dx = alpha * dn * (1 - n^2)        dalpha = sum x * dn * (1 - n^2)         (DyT)
// mean, rstd and |x| are computed anew from x.  The sums over samples, tokens and heads are taken in an order that
// depends on the shape alone.  dx has grad's dtype and is contiguous; a null output is not wanted.
struct RotaryBackwardSide : RotarySide {
  Heads grad;
  // in the dtypes of grad, weight, bias and alpha
  void *dx = nullptr, *dweight = nullptr, *dbias = nullptr, *dalpha = nullptr;
};

struct RotaryBackward : RotaryShape {
  RotaryBackwardSide sides[2];
  float* workspace = nullptr;  // rotary_backward_workspace() floats
};

// Floats of sums that a chunk of tokens leaves: Dh for dweight, Dh for dbias, and dalpha's one with DyT.
inline int64_t rotary_sums(const RotaryShape& s) { return 2 * s.dim + (s.norm == HeadNorm::DyT ? 1 : 0); }

namespace cpu {
// Tokens [first, last) of the B * N of q and, behind them, the B * Nk of k.
void rotary_forward(const RotaryForward& args, int64_t first, int64_t last);

// The backward runs in two calls.  Tokens are cut into rotary_backward_chunks() chunks, a number that depends on the
// shape alone; each chunk leaves its sums in the workspace, and rotary_backward_sums adds them in chunk order.
int64_t rotary_backward_chunks(const RotaryBackward& args);
int64_t rotary_backward_workspace(const RotaryBackward& args);
void rotary_backward(const RotaryBackward& args, int64_t first_chunk, int64_t last_chunk);
void rotary_backward_sums(const RotaryBackward& args);
}  // namespace cpu

namespace cuda {
// Each returns a cudaError_t as int, launches on `stream` only, allocates nothing and asks the device nothing.
int rotary_forward(const RotaryForward& args, void* stream);
int64_t rotary_backward_workspace(const RotaryBackward& args);
int rotary_backward(const RotaryBackward& args, void* stream);
}  // namespace cuda

}  // namespace presto
