// Gated activations and Snake, as plain C++: no torch header here, so that the kernels compile with g++ or nvcc alone
// whatever torch is installed.
//
//   glu     y = value * act(gate)            x [B, N, 2 D] = (value, gate), or (gate, value) with gate_first; y [B, N,
//   D]
//           act(g) = g sigmoid(g)  (SiLU),   g (1 + erf(g / sqrt 2)) / 2  (GELU)    or    sin(pi g)
//   snake   y = x + sin(alpha x)^2 / (beta + 1e-9)       x, y [B, C, T]; alpha, beta [C]
//
// All arithmetic is fp32, y is rounded once to x's dtype.
#pragma once
#include <cstdint>

#include "rows.h"

namespace presto {

enum class Act : int32_t { Silu = 0, Gelu = 1, SinPi = 2 };

struct GluShape {
  int64_t batch = 0, tokens = 0, dim = 0;  // dim is D, half of x's width
  Act act = Act::Silu;
  bool gate_first = false;
};

struct GluForward : GluShape {
  Rows x;
  void* y = nullptr;  // [B, N, D] in x's dtype
};

// dvalue = grad * act(gate),  dgate = grad * value * act'(gate), each rounded once.
struct GluBackward : GluShape {
  Rows grad, x;        // of one dtype
  void* dx = nullptr;  // [B, N, 2 D] in x's dtype
};

// Element c of a channel's parameter is data[c * row_stride].
struct SnakeShape {
  int64_t batch = 0, channels = 0, length = 0;
  Rows alpha, beta;
};

struct SnakeForward : SnakeShape {
  Rows x;
  void* y = nullptr;  // [B, C, T] in x's dtype
};

// With s = sin(alpha x), c = cos(alpha x), k = 1 / (beta + 1e-9):
//   dx     = grad * (1 + 2 alpha k s c)
//   dalpha = k sum grad * x * 2 s c             dbeta = -k^2 sum grad * s^2          over B and T
// The sums run in a fixed order that depends on the shape alone: every sample's row of a channel is cut into pieces,
// each leaves its two sums in the workspace, and these are added sample by sample, piece by piece.  A null output is
// not wanted.
struct SnakeBackward : SnakeShape {
  Rows grad, x;                              // of one dtype
  void* dx = nullptr;                        // [B, C, T] in x's dtype
  void *dalpha = nullptr, *dbeta = nullptr;  // [C], in alpha's and beta's dtype
  float* workspace = nullptr;                // snake_backward_workspace() floats; not needed for dx alone
};

// Added to beta, so that 0 divides.
constexpr float kSnakeEpsilon = 1e-9f;

namespace cpu {
// Rows [first, last) of the B * N rows, counted sample by sample.
void glu_forward(const GluForward& args, int64_t first, int64_t last);
void glu_backward(const GluBackward& args, int64_t first, int64_t last);

// Pieces [first, last) of the snake_pieces(): those of a row follow each other, rows are counted sample by sample.
int64_t snake_pieces(const SnakeShape& shape);
int64_t snake_backward_workspace(const SnakeBackward& args);
void snake_forward(const SnakeForward& args, int64_t first, int64_t last);
// Samples [first, last) where length is 1 and the channels of x lie side by side: vectors of channels.
void snake_forward_samples(const SnakeForward& args, int64_t first, int64_t last);
void snake_backward(const SnakeBackward& args, int64_t first, int64_t last);
// dalpha and dbeta of channels [first, last), once every piece is done.
void snake_backward_channels(const SnakeBackward& args, int64_t first, int64_t last);
}  // namespace cpu

namespace cuda {
// Each returns a cudaError_t as int, launches on `stream` only, allocates nothing and asks the device nothing.
int glu_forward(const GluForward& args, void* stream);
int glu_backward(const GluBackward& args, void* stream);
int snake_forward(const SnakeForward& args, void* stream);
int64_t snake_backward_workspace(const SnakeBackward& args);
int snake_backward(const SnakeBackward& args, void* stream);
}  // namespace cuda

}  // namespace presto
