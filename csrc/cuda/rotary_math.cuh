// How the heads of q and k are dealt to threads, and what the forward and the backward kernels share.
//
// Every kernel's grid covers q's work and behind it k's, so that one launch serves both.  A head that can be read 16
// bytes at a time is taken by the 2, 4, 8, ... lanes of a *slot*: each lane has two vectors of E elements, its columns,
// and both elements of every rotary pair:
//   half-split   columns p .. p + E and p + R/2 ..       (p < R/2), behind R the two halves of what is left
//   interleaved  columns 2p .. 2p + 2E
// so that a rotation needs no shuffle.  Any other head is taken by a warp, element by element.
#pragma once
#include <initializer_list>

#include "launch.cuh"
#include "reduce.cuh"
#include "rotary.h"
#include "vector.cuh"

namespace presto::cuda {

constexpr int kHeadThreads = 128;
constexpr int kHeadWarps = kHeadThreads / 32;

inline int element_size(DType dtype) { return dtype == DType::F32 ? 4 : 2; }

// 2 E columns: first .. first + E and second .. second + E; a lane beyond the head has none.
struct Columns {
  int first, second;
  bool inside, turned;
};

template <int E>
__device__ inline Columns columns_of(const RotaryShape& s, int lane) {
  const int p = lane * E, dim = static_cast<int>(s.dim), half = static_cast<int>(s.half);
  if (s.interleaved) return {2 * p, 2 * p + E, 2 * p < dim, 2 * p < 2 * half};
  if (p < half) return {p, p + half, true, true};
  const int rest = p - half;
  return {2 * half + rest, half + rest + dim / 2, 2 * p < dim, false};
}

// Sums over the 2^k lanes of a slot; every lane ends with the same bits.
template <int K>
__device__ inline void slot_sum(float (&value)[K], int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int k = 0; k < K; ++k) value[k] += __shfl_xor_sync(0xffffffffu, value[k], offset);
  }
}

// cos and sin of a lane's E pairs.
template <int E>
struct Angles {
  float cos[E], sin[E];
};

template <int E>
__device__ inline Angles<E> load_angles(const RotarySide& side, int64_t n, const Columns& at, bool interleaved) {
  Angles<E> angles;
#pragma unroll
  for (int e = 0; e < E; ++e) angles.cos[e] = 1.f, angles.sin[e] = 0.f;
  if (at.turned) {
    const int pair = interleaved ? at.first / 2 : at.first;
    decode(load<DType::F32, E>(side.cos, n * side.cos_stride + pair), angles.cos);
    decode(load<DType::F32, E>(side.sin, n * side.sin_stride + pair), angles.sin);
  }
  return angles;
}

// Turns a lane's 2 E values by the angle times `sign`.
template <int E>
__device__ inline void turn(float (&v)[2][E], const Angles<E>& angles, const Columns& at, bool interleaved,
                            float sign) {
  if (!at.turned) return;
  if (interleaved) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < E; e += 2) {
        const float cos = angles.cos[half * E / 2 + e / 2], sin = sign * angles.sin[half * E / 2 + e / 2];
        const float a = v[half][e], b = v[half][e + 1];
        v[half][e] = fmaf(a, cos, -b * sin);
        v[half][e + 1] = fmaf(b, cos, a * sin);
      }
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < E; ++e) {
    const float cos = angles.cos[e], sin = sign * angles.sin[e], a = v[0][e], b = v[1][e];
    v[0][e] = fmaf(a, cos, -b * sin);
    v[1][e] = fmaf(b, cos, a * sin);
  }
}

// A weight or bias in X or fp32; `otherwise` where it is not given.
template <DType X, int E>
__device__ inline void load_vector(const HeadVector& vector, const Columns& at, float otherwise, float (&v)[2][E]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int e = 0; e < E; ++e) v[half][e] = otherwise;
    if (!vector.data || !at.inside) continue;
    const int column = half ? at.second : at.first;
    if (vector.dtype == X)
      decode(load<X, E>(vector.data, column), v[half]);
    else
      decode(load<DType::F32, E>(vector.data, column), v[half]);
  }
}

