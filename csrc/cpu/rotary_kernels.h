// Head norm and rotary embedding on the CPU, for one instruction set; the formulas stand in rotary.h.
//
// A head of the usual sizes lives in registers from its load to its store ("tile": whole vectors, its rotary partners
// in other registers or in neighbouring lanes), several heads of a token side by side, so that they share what the
// token brings and their sums over lanes are taken together.  Heads of any other size pass through L1 twice.  cos, sin,
// weight and bias are folded once per token into  out = n * own + partner(n) * other + add.
//
// Bytes: forward a row read and a row written per head, backward two read (one without norm and weight) and one
// written; 4 R per token for cos and sin; they are read once per token, whatever the number of heads.
#pragma once
#include "rotary.h"
#include "scratch.h"

namespace presto::cpu::PRESTO_ISA {

#if defined(__AVX512F__)
inline Vec swap_neighbours(Vec a) { return _mm512_permute_ps(a, 0xb1); }
// Each of four vectors summed over its lanes: a third of the instructions of four sums one by one.
inline __m128 sums(Vec a, Vec b, Vec c, Vec d) {
  const Vec ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
  const Vec cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
  const Vec low = _mm512_shuffle_ps(ab, cd, 0x44), high = _mm512_shuffle_ps(ab, cd, 0xee);
  const Vec all = low + high;
  const __m256 two = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  return _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
}
#else
inline Vec swap_neighbours(Vec a) { return _mm256_permute_ps(a, 0xb1); }
inline __m128 sums(Vec a, Vec b, Vec c, Vec d) {
  const Vec ab = _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b);
  const Vec cd = _mm256_unpacklo_ps(c, d) + _mm256_unpackhi_ps(c, d);
  const Vec all = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);
  return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}
#endif

template <class T>
inline const T* head(const Heads& heads, int64_t b, int64_t n) {
  return static_cast<const T*>(heads.data) + b * heads.batch_stride + n * heads.token_stride;
}

inline void to_float(const HeadVector& vector, int64_t d, float otherwise, float* out) {
  to_float(Rows{vector.data, vector.dtype}, 0, 0, d, otherwise, out);
}

// What the norm found, of up to four heads.
struct Stats {
  float mean[4] = {}, scale[4] = {1.f, 1.f, 1.f, 1.f};
  float reach[4] = {};  // factor of sum(dn * n) in the gradient: 1/Dh, or for l2 1 where |x| >= eps, else 0
};

inline void set_scale(const RotaryShape& s, __m128 squares, Stats& stats) {
  const float inverse_dim = 1.f / static_cast<float>(s.dim);
  const __m128 eps = _mm_set1_ps(s.eps), one = _mm_set1_ps(1.f);
  __m128 scale, reach = _mm_set1_ps(inverse_dim);
  if (s.norm == HeadNorm::L2) {
    const __m128 length = _mm_sqrt_ps(squares);
    scale = _mm_div_ps(one, _mm_max_ps(eps, length));  // the second operand where it is NaN
    reach = _mm_and_ps(_mm_cmpge_ps(length, eps), one);
  } else {
    const __m128 mean = _mm_mul_ps(squares, _mm_set1_ps(inverse_dim));
    scale = _mm_div_ps(one, _mm_sqrt_ps(_mm_add_ps(mean, eps)));
  }
  _mm_storeu_ps(stats.scale, scale);
  _mm_storeu_ps(stats.reach, reach);
}

// ---- what a token brings -----------------------------------------------------------------------------------------
// out = n * own + partner(n) * other + add, rows of Dh floats in `order`, with
//   own = weight * cos,  other = -+ the partner's weight * sin,  add = bias turned.
// Backward, with weight left out: dy = grad * own + partner(grad) * other, turned by -sin.
class Token {
 public:
  Token(const RotaryShape& shape, const RotarySide& side, bool backward)
      : shape_(shape), side_(side), backward_(backward), has_add_(side.bias.data && !backward), rows_(5, shape.dim) {
    to_float(side.weight, shape.dim, 1.f, weight());
    to_float(side.bias, shape.dim, 0.f, bias());
    for (int64_t i = 2 * shape.half; i < shape.dim; ++i) {
      own()[i] = backward ? 1.f : weight()[i];
      add()[i] = bias()[i];
    }
  }

