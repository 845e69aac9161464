// Snake: y = x + sin(alpha x)^2 k, k = 1 / (beta + 1e-9), and with s, c = sin, cos of alpha x:
//
//   dx = grad (1 + 2 alpha k s c)       dalpha = k sum grad x 2 s c       dbeta = -k^2 sum grad s^2      over B and T
//
//   x, grad [B, C, T] with rows of any stride, y and dx contiguous, alpha and beta [C] of any dtype.  y, dx, dalpha and
//   dbeta are rounded once; the rest is fp32.
//
// Nothing is added atomically: a block sums kSnakeChunk elements of a row, its threads in a fixed order, and
// snake_backward_finish adds the blocks' sums of a channel in order.  The order depends on the shape alone.
//
// Bytes: 2 elements for each of y forward, 3 backward, and 8 bytes a chunk, written and read.
//
// snake_forward_rows, snake_backward_rows: a thread works on 16 bytes at a time.  Limits: T and all rows whole
// multiples of 16 bytes.  With E = 1 the same kernels take any alignment and length, an element at a time.
#pragma once
#include "activation_math.cuh"
#include "launch.cuh"
#include "reduce.cuh"

namespace presto::cuda {

constexpr int kSnakeThreads = 256;
// 110080 elements of a row are 14 blocks; a thread has 4 vectors of bf16 in turn, or 8 of fp32.
constexpr int kSnakeChunk = 8192;
// Loads a thread has in flight forward.
constexpr int kSnakeLoads = 2, kSnakeSingles = 8;

// E neighbours as fp32, as one vector or (E = 1) as they come.
template <DType X, int E>
__device__ inline void load_run(const void* data, int64_t at, float (&value)[E]) {
  if constexpr (E == 1) {
    load_any(data, X, at, value);
  } else {
    decode(load<X, E>(data, at), value);
  }
}
template <DType X, int E>
__device__ inline void store_run(void* data, int64_t at, float (&value)[E]) {
  if constexpr (E == 1) {
    store_any(data, X, at, value);
  } else {
    store(data, at, encode<X>(value));
  }
}

template <DType X, int E>
__global__ void __launch_bounds__(kSnakeThreads)
    snake_forward_rows(const __grid_constant__ SnakeForward a, const Origin origin) {
  constexpr int V = E == 1 ? kSnakeSingles : kSnakeLoads;
  const int64_t row = origin.y + blockIdx.y, sample = a.batch == 1 ? 0 : row / a.channels;
  const int64_t channel = row - sample * a.channels;
  const int64_t first = ((origin.x + blockIdx.x) * V * kSnakeThreads + threadIdx.x) * E;
  const int64_t x = sample * a.x.batch_stride + channel * a.x.row_stride, y = row * a.length;
  float value[V][E] = {};
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int64_t column = first + v * kSnakeThreads * E;
    if (column < a.length) load_run<X>(a.x.data, x + column, value[v]);
  }
  const Channel of = load_channel(a, channel);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int64_t column = first + v * kSnakeThreads * E;
    if (column >= a.length) continue;
#pragma unroll
    for (int e = 0; e < E; ++e) {
      const float s = sinf(of.alpha * value[v][e]);
      value[v][e] = fmaf(s * s, of.factor, value[v][e]);
    }
    store_run<X>(a.y, y + column, value[v]);
  }
}

template <DType X, int E>
__global__ void __launch_bounds__(kSnakeThreads)
    snake_backward_rows(const __grid_constant__ SnakeBackward a, const Origin origin) {
  __shared__ float shared[kSnakeThreads / 32][2];
  const int64_t row = origin.y + blockIdx.y, sample = a.batch == 1 ? 0 : row / a.channels;
  const int64_t channel = row - sample * a.channels;
  const int64_t chunk = origin.x + blockIdx.x, chunks = (a.length + kSnakeChunk - 1) / kSnakeChunk;
  const int64_t x = sample * a.x.batch_stride + channel * a.x.row_stride;
  const int64_t grad = sample * a.grad.batch_stride + channel * a.grad.row_stride;
  const Channel of = load_channel(a, channel);
  const float slope = 2.f * of.alpha * of.factor;
  float sum[2] = {};
#pragma unroll 1  // unrolled by four, sm_100 had the accurate sine 32 times over
  for (int at = threadIdx.x * E; at < kSnakeChunk; at += kSnakeThreads * E) {
    const int64_t column = chunk * kSnakeChunk + at;
    if (column >= a.length) break;
    float value[E], d[E];
    load_run<X>(a.x.data, x + column, value);
    load_run<X>(a.grad.data, grad + column, d);
#pragma unroll
    for (int e = 0; e < E; ++e) {
      float s, c;
      sincosf(of.alpha * value[e], &s, &c);
      sum[0] = fmaf(d[e] * value[e], s * c, sum[0]);
      sum[1] = fmaf(d[e] * s, s, sum[1]);
      d[e] = fmaf(d[e] * slope, s * c, d[e]);
    }
    if (a.dx) store_run<X>(a.dx, row * a.length + column, d);
  }
  if (!a.dalpha && !a.dbeta) return;
  group_sum(sum, shared, kSnakeThreads / 32, [] { __syncthreads(); });
  if (threadIdx.x == 0) {
    a.workspace[2 * (row * chunks + chunk)] = sum[0];
    a.workspace[2 * (row * chunks + chunk) + 1] = sum[1];
  }
}

