// Head norm and rotary embedding, backward, for q and k in one launch and a second for the column sums.  With dy = grad
// turned by -sin, n = norm(x), dn = dy * weight:
//
//   dx      = rstd * (dn - mean(dn) - n * mean(dn * n))   (rms: without mean(dn); l2: the sum where |x| >= eps, else 0)
//   dweight = sum dy * n                                  dbias = sum dy        over samples, tokens and heads
//
// and, of DyT, whose norm is n = tanh(alpha x),  dx = alpha * dn * (1 - n^2),  dalpha = sum x * dn * (1 - n^2).
//
// All arithmetic and all sums are fp32, and each result is rounded once.  mean, rstd and |x| come anew from x, which is
// read anyway: to keep them would cost 8 bytes a head in both directions.
// Bytes: grad and x read once (x only where there is a norm or a weight), dx written once; the sums of a block are 8 Dh
// bytes (4 more with DyT), written and read.
//
// Nothing is added atomically: a block walks a run of neighbouring tokens, as many as the shape alone says, and leaves
// its sums in the workspace; rotary_backward_sums adds these in order.
//
// rotary_backward_heads and rotary_backward_any divide the work as their forward twins do.
#pragma once
#include "rotary_forward.cuh"
#include "tanh_slope.cuh"

namespace presto::cuda {

// Blocks a side is cut into, at most: more than fit on any GPU at once, and few enough that their sums stay small.
constexpr int64_t kMaxRuns = 1024;
constexpr int kSumColumns = 32, kSumRows = 16;

struct BackwardPlan {
  int lanes = 1;
  int64_t runs[2] = {};        // blocks of each side
  int64_t run_tokens[2] = {};  // tokens of each block, counted over the batch
  float* sums[2] = {};         // rotary_sums() for each block: dweight's, dbias's and dalpha's
  float inverse_dim = 1.f;
};

// The sum of one number of each warp, in order, by the first thread.
__device__ inline void store_warps(const float* of_warps, float* out) {
  if (threadIdx.x > 0) return;
  float total = 0.f;
  for (int w = 0; w < kHeadWarps; ++w) total += of_warps[w];
  *out = total;
}

// Registers: 3 blocks on a multiprocessor leave 168 to a thread; at 128 bf16 spills.
template <DType X, bool kDyT>
__global__ void __launch_bounds__(kHeadThreads, 3)
    rotary_backward_heads(const __grid_constant__ RotaryBackward a, const __grid_constant__ BackwardPlan plan,
                          const Origin origin) {
  constexpr int E = 16 / kSize<X>;
  __shared__ float shared[kHeadWarps][2][64 * E];
  __shared__ float shared_alpha[kDyT ? kHeadWarps : 1];
  int64_t run = origin.x + blockIdx.x;
  const int which = run >= plan.runs[0];
  run -= which ? plan.runs[0] : 0;
  const RotaryBackwardSide& side = a.sides[which];
  const int lane = threadIdx.x % 32, slot = lane / plan.lanes, slots = 32 / plan.lanes, warp = threadIdx.x / 32;
  const Columns at = columns_of<E>(a, lane % plan.lanes);
  const int64_t rows = a.batch * side.tokens, first = run * plan.run_tokens[which];
  const int64_t last = first + plan.run_tokens[which] < rows ? first + plan.run_tokens[which] : rows;

  float weight[2][E], dweight[2][E] = {}, dbias[2][E] = {};
  load_vector<X>(side.weight, at, 1.f, weight);
  const float alpha = kDyT ? element(side.alpha, 0, 0.f) : 0.f;
  float dalpha[1] = {};
  for (int64_t row = first + warp; row < last; row += kHeadWarps) {
    const int64_t sample = row / side.tokens, token = row % side.tokens;
    const Angles<E> angles = load_angles<E>(side, token, at, a.interleaved);
    const int64_t x_at = sample * side.x.batch_stride + token * side.x.token_stride;
    const int64_t grad_at = sample * side.grad.batch_stride + token * side.grad.token_stride;
    for (int64_t base = 0; base < side.heads; base += slots) {  // the whole warp stays together for the sums
      const int64_t h = base + slot;
      const bool mine = at.inside && h < side.heads;
      float dn[2][E] = {}, n[2][E] = {};
      if (mine) {
        decode(load<X, E>(side.grad.data, grad_at + h * side.grad.head_stride + at.first), dn[0]);
        decode(load<X, E>(side.grad.data, grad_at + h * side.grad.head_stride + at.second), dn[1]);
      }
      Scale scale;
      Pack<X, E> packs[2];  // zeros where there is nothing
      if (side.x.data) {
        if (mine) {
          packs[0] = load<X, E>(side.x.data, x_at + h * side.x.head_stride + at.first);
          packs[1] = load<X, E>(side.x.data, x_at + h * side.x.head_stride + at.second);
          decode(packs[0], n[0]);
          decode(packs[1], n[1]);
        }
        if constexpr (kDyT)
          squash(n, alpha);
        else
          scale = normalise(a, n, mine, plan.lanes, plan.inverse_dim);
      }
      turn(dn, angles, at, a.interleaved, -1.f);
      float sum[2] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int e = 0; e < E; ++e) {
          if (mine) {  // 0 * infinity of a slot without a head would be NaN
            dbias[half][e] += dn[half][e];
            dweight[half][e] = fmaf(dn[half][e], n[half][e], dweight[half][e]);
          }
          dn[half][e] *= weight[half][e];
          sum[0] += dn[half][e];
          sum[1] = fmaf(dn[half][e], n[half][e], sum[1]);
        }
      }
      if constexpr (kDyT) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float x[E];
          decode(packs[half], x);
#pragma unroll
          for (int e = 0; e < E; ++e) {
            const float inner = dn[half][e] * tanh_slope(alpha * x[e]);
            dalpha[0] = fmaf(inner, x[e], dalpha[0]);
            dn[half][e] = inner * alpha;
          }
        }
      }
      if (!side.dx) continue;
      if (!kDyT && a.norm != HeadNorm::None) {
        slot_sum(sum, plan.lanes);
        const float mean = a.norm == HeadNorm::Layer ? sum[0] * scale.reach : 0.f, along = sum[1] * scale.reach;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int e = 0; e < E; ++e) dn[half][e] = scale.scale * (fmaf(-n[half][e], along, dn[half][e]) - mean);
        }
      }
      if (!mine) continue;
      const int64_t to = (row * side.heads + h) * a.dim;
      store(side.dx, to + at.first, encode<X>(dn[0]));
      store(side.dx, to + at.second, encode<X>(dn[1]));
    }
  }

  if (!side.dweight && !side.dbias && !(kDyT && side.dalpha)) return;
  // Slots of a warp, then warps of the block, in order.
  if constexpr (kDyT) {
    warp_sum(dalpha);
    if (lane == 0) shared_alpha[warp] = dalpha[0];
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int e = 0; e < E; ++e) {
      float two[2] = {dweight[half][e], dbias[half][e]};
      for (int offset = plan.lanes; offset < 32; offset *= 2) {
        two[0] += __shfl_xor_sync(0xffffffffu, two[0], offset);
        two[1] += __shfl_xor_sync(0xffffffffu, two[1], offset);
      }
      if (slot == 0 && at.inside) {
        const int column = (half ? at.second : at.first) + e;
        shared[warp][0][column] = two[0];
        shared[warp][1][column] = two[1];
      }
    }
  }
  __syncthreads();
  const int dim = static_cast<int>(a.dim);
  float* sums = plan.sums[which] + run * (2 * dim + kDyT);
  for (int i = threadIdx.x; i < 2 * dim; i += kHeadThreads) {
    float total = 0.f;
    for (int w = 0; w < kHeadWarps; ++w) total += shared[w][i / dim][i % dim];
    sums[i] = total;
  }
  if constexpr (kDyT) store_warps(shared_alpha, sums + 2 * dim);
}

