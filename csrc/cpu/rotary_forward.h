// Head norm and rotary embedding, forward: heads in registers, and heads of any size.
#pragma once
#include "rotary_token.h"

namespace presto::cpu::PRESTO_ISA {

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

// K heads of DyT in place.
template <int K, int V>
inline PRESTO_INLINE void squash_tile(Vec alpha, Vec (&v)[K][V]) {
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) {
#pragma GCC unroll 8
    for (int i = 0; i < V; ++i) v[k][i] = tanh(alpha * v[k][i]);
  }
}

// K heads of one token: x and out are the first of them.
template <int K, bool kStream, bool kDyT, class Tile, class Order, class T>
inline PRESTO_INLINE void forward_tile(const RotaryShape& s, const T* x, int64_t head_stride, T* out, Token& token,
                                       Order order) {
  constexpr int V = Tile::kVectors;
  Vec v[K][V];
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) load_tile(x + k * head_stride, v[k], order);
  if constexpr (kDyT) {
    squash_tile(token.alpha(), v);
  } else {
    Stats stats;
    norm_tile(s, v, stats);
  }
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

template <bool kStream, bool kDyT, class Tile, class T>
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
      forward_tile<K, kStream, kDyT, Tile>(s, x + h * step, step, out + h * dim, token, order);
    }
    for (; h < side.heads; ++h)
      forward_tile<1, kStream, kDyT, Tile>(s, x + h * step, step, out + h * dim, token, order);
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

// One vector of a head; DyT's scale is alpha.
template <bool kDyT>
inline PRESTO_INLINE Vec normed(Vec x, Vec mean, Vec scale) {
  if constexpr (kDyT) return tanh(scale * x);
  return (x - mean) * scale;
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

template <bool kDyT, class T>
void forward_any(const RotaryShape& s, const RotaryForwardSide& side, int64_t first, int64_t last) {
  Token token(s, side, false);
  const float* add = token.add();
  for (int64_t r = first; r < last; ++r) {
    token.prepare(r % side.tokens, Natural{});
    for (int64_t h = 0; h < side.heads; ++h) {
      const T* x = head<T>(side.x, r / side.tokens, r % side.tokens) + h * side.x.head_stride;
      T* out = static_cast<T*>(side.out) + (r * side.heads + h) * s.dim;
      const Stats stats = kDyT ? Stats{} : stats_of(s, x);
      const Vec mean = splat(stats.mean[0]), scale = kDyT ? token.alpha() : splat(stats.scale[0]);
      turn(
          s, token, [&](int64_t i, auto w) PRESTO_INLINE { return normed<kDyT>(load(x + i, w), mean, scale); },
          [&](int64_t i, auto w, Vec v)
              PRESTO_INLINE { store(out + i, token.has_add() ? v + load(add + i, w) : v, w); });
    }
  }
}

}  // namespace presto::cpu::PRESTO_ISA