// One block a channel.
__global__ void __launch_bounds__(kSnakeThreads)
    snake_backward_finish(const __grid_constant__ SnakeBackward a, const Origin origin) {
  __shared__ float shared[kSnakeThreads / 32][2];
  const int64_t channel = origin.x + blockIdx.x, chunks = (a.length + kSnakeChunk - 1) / kSnakeChunk;
  float sum[2] = {};
  for (int64_t term = threadIdx.x; term < a.batch * chunks; term += kSnakeThreads) {
    const int64_t sample = term / chunks, chunk = term - sample * chunks;
    const float* sums = a.workspace + 2 * ((sample * a.channels + channel) * chunks + chunk);
    sum[0] += sums[0];
    sum[1] += sums[1];
  }
  group_sum(sum, shared, kSnakeThreads / 32, [] { __syncthreads(); });
  if (threadIdx.x != 0) return;
  // In fp32 the factor's roundings alone are 2 ulp of a large dbeta, all that is allowed.
  const double factor = 1 / (static_cast<double>(load_channel(a, channel).beta) + kSnakeEpsilon);
  float dalpha[1] = {static_cast<float>(2 * factor * sum[0])};
  float dbeta[1] = {static_cast<float>(-factor * factor * sum[1])};
  if (a.dalpha) store_any(a.dalpha, a.alpha.dtype, channel, dalpha);
  if (a.dbeta) store_any(a.dbeta, a.beta.dtype, channel, dbeta);
}

inline int64_t snake_workspace(const SnakeBackward& a) {
  return a.dalpha || a.dbeta ? 2 * a.batch * a.channels * ceil_div(a.length, kSnakeChunk) : 0;
}

inline bool snake_by_vectors(const SnakeShape& a, const Rows& x, const void* out) {
  return whole_vectors(x, a.batch, a.channels, a.length) && reinterpret_cast<uintptr_t>(out) % 16 == 0;
}

inline void launch_snake_forward(const SnakeForward& a, cudaStream_t stream) {
  const bool vectors = snake_by_vectors(a, a.x, a.y);
  const auto run = [&](auto by_vectors, auto by_ones, int elements) {
    const int64_t block = kSnakeThreads * (vectors ? kSnakeLoads * elements : kSnakeSingles);
    launch(vectors ? by_vectors : by_ones, ceil_div(a.length, block), a.batch * a.channels, dim3(kSnakeThreads), stream,
           a);
  };
  if (a.x.dtype == DType::F32) return run(&snake_forward_rows<DType::F32, 4>, &snake_forward_rows<DType::F32, 1>, 4);
  if (a.x.dtype == DType::F16) return run(&snake_forward_rows<DType::F16, 8>, &snake_forward_rows<DType::F16, 1>, 8);
  run(&snake_forward_rows<DType::BF16, 8>, &snake_forward_rows<DType::BF16, 1>, 8);
}

inline void launch_snake_backward(const SnakeBackward& a, cudaStream_t stream) {
  const bool vectors = snake_by_vectors(a, a.x, a.dx) && whole_vectors(a.grad, a.batch, a.channels, a.length);
  const auto run = [&](auto by_vectors, auto by_ones) {
    launch(vectors ? by_vectors : by_ones, ceil_div(a.length, kSnakeChunk), a.batch * a.channels, dim3(kSnakeThreads),
           stream, a);
  };
  if (a.x.dtype == DType::F32) {
    run(&snake_backward_rows<DType::F32, 4>, &snake_backward_rows<DType::F32, 1>);
  } else if (a.x.dtype == DType::F16) {
    run(&snake_backward_rows<DType::F16, 8>, &snake_backward_rows<DType::F16, 1>);
  } else {
    run(&snake_backward_rows<DType::BF16, 8>, &snake_backward_rows<DType::BF16, 1>);
  }
  if (a.dalpha || a.dbeta) launch(&snake_backward_finish, a.channels, 1, dim3(kSnakeThreads), stream, a);
}

}  // namespace presto::cuda
