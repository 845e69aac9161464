// Gated activations and Snake on the CPU, for one instruction set; the formulas stand in activation.h.
//
// Every element is read once and written once, its arithmetic stays in registers.  A large result of glu is streamed
// past the cache from its first whole line on, whatever its rows' alignment.
//
// Bytes: glu reads 2 and writes 1 element for each of y, its backward reads 3 and writes 2; snake reads and writes 1,
// its backward reads 2 and writes 1.
#pragma once
#include "activation.h"
#include "scratch.h"
#include "simd_math.h"

namespace presto::cpu::PRESTO_ISA {

// body(i, width, streamed) over the d elements at `out`, a pair at a time, two pairs in flight.  Where the result is
// streamed, single elements up to the first whole cache line come before and are not.
template <bool kValue>
struct Streamed {
  static constexpr bool value = kValue;
};
template <bool kStream, class T, class Body>
inline PRESTO_INLINE void sweep_lines(const T* out, int64_t d, Body&& body) {
  int64_t i = 0;
  if constexpr (kStream) {
    const int64_t over = reinterpret_cast<uintptr_t>(out) % 64 / sizeof(T);
    const int64_t head = over == 0 ? 0 : 64 / static_cast<int64_t>(sizeof(T)) - over;
    const int64_t single = head < d ? head : d;
    for (; i < single; i += kPair) body(i, First{single - i < kPair ? single - i : kPair}, Streamed<false>{});
    i = single;
  }
  for (; i + 2 * kPair <= d; i += 2 * kPair) {
    body(i, All{}, Streamed<kStream>{});
    body(i + kPair, All{}, Streamed<kStream>{});
  }
  for (; i + kPair <= d; i += kPair) body(i, All{}, Streamed<kStream>{});
  if (i < d) body(i, First{d - i}, Streamed<false>{});
}

// ---- glu -----------------------------------------------------------------------------------------------------------
template <Act kAct>
inline PRESTO_INLINE Vec activate(Vec gate) {
  if constexpr (kAct == Act::Silu) return gate / (splat(1.f) + exp(zero() - gate));
  if constexpr (kAct == Act::SinPi) return sin_cos_pi(gate).sin;
  return gate * splat(0.5f) * (splat(1.f) + erf(gate * splat(0.707106781f)));
}

struct Activated {
  Vec value, slope;
};
template <Act kAct>
inline PRESTO_INLINE Activated activate_with_slope(Vec gate) {
  if constexpr (kAct == Act::Silu) {
    const Vec s = sigmoid(gate);
    return {gate * s, s * fma(gate, splat(1.f) - s, splat(1.f))};
  }
  if constexpr (kAct == Act::SinPi) {
    const SinCos at = sin_cos_pi(gate);
    return {at.sin, splat(sincospi::kPi) * at.cos};
  }
  const Vec cdf = fma(splat(0.5f), erf(gate * splat(0.707106781f)), splat(0.5f));
  const Vec pdf = exp(gate * gate * splat(-0.5f)) * splat(0.398942280f);
  return {gate * cdf, fma(gate, pdf, cdf)};
}

template <Act kAct, bool kStream, class T>
void glu_forward_rows(const GluForward& args, int64_t first, int64_t last) {
  const typename OrderOf<T, T>::Type order{};
  const int64_t d = args.dim;
  for (int64_t r = first; r < last; ++r) {
    const T* x = row<T>(args.x, r / args.tokens, r % args.tokens);
    const T *value = x + (args.gate_first ? d : 0), *gate = x + (args.gate_first ? 0 : d);
    T* y = static_cast<T*>(args.y) + r * d;
    sweep_lines<kStream>(y, d, [&](int64_t i, auto w, auto streamed) PRESTO_INLINE {
      const Pair g = load_pair(gate + i, w, order);
      const Pair act{activate<kAct>(g.a), activate<kAct>(g.b)};
      put_pair<streamed.value>(y + i, load_pair(value + i, w, order) * act, w, order);
    });
  }
  if (kStream) end_stream();
}

template <Act kAct, bool kStream, class T>
void glu_backward_rows(const GluBackward& args, int64_t first, int64_t last) {
  const typename OrderOf<T, T>::Type order{};
  const int64_t d = args.dim;
  for (int64_t r = first; r < last; ++r) {
    const int64_t b = r / args.tokens, n = r % args.tokens;
    const T *x = row<T>(args.x, b, n), *grad = row<T>(args.grad, b, n);
    T* dx = static_cast<T*>(args.dx) + r * 2 * d;
    const int64_t value_at = args.gate_first ? d : 0, gate_at = args.gate_first ? 0 : d;
    sweep_lines<kStream>(dx, d, [&](int64_t i, auto w, auto streamed) PRESTO_INLINE {
      const Pair g = load_pair(x + gate_at + i, w, order), up = load_pair(grad + i, w, order);
      const Pair value = load_pair(x + value_at + i, w, order);
      const Activated a = activate_with_slope<kAct>(g.a), b = activate_with_slope<kAct>(g.b);
      put_pair<streamed.value>(dx + value_at + i, up * Pair{a.value, b.value}, w, order);
      put_pair<streamed.value>(dx + gate_at + i, up * value * Pair{a.slope, b.slope}, w, order);
    });
  }
  if (kStream) end_stream();
}

template <Act kAct, class T>
void glu_forward(const GluForward& args, int64_t first, int64_t last) {
  const int64_t bytes = args.batch * args.tokens * args.dim * static_cast<int64_t>(sizeof(T));
  if (bytes >= kStreamBytes) {
    glu_forward_rows<kAct, true, T>(args, first, last);
  } else {
    glu_forward_rows<kAct, false, T>(args, first, last);
  }
}

// The two halves of a row of dx are streamed where they begin alike within a line.
template <Act kAct, class T>
void glu_backward(const GluBackward& args, int64_t first, int64_t last) {
  const int64_t half = args.dim * static_cast<int64_t>(sizeof(T));
  if (2 * args.batch * args.tokens * half >= kStreamBytes && half % 64 == 0) {
    glu_backward_rows<kAct, true, T>(args, first, last);
  } else {
    glu_backward_rows<kAct, false, T>(args, first, last);
  }
}

// ---- snake -------------------------------------------------------------------------------------------------------
// Elements of a row that are one task.  At 1024 the forward of [1, 128, 110080] took 1.03 (bf16) and 1.04 times as
// long.
constexpr int64_t kPiece = 4096;
// Elements that share one set of sums.  Few, because a sum's error grows with its terms: of dbeta over 110080 elements
// at 4096 it was up to 0.97 of what the tolerance allows, at 1024 half of that.
constexpr int64_t kSummed = 1024;

// One piece of one row.
struct Piece {
  int64_t sample, channel, begin, size;
  Piece(const SnakeShape& s, int64_t index) {
    const int64_t per_row = (s.length + kPiece - 1) / kPiece, row = index / per_row;
    sample = row / s.channels, channel = row % s.channels, begin = index % per_row * kPiece;
    size = begin + kPiece < s.length ? kPiece : s.length - begin;
  }
};

// alpha, beta and 1 / (beta + 1e-9) of a channel.
struct Channel {
  float alpha, beta, factor;
  Channel(const SnakeShape& s, int64_t channel) {
    to_float(s.alpha, 0, channel, 1, 0.f, &alpha);
    to_float(s.beta, 0, channel, 1, 0.f, &beta);
    factor = 1.f / (beta + kSnakeEpsilon);
  }
};

// Not streamed: a sine an element hides the reading of the lines that are written.  [1, 128, 110080] on one core with
// 32 MiB of L3 behind it: streamed bf16 took 1.11 times as long, fp32 1.05 times; backward 1.10 and 1.0.
template <class T>
void snake_forward(const SnakeForward& args, int64_t first, int64_t last) {
  const typename OrderOf<T, T>::Type order{};
  for (int64_t p = first; p < last; ++p) {
    const Piece piece(args, p);
    const Channel channel(args, piece.channel);
    const Vec alpha = splat(channel.alpha), factor = splat(channel.factor);
    const T* x = row<T>(args.x, piece.sample, piece.channel) + piece.begin;
    T* y = static_cast<T*>(args.y) + (piece.sample * args.channels + piece.channel) * args.length + piece.begin;
    const auto snake = [&](Vec v) PRESTO_INLINE {
      const Vec s = sin(alpha * v);
      return fma(s * s, factor, v);
    };
    sweep_pairs(piece.size, [&](int64_t i, int, auto w) PRESTO_INLINE {
      const Pair v = load_pair(x + i, w, order);
      store_pair(y + i, {snake(v.a), snake(v.b)}, w, order);
    });
  }
}

// Vectors of channels.  [4096, 128, 1], which is how channels-last audio comes, took 130 times as long channel by
// channel: 38.8 ms for 0.30 ms in bf16 on one core, where [1, 128, 4096] takes 0.22.
template <class T>
void snake_forward_samples(const SnakeForward& args, int64_t first, int64_t last) {
  const typename OrderOf<T, T>::Type order{};
  Scratch channels(2, args.channels);
  float *alpha = channels.row(0), *factor = channels.row(1);
  for (int64_t c = 0; c < args.channels; ++c) {
    const Channel channel(args, c);
    alpha[c] = channel.alpha, factor[c] = channel.factor;
  }
  put_in_order(alpha, args.channels, order);
  put_in_order(factor, args.channels, order);
  for (int64_t b = first; b < last; ++b) {
    const T* x = row<T>(args.x, b, 0);
    T* y = static_cast<T*>(args.y) + b * args.channels;
    sweep_pairs(args.channels, [&](int64_t i, int, auto w) PRESTO_INLINE {
      const Pair v = load_pair(x + i, w, order), a = load_pair(alpha + i) * v, k = load_pair(factor + i);
      const Pair s{sin(a.a), sin(a.b)};
      store_pair(y + i, fma(s * s, k, v), w, order);
    });
  }
}

template <bool kDx, bool kSums, class T>
void snake_backward_pieces(const SnakeBackward& args, int64_t first, int64_t last) {
  const typename OrderOf<T, T>::Type order{};
  for (int64_t p = first; p < last; ++p) {
    const Piece piece(args, p);
    const Channel channel(args, piece.channel);
    const Vec alpha = splat(channel.alpha), slope = splat(2.f * channel.alpha * channel.factor);
    const T* x = row<T>(args.x, piece.sample, piece.channel) + piece.begin;
    const T* grad = row<T>(args.grad, piece.sample, piece.channel) + piece.begin;
    T* dx = static_cast<T*>(args.dx);
    if (kDx) dx += (piece.sample * args.channels + piece.channel) * args.length + piece.begin;
    double products = 0, squares = 0;
    for (int64_t from = 0; from < piece.size; from += kSummed) {
      const int64_t count = from + kSummed < piece.size ? kSummed : piece.size - from;
      Sum product, square;
      const auto one = [&](int chain, Vec v, Vec g) PRESTO_INLINE {
        const SinCos at = sin_cos(alpha * v);
        const Vec sc = at.sin * at.cos;
        if (kSums) {
          product.add_product(chain, g * v, sc);
          square.add_product(chain, g * at.sin, at.sin);
        }
        return fma(g * slope, sc, g);
      };
      sweep_pairs(count, [&](int64_t i, int j, auto w) PRESTO_INLINE {
        const Pair v = load_pair(x + from + i, w, order), g = load_pair(grad + from + i, w, order);
        const Pair d{one(2 * j, v.a, g.a), one(2 * j + 1, v.b, g.b)};
        if constexpr (kDx) store_pair(dx + from + i, d, w, order);
      });
      products += static_cast<double>(product.total());
      squares += static_cast<double>(square.total());
    }
    if (kSums) {
      args.workspace[2 * p] = static_cast<float>(products);
      args.workspace[2 * p + 1] = static_cast<float>(squares);
    }
  }
}

template <class T>
void snake_backward(const SnakeBackward& args, int64_t first, int64_t last) {
  const bool sums = args.dalpha || args.dbeta;
  if (!args.dx) return snake_backward_pieces<false, true, T>(args, first, last);
  if (sums) return snake_backward_pieces<true, true, T>(args, first, last);
  snake_backward_pieces<true, false, T>(args, first, last);
}

inline void snake_backward_channels(const SnakeBackward& args, int64_t first, int64_t last) {
  const int64_t per_row = (args.length + kPiece - 1) / kPiece;
  const auto write = [](const Rows& like, void* out, int64_t c, float value) {
    with_type(like.dtype, [&](auto type) { store(static_cast<decltype(type)*>(out) + c, splat(value), First{1}); });
  };
  for (int64_t c = first; c < last; ++c) {
    double product = 0, square = 0;  // of any number of pieces, so wider than they are
    for (int64_t b = 0; b < args.batch; ++b) {
      const float* sums = args.workspace + (b * args.channels + c) * per_row * 2;
      for (int64_t p = 0; p < per_row; ++p) {
        product += static_cast<double>(sums[2 * p]);
        square += static_cast<double>(sums[2 * p + 1]);
      }
    }
    // In fp32 the factor's roundings alone were 2 ulp of a large dbeta, all that is allowed.
    const double factor = 1 / (static_cast<double>(Channel(args, c).beta) + kSnakeEpsilon);
    if (args.dalpha) write(args.alpha, args.dalpha, c, static_cast<float>(2 * factor * product));
    if (args.dbeta) write(args.beta, args.dbeta, c, static_cast<float>(-factor * factor * square));
  }
}

}  // namespace presto::cpu::PRESTO_ISA
