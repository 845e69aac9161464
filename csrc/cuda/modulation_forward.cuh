// The seam, forward.
//
//   x'   = x + g(gate) * branch + residual2                         [B, N, D]  rounded to x's dtype
//   h    = (norm(x') * weight + bias) * (1 + scale) + shift         [B, N, D]  rounded to x's dtype
//   norm = (x' - mean) * rstd  (layer)   or   x' * rstd  (rms)      of x' as rounded; stats = (mean, rstd), fp32
//          or   tanh(alpha * x')  (dyt, no stats)
//
// All arithmetic is fp32; the variance is summed of the centred row; tanhf is CUDA's accurate one.
// Bytes: x and branch read once, x' and h written once, 4 B N D elements in all, 5 with a residual2 by token; the
// modulation's few rows and the 8 bytes of stats per row are small beside them.
//
// seam_forward_rows: a block takes R neighbouring rows of one sample.  Each thread keeps V vectors of 16 bytes of every
// row in registers, so R V loads of x and as many of branch are in flight at once, and what it loads of the modulation
// serves R rows.  Limits: 16-byte aligned rows, D <= V * 384 vectors, no modulation by token, all of one dtype;
// residual2, by token or not, and a branch beside it or beside dyt, in x's dtype.
//
// seam_forward_any: a block takes one row and passes over it three times, the second and third out of the caches.  Any
// D, any alignment, any dtypes, modulation by token.
//
// A column belongs to the same thread and a sum has the same order in both, so both give the same bits.  R V = 4 and
// 384 threads come from counting registers and bytes in flight; no GPU has timed them yet.
#pragma once
#include "launch.cuh"
#include "modulation.h"
#include "modulation_math.cuh"
#include "reduce.cuh"
#include "vector.cuh"

namespace presto::cuda {

constexpr int kForwardThreads = 384;

struct ForwardShape {
  int vectors;  // per thread
  int threads;
};

// E columns at a time, thread t takes columns (v * threads + t) * E.
inline ForwardShape forward_shape(int64_t dim, int elements) {
  const int64_t vectors = ceil_div(dim, elements);
  const int64_t each = ceil_div(vectors, kForwardThreads);
  return {static_cast<int>(std::min<int64_t>(each, 1 << 20)),
          static_cast<int>(ceil_div(ceil_div(vectors, each), 32) * 32)};
}

// Registers: two blocks of 384 threads on a multiprocessor leave 80 to a thread, so that at D = 1024 in bf16 (128
// threads) six blocks are resident and [2, 1379, 1024], 690 blocks, runs at once on 132 multiprocessors.  Two vectors a
// thread need more: one block of 384, at most 168.
template <DType X, DType Branch, DType M, int V, int R, bool kExtra>
__global__ void __launch_bounds__(kForwardThreads, V == 1 ? 2 : 1)
    seam_forward_rows(const __grid_constant__ SeamForward a, const float inverse_dim, const Origin origin) {
  constexpr int E = 16 / kSize<X>;
  __shared__ __align__(16) float shared[2][kForwardThreads / 32][R];
  const int dim = static_cast<int>(a.dim);
  const int64_t sample = origin.y + blockIdx.y;
  const int64_t first = (origin.x + blockIdx.x) * R;
  const int rows = a.tokens - first < R ? static_cast<int>(a.tokens - first) : R;
  const int64_t x_at = sample * a.x.batch_stride + first * a.x.row_stride;
  const int64_t branch_at = sample * a.branch.batch_stride + first * a.branch.row_stride;
  const int64_t residual2_at = sample * a.residual2.batch_stride + first * a.residual2.row_stride;
  const int64_t out = (sample * a.tokens + first) * a.dim;
  const bool dyt = kExtra && a.norm == Norm::Dyt;
  int column[V];
#pragma unroll
  for (int v = 0; v < V; ++v) column[v] = (v * blockDim.x + threadIdx.x) * E;

  Pack<X, E> x[R][V];
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (r < rows && column[v] < dim) x[r][v] = load<X, E>(a.x.data, x_at + r * a.x.row_stride + column[v]);
  }

