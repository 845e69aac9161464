// The AdaLN family on the CPU, forward, for one instruction set; the formulas stand in modulation.h.
//
// A row is read once from memory and then lives in L1: pass 1 forms x', stores it rounded and sums what it stored, pass
// 2 sums the squared distance from the mean, pass 3 writes h (dyt: 1 and 3 alone).  The modulation of a sample is
// folded once into h = y * factor + addend.  bf16 rounds in hardware where the processor can (avx512bf16).
//
// Bytes: 2 rows, 4 with a branch, one more with a residual2 by token; and the modulation once per sample.
#pragma once
#include "modulation.h"
#include "scratch.h"
#include "simd_math.h"

namespace presto::cpu::PRESTO_ISA {

inline float sigmoid_one_minus(float gate) { return 1.f / (1.f + __builtin_expf(gate - 1.f)); }

// Whether a result [B, N, D] of T may be streamed: large enough, and its rows whole cache lines.  One that is not
// wanted (null) is in nobody's way.
template <class T>
inline bool can_stream(const SeamShape& s, const void* result) {
  const int64_t row_bytes = s.dim * static_cast<int64_t>(sizeof(T));
  return result == nullptr || (s.batch * s.tokens * row_bytes >= kStreamBytes && s.dim % kPair == 0 &&
                               row_bytes % 64 == 0 && reinterpret_cast<uintptr_t>(result) % 64 == 0);
}

inline bool any_per_token(const SeamInputs& in) {
  return in.gate.per_token || in.scale.per_token || in.shift.per_token;
}

inline Pair tanh(Pair x) { return {tanh(x.a), tanh(x.b)}; }
inline Pair tanh_slope(Pair x) { return {tanh_slope(x.a), tanh_slope(x.b)}; }

// alpha as fp32.
inline float scalar(const Rows& of) {
  float value;
  to_float(of, 0, 0, 1, 0.f, &value);
  return value;
}

// The modulation of one row, folded: h = y * factor + addend, and g(gate); and residual2, for the forward.  Prepared
// anew only where it changes.
class RowModulation {
 public:
  RowModulation(const SeamShape& shape, const SeamInputs& in) : shape_(shape), in_(in), rows_(5, shape.dim) {}
  template <class Order>
  void prepare(int64_t b, int64_t n, Order order) {
    if (b == b_ && !any_per_token(in_)) return;
    b_ = b;
    const int64_t d = shape_.dim;
    for (int64_t i = 0; i < 3; ++i) rows_.clear_padding(i, d);
    if (in_.branch.data) {
      to_float(in_.gate, b, n, d, 1.f, gate());
      if (in_.gate.data && shape_.gate_fn == GateFn::SigmoidOneMinus)
        for (int64_t i = 0; i < d; ++i) gate()[i] = sigmoid_one_minus(gate()[i]);
      put_in_order(gate(), d, order);
    }
    if (shape_.norm == Norm::None) return;
    float* t = rows_.row(3);
    to_float(in_.scale, b, n, d, 0.f, t);
    to_float(in_.weight, b, n, d, 1.f, factor());
    to_float(in_.bias, b, n, d, 0.f, addend());
    float *f = factor(), *a = addend();
    for (int64_t i = 0; i < d; ++i) {
      f[i] *= 1.f + t[i];
      a[i] *= 1.f + t[i];
    }
    to_float(in_.shift, b, n, d, 0.f, t);
    for (int64_t i = 0; i < d; ++i) a[i] += t[i];
    put_in_order(f, d, order);
    put_in_order(a, d, order);
  }
  template <class Order>
  void prepare_residual2(int64_t b, int64_t n, Order order) {
    if (b == residual2_b_ && !in_.residual2.per_token) return;
    residual2_b_ = b;
    rows_.clear_padding(4, shape_.dim);
    to_float(in_.residual2, b, n, shape_.dim, 0.f, residual2());
    put_in_order(residual2(), shape_.dim, order);
  }
  float* gate() { return rows_.row(0); }
  float* factor() { return rows_.row(1); }
  float* addend() { return rows_.row(2); }
  float* residual2() { return rows_.row(4); }

