// Gated activations: y = value * act(gate), and dvalue = grad * act(gate), dgate = grad * value * act'(gate).
//
//   x [B, N, 2 D] with rows of any stride, y and grad [B, N, D], dx [B, N, 2 D] contiguous; each result is rounded
//   once.
//
// Bytes: 3 elements for each of y forward, 5 backward; nothing is read or written twice.
//
// glu_forward_rows, glu_backward_rows: a thread works on 16 bytes of each row it reads and writes.  Limits: one dtype,
// D and all rows whole multiples of 16 bytes.  glu_forward_any, glu_backward_any: any alignment, any width, a thread
// works on 8 single columns that lie a block apart.
#pragma once
#include <algorithm>

#include "activation_math.cuh"
#include "launch.cuh"

namespace presto::cuda {

constexpr int kGluThreads = 256;
constexpr int kGluSingles = 8;

// Which row a thread works on, and where its columns begin: those of a block follow each other, `elements` for each
// thread of a row.
struct GluPlace {
  int64_t row, sample, token, tile;
  __device__ GluPlace(const GluShape& a, int elements, const Origin& origin)
      : row((origin.x + blockIdx.x) * blockDim.y + threadIdx.y),
        sample(a.batch == 1 ? 0 : row / a.tokens),
        token(row - sample * a.tokens),
        tile((origin.y + blockIdx.y) * blockDim.x * elements) {}
  __device__ bool inside(const GluShape& a) const { return row < a.batch * a.tokens; }
  __device__ int64_t of(const Rows& rows) const { return sample * rows.batch_stride + token * rows.row_stride; }
};

template <DType X, int kAct>
__global__ void __launch_bounds__(kGluThreads)
    glu_forward_rows(const __grid_constant__ GluForward a, const Origin origin) {
  constexpr int E = 16 / kSize<X>;
  const GluPlace at(a, E, origin);
  const int64_t column = at.tile + threadIdx.x * E;
  if (!at.inside(a) || column >= a.dim) return;
  const int64_t x = at.of(a.x) + column;
  const Pack<X, E> value = load<X, E>(a.x.data, x + (a.gate_first ? a.dim : 0));
  const Pack<X, E> gate = load<X, E>(a.x.data, x + (a.gate_first ? 0 : a.dim));
  float v[E], g[E];
  decode(value, v);
  decode(gate, g);
#pragma unroll
  for (int e = 0; e < E; ++e) v[e] *= activate<static_cast<Act>(kAct)>(g[e]);
  store(a.y, at.row * a.dim + column, encode<X>(v));
}

template <DType X, int kAct>
__global__ void __launch_bounds__(kGluThreads)
    glu_backward_rows(const __grid_constant__ GluBackward a, const Origin origin) {
  constexpr int E = 16 / kSize<X>;
  const GluPlace at(a, E, origin);
  const int64_t column = at.tile + threadIdx.x * E;
  if (!at.inside(a) || column >= a.dim) return;
  const int64_t x = at.of(a.x) + column, value_at = a.gate_first ? a.dim : 0, gate_at = a.gate_first ? 0 : a.dim;
  const Pack<X, E> value = load<X, E>(a.x.data, x + value_at), gate = load<X, E>(a.x.data, x + gate_at);
  const Pack<X, E> grad = load<X, E>(a.grad.data, at.of(a.grad) + column);
  float v[E], g[E], d[E];
  decode(value, v);
  decode(gate, g);
  decode(grad, d);
#pragma unroll
  for (int e = 0; e < E; ++e) {
    const Activated act = activate_with_slope<static_cast<Act>(kAct)>(g[e]);
    g[e] = d[e] * v[e] * act.slope;
    v[e] = d[e] * act.value;
  }
  const int64_t out = at.row * 2 * a.dim + column;
  store(a.dx, out + value_at, encode<X>(v));
  store(a.dx, out + gate_at, encode<X>(g));
}

template <int kAct>
__global__ void __launch_bounds__(kGluThreads)
    glu_forward_any(const __grid_constant__ GluForward a, const Origin origin) {
  const GluPlace at(a, kGluSingles, origin);
  if (!at.inside(a)) return;
  const int64_t x = at.of(a.x), value_at = a.gate_first ? a.dim : 0, gate_at = a.gate_first ? 0 : a.dim;
  float v[kGluSingles][1] = {}, g[kGluSingles][1] = {};
#pragma unroll
  for (int e = 0; e < kGluSingles; ++e) {
    const int64_t column = at.tile + e * blockDim.x + threadIdx.x;
    if (column >= a.dim) continue;
    load_any(a.x.data, a.x.dtype, x + value_at + column, v[e]);
    load_any(a.x.data, a.x.dtype, x + gate_at + column, g[e]);
  }
#pragma unroll
  for (int e = 0; e < kGluSingles; ++e) {
    const int64_t column = at.tile + e * blockDim.x + threadIdx.x;
    if (column >= a.dim) continue;
    v[e][0] *= activate<static_cast<Act>(kAct)>(g[e][0]);
    store_any(a.y, a.x.dtype, at.row * a.dim + column, v[e]);
  }
}

template <int kAct>
__global__ void __launch_bounds__(kGluThreads)
    glu_backward_any(const __grid_constant__ GluBackward a, const Origin origin) {
  const GluPlace at(a, kGluSingles, origin);
  if (!at.inside(a)) return;
  const int64_t x = at.of(a.x), grad = at.of(a.grad), out = at.row * 2 * a.dim;
  const int64_t value_at = a.gate_first ? a.dim : 0, gate_at = a.gate_first ? 0 : a.dim;
  float v[kGluSingles][1] = {}, g[kGluSingles][1] = {}, d[kGluSingles][1] = {};
#pragma unroll
  for (int e = 0; e < kGluSingles; ++e) {
    const int64_t column = at.tile + e * blockDim.x + threadIdx.x;
    if (column >= a.dim) continue;
    load_any(a.x.data, a.x.dtype, x + value_at + column, v[e]);
    load_any(a.x.data, a.x.dtype, x + gate_at + column, g[e]);
    load_any(a.grad.data, a.x.dtype, grad + column, d[e]);
  }
#pragma unroll
  for (int e = 0; e < kGluSingles; ++e) {
    const int64_t column = at.tile + e * blockDim.x + threadIdx.x;
    if (column >= a.dim) continue;
    const Activated act = activate_with_slope<static_cast<Act>(kAct)>(g[e][0]);
    g[e][0] = d[e][0] * v[e][0] * act.slope;
    v[e][0] = d[e][0] * act.value;
    store_any(a.dx, a.x.dtype, out + value_at + column, v[e]);
    store_any(a.dx, a.x.dtype, out + gate_at + column, g[e]);
  }
}

// The kernel for x's dtype, or the one of any alignment.
template <int kAct>
auto glu_forward_kernel(DType x, bool vectors) {
  if (!vectors) return glu_forward_any<kAct>;
  return x == DType::F32   ? glu_forward_rows<DType::F32, kAct>
         : x == DType::F16 ? glu_forward_rows<DType::F16, kAct>
                           : glu_forward_rows<DType::BF16, kAct>;
}
template <int kAct>
auto glu_backward_kernel(DType x, bool vectors) {
  if (!vectors) return glu_backward_any<kAct>;
  return x == DType::F32   ? glu_backward_rows<DType::F32, kAct>
         : x == DType::F16 ? glu_backward_rows<DType::F16, kAct>
                           : glu_backward_rows<DType::BF16, kAct>;
}

// Threads side by side cover a row in equal tiles; a short row leaves room for others in its block.
template <class Args>
void launch_glu(void (*kernel)(Args, Origin), const Args& a, int elements, cudaStream_t stream) {
  const int64_t threads = ceil_div(a.dim, elements), tiles = ceil_div(threads, kGluThreads);
  const int across = static_cast<int>(ceil_div(threads, tiles)), rows = std::max(1, kGluThreads / across);
  launch(kernel, ceil_div(a.batch * a.tokens, rows), tiles, dim3(across, rows), stream, a);
}

inline bool glu_by_vectors(const GluShape& a, const Rows& x, const void* out) {
  return whole_vectors(x, a.batch, a.tokens, a.dim) && reinterpret_cast<uintptr_t>(out) % 16 == 0;
}

inline void launch_glu_forward(const GluForward& a, cudaStream_t stream) {
  const bool vectors = glu_by_vectors(a, a.x, a.y);
  const auto kernel = a.act == Act::Silu   ? glu_forward_kernel<0>(a.x.dtype, vectors)
                      : a.act == Act::Gelu ? glu_forward_kernel<1>(a.x.dtype, vectors)
                                           : glu_forward_kernel<2>(a.x.dtype, vectors);
  launch_glu<GluForward>(kernel, a, vectors ? 16 / size_in_bytes(a.x.dtype) : kGluSingles, stream);
}

inline void launch_glu_backward(const GluBackward& a, cudaStream_t stream) {
  const bool vectors = glu_by_vectors(a, a.x, a.dx) && whole_vectors(a.grad, a.batch, a.tokens, a.dim);
  const auto kernel = a.act == Act::Silu   ? glu_backward_kernel<0>(a.x.dtype, vectors)
                      : a.act == Act::Gelu ? glu_backward_kernel<1>(a.x.dtype, vectors)
                                           : glu_backward_kernel<2>(a.x.dtype, vectors);
  launch_glu<GluBackward>(kernel, a, vectors ? 16 / size_in_bytes(a.x.dtype) : kGluSingles, stream);
}

}  // namespace presto::cuda