// scale and, for the gradient, the factor of sum(dn * n): 1/Dh, or for l2 1 where |x| >= eps, else 0.
struct Scale {
  float scale = 1.f, reach = 0.f;
};

__device__ inline Scale scale_of(const RotaryShape& s, float squares, float inverse_dim) {
  if (s.norm == HeadNorm::L2) {
    const float length = sqrtf(squares);
    return {1.f / (length < s.eps ? s.eps : length), length >= s.eps ? 1.f : 0.f};  // NaN stays
  }
  return {1.f / sqrtf(fmaf(squares, inverse_dim, s.eps)), inverse_dim};
}

// Normalises the lane's part of a head in place; `lanes` is the slot's width.
template <int E>
__device__ inline Scale normalise(const RotaryShape& s, float (&v)[2][E], bool inside, int lanes, float inverse_dim) {
  if (s.norm == HeadNorm::None) return {};
  float sum[1] = {};
  if (s.norm == HeadNorm::Layer) {
#pragma unroll
    for (int e = 0; e < E; ++e) sum[0] += v[0][e] + v[1][e];
    slot_sum(sum, lanes);
    const float mean = inside ? sum[0] * inverse_dim : 0.f;
#pragma unroll
    for (int e = 0; e < E; ++e) v[0][e] -= mean, v[1][e] -= mean;
    sum[0] = 0.f;
  }
#pragma unroll
  for (int e = 0; e < E; ++e) sum[0] = fmaf(v[0][e], v[0][e], fmaf(v[1][e], v[1][e], sum[0]));
  slot_sum(sum, lanes);
  const Scale scale = scale_of(s, sum[0], inverse_dim);
#pragma unroll
  for (int e = 0; e < E; ++e) v[0][e] *= scale.scale, v[1][e] *= scale.scale;
  return scale;
}

__device__ inline float element(const HeadVector& vector, int64_t column, float otherwise) {
  if (!vector.data) return otherwise;
  float value[1];
  load_any(vector.data, vector.dtype, column, value);
  return value[0];
}

// DyT of the lane's part of a head, in place.
template <int E>
__device__ inline void squash(float (&v)[2][E], float alpha) {
#pragma unroll
  for (int e = 0; e < E; ++e) v[0][e] = tanhf(alpha * v[0][e]), v[1][e] = tanhf(alpha * v[1][e]);
}

// ---- the host's choice -------------------------------------------------------------------------------------------
inline bool starts_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

inline bool aligned(const RotaryShape& s, const RotarySide& side, const Heads& heads) {
  const int64_t size = element_size(heads.dtype);
  return starts_aligned(heads.data) && (s.batch == 1 || heads.batch_stride * size % 16 == 0) &&
         (side.tokens == 1 || heads.token_stride * size % 16 == 0) &&
         (side.heads == 1 || heads.head_stride * size % 16 == 0);
}

// Whether all that belongs to the heads can be read 16 bytes at a time, weight and bias being of `dtype` or fp32.
inline bool aligned(const RotarySide& side, DType dtype) {
  bool fits =
      starts_aligned(side.cos) && starts_aligned(side.sin) && side.cos_stride % 4 == 0 && side.sin_stride % 4 == 0;
  for (const HeadVector* v : {&side.weight, &side.bias})
    if (v->data) fits = fits && starts_aligned(v->data) && (v->dtype == dtype || v->dtype == DType::F32);
  return fits;
}

// Whether heads of this size fall into vectors of E elements, both halves of the turned part and of the rest, and into
// at most 32 lanes.
inline bool in_vectors(const RotaryShape& s, int elements) {
  const int64_t columns = 2 * elements;
  return s.dim % columns == 0 && s.dim / columns <= 32 && 2 * s.half % columns == 0;
}

inline int slot_lanes(int64_t dim, int elements) {
  int lanes = 1;
  while (lanes * 2 * elements < dim) lanes *= 2;
  return lanes;
}

}  // namespace presto::cuda