  if (a.branch.data) {
    Pack<Branch, E> branch[R][V];
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (r < rows && column[v] < dim)
          branch[r][v] = load<Branch, E>(a.branch.data, branch_at + r * a.branch.row_stride + column[v]);
    }
    Pack<X, E> second[kExtra ? R : 1][V];  // residual2, 0 where it is not given
    if constexpr (kExtra) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int v = 0; v < V; ++v)
          if (a.residual2.data && r < rows && column[v] < dim)
            second[r][v] = load<X, E>(a.residual2.data, residual2_at + r * a.residual2.row_stride + column[v]);
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (column[v] >= dim) continue;
      float gate[E];
      load_gate<M>(a, a.gate, sample, column[v], gate);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        float stream[E], update[E];
        decode(x[r][v], stream);
        decode(branch[r][v], update);
#pragma unroll
        for (int e = 0; e < E; ++e) stream[e] = fmaf(gate[e], update[e], stream[e]);
        if constexpr (kExtra) {
          decode(second[r][v], update);
#pragma unroll
          for (int e = 0; e < E; ++e) stream[e] += update[e];
        }
        x[r][v] = encode<X>(stream);
        if (r < rows) store(a.x_new, out + r * a.dim + column[v], x[r][v]);
      }
    }
  }
  if (a.norm == Norm::None) return;

  // Loaded here so that they arrive while the statistics are summed.
  float scale[V][E], shift[V][E];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (column[v] >= dim) continue;
    load_modulation<M>(a.scale, sample, column[v], 0.f, scale[v]);
    load_modulation<M>(a.shift, sample, column[v], 0.f, shift[v]);
  }

  const int warps = blockDim.x / 32;
  const auto barrier = [] { __syncthreads(); };
  float mean[R] = {}, square[R] = {};
  if (a.norm == Norm::Layer) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float value[E];
        decode(x[r][v], value);
#pragma unroll
        for (int e = 0; e < E; ++e) mean[r] += value[e];
      }
    }
    group_sum(mean, shared[0], warps, barrier);
#pragma unroll
    for (int r = 0; r < R; ++r) mean[r] = mean_of(mean[r], dim, inverse_dim);
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (dyt || column[v] >= dim) continue;
      float value[E];
      decode(x[r][v], value);
#pragma unroll
      for (int e = 0; e < E; ++e) square[r] = fmaf(value[e] - mean[r], value[e] - mean[r], square[r]);
    }
  }
  if (!dyt) group_sum(square, shared[1], warps, barrier);
  float rstd[R];
#pragma unroll
  for (int r = 0; r < R; ++r) rstd[r] = rsqrtf(fmaf(square[r], inverse_dim, a.eps));
  const float alpha = dyt ? load_alpha(a) : 0.f;

  if (a.stats && threadIdx.x == 0) {
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (r < rows) reinterpret_cast<float2*>(a.stats)[sample * a.tokens + first + r] = {mean[r], rstd[r]};
  }
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (column[v] >= dim) continue;
    float weight[E], bias[E];
    load_modulation<M>(a.weight, sample, column[v], 1.f, weight);
    load_modulation<M>(a.bias, sample, column[v], 0.f, bias);
#pragma unroll
    for (int e = 0; e < E; ++e) {
      weight[e] *= 1.f + scale[v][e];
      bias[e] = fmaf(bias[e], 1.f + scale[v][e], shift[v][e]);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (r >= rows) continue;
      float value[E];
      decode(x[r][v], value);
#pragma unroll
      for (int e = 0; e < E; ++e) {
        const float y = dyt ? tanhf(alpha * value[e]) : (value[e] - mean[r]) * rstd[r];
        value[e] = fmaf(y, weight[e], bias[e]);
      }
      store(a.h, out + r * a.dim + column[v], encode<X>(value));
    }
  }
}

