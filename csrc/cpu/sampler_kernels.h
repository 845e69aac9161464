// The sampler family on the CPU, for one instruction set; the formulas stand in sampler.h.
//
// A sample is walked chunk by chunk; within a chunk as far as its rows lie dense, so a dense sample is one run.  The
// noise of a piece of a chunk is drawn into L1 and used there.
//
// Bytes: edm_denoise 3 tensors (2 read, 1 written), its backward 2 (grad, and dF or dx; the second of them finds grad
// in L1) and 2 more for dsigma; renoise 2, its backward 1.  edm_denoise is bound by them, renoise by its arithmetic: a
// vector of normals takes 32 operations for its words and some 30 for the rest.  Rounded: each result once.
#pragma once
#include "noise.h"
#include "sampler.h"
#include "scratch.h"

namespace presto::cpu::PRESTO_ISA {

// As scalars, once for each chunk.
inline float number(const EachFloat& each, int64_t b) {
  if (each.data == nullptr) return each.value;
  alignas(64) float lanes[kLanes];
  with_type(each.dtype, [&](auto type) {
    store(lanes, load(static_cast<const decltype(type)*>(each.data) + b * each.stride, First{1}), All{});
  });
  return lanes[0];
}
inline int64_t number(const EachInt& each, int64_t b) { return each.data ? each.data[b * each.stride] : each.value; }

// The sample and elements [first, last) of it that chunk `index` is.
struct Chunk {
  int64_t sample, first, last;
};
inline int64_t chunks_of(const SamplerShape& s) { return (s.tokens * s.dim + kSamplerChunk - 1) / kSamplerChunk; }
inline Chunk chunk_of(const SamplerShape& s, int64_t chunks, int64_t index) {
  const int64_t first = index % chunks * kSamplerChunk, size = s.tokens * s.dim;
  return {index / chunks, first, first + kSamplerChunk < size ? first + kSamplerChunk : size};
}

// body(element, row, column, length) for each run of elements [first, last) that lies in one row.
template <class Body>
inline PRESTO_INLINE void runs(const SamplerShape& s, int64_t first, int64_t last, Body&& body) {
  while (first < last) {
    const int64_t row = first / s.dim, column = first - row * s.dim;
    const int64_t length = last - first < s.dim - column ? last - first : s.dim - column;
    body(first, row, column, length);
    first += length;
  }
}

// Whether a result of T may be streamed: large, its rows and chunks whole cache lines.
template <class T>
inline bool can_stream(const SamplerShape& s, const void* result) {
  return s.batch * s.tokens * s.dim * static_cast<int64_t>(sizeof(T)) >= kStreamBytes && s.dim % kPair == 0 &&
         s.dim * sizeof(T) % 64 == 0 && reinterpret_cast<uintptr_t>(result) % 64 == 0;
}

// ---- edm_denoise -------------------------------------------------------------------------------------------------
struct Coefficients {
  float skip, out;
};
template <class Args>
inline Coefficients coefficients(const Args& args, float sigma) {
  const float square = args.sigma_data * args.sigma_data, r = sigma - args.sigma_min;
  return {square / (r * r + square), args.sigma_data * r / __builtin_sqrtf(sigma * sigma + square)};
}
// In double: every term of a sum has the same rounding error of a slope, so it would not average out.
inline Coefficients slopes(const EdmDenoiseBackward& args, double sigma) {
  const double sigma_data = args.sigma_data, square = sigma_data * sigma_data, r = sigma - args.sigma_min;
  const double q = r * r + square, t = sigma * sigma + square;
  return {static_cast<float>(-2 * r * square / (q * q)),
          static_cast<float>(sigma_data * (square + args.sigma_min * sigma) / (t * __builtin_sqrt(t)))};
}

template <bool kStream, class T, class Output>
inline void edm_denoise_chunks(const EdmDenoise& args, int64_t first, int64_t last) {
  using Order = typename OrderOf<T, Output>::Type;
  const Order order{};
  const int64_t size = args.tokens * args.dim, chunks = chunks_of(args);
  for (int64_t i = first; i < last; ++i) {
    const Chunk chunk = chunk_of(args, chunks, i);
    const Coefficients c = coefficients(args, number(args.sigma, chunk.sample));
    const Pair skip = splat_pair(c.skip), out = splat_pair(c.out);
    T* result = static_cast<T*>(args.out) + chunk.sample * size;
    runs(args, chunk.first, chunk.last, [&](int64_t at, int64_t n, int64_t d, int64_t length) PRESTO_INLINE {
      const T* x = row<T>(args.x, chunk.sample, n) + d;
      const Output* f = row<Output>(args.model_output, chunk.sample, n) + d;
      sweep_pairs(length, [&](int64_t j, int, auto w) PRESTO_INLINE {
        const Pair value = fma(out, load_pair(f + j, w, order), skip * load_pair(x + j, w, order));
        put_pair<kStream>(result + at + j, value, w, order);
      });
    });
  }
  if (kStream) end_stream();
}

template <class T, class Output>
inline void edm_denoise(const EdmDenoise& args, int64_t first, int64_t last) {
  if (can_stream<T>(args, args.out)) return edm_denoise_chunks<true, T, Output>(args, first, last);
  edm_denoise_chunks<false, T, Output>(args, first, last);
}

// to = factor * from
template <class To, class From>
inline PRESTO_INLINE void scaled(To* to, const From* from, float factor, int64_t length) {
  const Pair by = splat_pair(factor);
  sweep_pairs(length, [&](int64_t j, int, auto w)
                          PRESTO_INLINE { store_pair(to + j, by * load_pair(from + j, w, Natural{}), w, Natural{}); });
}

template <class T, class Output>
inline void edm_denoise_backward(const EdmDenoiseBackward& args, int64_t first, int64_t last) {
  const Natural order{};
  const int64_t size = args.tokens * args.dim, chunks = chunks_of(args);
  for (int64_t i = first; i < last; ++i) {
    const Chunk chunk = chunk_of(args, chunks, i);
    const float sigma = number(args.sigma, chunk.sample);
    const Coefficients c = coefficients(args, sigma), slope = slopes(args, sigma);
    const Pair skip = splat_pair(slope.skip), out = splat_pair(slope.out);
    PairSum total;
    runs(args, chunk.first, chunk.last, [&](int64_t at, int64_t n, int64_t d, int64_t length) PRESTO_INLINE {
      const int64_t b = chunk.sample;
      const T* grad = row<T>(args.grad, b, n) + d;
      if (args.dx) scaled(static_cast<T*>(args.dx) + b * size + at, grad, c.skip, length);
      if (args.doutput) scaled(static_cast<Output*>(args.doutput) + b * size + at, grad, c.out, length);
      if (!args.dsigma) return;
      const T* x = row<T>(args.x, b, n) + d;
      const Output* f = row<Output>(args.model_output, b, n) + d;
      sweep_pairs(length, [&](int64_t j, int chain, auto w) PRESTO_INLINE {
        const Pair slope_here = fma(skip, load_pair(x + j, w, order), out * load_pair(f + j, w, order));
        total.add_product(chain, load_pair(grad + j, w, order), slope_here);
      });
    });
    if (args.dsigma) args.workspace[i] = total.total();
  }
}

// ---- renoise -----------------------------------------------------------------------------------------------------
// Elements of noise drawn at a time: 4 KB of L1, and whole runs of kDrawn.
constexpr int64_t kPiece = 1024;
static_assert(kPiece % kDrawn == 0 && kSamplerChunk % kPiece == 0);

// body(element, row, column, length, eps) for each run of a chunk that lies in one row and has its noise in `eps`.
template <class Args, class Body>
inline PRESTO_INLINE void noisy_runs(const Args& args, const Chunk& chunk, Body&& body) {
  const uint64_t seed = static_cast<uint64_t>(number(args.seed, chunk.sample));
  const uint32_t offset = static_cast<uint32_t>(number(args.offset, chunk.sample));
  const uint32_t sample = args.seed.data ? 0 : static_cast<uint32_t>(chunk.sample);
  alignas(64) float eps[kPiece];
  for (int64_t piece = chunk.first; piece < chunk.last; piece += kPiece) {
    const int64_t end = piece + kPiece < chunk.last ? piece + kPiece : chunk.last;
    for (int64_t at = piece; at < end; at += kDrawn) draw(at / 4, offset, sample, seed, eps + (at - piece));
    runs(args, piece, end, [&](int64_t at, int64_t n, int64_t d, int64_t length) PRESTO_INLINE {
      body(at, n, d, length, eps + (at - piece));
    });
  }
}

template <bool kStream, class T>
inline void renoise_chunks(const Renoise& args, int64_t first, int64_t last) {
  const Natural order{};
  const int64_t size = args.tokens * args.dim, chunks = chunks_of(args);
  const Pair signal = splat_pair(args.signal);
  for (int64_t i = first; i < last; ++i) {
    const Chunk chunk = chunk_of(args, chunks, i);
    const Pair sigma = splat_pair(number(args.sigma, chunk.sample));
    T* result = static_cast<T*>(args.out) + chunk.sample * size;
    const auto body = [&](int64_t at, int64_t n, int64_t d, int64_t length, const float* eps) PRESTO_INLINE {
      const T* x0 = row<T>(args.x0, chunk.sample, n) + d;
      sweep_pairs(length, [&](int64_t j, int, auto w) PRESTO_INLINE {
        const Pair value = fma(sigma, load_pair(eps + j, w, order), signal * load_pair(x0 + j, w, order));
        put_pair<kStream>(result + at + j, value, w, order);
      });
    };
    noisy_runs(args, chunk, body);
  }
  if (kStream) end_stream();
}

template <class T>
inline void renoise(const Renoise& args, int64_t first, int64_t last) {
  if (can_stream<T>(args, args.out)) return renoise_chunks<true, T>(args, first, last);
  renoise_chunks<false, T>(args, first, last);
}

template <class T>
inline void renoise_backward(const RenoiseBackward& args, int64_t first, int64_t last) {
  const int64_t chunks = chunks_of(args);
  for (int64_t i = first; i < last; ++i) {
    const Chunk chunk = chunk_of(args, chunks, i);
    PairSum total;
    const auto body = [&](int64_t, int64_t n, int64_t d, int64_t length, const float* eps) PRESTO_INLINE {
      const T* grad = row<T>(args.grad, chunk.sample, n) + d;
      sweep_pairs(length, [&](int64_t j, int chain, auto w) PRESTO_INLINE {
        total.add_product(chain, load_pair(grad + j, w, Natural{}), load_pair(eps + j, w, Natural{}));
      });
    };
    noisy_runs(args, chunk, body);
    args.workspace[i] = total.total();
  }
}

inline void sampler_sums(const SamplerShape& shape, const float* workspace, DType dtype, void* out) {
  const int64_t chunks = chunks_of(shape);
  for (int64_t b = 0; b < shape.batch; ++b) {
    double total = 0;
    for (int64_t i = 0; i < chunks; ++i) total += workspace[b * chunks + i];
    with_type(dtype, [&](auto type) {
      store(static_cast<decltype(type)*>(out) + b, splat(static_cast<float>(total)), First{1});
    });
  }
}

}  // namespace presto::cpu::PRESTO_ISA
