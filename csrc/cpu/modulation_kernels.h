// The AdaLN family on the CPU, for one instruction set; the formulas stand in modulation.h.
//
// A row is read once from memory and then lives in L1: pass 1 forms x', stores it rounded and sums what it stored, pass
// 2 sums the squared distance from the mean, pass 3 writes h.  The modulation of a sample is folded once into
// h = y * factor + addend.  bf16 rounds in hardware where the processor can (avx512bf16).
//
// Bytes: forward 2 rows, 4 with a branch; backward 3 to 6 rows; and the modulation once per sample.
#pragma once
#include "modulation.h"
#include "scratch.h"

namespace presto::cpu::PRESTO_ISA {

inline float sigmoid_one_minus(float gate) { return 1.f / (1.f + __builtin_expf(gate - 1.f)); }

inline float gate_slope(GateFn fn, float gate) {
  if (fn == GateFn::Identity) return 1.f;
  const float s = sigmoid_one_minus(gate);
  return -s * (1.f - s);
}

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

// The modulation of one row, folded: h = y * factor + addend, and g(gate).  Prepared anew only where it changes.
class RowModulation {
 public:
  RowModulation(const SeamShape& shape, const SeamInputs& in) : shape_(shape), in_(in), rows_(4, shape.dim) {}
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
  float* gate() { return rows_.row(0); }
  float* factor() { return rows_.row(1); }
  float* addend() { return rows_.row(2); }