  template <class Order>
  void prepare(int64_t n, Order order) {
    const int64_t h = shape_.half, d = shape_.dim;
    if (n == n_ || (h == 0 && n_ >= 0)) return;
    n_ = n;
    const float *cos = side_.cos + n * side_.cos_stride, *sin = side_.sin + n * side_.sin_stride;
    const float *w = weight(), *b = bias();
    float *own = this->own(), *other = this->other(), *add = this->add();
    if (backward_) {
      turn_back(cos, sin);
    } else if (shape_.interleaved) {
      for (int64_t j = 0; j < h; ++j) {
        own[2 * j] = w[2 * j] * cos[j], own[2 * j + 1] = w[2 * j + 1] * cos[j];
        other[2 * j] = -w[2 * j + 1] * sin[j], other[2 * j + 1] = w[2 * j] * sin[j];
        add[2 * j] = b[2 * j] * cos[j] - b[2 * j + 1] * sin[j];
        add[2 * j + 1] = b[2 * j + 1] * cos[j] + b[2 * j] * sin[j];
      }
    } else {
      sweep(h, [&](int64_t i, int, auto width) PRESTO_INLINE {
        const Vec c = load(cos + i, width), s = load(sin + i, width);
        const Vec w1 = load(w + i, width), w2 = load(w + h + i, width);
        store(own + i, w1 * c, width);
        store(own + h + i, w2 * c, width);
        store(other + i, zero() - w2 * s, width);
        store(other + h + i, w1 * s, width);
        if (!has_add_) return;
        const Vec b1 = load(b + i, width), b2 = load(b + h + i, width);
        store(add + i, b1 * c - b2 * s, width);
        store(add + h + i, fma(b2, c, b1 * s), width);
      });
    }
    order_row(own, d, order, kOwn);
    order_row(other, d, order, kOther);
    if (has_add_) order_row(add, d, order, kAdd);
  }

  bool has_add() const { return has_add_; }
  float* own() { return rows_.row(0); }
  float* other() { return rows_.row(1); }
  float* add() { return rows_.row(2); }
  float* weight() { return rows_.row(3); }

 private:
  enum { kOwn, kOther, kAdd };
  float* bias() { return rows_.row(4); }

  void turn_back(const float* cos, const float* sin) {
    const int64_t h = shape_.half, step = shape_.interleaved ? 2 : 1, apart = shape_.interleaved ? 1 : h;
    for (int64_t j = 0; j < h; ++j) {
      own()[step * j] = own()[step * j + apart] = cos[j];
      other()[step * j] = sin[j];
      other()[step * j + apart] = -sin[j];
    }
  }

  // Behind the turned elements a row stays as it is, so there it is put in order once.
  template <class Order>
  void order_row(float* row, int64_t d, Order order, int which) {
    const int64_t turned = 2 * shape_.half;
    put_in_order(row, ordered_[which] ? turned : d, order);
    ordered_[which] = true;
  }

  const RotaryShape& shape_;
  const RotarySide& side_;
  bool backward_, has_add_;
  Scratch rows_;
  int64_t n_ = -1;
  bool ordered_[3] = {};
};

// ---- heads in registers --------------------------------------------------------------------------------------------
// A head of kVectors vectors of which the first kTurned are turned; partners are kHalf vectors apart, or, with 0,
// neighbours.
template <int V, int Turned, int Half>
struct Tile {
  static constexpr int kVectors = V, kTurned = Turned, kHalf = Half;
};

template <class T, class Tile>
struct TileOrder {
  using Type = Natural;
};
#if defined(__AVX512F__)
// Even and odd elements apart is cheaper for bf16, and partners stay in step where whole pairs lie between them.
template <int V, int Turned, int Half>
  requires(Half % 2 == 0)
struct TileOrder<bf16, Tile<V, Turned, Half>> {
  using Type = EvenOdd;
};
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

template <class Order>
constexpr bool kSplit = false;
template <>
constexpr bool kSplit<EvenOdd> = true;