// At most 168 registers: one block of 384 threads must fit.
template <int E, bool kExtra>
__global__ void __launch_bounds__(kForwardThreads)
    seam_forward_any(const __grid_constant__ SeamForward a, const float inverse_dim, const Origin origin) {
  __shared__ float shared[2][kForwardThreads / 32][1];
  const int64_t sample = origin.y + blockIdx.y, token = origin.x + blockIdx.x;
  const int64_t out = (sample * a.tokens + token) * a.dim;
  const int64_t x_at = sample * a.x.batch_stride + token * a.x.row_stride;
  const int64_t branch_at = sample * a.branch.batch_stride + token * a.branch.row_stride;
  const int64_t start = int64_t{threadIdx.x} * E, step = int64_t{blockDim.x} * E;
  const void* stream = a.branch.data ? a.x_new : a.x.data;
  const int64_t stream_at = a.branch.data ? out : x_at;

  float mean[1] = {}, square[1] = {};
  for (int64_t column = start; column < a.dim; column += step) {
    float value[E];
    load_any(a.x.data, a.x.dtype, x_at + column, value);
    if (a.branch.data) {
      float gate[E], update[E];
      load_any(a.branch.data, a.branch.dtype, branch_at + column, update);
      load_gate_any(a, a.gate, sample, token, column, gate);
#pragma unroll
      for (int e = 0; e < E; ++e) value[e] = fmaf(gate[e], update[e], value[e]);
      if (kExtra && a.residual2.data) {
        load_modulation_any(a.residual2, sample, token, column, 0.f, update);
#pragma unroll
        for (int e = 0; e < E; ++e) value[e] += update[e];
      }
      store_any(a.x_new, a.x.dtype, out + column, value);
    }
#pragma unroll
    for (int e = 0; e < E; ++e) mean[0] += value[e];
  }
  if (a.norm == Norm::None) return;

  const int warps = blockDim.x / 32;
  const auto barrier = [] { __syncthreads(); };
  if (a.norm == Norm::Layer) {
    group_sum(mean, shared[0], warps, barrier);
    mean[0] = mean_of(mean[0], static_cast<float>(a.dim), inverse_dim);
  } else {
    mean[0] = 0.f;
  }
  const bool dyt = kExtra && a.norm == Norm::Dyt;
  for (int64_t column = start; !dyt && column < a.dim; column += step) {
    float value[E];
    load_any(stream, a.x.dtype, stream_at + column, value);
#pragma unroll
    for (int e = 0; e < E; ++e) square[0] = fmaf(value[e] - mean[0], value[e] - mean[0], square[0]);
  }
  if (!dyt) group_sum(square, shared[1], warps, barrier);
  const float alpha = dyt ? load_alpha(a) : 0.f;
  const float rstd = rsqrtf(fmaf(square[0], inverse_dim, a.eps));

  if (a.stats && threadIdx.x == 0) {
    a.stats[2 * (sample * a.tokens + token)] = mean[0];
    a.stats[2 * (sample * a.tokens + token) + 1] = rstd;
  }
  for (int64_t column = start; column < a.dim; column += step) {
    float value[E], scale[E], shift[E], weight[E], bias[E];
    load_any(stream, a.x.dtype, stream_at + column, value);
    load_modulation_any(a.scale, sample, token, column, 0.f, scale);
    load_modulation_any(a.shift, sample, token, column, 0.f, shift);
    load_modulation_any(a.weight, sample, token, column, 1.f, weight);
    load_modulation_any(a.bias, sample, token, column, 0.f, bias);
#pragma unroll
    for (int e = 0; e < E; ++e) {
      const float y = dyt ? tanhf(alpha * value[e]) : (value[e] - mean[0]) * rstd;
      value[e] = fmaf(y, weight[e] * (1.f + scale[e]), fmaf(bias[e], 1.f + scale[e], shift[e]));
    }
    store_any(a.h, a.x.dtype, out + column, value);
  }
}

using ForwardKernel = void (*)(SeamForward, float, Origin);

struct ForwardChoice {
  ForwardKernel kernel = nullptr;
  int rows = 1;  // per block
};