 private:
  const SeamShape& shape_;
  const SeamInputs& in_;
  Scratch rows_;
  int64_t b_ = -1;
};

// One row.  With kStream x' is kept in `line` for the norm and then streamed out.  (Two rows side by side share the
// loads of the modulation and fill each other's waits, and were 1.7 times slower: rows 2 KB apart fall on the same
// cache sets.)
template <bool kStream, class T, class Branch>
inline void forward_row(const SeamForward& args, int64_t r, RowModulation& modulation, T* line) {
  using Order = typename OrderOf<T, Branch>::Type;
  const Order order{};
  const int64_t d = args.dim, b = r / args.tokens, n = r % args.tokens;
  const T* x = row<T>(args.x, b, n);
  T* x_new = args.branch.data ? static_cast<T*>(args.x_new) + r * d : nullptr;
  PairSum total;
  if (x_new) {
    const float* gate = modulation.gate();
    const Branch* branch = row<Branch>(args.branch, b, n);
    const auto sum = [&](int64_t i, auto w) PRESTO_INLINE {
      return fma(load_pair(gate + i), load_pair(branch + i, w, order), load_pair(x + i, w, order));
    };
    if (args.norm == Norm::None)
      return sweep_pairs(
          d, [&](int64_t i, int, auto w) PRESTO_INLINE { put_pair<kStream>(x_new + i, sum(i, w), w, order); });
    T* kept = kStream ? line : x_new;
    sweep_pairs(
        d, [&](int64_t i, int j, auto w) PRESTO_INLINE { total.add(j, store_pair(kept + i, sum(i, w), w, order)); });
    x = kept;
  } else {
    sweep_pairs(d, [&](int64_t i, int j, auto w) PRESTO_INLINE { total.add(j, load_pair(x + i, w, order)); });
  }

  const float inverse_d = 1.f / static_cast<float>(d);
  const float mean = args.norm == Norm::Layer ? total.total() * inverse_d : 0.f;
  PairSum squares;
  sweep_pairs(d, [&](int64_t i, int j, auto w) PRESTO_INLINE {
    const Pair v = keep(load_pair(x + i, w, order) - splat_pair(mean), w, order);
    squares.add_product(j, v, v);
  });
  const float rstd = 1.f / __builtin_sqrtf(squares.total() * inverse_d + args.eps);
  const float *factor = modulation.factor(), *addend = modulation.addend();
  T* h = static_cast<T*>(args.h) + r * d;
  sweep_pairs(d, [&](int64_t i, int, auto w) PRESTO_INLINE {
    const Pair y = (load_pair(x + i, w, order) - splat_pair(mean)) * splat_pair(rstd);
    put_pair<kStream>(h + i, fma(y, load_pair(factor + i), load_pair(addend + i)), w, order);
  });
  if (kStream && x_new) stream_lines(x_new, line, d * static_cast<int64_t>(sizeof(T)));
  args.stats[2 * r] = mean;
  args.stats[2 * r + 1] = rstd;
}

template <bool kStream, class T, class Branch>
void forward_rows(const SeamForward& args, int64_t first, int64_t last) {
  RowModulation modulation(args, args);
  Scratch line(1, args.dim);
  for (int64_t r = first; r < last; ++r) {
    modulation.prepare(r / args.tokens, r % args.tokens, typename OrderOf<T, Branch>::Type{});
    forward_row<kStream, T, Branch>(args, r, modulation, reinterpret_cast<T*>(line.row(0)));
  }
  if (kStream) end_stream();
}

template <class T, class Branch>
void forward(const SeamForward& args, int64_t first, int64_t last) {
  if (can_stream<T>(args, args.x_new) && can_stream<T>(args, args.h)) {
    forward_rows<true, T, Branch>(args, first, last);
  } else {
    forward_rows<false, T, Branch>(args, first, last);
  }
}

// ---- backward --------------------------------------------------------------------------------------------------
// Rows are cut into chunks of kChunkRows rows of one sample, whatever the number of threads.  A chunk keeps up to five
// column sums in the workspace; columns are added up chunk by chunk afterwards.  64 rows: at 1379 tokens 22 chunks a
// sample share the work, and the sums of a chunk are 0.3 % of the bytes it reads.
constexpr int64_t kChunkRows = 64;

// The column sums a call needs.  With a scale shared by the tokens, weight and bias follow from the first two.
enum Column { kGrad, kGradY, kGate, kScaledGrad, kScaledGradY, kColumns };

inline int64_t chunks_per_sample(const SeamShape& s) { return (s.tokens + kChunkRows - 1) / kChunkRows; }

struct Wanted {
  bool grad_columns, gate_columns, scaled_columns;
  bool of(int column) const { return column == kGate ? gate_columns : column < kGate ? grad_columns : scaled_columns; }
  explicit Wanted(const SeamBackward& a)
      : grad_columns(a.grad_h.data && ((a.dscale && !a.scale.per_token) || (a.dshift && !a.shift.per_token) ||
                                       ((a.dweight || a.dbias) && !a.scale.per_token))),
        gate_columns(a.dgate && !a.gate.per_token),
        scaled_columns(a.grad_h.data && (a.dweight || a.dbias) && a.scale.per_token) {}
};

// Gradients of per-token modulation: one row each, no sum.  `dx` is unrounded, `y` and `grad_h` are null without a
// norm.
inline void per_token_gradients(const SeamBackward& a, int64_t b, int64_t n, const float* grad_h, const float* y,
                                const float* dx, Scratch& columns) {
  const int64_t d = a.dim, r = b * a.tokens + n;
  Scratch scratch(3, d);
  float *t = scratch.row(0), *u = scratch.row(1), *v = scratch.row(2);
  const auto write = [&](const Modulation& of, void* out, const float* values) {
    with_type(of.dtype, [&](auto type) {
      auto* to = static_cast<decltype(type)*>(out) + r * d;
      sweep(d, [&](int64_t i, int, auto w) PRESTO_INLINE { store(to + i, load(values + i, w), w); });
    });
  };
  if (a.dgate && a.gate.per_token) {
    to_float(a.gate, b, n, d, 1.f, t);
    to_float(a.branch, b, n, d, 0.f, u);
    for (int64_t i = 0; i < d; ++i) v[i] = dx[i] * u[i] * gate_slope(a.gate_fn, t[i]);
    write(a.gate, a.dgate, v);
  }
  if (!grad_h) return;
  if (a.dshift && a.shift.per_token) write(a.shift, a.dshift, grad_h);
  if (!a.scale.per_token) return;
  if (a.dscale) {
    to_float(a.weight, b, n, d, 1.f, t);
    to_float(a.bias, b, n, d, 0.f, u);
    for (int64_t i = 0; i < d; ++i) v[i] = grad_h[i] * (y[i] * t[i] + u[i]);
    write(a.scale, a.dscale, v);
  }
  if (a.dweight || a.dbias) {
    to_float(a.scale, b, n, d, 0.f, t);
    float *scaled = columns.row(kScaledGrad), *scaled_y = columns.row(kScaledGradY);
    for (int64_t i = 0; i < d; ++i) {
      scaled[i] += grad_h[i] * (1.f + t[i]);
      scaled_y[i] += grad_h[i] * (1.f + t[i]) * y[i];
    }
  }
}

// `columns` are the chunk's sums so far, kColumns padded rows in `order`.
template <bool kStream, class T, class Branch, class Order>
void backward_row(const SeamBackward& a, int64_t b, int64_t n, const Wanted& wanted, RowModulation& modulation,
                  Scratch& scratch, Scratch& columns, Order order) {
  const int64_t d = a.dim, r = b * a.tokens + n;
  const bool norm = a.grad_h.data != nullptr, per_token = any_per_token(a);
  float *ys = scratch.row(0), *dys = scratch.row(1), *dxs = scratch.row(2);
  Pair mean_dy = splat_pair(0.f), mean_dyy = mean_dy, rstd = mean_dy;
  if (norm) {
    const T *x = row<T>(a.x, b, n), *grad_h = row<T>(a.grad_h, b, n);
    const float* factor = modulation.factor();
    float *grad = columns.row(kGrad), *grad_y = columns.row(kGradY);
    const Pair mean = splat_pair(a.stats[2 * r]);
    rstd = splat_pair(a.stats[2 * r + 1]);
    PairSum dy_sum, dyy_sum;
    sweep_pairs(d, [&](int64_t i, int j, auto w) PRESTO_INLINE {
      const Pair g = load_pair(grad_h + i, w, order), y = keep((load_pair(x + i, w, order) - mean) * rstd, w, order);
      const Pair dy = g * load_pair(factor + i);
      keep_pair(ys + i, y);
      keep_pair(dys + i, dy);
      dy_sum.add(j, dy);
      dyy_sum.add_product(j, dy, y);
      if (wanted.grad_columns) {
        keep_pair(grad + i, load_pair(grad + i) + g);
        keep_pair(grad_y + i, fma(g, y, load_pair(grad_y + i)));
      }
    });
    const float inverse_d = 1.f / static_cast<float>(d);
    if (a.norm == Norm::Layer) mean_dy = splat_pair(dy_sum.total() * inverse_d);
    mean_dyy = splat_pair(dyy_sum.total() * inverse_d);
  }
  const T* grad_x = a.grad_x.data ? row<T>(a.grad_x, b, n) : nullptr;
  const Branch* branch = a.branch.data ? row<Branch>(a.branch, b, n) : nullptr;
  T* dx = a.dx ? static_cast<T*>(a.dx) + r * d : nullptr;
  Branch* dbranch = a.dbranch ? static_cast<Branch*>(a.dbranch) + r * d : nullptr;
  const float* gate = modulation.gate();
  float* dgate = columns.row(kGate);
  sweep_pairs(d, [&](int64_t i, int, auto w) PRESTO_INLINE {
    Pair v = splat_pair(0.f);
    if (norm) v = (load_pair(dys + i) - mean_dy - load_pair(ys + i) * mean_dyy) * rstd;
    if (grad_x) v = v + load_pair(grad_x + i, w, order);
    if (dx) put_pair<kStream>(dx + i, v, w, order);
    if (dbranch) put_pair<kStream>(dbranch + i, v * load_pair(gate + i), w, order);
    if (wanted.gate_columns) keep_pair(dgate + i, fma(v, load_pair(branch + i, w, order), load_pair(dgate + i)));
    if (per_token) keep_pair(dxs + i, v);
  });
  if (per_token) {  // in natural order, see backward()
    if (norm) to_float(a.grad_h, b, n, d, 0.f, dys);
    per_token_gradients(a, b, n, norm ? dys : nullptr, ys, dxs, columns);
  }
}

template <bool kStream, class T, class Branch, class Order>
void backward_chunks(const SeamBackward& a, int64_t first_chunk, int64_t last_chunk, Order order) {
  const int64_t per_sample = chunks_per_sample(a);
  const Wanted wanted(a);
  RowModulation modulation(a, a);
  Scratch scratch(3, a.dim), columns(kColumns, a.dim);
  for (int64_t c = first_chunk; c < last_chunk; ++c) {
    const int64_t b = c / per_sample, begin = c % per_sample * kChunkRows;
    const int64_t end = begin + kChunkRows < a.tokens ? begin + kChunkRows : a.tokens;
    columns.clear();
    for (int64_t n = begin; n < end; ++n) {
      modulation.prepare(b, n, order);
      backward_row<kStream, T, Branch>(a, b, n, wanted, modulation, scratch, columns, order);
    }
    for (int k = 0; k < kColumns; ++k) {
      if (!wanted.of(k)) continue;
      const float* sums = columns.row(k);
      float* out = a.workspace + (c * kColumns + k) * a.dim;
      put_back_in_order(columns.row(k), a.dim, order);
      sweep(a.dim, [&](int64_t i, int, auto w) PRESTO_INLINE { store(out + i, load(sums + i, w), w); });
    }
  }
  if (kStream) end_stream();
}

template <class T, class Branch>
void backward(const SeamBackward& a, int64_t first_chunk, int64_t last_chunk) {
  using Order = typename OrderOf<T, Branch>::Type;
  const bool stream = can_stream<T>(a, a.dx) && can_stream<Branch>(a, a.dbranch);
  if (any_per_token(a)) {
    backward_chunks<false, T, Branch>(a, first_chunk, last_chunk, Natural{});
  } else if (stream) {
    backward_chunks<true, T, Branch>(a, first_chunk, last_chunk, Order{});
  } else {
    backward_chunks<false, T, Branch>(a, first_chunk, last_chunk, Order{});
  }
}

// Columns [first, last) of the gradients that are summed over the tokens, a block at a time so that the sums stay in
// L1.
inline void backward_columns(const SeamBackward& a, int64_t first, int64_t last) {
  constexpr int64_t kBlock = 512;
  const int64_t d = a.dim, per_sample = chunks_per_sample(a);
  const Wanted wanted(a);
  struct Gradient {
    const Modulation& of;
    void* out;
    float* total;  // of this sample, or of the samples so far where the batch shares it
  };
  Scratch sums(kColumns, kBlock), totals(5, kBlock), inputs(3, kBlock);
  const Gradient dgate{a.gate, a.dgate, totals.row(0)}, dscale{a.scale, a.dscale, totals.row(1)},
      dshift{a.shift, a.dshift, totals.row(2)}, dweight{a.weight, a.dweight, totals.row(3)},
      dbias{a.bias, a.dbias, totals.row(4)};
  for (int64_t at = first; at < last; at += kBlock) {
    const int64_t width = at + kBlock < last ? kBlock : last - at;
    for (int k = 0; k < 5; ++k) to_float(Rows{}, 0, 0, width, 0.f, totals.row(k));

    // These columns of a modulation of sample b, as fp32.
    const auto columns_of = [&](const Modulation& m, int64_t b, float otherwise, float* to) {
      Rows here = m;
      here.batch_stride = m.per_token ? 0 : m.batch_stride;
      if (m.data) with_type(m.dtype, [&](auto type) { here.data = static_cast<const decltype(type)*>(m.data) + at; });
      to_float(here, b, 0, width, otherwise, to);
      return to;
    };
    // gradient += value(i); written when the sample, or the batch, is complete.
    const auto add = [&](const Gradient& g, int64_t b, auto value) {
      if (!g.out || g.of.per_token) return;
      for (int64_t i = 0; i < width; ++i) g.total[i] += value(i);
      if (!g.of.per_sample && b + 1 < a.batch) return;
      with_type(g.of.dtype, [&](auto type) {
        auto* to = static_cast<decltype(type)*>(g.out) + (g.of.per_sample ? b : 0) * d + at;
        sweep(width, [&](int64_t i, int, auto w) PRESTO_INLINE { store(to + i, load(g.total + i, w), w); });
      });
      for (int64_t i = 0; i < width; ++i) g.total[i] = 0.f;
    };

    for (int64_t b = 0; b < a.batch; ++b) {
      for (int k = 0; k < kColumns; ++k) {
        float* sum = sums.row(k);
        to_float(Rows{}, 0, 0, width, 0.f, sum);
        for (int64_t c = b * per_sample; wanted.of(k) && c < (b + 1) * per_sample; ++c) {
          const float* chunk = a.workspace + (c * kColumns + k) * d + at;
          sweep(width, [&](int64_t i, int, auto w)
                           PRESTO_INLINE { store(sum + i, load(sum + i, w) + load(chunk + i, w), w); });
        }
      }
      const float *grad = sums.row(kGrad), *grad_y = sums.row(kGradY), *gated = sums.row(kGate);
      const float *scaled = sums.row(kScaledGrad), *scaled_y = sums.row(kScaledGradY);
      const float* gate = columns_of(a.gate, b, 1.f, inputs.row(0));
      add(dgate, b, [&](int64_t i) { return gated[i] * gate_slope(a.gate_fn, gate[i]); });
      if (!a.grad_h.data) continue;
      const float* weight = columns_of(a.weight, b, 1.f, inputs.row(0));
      const float* bias = columns_of(a.bias, b, 0.f, inputs.row(1));
      const float* scale = columns_of(a.scale, b, 0.f, inputs.row(2));
      const bool per_row = a.scale.per_token;
      add(dscale, b, [&](int64_t i) { return grad_y[i] * weight[i] + grad[i] * bias[i]; });
      add(dshift, b, [&](int64_t i) { return grad[i]; });
      add(dweight, b, [&](int64_t i) { return per_row ? scaled_y[i] : grad_y[i] * (1.f + scale[i]); });
      add(dbias, b, [&](int64_t i) { return per_row ? scaled[i] : grad[i] * (1.f + scale[i]); });
    }
  }
}

}  // namespace presto::cpu::PRESTO_ISA
