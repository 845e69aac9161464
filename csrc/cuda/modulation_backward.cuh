// The seam, backward.  With y = norm(x'), A = weight * (1 + scale), dy = grad_h * A:
//
//   dx      = grad_x + rstd * (dy - mean(dy) - y * mean(dy * y))       [B, N, D]  (rms: without mean(dy))
//   dbranch = g(gate) * dx                                             [B, N, D]
//   dgate   = sum g'(gate) * branch * dx
//   dscale  = sum grad_h * (y * weight + bias)                         dshift = sum grad_h
//   dweight = sum grad_h * y * (1 + scale)                             dbias  = sum grad_h * (1 + scale)
//   dresidual2 = sum dx
//   dyt: dx = grad_x + alpha * (1 - y^2) * dy         dalpha = sum dy * (1 - y^2) * x'   over all elements
//
// All arithmetic and all sums are fp32; dx is rounded to its dtype where it is stored, and only there; the others are
// rounded once, at the end.  Without grad_h dx is grad_x.
//
// Nothing is added atomically: the rows of a sample are cut into chunks, as many as the shape and the number of
// multiprocessors ask for, a block sums each chunk's columns into the workspace, and seam_backward_finish adds these in
// order; seam_backward_alpha adds the columns of dalpha's sum.
//
// Bytes: grad_h, x', grad_x and branch read once, dx and dbranch written once, 6 B N D elements in all; the chunks'
// sums are 8 D bytes per chunk and modulation (written and read).
//
// seam_backward_rows: one block per chunk, G groups of threads that take a row each; a thread owns 16 bytes of a row
// and its columns' sums, and loads the group's next row before it works on the present one.  Limits: 16-byte aligned
// rows, D <= 512 vectors (384 with an fp32 branch beside a 16-bit x, and with dyt or residual2), no modulation by
// token, all of one dtype; dresidual2 by token, and a branch beside a residual2 or dyt, in x's dtype.
//
// seam_backward_means and seam_backward_columns: the same in two passes, first mean(dy) and mean(dy * y) of every row,
// then the rest, a block owning a tile of columns.  Any D, any alignment, any dtypes, modulation by token: its gradient
// is written row by row, or, where the samples share it, summed by a second launch whose blocks walk the samples.
#pragma once
#include <array>

#include "launch.cuh"
#include "modulation.h"
#include "modulation_math.cuh"
#include "reduce.cuh"
#include "vector.cuh"