// A block takes a run of tokens, a warp one head of it at a time; the sums of a column belong to one lane of each warp,
// and to one address of the block's in the workspace, taken in turn by the warps.
template <bool kDyT>
__global__ void __launch_bounds__(kHeadThreads)
    rotary_backward_any(const __grid_constant__ RotaryBackward a, const __grid_constant__ BackwardPlan plan,
                        const Origin origin) {
  int64_t run = origin.x + blockIdx.x;
  const int which = run >= plan.runs[0];
  run -= which ? plan.runs[0] : 0;
  const RotaryBackwardSide& side = a.sides[which];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t rows = a.batch * side.tokens * side.heads, each = plan.run_tokens[which] * side.heads;
  const int64_t first = run * each, last = first + each < rows ? first + each : rows;
  const bool wanted = side.dweight || side.dbias || (kDyT && side.dalpha);
  float* sums = wanted ? plan.sums[which] + run * (2 * a.dim + kDyT) : nullptr;
  float dalpha[1] = {};
  for (int64_t i = threadIdx.x; wanted && i < 2 * a.dim; i += kHeadThreads) sums[i] = 0.f;
  __syncthreads();

  for (int64_t base = first; base < last; base += kHeadWarps) {
    const int64_t row = base + warp;
    const bool mine = row < last;  // a warp without a head waits at the barriers with the others
    const int64_t h = row % side.heads, token = row / side.heads % side.tokens, sample = row / side.heads / side.tokens;
    const float *cos = side.cos + token * side.cos_stride, *sin = side.sin + token * side.sin_stride;
    AnyHead<kDyT> head{};
    AnyHead<false> grad{};
    Scale scale;
    if (mine) {
      grad = {side.grad.data, side.grad.dtype,
              sample * side.grad.batch_stride + token * side.grad.token_stride + h * side.grad.head_stride, 0.f, 1.f};
      const int64_t x_at = sample * side.x.batch_stride + token * side.x.token_stride + h * side.x.head_stride;
      if (side.x.data) head = any_head<kDyT>(a, side, x_at, plan.inverse_dim, scale);
    }
    // f(column, dy, n) for this lane's columns.
    const auto each_column = [&](auto f) {
      for (int64_t pair = lane; pair < a.half; pair += 32) {
        const int64_t one = first_of(a, pair), two = second_of(a, pair);
        const float g1 = grad.raw(one), g2 = grad.raw(two);
        f(one, fmaf(g1, cos[pair], g2 * sin[pair]), side.x.data ? head(one) : 0.f);
        f(two, fmaf(g2, cos[pair], -g1 * sin[pair]), side.x.data ? head(two) : 0.f);
      }
      for (int64_t c = 2 * a.half + lane; c < a.dim; c += 32) f(c, grad.raw(c), side.x.data ? head(c) : 0.f);
    };
    if constexpr (kDyT) {
      if (mine)
        each_column([&](int64_t c, float dy, float n) {
          const float x = head.raw(c), inner = dy * element(side.weight, c, 1.f) * tanh_slope(head.scale * x);
          dalpha[0] = fmaf(inner, x, dalpha[0]);
          if (side.dx) put(side.dx, side.grad.dtype, row * a.dim + c, inner * head.scale);
        });
    } else if (mine && side.dx) {
      float sum[2] = {};
      if (a.norm != HeadNorm::None) {
        each_column([&](int64_t c, float dy, float n) {
          const float dn = dy * element(side.weight, c, 1.f);
          sum[0] += dn;
          sum[1] = fmaf(dn, n, sum[1]);
        });
        warp_sum(sum);
      }
      const float mean = a.norm == HeadNorm::Layer ? sum[0] * scale.reach : 0.f, along = sum[1] * scale.reach;
      each_column([&](int64_t c, float dy, float n) {
        const float dn = dy * element(side.weight, c, 1.f);
        const float dx = a.norm == HeadNorm::None ? dn : scale.scale * (fmaf(-n, along, dn) - mean);
        put(side.dx, side.grad.dtype, row * a.dim + c, dx);
      });
    }
    for (int turn = 0; wanted && turn < kHeadWarps; ++turn) {
      if (mine && turn == warp)
        each_column([&](int64_t c, float dy, float n) {
          sums[c] = fmaf(dy, n, sums[c]);
          sums[a.dim + c] += dy;
        });
      __syncthreads();
    }
  }
  if constexpr (kDyT) {
    __shared__ float shared_alpha[kHeadWarps];
    warp_sum(dalpha);
    if (lane == 0) shared_alpha[warp] = dalpha[0];
    __syncthreads();
    if (wanted) store_warps(shared_alpha, sums + 2 * a.dim);
  }
}

