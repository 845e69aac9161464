// Head norm and rotary embedding, forward, for x = q [B, N, H, Dh] and x = k [B, Nk, Hkv, Dh] in one launch:
//
//   y   = norm(x) * weight + bias
//   out = [y1 cos - y2 sin, y2 cos + y1 sin, rest of y]               contiguous, rounded once to x's dtype
//
// All arithmetic is fp32; the variance is summed of the centred head.
// Bytes: every element of q and k read once and written once; 4 R bytes of cos and sin for each token, read once by
// each warp of it.
//
// rotary_forward_heads: a warp takes kRows heads in each of its slots, all of one token, so that cos, sin, weight and
// bias are loaded once for 32 / lanes * kRows of them.  Two vectors of 16 bytes a head and thread are in flight: 64
// bytes a thread, 8 KB a block.  Limits: 16-byte aligned heads whose halves are whole vectors, Dh <= 64 vectors, q and
// k of one dtype, weight and bias of that or fp32.
//
// rotary_forward_any: a warp takes one head, element by element.  Any Dh, R, alignment, strides and dtypes.
//
// DyT, whose norm is tanh(alpha x), has both kernels once more.
#pragma once
#include "rotary_math.cuh"

namespace presto::cuda {

// Heads a slot takes: with 2, the 16 heads of 64 bf16 elements of a token are one warp's.
constexpr int kForwardRows = 2;

struct ForwardPlan {
  int lanes = 1;           // of a slot
  int64_t pieces[2] = {};  // warps that share the heads of a token
  int64_t warps[2] = {};   // in all, of q and of k
  float inverse_dim = 1.f;
};

// Registers: 5 blocks on a multiprocessor leave 96 to a thread, and have 40 KB of reads in flight together.
template <DType X, bool kDyT>
__global__ void __launch_bounds__(kHeadThreads, 5)
    rotary_forward_heads(const __grid_constant__ RotaryForward a, const __grid_constant__ ForwardPlan plan,
                         const Origin origin) {
  constexpr int E = 16 / kSize<X>;
  int64_t warp = (origin.x + blockIdx.x) * kHeadWarps + threadIdx.x / 32;
  const int which = warp >= plan.warps[0];
  warp -= which ? plan.warps[0] : 0;
  if (warp >= plan.warps[which]) return;
  const RotaryForwardSide& side = a.sides[which];
  const int lane = threadIdx.x % 32, slot = lane / plan.lanes, slots = 32 / plan.lanes;
  const int64_t row = warp / plan.pieces[which];
  const int64_t sample = row / side.tokens, token = row % side.tokens;
  const int64_t first = warp % plan.pieces[which] * slots * kForwardRows + slot;
  const Columns at = columns_of<E>(a, lane % plan.lanes);

  Pack<X, E> packs[kForwardRows][2];
#pragma unroll
  for (int r = 0; r < kForwardRows; ++r) {
    const int64_t h = first + r * slots;
    if (!at.inside || h >= side.heads) continue;
    const int64_t from = sample * side.x.batch_stride + token * side.x.token_stride + h * side.x.head_stride;
    packs[r][0] = load<X, E>(side.x.data, from + at.first);
    packs[r][1] = load<X, E>(side.x.data, from + at.second);
  }
  const Angles<E> angles = load_angles<E>(side, token, at, a.interleaved);
  float weight[2][E];
  load_vector<X>(side.weight, at, 1.f, weight);
  const float alpha = kDyT ? element(side.alpha, 0, 0.f) : 0.f;
#pragma unroll
  for (int r = 0; r < kForwardRows; ++r) {
    const int64_t h = first + r * slots;
    float v[2][E];
    decode(packs[r][0], v[0]);
    decode(packs[r][1], v[1]);
    if constexpr (kDyT)
      squash(v, alpha);
    else
      normalise(a, v, at.inside, plan.lanes, plan.inverse_dim);
    if (!at.inside || h >= side.heads) continue;
    if (side.bias.data) {  // rare, so that it is not kept
      float bias[2][E];
      load_vector<X>(side.bias, at, 0.f, bias);
#pragma unroll
      for (int e = 0; e < E; ++e) {
        v[0][e] = fmaf(v[0][e], weight[0][e], bias[0][e]);
        v[1][e] = fmaf(v[1][e], weight[1][e], bias[1][e]);
      }
    } else {
#pragma unroll
      for (int e = 0; e < E; ++e) v[0][e] *= weight[0][e], v[1][e] *= weight[1][e];
    }
    turn(v, angles, at, a.interleaved, 1.f);
    const int64_t to = (row * side.heads + h) * a.dim;
    store(side.out, to + at.first, encode<X>(v[0]));
    store(side.out, to + at.second, encode<X>(v[1]));
  }
}

// One element of a head, normalised; DyT's scale is alpha.
template <bool kDyT>
struct AnyHead {
  const void* data;
  DType dtype;
  int64_t at;
  float mean, scale;