template <class T, class Order, int V>
inline PRESTO_INLINE void load_tile(const T* p, Vec (&v)[V], Order order) {
#pragma GCC unroll 8
  for (int i = 0; i < V; i += 2) {
    const Pair pair = load_pair(p + i * kLanes, All{}, order);
    v[i] = pair.a, v[i + 1] = pair.b;
  }
}

template <class Tile, class Order, int V>
inline PRESTO_INLINE Vec partner(const Vec (&v)[V], int i, Order) {
  if constexpr (Tile::kHalf > 0) {
    return v[i < Tile::kHalf ? i + Tile::kHalf : i - Tile::kHalf];
  } else if constexpr (kSplit<Order>) {
    return v[i ^ 1];
  } else {
    return swap_neighbours(v[i]);
  }
}

// Normalises K heads in place.
template <int K, int V>
inline PRESTO_INLINE void norm_tile(const RotaryShape& s, Vec (&v)[K][V], Stats& stats) {
  if (s.norm == HeadNorm::None) return;
  Vec total[4] = {zero(), zero(), zero(), zero()};
  if (s.norm == HeadNorm::Layer) {
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
#pragma GCC unroll 8
      for (int i = 0; i < V; ++i) total[k] = i == 0 ? v[k][i] : total[k] + v[k][i];
    }
    const __m128 inverse_dim = _mm_set1_ps(1.f / static_cast<float>(s.dim));
    _mm_storeu_ps(stats.mean, _mm_mul_ps(sums(total[0], total[1], total[2], total[3]), inverse_dim));
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
#pragma GCC unroll 8
      for (int i = 0; i < V; ++i) v[k][i] = v[k][i] - splat(stats.mean[k]);
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) {
#pragma GCC unroll 8
    for (int i = 0; i < V; ++i) total[k] = i == 0 ? v[k][i] * v[k][i] : fma(v[k][i], v[k][i], total[k]);
  }
  set_scale(s, sums(total[0], total[1], total[2], total[3]), stats);
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) {
#pragma GCC unroll 8
    for (int i = 0; i < V; ++i) v[k][i] = v[k][i] * splat(stats.scale[k]);
  }
}

// K heads of one token: x and out are the first of them.
template <int K, bool kStream, class Tile, class Order, class T>
inline PRESTO_INLINE void forward_tile(const RotaryShape& s, const T* x, int64_t head_stride, T* out, Token& token,
                                       Order order) {
  constexpr int V = Tile::kVectors;
  Vec v[K][V];
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) load_tile(x + k * head_stride, v[k], order);
  Stats stats;
  norm_tile(s, v, stats);
  const float *own = token.own(), *other = token.other(), *add = token.add();
  const bool has_add = token.has_add();
#pragma GCC unroll 8
  for (int i = 0; i < V; i += 2) {
    Pair result[K];
    const Pair factor = load_pair(own + i * kLanes);
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) result[k] = Pair{v[k][i], v[k][i + 1]} * factor;
    if (i < Tile::kTurned) {
      const Pair across = load_pair(other + i * kLanes);
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        const Pair from{partner<Tile>(v[k], i, order), partner<Tile>(v[k], i + 1, order)};
        result[k] = fma(from, across, result[k]);
      }
    }
    if (has_add) {
      const Pair more = load_pair(add + i * kLanes);
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) result[k] = result[k] + more;
    }
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) put_pair<kStream>(out + k * s.dim + i * kLanes, result[k], All{}, order);
  }
}

// Whether a result of T may be streamed: large enough, and its heads whole cache lines.
template <class T>
inline bool can_stream(const RotaryShape& s, const RotarySide& side, const void* result) {
  const int64_t head_bytes = s.dim * static_cast<int64_t>(sizeof(T));
  return s.batch * side.tokens * side.heads * head_bytes >= kStreamBytes && head_bytes % 64 == 0 &&
         reinterpret_cast<uintptr_t>(result) % 64 == 0;
}

// The rows of a fused projection lie thousands of bytes apart, where no prefetcher follows: a token's heads are asked
// for while those of the token before are worked on.
template <class T>
inline void prefetch(const T* x, int64_t dim) {
  for (int64_t i = 0; i < dim; i += 64 / static_cast<int64_t>(sizeof(T)))
    _mm_prefetch(reinterpret_cast<const char*>(x + i), _MM_HINT_T0);
}