struct SumsPlan {
  struct Part {
    const float* from = nullptr;
    void* to = nullptr;
    DType dtype = DType::F32;
    int64_t runs = 0, columns = 0;
  } parts[6];
  int64_t stride = 0;  // from one run to the next
};

// to[c] = from[c] + from[stride + c] + ..., `runs` of them; one part for each block row.
static __global__ void __launch_bounds__(kSumColumns* kSumRows)
    rotary_backward_sums(const __grid_constant__ SumsPlan plan, const Origin origin) {
  __shared__ float shared[kSumRows][kSumColumns];
  const int64_t column = (origin.x + blockIdx.x) * kSumColumns + threadIdx.x;
  const SumsPlan::Part& part = plan.parts[origin.y + blockIdx.y];
  float sum = 0.f;
  if (column < part.columns) {
#pragma unroll 4
    for (int64_t run = threadIdx.y; run < part.runs; run += kSumRows) sum += part.from[run * plan.stride + column];
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= part.columns) return;
#pragma unroll
  for (int row = 1; row < kSumRows; ++row) sum += shared[row][threadIdx.x];
  put(part.to, part.dtype, column, sum);
}

inline bool sums_wanted(const RotaryBackwardSide& side) { return side.dweight || side.dbias || side.dalpha; }
inline bool wanted(const RotaryBackwardSide& side) { return side.dx || sums_wanted(side); }

