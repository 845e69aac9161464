// The formulas of the activations for one element.  expf, erff and sinf are CUDA's accurate ones: what is computed here
// hides behind the memory.
#pragma once
#include "activation.h"
#include "sincospi.cuh"
#include "vector.cuh"

namespace presto::cuda {

struct Activated {
  float value, slope;
};

template <Act kAct>
__device__ inline float activate(float gate) {
  if constexpr (kAct == Act::Silu) return gate / (1.f + expf(-gate));
  if constexpr (kAct == Act::SinPi) return sin_cos_pi(gate).sin;
  return gate * (0.5f + 0.5f * erff(gate * 0.707106781f));
}

template <Act kAct>
__device__ inline Activated activate_with_slope(float gate) {
  if constexpr (kAct == Act::Silu) {
    const float s = 1.f / (1.f + expf(-gate));
    return {gate * s, s * fmaf(gate, 1.f - s, 1.f)};
  }
  if constexpr (kAct == Act::SinPi) {
    const SinCos at = sin_cos_pi(gate);
    return {at.sin, sincospi::kPi * at.cos};
  }
  const float cdf = 0.5f + 0.5f * erff(gate * 0.707106781f);
  const float pdf = 0.398942280f * expf(-0.5f * gate * gate);
  return {gate * cdf, fmaf(gate, pdf, cdf)};
}

// alpha, beta and 1 / (beta + 1e-9) of a channel.
struct Channel {
  float alpha, beta, factor;
};
__device__ inline Channel load_channel(const SnakeShape& s, int64_t channel) {
  float alpha[1], beta[1];
  load_any(s.alpha.data, s.alpha.dtype, channel * s.alpha.row_stride, alpha);
  load_any(s.beta.data, s.beta.dtype, channel * s.beta.row_stride, beta);
  return {alpha[0], beta[0], 1.f / (beta[0] + kSnakeEpsilon)};
}

// What the host asks to choose between the kernels.
inline int size_in_bytes(DType dtype) { return dtype == DType::F32 ? 4 : 2; }

// Whether runs of `width` elements of rows [outer, inner, width] begin and end at multiples of 16 bytes.
inline bool whole_vectors(const Rows& rows, int64_t outer, int64_t inner, int64_t width) {
  const int size = size_in_bytes(rows.dtype);
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && width * size % 16 == 0 &&
         (outer == 1 || rows.batch_stride * size % 16 == 0) && (inner == 1 || rows.row_stride * size % 16 == 0);
}

}  // namespace presto::cuda