template <DType X, DType Branch, DType M>
ForwardChoice forward_rows_kernel(bool extra, int vectors) {
  if (extra) {
    if constexpr (X == Branch) {
      if (vectors == 1) return {seam_forward_rows<X, X, M, 1, 4, true>, 4};
      return {seam_forward_rows<X, X, M, 2, 2, true>, 2};
    }
    return {};
  }
  if (vectors == 1) return {seam_forward_rows<X, Branch, M, 1, 4, false>, 4};
  return {seam_forward_rows<X, Branch, M, 2, 2, false>, 2};
}

template <DType X, DType Branch>
ForwardChoice forward_rows_kernel(DType modulation, bool extra, int vectors) {
  if (modulation == X) return forward_rows_kernel<X, Branch, X>(extra, vectors);
  if constexpr (X != DType::F32)
    if (modulation == DType::F32) return forward_rows_kernel<X, Branch, DType::F32>(extra, vectors);
  return {};
}

// Branch in x's dtype or fp32, or in any beside an fp32 x; modulation in x's dtype or fp32.
inline ForwardChoice forward_rows_kernel(DType x, DType branch, DType modulation, bool extra, int vectors) {
  constexpr DType F32 = DType::F32, F16 = DType::F16, BF16 = DType::BF16;
  if (x == F32 && branch == F32) return forward_rows_kernel<F32, F32>(modulation, extra, vectors);
  if (x == F32 && branch == F16) return forward_rows_kernel<F32, F16>(modulation, extra, vectors);
  if (x == F32 && branch == BF16) return forward_rows_kernel<F32, BF16>(modulation, extra, vectors);
  if (x == F16 && branch == F16) return forward_rows_kernel<F16, F16>(modulation, extra, vectors);
  if (x == F16 && branch == F32) return forward_rows_kernel<F16, F32>(modulation, extra, vectors);
  if (x == BF16 && branch == BF16) return forward_rows_kernel<BF16, BF16>(modulation, extra, vectors);
  if (x == BF16 && branch == F32) return forward_rows_kernel<BF16, F32>(modulation, extra, vectors);
  return {};
}

inline bool forward_by_rows(const SeamForward& a, int elements) {
  bool fits = a.dim % elements == 0 && aligned(a, a.x, elements) && aligned(a.x_new, 16) && aligned(a.h, 16) &&
              aligned(a.stats, 8);
  if (a.branch.data) fits = fits && aligned(a, a.branch, elements);
  for (const Modulation* m : {&a.gate, &a.scale, &a.shift, &a.weight, &a.bias})
    if (m->data) fits = fits && !m->per_token && aligned(a, *m, elements);
  if (a.residual2.data) fits = fits && a.residual2.dtype == a.x.dtype && aligned(a, a.residual2, elements);
  return fits;
}

template <bool kExtra>
ForwardKernel forward_any_kernel(int elements) {
  if (elements == 8) return seam_forward_any<8, kExtra>;
  return elements == 4 ? seam_forward_any<4, kExtra> : seam_forward_any<1, kExtra>;
}

inline void launch_forward(const SeamForward& a, cudaStream_t stream) {
  const int elements = 16 / size_of(a.x.dtype);
  const int used = a.dim % elements == 0 ? elements : 1;
  const ForwardShape shape = forward_shape(a.dim, used);
  const float inverse_dim = 1.f / static_cast<float>(a.dim);
  const int modulation = common_dtype(a, a.x.dtype);
  const bool extra = is_extra(a, a);
  ForwardChoice choice;
  if (forward_by_rows(a, elements) && shape.vectors <= 2 && modulation >= 0)
    choice = forward_rows_kernel(a.x.dtype, a.branch.data ? a.branch.dtype : a.x.dtype, static_cast<DType>(modulation),
                                 extra, shape.vectors);
  if (!choice.kernel) choice.kernel = extra ? forward_any_kernel<true>(used) : forward_any_kernel<false>(used);
  launch(choice.kernel, ceil_div(a.tokens, choice.rows), a.batch, dim3(shape.threads), stream, a, inverse_dim);
}

}  // namespace presto::cuda