  __device__ float raw(int64_t column) const {
    float value[1];
    load_any(data, dtype, at + column, value);
    return value[0];
  }
  __device__ float operator()(int64_t column) const {
    if constexpr (kDyT) return tanhf(scale * raw(column));
    return (raw(column) - mean) * scale;
  }
};

// The head as it lies, and what its norm found; a whole warp calls this.
template <bool kDyT>
__device__ inline AnyHead<kDyT> any_head(const RotaryShape& s, const RotarySide& side, int64_t at, float inverse_dim,
                                         Scale& scale) {
  AnyHead<kDyT> head{side.x.data, side.x.dtype, at, 0.f, 1.f};
  scale = {};
  if constexpr (kDyT) {
    head.scale = element(side.alpha, 0, 0.f);
    return head;
  }
  if (s.norm == HeadNorm::None) return head;
  float sum[1] = {};
  if (s.norm == HeadNorm::Layer) {
    for (int64_t c = threadIdx.x % 32; c < s.dim; c += 32) sum[0] += head.raw(c);
    warp_sum(sum);
    head.mean = sum[0] * inverse_dim;
    sum[0] = 0.f;
  }
  for (int64_t c = threadIdx.x % 32; c < s.dim; c += 32) {
    const float v = head.raw(c) - head.mean;
    sum[0] = fmaf(v, v, sum[0]);
  }
  warp_sum(sum);
  scale = scale_of(s, sum[0], inverse_dim);
  head.scale = scale.scale;
  return head;
}

// Columns of turned pair `pair`.
__device__ inline int64_t first_of(const RotaryShape& s, int64_t pair) { return s.interleaved ? 2 * pair : pair; }
__device__ inline int64_t second_of(const RotaryShape& s, int64_t pair) {
  return s.interleaved ? 2 * pair + 1 : pair + s.half;
}

__device__ inline void put(void* data, DType dtype, int64_t at, float v) {
  float value[1] = {v};
  store_any(data, dtype, at, value);
}

// Registers: 64; ptxas left to itself spills to stay at 40.
template <bool kDyT>
__global__ void __launch_bounds__(kHeadThreads, 8)
    rotary_forward_any(const __grid_constant__ RotaryForward a, const __grid_constant__ ForwardPlan plan,
                       const Origin origin) {
  int64_t row = (origin.x + blockIdx.x) * kHeadWarps + threadIdx.x / 32;
  const int which = row >= plan.warps[0];
  row -= which ? plan.warps[0] : 0;
  if (row >= plan.warps[which]) return;
  const RotaryForwardSide& side = a.sides[which];
  const int64_t h = row % side.heads, token = row / side.heads % side.tokens, sample = row / side.heads / side.tokens;
  const int64_t from = sample * side.x.batch_stride + token * side.x.token_stride + h * side.x.head_stride;
  Scale scale;
  const AnyHead<kDyT> head = any_head<kDyT>(a, side, from, plan.inverse_dim, scale);
  const auto y = [&](int64_t c) { return fmaf(head(c), element(side.weight, c, 1.f), element(side.bias, c, 0.f)); };
  const auto out = [&](int64_t c, float v) { put(side.out, side.x.dtype, row * a.dim + c, v); };
  for (int64_t pair = threadIdx.x % 32; pair < a.half; pair += 32) {
    const int64_t first = first_of(a, pair), second = second_of(a, pair);
    const float cos = side.cos[token * side.cos_stride + pair], sin = side.sin[token * side.sin_stride + pair];
    const float y1 = y(first), y2 = y(second);
    out(first, fmaf(y1, cos, -y2 * sin));
    out(second, fmaf(y2, cos, y1 * sin));
  }
  for (int64_t c = 2 * a.half + threadIdx.x % 32; c < a.dim; c += 32) out(c, y(c));
}

inline bool there(const RotaryShape& s, const RotarySide& side) { return s.batch * side.tokens * side.heads > 0; }

inline bool forward_by_vectors(const RotaryForward& a, DType dtype) {
  bool fits = in_vectors(a, 16 / element_size(dtype));
  for (const RotaryForwardSide& side : a.sides)
    if (there(a, side))
      fits =
          fits && side.x.dtype == dtype && aligned(a, side, side.x) && aligned(side, dtype) && starts_aligned(side.out);
  return fits;
}

template <bool kDyT>
auto forward_kernel(DType dtype, bool vectors) {
  if (!vectors) return rotary_forward_any<kDyT>;
  return dtype == DType::F32   ? rotary_forward_heads<DType::F32, kDyT>
         : dtype == DType::F16 ? rotary_forward_heads<DType::F16, kDyT>
                               : rotary_forward_heads<DType::BF16, kDyT>;
}

inline void launch_forward(const RotaryForward& a, cudaStream_t stream) {
  const DType dtype = a.sides[there(a, a.sides[0]) ? 0 : 1].x.dtype;
  const int elements = 16 / element_size(dtype);
  const bool vectors = forward_by_vectors(a, dtype);
  ForwardPlan plan;
  plan.inverse_dim = 1.f / static_cast<float>(a.dim);
  plan.lanes = vectors ? slot_lanes(a.dim, elements) : 32;
  for (int s = 0; s < 2; ++s) {
    const RotaryForwardSide& side = a.sides[s];
    plan.pieces[s] = vectors ? ceil_div(side.heads, 32 / plan.lanes * kForwardRows) : side.heads;
    plan.warps[s] = a.batch * side.tokens * plan.pieces[s];
  }
  const bool dyt = a.norm == HeadNorm::DyT;
  const auto kernel = dyt ? forward_kernel<true>(dtype, vectors) : forward_kernel<false>(dtype, vectors);
  launch(kernel, ceil_div(plan.warps[0] + plan.warps[1], kHeadWarps), 1, dim3(kHeadThreads), stream, a, plan);
}

}  // namespace presto::cuda