namespace presto::cuda {

constexpr int kMeansThreads = 512;
constexpr int kColumnThreads = 128;
constexpr int kFinishColumns = 32, kFinishRows = 16;
constexpr int kAlphaThreads = 256;
// kResidual2 and kAlpha are for kernels with kExtra alone.
enum { kGate, kScale, kShift, kWeight, kBias, kResidual2, kAlpha, kModulations };
template <bool kExtra>
constexpr int kCount = kExtra ? kModulations : kResidual2;

// The sums of chunk c of sample b for each modulation: D floats at partial + (b * chunks + c) * D; null where not
// wanted.
struct Chunks {
  int64_t chunks = 1, chunk_rows = 1;  // per sample
  float* partial[kModulations] = {};
};

// Threads of a block.  An fp32 branch beside a 16-bit x takes twice the registers for its rows; kExtra keeps two sums
// more.
template <DType X, DType Branch, bool kExtra>
constexpr int kRowsThreads = kExtra || kSize<Branch> > kSize<X> ? 384 : 512;

// Registers: one block must fit on a multiprocessor, at most 128 with 512 threads and 168 with 384.
template <DType X, DType Branch, DType M, bool kExtra>
__global__ void __launch_bounds__(kRowsThreads<X, Branch, kExtra>, 1)
    seam_backward_rows(const __grid_constant__ SeamBackward a, const __grid_constant__ Chunks plan,
                       const float inverse_dim, const Origin origin) {
  constexpr int E = 16 / kSize<X>;
  __shared__ __align__(16) float shared[2][kRowsThreads<X, Branch, kExtra> / 32][2];
  __shared__ float merge[3][E][kRowsThreads<X, Branch, kExtra> - 32];
  const int threads = blockDim.x, group = threadIdx.y;  // of a row
  const int warps = threads / 32;
  const int column = threadIdx.x * E;
  const bool inside = column < static_cast<int>(a.dim);
  const int64_t sample = origin.y + blockIdx.y, chunk = origin.x + blockIdx.x;
  const int64_t first = chunk * plan.chunk_rows;
  const int count = static_cast<int>(first + plan.chunk_rows < a.tokens ? plan.chunk_rows : a.tokens - first);
  const bool dyt = kExtra && a.norm == Norm::Dyt;
  const float alpha = dyt ? load_alpha(a) : 0.f;

  // Walks down this thread's columns, `groups` rows at a time: pointers that advance by steps of 32 bits, since a
  // multiplication by a 64-bit stride for every load would cost as much as the arithmetic.
  const int groups = blockDim.y;
  const auto begin = [&](const Rows& rows, int size) {
    const int64_t at = sample * rows.batch_stride + (first + group) * rows.row_stride + column;
    return static_cast<const char*>(rows.data) + at * size;
  };
  const auto step = [&](const Rows& rows, unsigned size) {
    return static_cast<unsigned>(rows.row_stride) * size * groups;
  };
  const char* grad_x = begin(a.grad_x, kSize<X>);
  const char* grad_h = begin(a.grad_h, kSize<X>);
  const char* x = begin(a.x, kSize<X>);
  const char* branch = begin(a.branch, kSize<Branch>);
  const float2* stats = reinterpret_cast<const float2*>(a.stats) + sample * a.tokens + first + group;
  int64_t out = (sample * a.tokens + first + group) * a.dim + column;

  struct Row {
    Pack<X, E> grad_x, grad_h, x;
    Pack<Branch, E> branch;
    float2 stats = {};
  };
  const auto load_row = [&](int i, Row& row) {
    if (!inside || i >= count) return;
    if (a.grad_h.data) {
      row.grad_h = load<X, E>(grad_h, 0);
      row.x = load<X, E>(x, 0);
      if (!dyt) row.stats = __ldg(stats);
    }
    if (a.grad_x.data) row.grad_x = load<X, E>(grad_x, 0);
    if (a.dgate) row.branch = load<Branch, E>(branch, 0);
    grad_x += step(a.grad_x, kSize<X>);
    grad_h += step(a.grad_h, kSize<X>);
    x += step(a.x, kSize<X>);
    branch += step(a.branch, kSize<Branch>);
    stats += groups;
  };
  Row rows[2];
  load_row(group, rows[0]);

  float gate[E] = {}, product[E] = {};  // g(gate), A
  if (inside) {
    float scale[E];
    load_gate<M>(a, a.gate, sample, column, gate);
    load_modulation<M>(a.scale, sample, column, 0.f, scale);
    load_modulation<M>(a.weight, sample, column, 1.f, product);
#pragma unroll
    for (int e = 0; e < E; ++e) product[e] *= 1.f + scale[e];
  }

  float sum_h[E] = {}, sum_hy[E] = {}, sum_branch[E] = {};  // of grad_h, grad_h * y, dx * branch
  float sum_alpha[E] = {}, sum_dx[E] = {};                  // of dy (1 - y^2) x', dx
  const auto work_on = [&](const Row& row, float (*shared)[2]) {
    float dx[E];
    if (dyt && a.grad_h.data) {
      float grad[E], value[E];
      decode(row.grad_h, grad);
      decode(row.x, value);
      decode(row.grad_x, dx);
#pragma unroll
      for (int e = 0; e < E; ++e) {
        const float y = tanhf(alpha * value[e]);
        const float inner = grad[e] * product[e] * tanh_slope(alpha * value[e]);
        sum_h[e] += grad[e];
        sum_hy[e] = fmaf(grad[e], y, sum_hy[e]);
        sum_alpha[e] = fmaf(inner, value[e], sum_alpha[e]);
        dx[e] = fmaf(alpha, inner, dx[e]);
      }
    } else if (a.grad_h.data) {
      const float mean = row.stats.x, rstd = row.stats.y;
      float grad[E], y[E], means[2] = {};
      decode(row.grad_h, grad);
      decode(row.x, y);
#pragma unroll
      for (int e = 0; e < E; ++e) {
        y[e] = (y[e] - mean) * rstd;
        sum_h[e] += grad[e];
        sum_hy[e] = fmaf(grad[e], y[e], sum_hy[e]);
        means[0] = fmaf(grad[e], product[e], means[0]);
        means[1] = fmaf(grad[e] * product[e], y[e], means[1]);
      }
      group_sum(means, shared + group * warps, warps, [=] { __barrier_sync_count(1 + group, threads); });
      const float mean_dy = a.norm == Norm::Layer ? means[0] * inverse_dim : 0.f, mean_dyy = means[1] * inverse_dim;
      decode(row.grad_x, dx);
#pragma unroll
      for (int e = 0; e < E; ++e) dx[e] = fmaf(rstd, fmaf(-y[e], mean_dyy, fmaf(grad[e], product[e], -mean_dy)), dx[e]);
    } else {
      decode(row.grad_x, dx);
    }
    if (a.dgate) {
      float update[E];
      decode(row.branch, update);
#pragma unroll
      for (int e = 0; e < E; ++e) sum_branch[e] = fmaf(dx[e], update[e], sum_branch[e]);
    }
    if (!inside) return;
    if (kExtra && a.dresidual2) {
      if (a.residual2.per_token) store(a.dresidual2, out, encode<X>(dx));
#pragma unroll
      for (int e = 0; e < E; ++e) sum_dx[e] += dx[e];
    }
    if (a.dx) store(a.dx, out, encode<X>(dx));
    if (a.dbranch) {
#pragma unroll
      for (int e = 0; e < E; ++e) dx[e] *= gate[e];
      store(a.dbranch, out, encode<Branch>(dx));
    }
    out += static_cast<unsigned>(a.dim) * groups;
  };
  // Two rows in turn, each with its own line of shared memory: the next is on its way while one is worked on.
  for (int i = group; i < count; i += 2 * groups) {
    load_row(i + groups, rows[1]);
    work_on(rows[0], shared[0]);
    if (i + groups >= count) break;
    load_row(i + 2 * groups, rows[0]);
    work_on(rows[1], shared[1]);
  }

  const int others = threads * (group - 1) + threadIdx.x;
  if constexpr (kExtra) {
    if (group > 0) {
#pragma unroll
      for (int e = 0; e < E; ++e) {
        merge[0][e][others] = sum_alpha[e];
        merge[1][e][others] = sum_dx[e];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; group == 0 && i < threads * (groups - 1); i += threads) {
#pragma unroll
      for (int e = 0; e < E; ++e) {
        sum_alpha[e] += merge[0][e][i];
        sum_dx[e] += merge[1][e][i];
      }
    }
    __syncthreads();  // the lines are used again
  }
  if (group > 0) {
#pragma unroll
    for (int e = 0; e < E; ++e) {
      merge[0][e][others] = sum_h[e];
      merge[1][e][others] = sum_hy[e];
      merge[2][e][others] = sum_branch[e];
    }
  }
  __syncthreads();
  if (group > 0 || !inside) return;
  for (int i = threadIdx.x; i < threads * (groups - 1); i += threads) {
#pragma unroll
    for (int e = 0; e < E; ++e) {
      sum_h[e] += merge[0][e][i];
      sum_hy[e] += merge[1][e][i];
      sum_branch[e] += merge[2][e][i];
    }
  }

  const int64_t at = (sample * plan.chunks + chunk) * a.dim + column;
  const auto store_sum = [&](float* partial, const float (&sum)[E]) { store(partial, at, encode<DType::F32>(sum)); };
  float scale[E], weight[E], bias[E], value[E];
  load_modulation<M>(a.scale, sample, column, 0.f, scale);
  load_modulation<M>(a.weight, sample, column, 1.f, weight);
  load_modulation<M>(a.bias, sample, column, 0.f, bias);
  if (plan.partial[kShift]) store_sum(plan.partial[kShift], sum_h);
  if (plan.partial[kScale]) {
#pragma unroll
    for (int e = 0; e < E; ++e) value[e] = fmaf(weight[e], sum_hy[e], bias[e] * sum_h[e]);
    store_sum(plan.partial[kScale], value);
  }
  if (plan.partial[kWeight]) {
#pragma unroll
    for (int e = 0; e < E; ++e) value[e] = (1.f + scale[e]) * sum_hy[e];
    store_sum(plan.partial[kWeight], value);
  }
  if (plan.partial[kBias]) {
#pragma unroll
    for (int e = 0; e < E; ++e) value[e] = (1.f + scale[e]) * sum_h[e];
    store_sum(plan.partial[kBias], value);
  }
  if constexpr (kExtra) {
    if (plan.partial[kAlpha]) store_sum(plan.partial[kAlpha], sum_alpha);
    if (plan.partial[kResidual2]) store_sum(plan.partial[kResidual2], sum_dx);
  }
  if (plan.partial[kGate]) {
    load_modulation<M>(a.gate, sample, column, 0.f, value);
    apply_gate_slope(a.gate_fn, value);
#pragma unroll
    for (int e = 0; e < E; ++e) value[e] *= sum_branch[e];
    store_sum(plan.partial[kGate], value);
  }
}

// mean(dy) and mean(dy * y) of every row: means [B, N, 2].
template <int E>
__global__ void __launch_bounds__(kMeansThreads)
    seam_backward_means(const __grid_constant__ SeamBackward a, float* means, const float inverse_dim,
                        const Origin origin) {
  __shared__ float shared[kMeansThreads / 32][2];
  const int64_t sample = origin.y + blockIdx.y, token = origin.x + blockIdx.x;
  const int64_t row = sample * a.tokens + token;
  const float mean = a.stats[2 * row], rstd = a.stats[2 * row + 1];
  float sum[2] = {};
  for (int64_t column = int64_t{threadIdx.x} * E; column < a.dim; column += int64_t{blockDim.x} * E) {
    float grad[E], x[E], scale[E], weight[E];
    load_any(a.grad_h.data, a.grad_h.dtype, sample * a.grad_h.batch_stride + token * a.grad_h.row_stride + column,
             grad);
    load_any(a.x.data, a.x.dtype, sample * a.x.batch_stride + token * a.x.row_stride + column, x);
    load_modulation_any(a.scale, sample, token, column, 0.f, scale);
    load_modulation_any(a.weight, sample, token, column, 1.f, weight);
#pragma unroll
    for (int e = 0; e < E; ++e) {
      const float dy = grad[e] * (weight[e] * (1.f + scale[e]));
      sum[0] += dy;
      sum[1] = fmaf(dy, (x[e] - mean) * rstd, sum[1]);
    }
  }
  group_sum(sum, shared, blockDim.x / 32, [] { __syncthreads(); });
  if (threadIdx.x == 0) {
    means[2 * row] = a.norm == Norm::Layer ? sum[0] * inverse_dim : 0.f;
    means[2 * row + 1] = sum[1] * inverse_dim;
  }
}

// What becomes of one modulation's gradient in a launch of seam_backward_columns.
struct Gradient {
  enum { Skip, Row, Sum } kind = Skip;  // Row: written row by row;  Sum: of the rows that the block walks
  void* data = nullptr;
  DType dtype = DType::F32;
};

struct ColumnWalk {
  const float* means = nullptr;
  int64_t tiles = 1;
  bool over_samples = false;  // a block walks all samples of one token, not a chunk of tokens of one sample
  int64_t chunks = 1, chunk_rows = 1;
  bool rows_too = true;  // dx and dbranch are written
  Gradient gradients[kModulations];
};

// Registers: 128 threads may have all 255.
template <int E, bool kExtra>
__global__ void __launch_bounds__(kColumnThreads)
    seam_backward_columns(const __grid_constant__ SeamBackward a, const __grid_constant__ ColumnWalk walk,
                          const Origin origin) {
  const int64_t tile = (origin.x + blockIdx.x) % walk.tiles, piece = (origin.x + blockIdx.x) / walk.tiles;
  const int64_t column = (tile * kColumnThreads + threadIdx.x) * E;
  if (column >= a.dim) return;
  const int64_t fixed_sample = origin.y + blockIdx.y;
  const int64_t first = walk.over_samples ? 0 : piece * walk.chunk_rows;
  const int64_t end = walk.over_samples ? a.batch : first + walk.chunk_rows;
  const int64_t last = walk.over_samples || end < a.tokens ? end : a.tokens;

  const bool dyt = kExtra && a.norm == Norm::Dyt;
  const float alpha = dyt ? load_alpha(a) : 0.f;
  float sum[kCount<kExtra>][E] = {};
  for (int64_t i = first; i < last; ++i) {
    const int64_t sample = walk.over_samples ? i : fixed_sample, token = walk.over_samples ? piece : i;
    const int64_t row = sample * a.tokens + token;
    float dx[E] = {}, grad[E] = {}, y[E] = {}, scale[E], weight[E], gate[E], value[kCount<kExtra>][E] = {};
    if (a.grad_x.data)
      load_any(a.grad_x.data, a.grad_x.dtype, sample * a.grad_x.batch_stride + token * a.grad_x.row_stride + column,
               dx);
    load_modulation_any(a.scale, sample, token, column, 0.f, scale);
    load_modulation_any(a.weight, sample, token, column, 1.f, weight);
    if (dyt && a.grad_h.data) {
      load_any(a.grad_h.data, a.grad_h.dtype, sample * a.grad_h.batch_stride + token * a.grad_h.row_stride + column,
               grad);
      load_any(a.x.data, a.x.dtype, sample * a.x.batch_stride + token * a.x.row_stride + column, y);
#pragma unroll
      for (int e = 0; e < E; ++e) {
        const float x = y[e];
        y[e] = tanhf(alpha * x);
        const float inner = grad[e] * (weight[e] * (1.f + scale[e])) * tanh_slope(alpha * x);
        if constexpr (kExtra) value[kAlpha][e] = inner * x;
        dx[e] = fmaf(alpha, inner, dx[e]);
      }
    } else if (a.grad_h.data) {
      const float mean = a.stats[2 * row], rstd = a.stats[2 * row + 1];
      const float mean_dy = walk.means[2 * row], mean_dyy = walk.means[2 * row + 1];
      load_any(a.grad_h.data, a.grad_h.dtype, sample * a.grad_h.batch_stride + token * a.grad_h.row_stride + column,
               grad);
      load_any(a.x.data, a.x.dtype, sample * a.x.batch_stride + token * a.x.row_stride + column, y);
#pragma unroll
      for (int e = 0; e < E; ++e) {
        y[e] = (y[e] - mean) * rstd;
        const float dy = grad[e] * (weight[e] * (1.f + scale[e]));
        dx[e] = fmaf(rstd, fmaf(-y[e], mean_dyy, dy - mean_dy), dx[e]);
      }
    }
    if (walk.gradients[kScale].kind != Gradient::Skip) {
      float bias[E];
      load_modulation_any(a.bias, sample, token, column, 0.f, bias);
#pragma unroll
      for (int e = 0; e < E; ++e) value[kScale][e] = grad[e] * fmaf(y[e], weight[e], bias[e]);
    }
#pragma unroll
    for (int e = 0; e < E; ++e) {
      value[kShift][e] = grad[e];
      value[kWeight][e] = grad[e] * y[e] * (1.f + scale[e]);
      value[kBias][e] = grad[e] * (1.f + scale[e]);
    }
    if (walk.gradients[kGate].kind != Gradient::Skip) {
      float branch[E];
      load_any(a.branch.data, a.branch.dtype, sample * a.branch.batch_stride + token * a.branch.row_stride + column,
               branch);
      load_modulation_any(a.gate, sample, token, column, 0.f, gate);
      apply_gate_slope(a.gate_fn, gate);
#pragma unroll
      for (int e = 0; e < E; ++e) value[kGate][e] = gate[e] * branch[e] * dx[e];
    }
    if constexpr (kExtra) {
#pragma unroll
      for (int e = 0; e < E; ++e) value[kResidual2][e] = dx[e];
    }
#pragma unroll
    for (int m = 0; m < kCount<kExtra>; ++m) {
      const Gradient& gradient = walk.gradients[m];
      if (gradient.kind == Gradient::Row) {
        store_any(gradient.data, gradient.dtype, row * a.dim + column, value[m]);
      } else {
#pragma unroll
        for (int e = 0; e < E; ++e) sum[m][e] += value[m][e];
      }
    }
    if (walk.rows_too && a.dbranch) {
      load_gate_any(a, a.gate, sample, token, column, gate);
#pragma unroll
      for (int e = 0; e < E; ++e) gate[e] *= dx[e];
      store_any(a.dbranch, a.branch.dtype, row * a.dim + column, gate);
    }
    if (walk.rows_too && a.dx) store_any(a.dx, a.x.dtype, row * a.dim + column, dx);
  }

  const int64_t slot = walk.over_samples ? piece : fixed_sample * walk.chunks + piece;
#pragma unroll
  for (int m = 0; m < kCount<kExtra>; ++m) {
    const Gradient& gradient = walk.gradients[m];
    if (gradient.kind == Gradient::Sum) store_any(gradient.data, gradient.dtype, slot * a.dim + column, sum[m]);
  }
}

// gradient [samples, D] = sums over `chunks` neighbouring lines of partial [samples * chunks, D].
struct Finish {
  struct Part {
    const float* partial = nullptr;
    void* gradient = nullptr;
    DType dtype = DType::F32;
    int64_t samples = 0, chunks = 0;
  } parts[kModulations];
  int64_t dim = 0;
};

// Registers: at most 128; 32 columns by 16 lines of partial sums at a time keep few blocks busy enough.
__global__ void __launch_bounds__(kFinishColumns* kFinishRows)
    seam_backward_finish(const __grid_constant__ Finish finish, const Origin origin) {
  __shared__ float shared[kFinishRows][kFinishColumns];
  const int64_t column = (origin.x + blockIdx.x) * kFinishColumns + threadIdx.x;
  int64_t sample = origin.y + blockIdx.y;
  int m = 0;
  while (sample >= finish.parts[m].samples) sample -= finish.parts[m++].samples;
  const Finish::Part& part = finish.parts[m];

  float sum[1] = {};
  if (column < finish.dim) {
    const float* line = part.partial + sample * part.chunks * finish.dim + column;
#pragma unroll 4
    for (int64_t chunk = threadIdx.y; chunk < part.chunks; chunk += kFinishRows) sum[0] += line[chunk * finish.dim];
  }
  shared[threadIdx.y][threadIdx.x] = sum[0];
  __syncthreads();
  if (threadIdx.y > 0 || column >= finish.dim) return;
#pragma unroll
  for (int row = 1; row < kFinishRows; ++row) sum[0] += shared[row][threadIdx.x];
  store_any(part.gradient, part.dtype, sample * finish.dim + column, sum);
}

// dalpha = sum of `dim` floats, in an order that dim alone fixes.
__global__ void __launch_bounds__(kAlphaThreads)
    seam_backward_alpha(const float* columns, const int64_t dim, void* dalpha, const DType dtype, const Origin) {
  __shared__ float shared[kAlphaThreads / 32][1];
  float sum[1] = {};
  for (int64_t column = threadIdx.x; column < dim; column += kAlphaThreads) sum[0] += columns[column];
  group_sum(sum, shared, kAlphaThreads / 32, [] { __syncthreads(); });
  if (threadIdx.x == 0) store_any(dalpha, dtype, 0, sum);
}

using BackwardKernel = void (*)(SeamBackward, Chunks, float, Origin);

struct BackwardChoice {
  BackwardKernel kernel = nullptr;
  int threads = 0;  // of a block, at most
};

template <DType X, DType Branch, DType M>
BackwardChoice backward_rows_kernel(bool extra) {
  if (!extra) return {seam_backward_rows<X, Branch, M, false>, kRowsThreads<X, Branch, false>};
  if constexpr (X == Branch) return {seam_backward_rows<X, X, M, true>, kRowsThreads<X, X, true>};
  return {};
}

template <DType X, DType Branch>
BackwardChoice backward_rows_kernel(DType modulation, bool extra) {
  if (modulation == X) return backward_rows_kernel<X, Branch, X>(extra);
  if constexpr (X != DType::F32)
    if (modulation == DType::F32) return backward_rows_kernel<X, Branch, DType::F32>(extra);
  return {};
}

// The dtypes of the forward.
inline BackwardChoice backward_rows_kernel(DType x, DType branch, DType modulation, bool extra) {
  constexpr DType F32 = DType::F32, F16 = DType::F16, BF16 = DType::BF16;
  if (x == F32 && branch == F32) return backward_rows_kernel<F32, F32>(modulation, extra);
  if (x == F32 && branch == F16) return backward_rows_kernel<F32, F16>(modulation, extra);
  if (x == F32 && branch == BF16) return backward_rows_kernel<F32, BF16>(modulation, extra);
  if (x == F16 && branch == F16) return backward_rows_kernel<F16, F16>(modulation, extra);
  if (x == F16 && branch == F32) return backward_rows_kernel<F16, F32>(modulation, extra);
  if (x == BF16 && branch == BF16) return backward_rows_kernel<BF16, BF16>(modulation, extra);
  if (x == BF16 && branch == F32) return backward_rows_kernel<BF16, F32>(modulation, extra);
  return {};
}

inline std::array<const Modulation*, kModulations> modulations(const SeamBackward& a) {
  return {&a.gate, &a.scale, &a.shift, &a.weight, &a.bias, &a.residual2, &a.alpha};
}

inline std::array<void*, kModulations> gradients(const SeamBackward& a) {
  return {a.dgate, a.dscale, a.dshift, a.dweight, a.dbias, a.dresidual2, a.dalpha};
}

// The modulations whose gradients are summed over chunks.
inline bool in_chunks(const Modulation& m) { return m.data && !m.per_token; }

inline bool shared_by_samples(const SeamShape& shape, const Modulation& m) {
  return m.per_token && !m.per_sample && shape.batch > 1;
}

inline int64_t means_size(const SeamBackward& a) { return ceil_div(2 * a.batch * a.tokens, 4) * 4; }

// Chunks of equal length, about `blocks` in all samples together.
inline Chunks cut(const SeamBackward& a, int64_t blocks) {
  Chunks plan;
  plan.chunk_rows = ceil_div(a.tokens, std::max<int64_t>(1, blocks / a.batch));
  plan.chunks = ceil_div(a.tokens, plan.chunk_rows);
  return plan;
}

// seam_backward_rows: every multiprocessor holds one block; more rounds of blocks than one, up to 8, only where a chunk
// keeps 64 rows, so that its sums stay a small part of the bytes.
inline Chunks cut_for_rows(const SeamBackward& a, int multiprocessors) {
  const int64_t rounds = a.batch * a.tokens / (int64_t{multiprocessors} * 64);
  return cut(a, multiprocessors * std::clamp<int64_t>(rounds, 1, 8));
}

inline int64_t column_tiles(const SeamBackward& a, int elements) {
  return ceil_div(a.dim, int64_t{kColumnThreads} * elements);
}

// seam_backward_columns: 8 small blocks for each multiprocessor, each with 16 rows or more.
inline Chunks cut_for_columns(const SeamBackward& a, int multiprocessors, int elements) {
  return cut(a, std::min(8 * multiprocessors / column_tiles(a, elements), a.batch * a.tokens / 16));
}

// Elements that a thread takes at a time.
inline int backward_elements(const SeamBackward& a) {
  const int elements = 16 / size_of(a.x.dtype);
  return a.dim % elements == 0 ? elements : 1;
}

// Where dalpha is left to be added up: D floats behind what either way may need, whatever gradients are wanted in the
// end.
inline int64_t alpha_columns_at(const SeamBackward& a, int multiprocessors) {
  int64_t lines = 0;
  for (const Modulation* m : modulations(a)) lines += in_chunks(*m);
  lines *= a.batch * a.dim;
  return std::max(lines * cut_for_rows(a, multiprocessors).chunks,
                  means_size(a) + lines * cut_for_columns(a, multiprocessors, backward_elements(a)).chunks);
}

inline int64_t backward_workspace(const SeamBackward& a, int multiprocessors) {
  return alpha_columns_at(a, multiprocessors) + (a.alpha.data ? a.dim : 0);
}

inline void place_partials(const SeamBackward& a, float* workspace, Chunks& plan) {
  for (int m = 0; m < kModulations; ++m) {
    if (!in_chunks(*modulations(a)[m])) continue;
    if (gradients(a)[m]) plan.partial[m] = workspace;
    workspace += a.batch * plan.chunks * a.dim;
  }
}

inline bool backward_by_rows(const SeamBackward& a, int elements) {
  constexpr int64_t kStride = int64_t{1} << 26;  // elements: 16 groups of fp32 rows stay below 32 bits
  bool fits = a.dim % elements == 0 && a.tokens < 1 << 30 && aligned(a.workspace, 16) && aligned(a.dx, 16) &&
              aligned(a.dbranch, std::min(16, elements * size_of(a.branch.dtype)));
  for (const Rows* rows : {&a.grad_x, &a.grad_h, &a.x, &a.branch})
    fits = fits && (!rows->data || rows->row_stride < kStride);
  for (const Rows* rows : {&a.grad_x, &a.grad_h})
    if (rows->data) fits = fits && rows->dtype == a.x.dtype && aligned(a, *rows, elements);
  if (a.grad_h.data) fits = fits && aligned(a, a.x, elements) && aligned(a.stats, 8);
  if (a.dgate) fits = fits && aligned(a, a.branch, elements);
  for (const Modulation* m : {&a.gate, &a.scale, &a.shift, &a.weight, &a.bias})
    if (m->data) fits = fits && !m->per_token && aligned(a, *m, elements);
  if (a.dresidual2 && a.residual2.per_token)
    fits = fits && a.residual2.per_sample && a.residual2.dtype == a.x.dtype && aligned(a.dresidual2, 16);
  return fits;
}

inline void launch_finish(const SeamBackward& a, const Chunks& plan, int multiprocessors, cudaStream_t stream) {
  Finish finish;
  finish.dim = a.dim;
  float* const alpha_columns = a.workspace + alpha_columns_at(a, multiprocessors);
  int64_t lines = 0;
  for (int m = 0; m < kModulations; ++m) {
    if (!plan.partial[m]) continue;
    const Modulation& owner = *modulations(a)[m];
    const int64_t samples = owner.per_sample ? a.batch : 1;
    finish.parts[m] = {plan.partial[m], gradients(a)[m], owner.dtype, samples, a.batch / samples * plan.chunks};
    if (m == kAlpha) finish.parts[m].gradient = alpha_columns, finish.parts[m].dtype = DType::F32;
    lines += samples;
  }
  launch(seam_backward_finish, ceil_div(a.dim, kFinishColumns), lines, dim3(kFinishColumns, kFinishRows), stream,
         finish);
  if (a.dalpha)
    launch(seam_backward_alpha, 1, 1, dim3(kAlphaThreads), stream, alpha_columns, a.dim, a.dalpha, a.alpha.dtype);
}

template <bool kExtra>
auto backward_columns_kernel(int elements) {
  if (elements == 8) return seam_backward_columns<8, kExtra>;
  return elements == 4 ? seam_backward_columns<4, kExtra> : seam_backward_columns<1, kExtra>;
}

inline void launch_by_columns(const SeamBackward& a, int multiprocessors, float inverse_dim, cudaStream_t stream) {
  const int elements = backward_elements(a);
  Chunks plan = cut_for_columns(a, multiprocessors, elements);
  place_partials(a, a.workspace + means_size(a), plan);
  if (a.grad_h.data && a.norm != Norm::Dyt) {
    const int threads = static_cast<int>(std::min<int64_t>(kMeansThreads, ceil_div(a.dim, elements * 32) * 32));
    launch(elements == 8   ? seam_backward_means<8>
           : elements == 4 ? seam_backward_means<4>
                           : seam_backward_means<1>,
           a.tokens, a.batch, dim3(threads), stream, a, a.workspace, inverse_dim);
  }

  ColumnWalk walk, over_samples;
  walk.means = over_samples.means = a.workspace;
  walk.tiles = over_samples.tiles = column_tiles(a, elements);
  walk.chunks = plan.chunks, walk.chunk_rows = plan.chunk_rows;
  over_samples.over_samples = true, over_samples.rows_too = false;
  bool second = false;
  for (int m = 0; m < kModulations; ++m) {
    const Modulation& owner = *modulations(a)[m];
    void* gradient = gradients(a)[m];
    if (!gradient) continue;
    if (shared_by_samples(a, owner)) {
      over_samples.gradients[m] = {Gradient::Sum, gradient, owner.dtype};
      second = true;
    } else if (owner.per_token) {
      walk.gradients[m] = {Gradient::Row, gradient, owner.dtype};
    } else {
      walk.gradients[m] = {Gradient::Sum, plan.partial[m], DType::F32};
    }
  }
  const auto kernel =
      is_extra(a, a) ? backward_columns_kernel<true>(elements) : backward_columns_kernel<false>(elements);
  launch(kernel, walk.tiles * plan.chunks, a.batch, dim3(kColumnThreads), stream, a, walk);
  if (second) launch(kernel, walk.tiles * a.tokens, 1, dim3(kColumnThreads), stream, a, over_samples);
  launch_finish(a, plan, multiprocessors, stream);
}

inline void launch_backward(SeamBackward a, int multiprocessors, cudaStream_t stream) {
  if (a.norm == Norm::None) a.grad_h = {};
  const int elements = 16 / size_of(a.x.dtype);
  const float inverse_dim = 1.f / static_cast<float>(a.dim);
  const int modulation = common_dtype(a, a.x.dtype);
  const bool branch = a.dbranch || a.dgate;
  BackwardChoice choice;
  if (backward_by_rows(a, elements) && modulation >= 0)
    choice = backward_rows_kernel(a.x.dtype, branch ? a.branch.dtype : a.x.dtype, static_cast<DType>(modulation),
                                  is_extra(a, a));
  const int64_t threads = ceil_div(a.dim, elements * 32) * 32;  // of a row
  if (threads > choice.threads) return launch_by_columns(a, multiprocessors, inverse_dim, stream);

  Chunks plan = cut_for_rows(a, multiprocessors);
  place_partials(a, a.workspace, plan);
  launch(choice.kernel, plan.chunks, a.batch, dim3(threads, choice.threads / threads), stream, a, plan, inverse_dim);
  launch_finish(a, plan, multiprocessors, stream);
}

}  // namespace presto::cuda