template <bool kStream, class Tile, class T>
void forward_tokens(const RotaryShape& s, const RotaryForwardSide& side, int64_t first, int64_t last) {
  using Order = typename TileOrder<T, Tile>::Type;
  // Heads side by side: as many as leave registers for what they share.
  constexpr int K = Tile::kVectors * 8 <= kRegisters ? 4 : Tile::kVectors * 4 <= kRegisters ? 2 : 1;
  const Order order{};
  Token token(s, side, false);
  const int64_t step = side.x.head_stride, dim = s.dim;
  for (int64_t r = first; r < last; ++r) {
    token.prepare(r % side.tokens, order);
    const T* x = head<T>(side.x, r / side.tokens, r % side.tokens);
    const T* next = r + 1 < last ? head<T>(side.x, (r + 1) / side.tokens, (r + 1) % side.tokens) : x;
    T* out = static_cast<T*>(side.out) + r * side.heads * dim;
    int64_t h = 0;
    for (; h + K <= side.heads; h += K) {
      for (int k = 0; k < K; ++k) prefetch(next + (h + k) * step, dim);
      forward_tile<K, kStream, Tile>(s, x + h * step, step, out + h * dim, token, order);
    }
    for (; h < side.heads; ++h) forward_tile<1, kStream, Tile>(s, x + h * step, step, out + h * dim, token, order);
  }
  if (kStream) end_stream();
}

// ---- heads of any size ---------------------------------------------------------------------------------------------
// mean and scale of one head
template <class T>
inline Stats stats_of(const RotaryShape& s, const T* x) {
  Stats stats;
  if (s.norm == HeadNorm::None) return stats;
  if (s.norm == HeadNorm::Layer) {
    Sum total;
    sweep(s.dim, [&](int64_t i, int j, auto w) PRESTO_INLINE { total.add(j, load(x + i, w)); });
    stats.mean[0] = total.total() / static_cast<float>(s.dim);
  }
  const Vec mean = splat(stats.mean[0]);
  Sum squares;
  sweep(s.dim, [&](int64_t i, int j, auto w) PRESTO_INLINE {
    const Vec v = keep(load(x + i, w) - mean, w);
    squares.add_product(j, v, v);
  });
  set_scale(s, _mm_set1_ps(squares.total()), stats);
  return stats;
}

// put(i, width, value(i) * own + its partner * other) for the turned elements, put(i, width, value(i)) for the others;
// value(i, width) gives vector i of a row.
template <class Value, class Put>
inline PRESTO_INLINE void turn(const RotaryShape& s, Token& token, Value&& value, Put&& put) {
  const int64_t h = s.half, turned = 2 * h;
  const float *own = token.own(), *other = token.other();
  if (s.interleaved) {
    sweep(turned, [&](int64_t i, int, auto w) PRESTO_INLINE {
      const Vec v = value(i, w);
      put(i, w, fma(swap_neighbours(v), load(other + i, w), v * load(own + i, w)));
    });
  } else {
    sweep(h, [&](int64_t i, int, auto w) PRESTO_INLINE {
      const Vec v1 = value(i, w), v2 = value(h + i, w);
      put(i, w, fma(v2, load(other + i, w), v1 * load(own + i, w)));
      put(h + i, w, fma(v1, load(other + h + i, w), v2 * load(own + h + i, w)));
    });
  }
  sweep(s.dim - turned, [&](int64_t i, int, auto w)
                            PRESTO_INLINE { put(turned + i, w, value(turned + i, w) * load(own + turned + i, w)); });
}

