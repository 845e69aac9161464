// The few formulas that the forward and the backward kernels share.  A product that is added to something is written as
// fmaf, so that every kernel rounds alike whatever the compiler would have contracted.
#pragma once
#include <algorithm>
#include <initializer_list>

#include "modulation.h"
#include "tanh_slope.cuh"
#include "vector.cuh"

namespace presto::cuda {

// gate -> g(gate), and -> dg/dgate.  sigmoid_one_minus: s = sigmoid(1 - gate) and -s (1 - s), the latter from an
// exponential that cannot overflow.
template <int E>
__device__ inline void apply_gate_fn(GateFn fn, float (&gate)[E]) {
  if (fn == GateFn::Identity) return;
#pragma unroll
  for (int e = 0; e < E; ++e) gate[e] = __fdividef(1.f, 1.f + expf(gate[e] - 1.f));
}

template <int E>
__device__ inline void apply_gate_slope(GateFn fn, float (&gate)[E]) {
  if (fn == GateFn::Identity) {
#pragma unroll
    for (int e = 0; e < E; ++e) gate[e] = 1.f;
    return;
  }
#pragma unroll
  for (int e = 0; e < E; ++e) {
    const float s = expf(-fabsf(gate[e] - 1.f));
    gate[e] = -__fdividef(s, (1.f + s) * (1.f + s));
  }
}

// sum / dim, to the last bit or nearly, without a division.
__device__ inline float mean_of(float sum, float dim, float inverse_dim) {
  const float mean = sum * inverse_dim;
  return fmaf(fmaf(-mean, dim, sum), inverse_dim, mean);
}

// Columns [column, column + E) of one row of a modulation in dtype M; `otherwise` where it is not given.
template <DType M, int E>
__device__ inline void load_modulation(const Modulation& m, int64_t sample, int column, float otherwise,
                                       float (&value)[E]) {
  if (m.data) {
    decode(load<M, E>(m.data, sample * m.batch_stride + column), value);
  } else {
#pragma unroll
    for (int e = 0; e < E; ++e) value[e] = otherwise;
  }
}

// The same for any dtype and alignment, and for a modulation that differs by token.
template <int E>
__device__ inline void load_modulation_any(const Modulation& m, int64_t sample, int64_t token, int64_t column,
                                           float otherwise, float (&value)[E]) {
  if (m.data) {
    load_any(m.data, m.dtype, sample * m.batch_stride + token * m.row_stride + column, value);
  } else {
#pragma unroll
    for (int e = 0; e < E; ++e) value[e] = otherwise;
  }
}

// g(gate), 1 where there is no gate.
template <DType M, int E>
__device__ inline void load_gate(const SeamShape& shape, const Modulation& m, int64_t sample, int column,
                                 float (&value)[E]) {
  load_modulation<M>(m, sample, column, 1.f, value);
  if (m.data) apply_gate_fn(shape.gate_fn, value);
}

template <int E>
__device__ inline void load_gate_any(const SeamShape& shape, const Modulation& m, int64_t sample, int64_t token,
                                     int64_t column, float (&value)[E]) {
  load_modulation_any(m, sample, token, column, 1.f, value);
  if (m.data) apply_gate_fn(shape.gate_fn, value);
}

// alpha of norm dyt.
__device__ inline float load_alpha(const SeamInputs& in) {
  float alpha[1];
  load_any(in.alpha.data, in.alpha.dtype, 0, alpha);
  return alpha[0];
}

// Whether a call asks for what the kernels with kExtra have and the others lack: norm dyt, or residual2.  Those others
// then need neither the registers nor the branches.
inline bool is_extra(const SeamShape& shape, const SeamInputs& in) {
  return shape.norm == Norm::Dyt || in.residual2.data;
}

// What the host asks to choose between the kernels.
inline int size_of(DType dtype) { return dtype == DType::F32 ? 4 : 2; }

inline bool aligned(const void* data, int bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

// Whether every run of `elements` elements, counted from a row's start, can be read in pieces of up to 16 bytes.
inline bool aligned(const SeamShape& shape, const Rows& rows, int elements) {
  const int bytes = std::min(16, elements * size_of(rows.dtype));
  return aligned(rows.data, bytes) && (shape.batch == 1 || rows.batch_stride * size_of(rows.dtype) % bytes == 0) &&
         (shape.tokens == 1 || rows.row_stride * size_of(rows.dtype) % bytes == 0);
}

// The dtype that all given modulations but residual2 have; `none` where none is given, and -1 where they differ.
inline int common_dtype(const SeamInputs& in, DType none) {
  int dtype = -1;
  for (const Modulation* m : {&in.gate, &in.scale, &in.shift, &in.weight, &in.bias}) {
    if (!m->data) continue;
    if (dtype >= 0 && dtype != static_cast<int>(m->dtype)) return -1;
    dtype = static_cast<int>(m->dtype);
  }
  return dtype < 0 ? static_cast<int>(none) : dtype;
}

}  // namespace presto::cuda
