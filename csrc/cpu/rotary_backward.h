// Head norm and rotary embedding, backward: heads in registers, and heads of any size.
#pragma once
#include "rotary_forward.h"

namespace presto::cpu::PRESTO_ISA {

// Tokens are cut into chunks of kChunkTokens, whatever the number of threads; each keeps the sums of dy * n and dy.
// 64: at 1379 tokens 22 chunks a side share the work, and 16 heads of a token share one set of sums.
constexpr int64_t kChunkTokens = 64;

// Column sums of dweight and dbias, of a token's heads and of the chunk's tokens so far: in two steps, since one long
// chain of additions would err several times as much.
class Columns {
 public:
  Columns(const RotaryShape& shape, const RotaryBackwardSide& side)
      : dim_(shape.dim), wanted_{side.dweight != nullptr, side.dbias != nullptr}, rows_(4, shape.dim) {}
  // Of the present token; null where not wanted.
  float* weight() { return wanted_[0] ? rows_.row(0) : nullptr; }
  float* bias() { return wanted_[1] ? rows_.row(1) : nullptr; }

  void begin_chunk() { rows_.clear(); }
  void end_token() {
    for (int k = 0; k < 2; ++k) {
      if (!wanted_[k]) continue;
      float *token = rows_.row(k), *chunk = rows_.row(2 + k);
      for (int64_t i = 0; i < dim_; i += kLanes) {  // rows are padded with zeros
        store(chunk + i, load(chunk + i, All{}) + load(token + i, All{}), All{});
        store(token + i, zero(), All{});
      }
    }
  }
  template <class Order>
  void end_chunk(float* out, Order order) {
    for (int k = 0; k < 2; ++k, out += dim_) {
      if (!wanted_[k]) continue;
      float* chunk = rows_.row(2 + k);
      put_back_in_order(chunk, dim_, order);
      sweep(dim_, [&](int64_t i, int, auto w) PRESTO_INLINE { store(out + i, load(chunk + i, w), w); });
    }
  }

 private:
  int64_t dim_;
  bool wanted_[2];
  Scratch rows_;
};

// The sum of dalpha, of a token's heads and of the chunk's tokens so far, for the same reason.
struct AlphaSum {
  Vec token = zero(), chunk = zero();
  void end_token() {
    chunk = chunk + token;
    token = zero();
  }
  float end_chunk() {
    const float total = sum(chunk);
    chunk = zero();
    return total;
  }
};

// K heads; dx is null where it is not wanted, x where there is neither norm nor weight.
template <int K, bool kStream, bool kDyT, class Tile, class Order, class T>
inline PRESTO_INLINE void backward_tile(const RotaryShape& s, const T* x, int64_t x_stride, const T* grad,
                                        int64_t grad_stride, T* dx, Token& token, Columns& columns, AlphaSum& alpha,
                                        Order order) {
  constexpr int V = Tile::kVectors;
  const float *own = token.own(), *other = token.other(), *weight = token.weight();
  float *dweight = columns.weight(), *dbias = columns.bias();
  Vec n[K][V], dn[K][V];
  Stats stats;
  if (x) {
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) load_tile(x + k * x_stride, n[k], order);
    if constexpr (kDyT) {
      squash_tile(token.alpha(), n);
    } else {
      norm_tile(s, n, stats);
    }
  }
  Vec total[4] = {zero(), zero(), zero(), zero()};  // of dn * n for each head, then of dn
  Vec g[K][V];
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) load_tile(grad + k * grad_stride, g[k], order);
#pragma GCC unroll 8
  for (int i = 0; i < V; ++i) {
    const Vec factor = load(own + i * kLanes, All{}), across = load(other + i * kLanes, All{});
    Vec dy[K];
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      dy[k] = g[k][i];
      if (i < Tile::kTurned) dy[k] = fma(partner<Tile>(g[k], i, order), across, dy[k] * factor);
    }
    if (dweight) {
      Vec sum = load(dweight + i * kLanes, All{});
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) sum = fma(dy[k], n[k][i], sum);
      store(dweight + i * kLanes, sum, All{});
    }
    if (dbias) {
      Vec sum = load(dbias + i * kLanes, All{});
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) sum = sum + dy[k];
      store(dbias + i * kLanes, sum, All{});
    }
    const Vec w = load(weight + i * kLanes, All{});
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) dn[k][i] = dy[k] * w;
  }
  if constexpr (kDyT) {
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      Vec raw[V];
      load_tile(x + k * x_stride, raw, order);
#pragma GCC unroll 8
      for (int i = 0; i < V; ++i) {
        const Vec inner = dn[k][i] * tanh_slope(token.alpha() * raw[i]);
        alpha.token = fma(inner, raw[i], alpha.token);
        dn[k][i] = inner * token.alpha();
      }
    }
  }
  if (dx == nullptr) return;
  if (!kDyT && s.norm != HeadNorm::None) {
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
#pragma GCC unroll 8
      for (int i = 0; i < V; ++i) {
        total[k] = fma(dn[k][i], n[k][i], total[k]);
        if (s.norm == HeadNorm::Layer) total[2 + k] = total[2 + k] + dn[k][i];
      }
    }
    float along[4];
    _mm_storeu_ps(along, sums(total[0], total[1], total[2], total[3]));
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      const Vec by_n = splat(-along[k] * stats.reach[k]), scale = splat(stats.scale[k]);
      const Vec mean = splat(s.norm == HeadNorm::Layer ? along[2 + k] * stats.reach[k] : 0.f);