// Runs of equal length: each at least 4 tokens, one for each warp, and at most kMaxRuns in all.
inline int64_t run_tokens(const RotaryShape& s, const RotarySide& side) {
  const int64_t tokens = s.batch * side.tokens;
  return ceil_div(ceil_div(tokens, std::min(kMaxRuns, ceil_div(tokens, kHeadWarps))), kHeadWarps) * kHeadWarps;
}

inline int64_t runs(const RotaryShape& s, const RotaryBackwardSide& side) {
  return there(s, side) && wanted(side) ? ceil_div(s.batch * side.tokens, run_tokens(s, side)) : 0;
}

inline bool backward_by_vectors(const RotaryBackward& a, DType dtype) {
  bool fits = in_vectors(a, 16 / element_size(dtype));
  for (const RotaryBackwardSide& side : a.sides) {
    if (!runs(a, side)) continue;
    fits = fits && side.grad.dtype == dtype && aligned(a, side, side.grad) && aligned(side, dtype) &&
           (!side.dx || starts_aligned(side.dx));
    if (side.x.data) fits = fits && side.x.dtype == dtype && aligned(a, side, side.x);
  }
  return fits;
}

template <bool kDyT>
auto backward_kernel(DType dtype, bool vectors) {
  if (!vectors) return rotary_backward_any<kDyT>;
  return dtype == DType::F32   ? rotary_backward_heads<DType::F32, kDyT>
         : dtype == DType::F16 ? rotary_backward_heads<DType::F16, kDyT>
                               : rotary_backward_heads<DType::BF16, kDyT>;
}

inline void launch_backward(const RotaryBackward& a, cudaStream_t stream) {
  const DType dtype = a.sides[runs(a, a.sides[0]) ? 0 : 1].grad.dtype;
  const int elements = 16 / element_size(dtype);
  const bool vectors = backward_by_vectors(a, dtype);
  BackwardPlan plan;
  plan.inverse_dim = 1.f / static_cast<float>(a.dim);
  plan.lanes = vectors ? slot_lanes(a.dim, elements) : 32;
  SumsPlan sums;
  sums.stride = rotary_sums(a);
  int parts = 0;
  float* workspace = a.workspace;
  for (int s = 0; s < 2; ++s) {
    const RotaryBackwardSide& side = a.sides[s];
    plan.runs[s] = runs(a, side);
    if (!plan.runs[s]) continue;
    plan.run_tokens[s] = run_tokens(a, side);
    plan.sums[s] = workspace;
    if (side.dweight) sums.parts[parts++] = {workspace, side.dweight, side.weight.dtype, plan.runs[s], a.dim};
    if (side.dbias) sums.parts[parts++] = {workspace + a.dim, side.dbias, side.bias.dtype, plan.runs[s], a.dim};
    if (side.dalpha) sums.parts[parts++] = {workspace + 2 * a.dim, side.dalpha, side.alpha.dtype, plan.runs[s], 1};
    if (sums_wanted(side)) workspace += plan.runs[s] * sums.stride;
  }
  const bool dyt = a.norm == HeadNorm::DyT;
  const auto kernel = dyt ? backward_kernel<true>(dtype, vectors) : backward_kernel<false>(dtype, vectors);
  launch(kernel, plan.runs[0] + plan.runs[1], 1, dim3(kHeadThreads), stream, a, plan);
  if (parts)
    launch(rotary_backward_sums, ceil_div(a.dim, kSumColumns), parts, dim3(kSumColumns, kSumRows), stream, sums);
}

}  // namespace presto::cuda