template <class T>
void forward_any(const RotaryShape& s, const RotaryForwardSide& side, int64_t first, int64_t last) {
  Token token(s, side, false);
  const float* add = token.add();
  for (int64_t r = first; r < last; ++r) {
    token.prepare(r % side.tokens, Natural{});
    for (int64_t h = 0; h < side.heads; ++h) {
      const T* x = head<T>(side.x, r / side.tokens, r % side.tokens) + h * side.x.head_stride;
      T* out = static_cast<T*>(side.out) + (r * side.heads + h) * s.dim;
      const Stats stats = stats_of(s, x);
      const Vec mean = splat(stats.mean[0]), scale = splat(stats.scale[0]);
      turn(
          s, token, [&](int64_t i, auto w) PRESTO_INLINE { return (load(x + i, w) - mean) * scale; },
          [&](int64_t i, auto w, Vec v)
              PRESTO_INLINE { store(out + i, token.has_add() ? v + load(add + i, w) : v, w); });
    }
  }
}

// ---- backward ------------------------------------------------------------------------------------------------------
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

// K heads; dx is null where it is not wanted, x where there is neither norm nor weight.
template <int K, bool kStream, class Tile, class Order, class T>
inline PRESTO_INLINE void backward_tile(const RotaryShape& s, const T* x, int64_t x_stride, const T* grad,
                                        int64_t grad_stride, T* dx, Token& token, Columns& columns, Order order) {
  constexpr int V = Tile::kVectors;
  const float *own = token.own(), *other = token.other(), *weight = token.weight();
  float *dweight = columns.weight(), *dbias = columns.bias();
  Vec n[K][V], dn[K][V];
  Stats stats;
  if (x) {
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) load_tile(x + k * x_stride, n[k], order);
    norm_tile(s, n, stats);
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
  if (dx == nullptr) return;
  if (s.norm != HeadNorm::None) {
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

template <bool kStream, class Tile, class T>
void backward_chunks(const RotaryShape& s, const RotaryBackwardSide& side, int64_t first, int64_t last, float* out) {
  using Order = typename TileOrder<T, Tile>::Type;
  constexpr int K = Tile::kVectors * 8 <= kRegisters ? 2 : 1;
  const Order order{};
  Token token(s, side, true);
  put_in_order(token.weight(), s.dim, order);
  Columns columns(s, side);
  const int64_t step = side.x.head_stride, grad_step = side.grad.head_stride, dim = s.dim;
  const int64_t rows = s.batch * side.tokens;
  for (int64_t c = first; c < last; ++c, out += 2 * dim) {
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
        backward_tile<K, kStream, Tile>(s, of(x, h, step), step, grad + h * grad_step, grad_step, of(dx, h, dim), token,
                                        columns, order);
      }
      for (; h < side.heads; ++h)
        backward_tile<1, kStream, Tile>(s, of(x, h, step), step, grad + h * grad_step, grad_step, of(dx, h, dim), token,
                                        columns, order);
      columns.end_token();
    }
    columns.end_chunk(out, order);
  }
  if (kStream) end_stream();
}