#pragma GCC unroll 8
      for (int i = 0; i < V; ++i) dn[k][i] = (fma(n[k][i], by_n, dn[k][i]) - mean) * scale;
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) {
#pragma GCC unroll 8
    for (int i = 0; i < V; i += 2)
      put_pair<kStream>(dx + k * s.dim + i * kLanes, Pair{dn[k][i], dn[k][i + 1]}, All{}, order);
  }
}

template <bool kStream, bool kDyT, class Tile, class T>
void backward_chunks(const RotaryShape& s, const RotaryBackwardSide& side, int64_t first, int64_t last, float* out) {
  using Order = typename TileOrder<T, Tile>::Type;
  constexpr int K = Tile::kVectors * 8 <= kRegisters ? 2 : 1;
  const Order order{};
  Token token(s, side, true);
  put_in_order(token.weight(), s.dim, order);
  Columns columns(s, side);
  AlphaSum alpha;
  const int64_t step = side.x.head_stride, grad_step = side.grad.head_stride, dim = s.dim;
  const int64_t rows = s.batch * side.tokens;
  for (int64_t c = first; c < last; ++c, out += rotary_sums(s)) {
    columns.begin_chunk();
    const int64_t end = (c + 1) * kChunkTokens < rows ? (c + 1) * kChunkTokens : rows;
    for (int64_t r = c * kChunkTokens; r < end; ++r) {
      const int64_t b = r / side.tokens, n = r % side.tokens;
      token.prepare(n, order);
      const T* x = side.x.data ? head<T>(side.x, b, n) : nullptr;
      const T* next = side.x.data && r + 1 < end ? head<T>(side.x, (r + 1) / side.tokens, (r + 1) % side.tokens) : x;
      const T* grad = head<T>(side.grad, b, n);
      T* dx = side.dx ? static_cast<T*>(side.dx) + r * side.heads * dim : nullptr;
      const auto of = [&](auto* p, int64_t h, int64_t by) { return p ? p + h * by : nullptr; };
      int64_t h = 0;
      for (; h + K <= side.heads; h += K) {
        for (int k = 0; next && k < K; ++k) prefetch(next + (h + k) * step, dim);
        backward_tile<K, kStream, kDyT, Tile>(s, of(x, h, step), step, grad + h * grad_step, grad_step, of(dx, h, dim),
                                              token, columns, alpha, order);
      }
      for (; h < side.heads; ++h)
        backward_tile<1, kStream, kDyT, Tile>(s, of(x, h, step), step, grad + h * grad_step, grad_step, of(dx, h, dim),
                                              token, columns, alpha, order);
      columns.end_token();
      if constexpr (kDyT) alpha.end_token();
    }
    columns.end_chunk(out, order);
    if constexpr (kDyT) out[2 * dim] = alpha.end_chunk();
  }
  if (kStream) end_stream();
}

