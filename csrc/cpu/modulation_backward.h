// The AdaLN family on the CPU, backward, for one instruction set; the formulas stand in modulation.h.
//
// Rows are cut into chunks of kChunkRows rows of one sample, whatever the number of threads.  A chunk keeps up to seven
// column sums in the workspace; columns are added up chunk by chunk afterwards.  64 rows: at 1379 tokens 22 chunks a
// sample share the work, and the sums of a chunk are 0.3 % of the bytes it reads.
//
// Bytes: 3 to 6 rows, and the modulation once per sample.
#pragma once
#include "modulation_forward.h"

namespace presto::cpu::PRESTO_ISA {

constexpr int64_t kChunkRows = 64;

inline float gate_slope(GateFn fn, float gate) {
  if (fn == GateFn::Identity) return 1.f;
  const float s = sigmoid_one_minus(gate);
  return -s * (1.f - s);
}

// The column sums a call needs.  With a scale shared by the tokens, weight and bias follow from the first two.
enum Column { kGrad, kGradY, kGate, kScaledGrad, kScaledGradY, kAlpha, kResidual2, kColumns };

inline int64_t chunks_per_sample(const SeamShape& s) { return (s.tokens + kChunkRows - 1) / kChunkRows; }

struct Wanted {
  bool grad_columns, gate_columns, scaled_columns, alpha_columns, residual2_columns;
  bool of(int column) const {
    if (column == kAlpha) return alpha_columns;
    if (column == kResidual2) return residual2_columns;
    return column == kGate ? gate_columns : column < kGate ? grad_columns : scaled_columns;
  }
  explicit Wanted(const SeamBackward& a)
      : grad_columns(a.grad_h.data && ((a.dscale && !a.scale.per_token) || (a.dshift && !a.shift.per_token) ||
                                       ((a.dweight || a.dbias) && !a.scale.per_token))),
        gate_columns(a.dgate && !a.gate.per_token),
        scaled_columns(a.grad_h.data && (a.dweight || a.dbias) && a.scale.per_token),
        alpha_columns(a.grad_h.data && a.dalpha),
        residual2_columns(a.dresidual2 && !a.residual2.per_token) {}
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
  if (a.dresidual2 && a.residual2.per_token) write(a.residual2, a.dresidual2, dx);
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

// Whether some gradient has a row per token, besides dx and dbranch.
inline bool gradients_by_token(const SeamBackward& a) {
  return any_per_token(a) || (a.dresidual2 && a.residual2.per_token);
}

// `columns` are the chunk's sums so far, kColumns padded rows in `order`.
template <bool kStream, class T, class Branch, class Order>
void backward_row(const SeamBackward& a, int64_t b, int64_t n, const Wanted& wanted, RowModulation& modulation,
                  Scratch& scratch, Scratch& columns, Order order) {
  const int64_t d = a.dim, r = b * a.tokens + n;
  const bool norm = a.grad_h.data != nullptr, dyt = norm && a.norm == Norm::Dyt, by_token = gradients_by_token(a);
  float *ys = scratch.row(0), *dys = scratch.row(1), *dxs = scratch.row(2);
  Pair mean_dy = splat_pair(0.f), mean_dyy = mean_dy, rstd = mean_dy;
  float *grad = columns.row(kGrad), *grad_y = columns.row(kGradY);
  if (dyt) {  // dys are what comes through the norm, which takes the means off: 0
    const T *x = row<T>(a.x, b, n), *grad_h = row<T>(a.grad_h, b, n);
    const float* factor = modulation.factor();
    float* dalpha = columns.row(kAlpha);
    const Pair alpha = splat_pair(scalar(a.alpha));
    rstd = splat_pair(1.f);
    sweep_pairs(d, [&](int64_t i, int, auto w) PRESTO_INLINE {
      const Pair g = load_pair(grad_h + i, w, order), v = load_pair(x + i, w, order);
      const Pair y = tanh(alpha * v), inner = g * load_pair(factor + i) * tanh_slope(alpha * v);
      keep_pair(ys + i, y);
      keep_pair(dys + i, alpha * inner);
      if (wanted.alpha_columns) keep_pair(dalpha + i, fma(inner, v, load_pair(dalpha + i)));
      if (wanted.grad_columns) {
        keep_pair(grad + i, load_pair(grad + i) + g);
        keep_pair(grad_y + i, fma(g, y, load_pair(grad_y + i)));
      }
    });
  } else if (norm) {
    const T *x = row<T>(a.x, b, n), *grad_h = row<T>(a.grad_h, b, n);
    const float* factor = modulation.factor();
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
  const bool keep_dx = by_token || wanted.residual2_columns;
  sweep_pairs(d, [&](int64_t i, int, auto w) PRESTO_INLINE {
    Pair v = splat_pair(0.f);
    if (norm) v = (load_pair(dys + i) - mean_dy - load_pair(ys + i) * mean_dyy) * rstd;
    if (grad_x) v = v + load_pair(grad_x + i, w, order);
    if (dx) put_pair<kStream>(dx + i, v, w, order);
    if (dbranch) put_pair<kStream>(dbranch + i, v * load_pair(gate + i), w, order);
    if (wanted.gate_columns) keep_pair(dgate + i, fma(v, load_pair(branch + i, w, order), load_pair(dgate + i)));
    if (keep_dx) keep_pair(dxs + i, v);
  });
  if (wanted.residual2_columns) {
    float* dresidual2 = columns.row(kResidual2);
    for (int64_t i = 0; i < d; i += kPair) keep_pair(dresidual2 + i, load_pair(dresidual2 + i) + load_pair(dxs + i));
  }
  if (by_token) {  // in natural order, see backward()
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
    for (int k = 0; k < kColumns; ++k)
      if (wanted.of(k)) columns.clear_padding(k, 0);
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
  if (gradients_by_token(a)) {
    backward_chunks<false, T, Branch>(a, first_chunk, last_chunk, Natural{});
  } else if (stream) {
    backward_chunks<true, T, Branch>(a, first_chunk, last_chunk, Order{});
  } else {
    backward_chunks<false, T, Branch>(a, first_chunk, last_chunk, Order{});
  }
}

// Columns [first, last) of the gradients that are summed over the tokens, a block at a time so that the sums stay in
// L1; those of dalpha as fp32 in `alpha_line`.
inline void backward_columns(const SeamBackward& a, float* alpha_line, int64_t first, int64_t last) {
  constexpr int64_t kBlock = 512;
  const int64_t d = a.dim, per_sample = chunks_per_sample(a);
  const Wanted wanted(a);
  struct Gradient {
    const Modulation& of;
    void* out;
    float* total;  // of this sample, or of the samples so far where the batch shares it
  };
  Modulation line;  // a result of D floats, shared by all
  line.data = alpha_line;
  Scratch sums(kColumns, kBlock), totals(7, kBlock), inputs(3, kBlock);
  const Gradient dgate{a.gate, a.dgate, totals.row(0)}, dscale{a.scale, a.dscale, totals.row(1)},
      dshift{a.shift, a.dshift, totals.row(2)}, dweight{a.weight, a.dweight, totals.row(3)},
      dbias{a.bias, a.dbias, totals.row(4)}, dresidual2{a.residual2, a.dresidual2, totals.row(5)},
      dalpha{line, a.dalpha ? alpha_line : nullptr, totals.row(6)};
  for (int64_t at = first; at < last; at += kBlock) {
    const int64_t width = at + kBlock < last ? kBlock : last - at;
    for (int k = 0; k < 7; ++k) to_float(Rows{}, 0, 0, width, 0.f, totals.row(k));

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
      const float *of_alpha = sums.row(kAlpha), *of_residual2 = sums.row(kResidual2);
      const float* gate = columns_of(a.gate, b, 1.f, inputs.row(0));
      add(dgate, b, [&](int64_t i) { return gated[i] * gate_slope(a.gate_fn, gate[i]); });
      add(dresidual2, b, [&](int64_t i) { return of_residual2[i]; });
      add(dalpha, b, [&](int64_t i) { return of_alpha[i]; });
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

// dalpha, of its columns' sums, in their order.
inline void backward_alpha(const SeamBackward& a, const float* alpha_line) {
  double total = 0.;
  for (int64_t i = 0; i < a.dim; ++i) total += static_cast<double>(alpha_line[i]);
  with_type(a.alpha.dtype, [&](auto type) {
    store(static_cast<decltype(type)*>(a.dalpha), splat(static_cast<float>(total)), First{1});
  });
}

}  // namespace presto::cpu::PRESTO_ISA