template <class T>
void backward_any(const RotaryShape& s, const RotaryBackwardSide& side, int64_t first, int64_t last, float* out) {
  Token token(s, side, true);
  Columns columns(s, side);
  Scratch scratch(2, s.dim);
  float *n = scratch.row(0), *dn = scratch.row(1), *dweight = columns.weight(), *dbias = columns.bias();
  const float* weight = token.weight();
  const int64_t rows = s.batch * side.tokens;
  for (int64_t c = first; c < last; ++c, out += 2 * s.dim) {
    columns.begin_chunk();
    const int64_t end = (c + 1) * kChunkTokens < rows ? (c + 1) * kChunkTokens : rows;
    for (int64_t r = c * kChunkTokens; r < end; ++r) {
      token.prepare(r % side.tokens, Natural{});
      for (int64_t h = 0; h < side.heads; ++h) {
        const T* grad = head<T>(side.grad, r / side.tokens, r % side.tokens) + h * side.grad.head_stride;
        Stats stats;
        if (side.x.data) {
          const T* x = head<T>(side.x, r / side.tokens, r % side.tokens) + h * side.x.head_stride;
          stats = stats_of(s, x);
          const Vec mean = splat(stats.mean[0]), scale = splat(stats.scale[0]);
          sweep(s.dim, [&](int64_t i, int, auto w) PRESTO_INLINE { store(n + i, (load(x + i, w) - mean) * scale, w); });
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
        if (!side.dx) continue;
        T* dx = static_cast<T*>(side.dx) + (r * side.heads + h) * s.dim;
        const bool norm = s.norm != HeadNorm::None;
        const Vec by_n = splat(norm ? -along.total() * stats.reach[0] : 0.f), scale = splat(stats.scale[0]);
        const Vec mean = splat(s.norm == HeadNorm::Layer ? total.total() * stats.reach[0] : 0.f);
        sweep(s.dim, [&](int64_t i, int, auto w) PRESTO_INLINE {
          const Vec v = load(dn + i, w);
          store(dx + i, norm ? (fma(load(n + i, w), by_n, v) - mean) * scale : v, w);
        });
      }
      columns.end_token();
    }
    columns.end_chunk(out, Natural{});
  }
}

inline void backward_sums(const RotaryShape& s, const RotaryBackwardSide& side, const float* sums, int64_t chunks) {
  Scratch scratch(1, s.dim);
  float* total = scratch.row(0);
  const auto add_up = [&](const HeadVector& of, void* out, const float* from) {
    if (!out || !chunks) return;
    scratch.clear();
    for (int64_t c = 0; c < chunks; ++c, from += 2 * s.dim)
      sweep(s.dim,
            [&](int64_t i, int, auto w) PRESTO_INLINE { store(total + i, load(total + i, w) + load(from + i, w), w); });
    with_type(of.dtype, [&](auto type) {
      auto* to = static_cast<decltype(type)*>(out);
      sweep(s.dim, [&](int64_t i, int, auto w) PRESTO_INLINE { store(to + i, load(total + i, w), w); });
    });
  };
  add_up(side.weight, side.dweight, sums);
  add_up(side.bias, side.dbias, sums + s.dim);
}

// ---- which of them ---------------------------------------------------------------------------------------------
// Calls f with the tile that fits: heads of 2, 4, 6 or 8 vectors (AVX-512: 32, 64, 96, 128 elements; AVX2: 32, 64), all
// of them turned, or of 4 or 8 a half or none.  False where none fits.
template <class F>
inline bool with_tile(const RotaryShape& s, F&& f) {
  const int64_t half = s.half, v = s.dim / kLanes;
  if (s.dim % kLanes != 0) return false;
  const bool all = 2 * half == s.dim;
  if (half > 0 && s.interleaved) {
    if (all && v == 4) return f(Tile<4, 4, 0>{}), true;
    if (all && v == 8) return f(Tile<8, 8, 0>{}), true;
    return false;
  }
  if (all && v == 2) return f(Tile<2, 2, 1>{}), true;
  if (all && v == 4) return f(Tile<4, 4, 2>{}), true;
  if (all && v == 6) return f(Tile<6, 6, 3>{}), true;
  if (all && v == 8) return f(Tile<8, 8, 4>{}), true;
  if (4 * half == s.dim && v == 4) return f(Tile<4, 2, 1>{}), true;
  if (4 * half == s.dim && v == 8) return f(Tile<8, 4, 2>{}), true;
  if (half == 0 && v == 4) return f(Tile<4, 0, 0>{}), true;
  if (half == 0 && v == 8) return f(Tile<8, 0, 0>{}), true;
  return false;
}

template <class T>
void forward(const RotaryShape& s, const RotaryForwardSide& side, int64_t first, int64_t last) {
  const bool stream = can_stream<T>(s, side, side.out);
  const bool done = with_tile(s, [&](auto tile) {
    if (stream) return forward_tokens<true, decltype(tile), T>(s, side, first, last);
    forward_tokens<false, decltype(tile), T>(s, side, first, last);
  });
  if (!done) forward_any<T>(s, side, first, last);
}

template <class T>
void backward(const RotaryShape& s, const RotaryBackwardSide& side, int64_t first, int64_t last, float* sums) {
  const bool stream = side.dx && can_stream<T>(s, side, side.dx);
  const bool done = with_tile(s, [&](auto tile) {
    if (stream) return backward_chunks<true, decltype(tile), T>(s, side, first, last, sums);
    backward_chunks<false, decltype(tile), T>(s, side, first, last, sums);
  });
  if (!done) backward_any<T>(s, side, first, last, sums);
}

}  // namespace presto::cpu::PRESTO_ISA