 private:
  const SeamShape& shape_;
  const SeamInputs& in_;
  Scratch rows_;
  int64_t b_ = -1, residual2_b_ = -1;
};

// One row.  With kStream x' is kept in `line` for the norm and then streamed out.  (Two rows side by side share the
// loads of the modulation and fill each other's waits, and were 1.7 times slower: rows 2 KB apart fall on the same
// cache sets.)
template <bool kStream, bool kResidual2, class T, class Branch>
inline void forward_row(const SeamForward& args, int64_t r, RowModulation& modulation, T* line) {
  using Order = typename OrderOf<T, Branch>::Type;
  const Order order{};
  const int64_t d = args.dim, b = r / args.tokens, n = r % args.tokens;
  const T* x = row<T>(args.x, b, n);
  T* x_new = args.branch.data ? static_cast<T*>(args.x_new) + r * d : nullptr;
  PairSum total;
  if (x_new) {
    const float *gate = modulation.gate(), *residual2 = modulation.residual2();
    const Branch* branch = row<Branch>(args.branch, b, n);
    const auto sum = [&](int64_t i, auto w) PRESTO_INLINE {
      const Pair v = fma(load_pair(gate + i), load_pair(branch + i, w, order), load_pair(x + i, w, order));
      return kResidual2 ? v + load_pair(residual2 + i) : v;
    };
    if (args.norm == Norm::None)
      return sweep_pairs(
          d, [&](int64_t i, int, auto w) PRESTO_INLINE { put_pair<kStream>(x_new + i, sum(i, w), w, order); });
    T* kept = kStream ? line : x_new;
    sweep_pairs(
        d, [&](int64_t i, int j, auto w) PRESTO_INLINE { total.add(j, store_pair(kept + i, sum(i, w), w, order)); });
    x = kept;
  } else if (args.norm != Norm::Dyt) {
    sweep_pairs(d, [&](int64_t i, int j, auto w) PRESTO_INLINE { total.add(j, load_pair(x + i, w, order)); });
  }

  const float *factor = modulation.factor(), *addend = modulation.addend();
  T* h = static_cast<T*>(args.h) + r * d;
  if (args.norm == Norm::Dyt) {
    const Pair alpha = splat_pair(scalar(args.alpha));
    sweep_pairs(d, [&](int64_t i, int, auto w) PRESTO_INLINE {
      const Pair y = tanh(alpha * load_pair(x + i, w, order));
      put_pair<kStream>(h + i, fma(y, load_pair(factor + i), load_pair(addend + i)), w, order);
    });
    if (kStream && x_new) stream_lines(x_new, line, d * static_cast<int64_t>(sizeof(T)));
    return;
  }

  const float inverse_d = 1.f / static_cast<float>(d);
  const float mean = args.norm == Norm::Layer ? total.total() * inverse_d : 0.f;
  PairSum squares;
  sweep_pairs(d, [&](int64_t i, int j, auto w) PRESTO_INLINE {
    const Pair v = keep(load_pair(x + i, w, order) - splat_pair(mean), w, order);
    squares.add_product(j, v, v);
  });
  const float rstd = 1.f / __builtin_sqrtf(squares.total() * inverse_d + args.eps);
  sweep_pairs(d, [&](int64_t i, int, auto w) PRESTO_INLINE {
    const Pair y = (load_pair(x + i, w, order) - splat_pair(mean)) * splat_pair(rstd);
    put_pair<kStream>(h + i, fma(y, load_pair(factor + i), load_pair(addend + i)), w, order);
  });
  if (kStream && x_new) stream_lines(x_new, line, d * static_cast<int64_t>(sizeof(T)));
  args.stats[2 * r] = mean;
  args.stats[2 * r + 1] = rstd;
}

template <bool kStream, bool kResidual2, class T, class Branch>
void forward_rows(const SeamForward& args, int64_t first, int64_t last) {
  RowModulation modulation(args, args);
  Scratch line(1, args.dim);
  for (int64_t r = first; r < last; ++r) {
    const typename OrderOf<T, Branch>::Type order{};
    modulation.prepare(r / args.tokens, r % args.tokens, order);
    if constexpr (kResidual2) modulation.prepare_residual2(r / args.tokens, r % args.tokens, order);
    forward_row<kStream, kResidual2, T, Branch>(args, r, modulation, reinterpret_cast<T*>(line.row(0)));
  }
  if (kStream) end_stream();
}

template <class T, class Branch>
void forward(const SeamForward& args, int64_t first, int64_t last) {
  const bool stream = can_stream<T>(args, args.x_new) && can_stream<T>(args, args.h);
  if (args.residual2.data) {
    if (stream) return forward_rows<true, true, T, Branch>(args, first, last);
    return forward_rows<false, true, T, Branch>(args, first, last);
  }
  if (stream) return forward_rows<true, false, T, Branch>(args, first, last);
  forward_rows<false, false, T, Branch>(args, first, last);
}

}  // namespace presto::cpu::PRESTO_ISA