template <bool kDyT, class T>
void backward_any(const RotaryShape& s, const RotaryBackwardSide& side, int64_t first, int64_t last, float* out) {
  Token token(s, side, true);
  Columns columns(s, side);
  AlphaSum alpha;
  Scratch scratch(2, s.dim);
  float *n = scratch.row(0), *dn = scratch.row(1), *dweight = columns.weight(), *dbias = columns.bias();
  const float* weight = token.weight();
  const int64_t rows = s.batch * side.tokens;
  for (int64_t c = first; c < last; ++c, out += rotary_sums(s)) {
    columns.begin_chunk();
    const int64_t end = (c + 1) * kChunkTokens < rows ? (c + 1) * kChunkTokens : rows;
    for (int64_t r = c * kChunkTokens; r < end; ++r) {
      token.prepare(r % side.tokens, Natural{});
      for (int64_t h = 0; h < side.heads; ++h) {
        const T* grad = head<T>(side.grad, r / side.tokens, r % side.tokens) + h * side.grad.head_stride;
        const T* x = nullptr;
        Stats stats;
        if (side.x.data) {
          x = head<T>(side.x, r / side.tokens, r % side.tokens) + h * side.x.head_stride;
          if (!kDyT) stats = stats_of(s, x);
          const Vec mean = splat(stats.mean[0]), scale = kDyT ? token.alpha() : splat(stats.scale[0]);
          sweep(s.dim, [&](int64_t i, int, auto w)
                           PRESTO_INLINE { store(n + i, normed<kDyT>(load(x + i, w), mean, scale), w); });
        }
        Sum along, total;
        turn(
            s, token, [&](int64_t i, auto w) PRESTO_INLINE { return load(grad + i, w); },
            [&](int64_t i, auto w, Vec dy) PRESTO_INLINE {
              const Vec y = load(n + i, w);
              if (dweight) store(dweight + i, fma(dy, y, load(dweight + i, w)), w);
              if (dbias) store(dbias + i, dy + load(dbias + i, w), w);
              const Vec v = keep(dy, w) * load(weight + i, w);
              store(dn + i, v, w);
              along.add_product(0, v, y);
              total.add(0, v);
            });
        if constexpr (kDyT) {
          sweep(s.dim, [&](int64_t i, int, auto w) PRESTO_INLINE {
            const Vec raw = load(x + i, w), inner = load(dn + i, w) * tanh_slope(token.alpha() * raw);
            alpha.token = fma(inner, raw, alpha.token);
            store(dn + i, inner * token.alpha(), w);
          });
        }
        if (!side.dx) continue;
        T* dx = static_cast<T*>(side.dx) + (r * side.heads + h) * s.dim;
        const bool norm = !kDyT && s.norm != HeadNorm::None;
        const Vec by_n = splat(norm ? -along.total() * stats.reach[0] : 0.f), scale = splat(stats.scale[0]);
        const Vec mean = splat(s.norm == HeadNorm::Layer ? total.total() * stats.reach[0] : 0.f);
        sweep(s.dim, [&](int64_t i, int, auto w) PRESTO_INLINE {
          const Vec v = load(dn + i, w);
          store(dx + i, norm ? (fma(load(n + i, w), by_n, v) - mean) * scale : v, w);
        });
      }
      columns.end_token();
      if constexpr (kDyT) alpha.end_token();
    }
    columns.end_chunk(out, Natural{});
    if constexpr (kDyT) out[2 * s.dim] = alpha.end_chunk();
  }
}

inline void backward_sums(const RotaryShape& s, const RotaryBackwardSide& side, const float* sums, int64_t chunks) {
  Scratch scratch(1, s.dim);
  float* total = scratch.row(0);
  const auto add_up = [&](const HeadVector& of, void* out, const float* from) {
    if (!out || !chunks) return;
    scratch.clear();
    for (int64_t c = 0; c < chunks; ++c, from += rotary_sums(s))
      sweep(s.dim,
            [&](int64_t i, int, auto w) PRESTO_INLINE { store(total + i, load(total + i, w) + load(from + i, w), w); });
    with_type(of.dtype, [&](auto type) {
      auto* to = static_cast<decltype(type)*>(out);
      sweep(s.dim, [&](int64_t i, int, auto w) PRESTO_INLINE { store(to + i, load(total + i, w), w); });
    });
  };
  add_up(side.weight, side.dweight, sums);
  add_up(side.bias, side.dbias, sums + s.dim);
  if (!side.dalpha || !chunks) return;
  double dalpha = 0;  // of any number of chunks, so wider than they are
  for (int64_t c = 0; c < chunks; ++c) dalpha += static_cast<double>(sums[c * rotary_sums(s) + 2 * s.dim]);
  with_type(side.alpha.dtype, [&](auto type) {
    store(static_cast<decltype(type)*>(side.dalpha), splat(static_cast<float>(dalpha)), First{1});
  });
}

}  // namespace presto::cpu::PRESTO_ISA
