// Vectors of fp32 lanes over the instruction set this file is compiled for, and loads and stores that convert.
//
// Included once per instruction set by files that differ only in their compiler flags; PRESTO_ISA names the namespace,
// so no symbol of one set can stand in for another's.  For the same reason nothing here comes from the C++ library: an
// inline function of it, compiled here with AVX-512, could be picked by the linker for code that runs anywhere.
#pragma once
#include <immintrin.h>

#include <cstdint>

// The body of a sweep stands in it six times over; as a call it would keep its sums in memory.
#define PRESTO_INLINE __attribute__((always_inline))

namespace presto::cpu::PRESTO_ISA {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// How many lanes an access touches: all of them, or the first `n`; the others load as 0 and are not stored.
struct All {};
struct First {
  int64_t n;
};

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
using Vec = __m512;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec splat(float a) { return _mm512_set1_ps(a); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline float sum(Vec a) { return _mm512_reduce_add_ps(a); }

inline __mmask16 mask(First f) { return static_cast<__mmask16>((1u << f.n) - 1u); }
inline Vec keep(Vec a, First f) { return _mm512_maskz_mov_ps(mask(f), a); }

// Each word straight to the upper half of its lane: one shuffle where widening and shifting are two instructions.
inline Vec widen(__m256i half, bf16) {
  const __m512i lane =
      _mm512_setr_epi32(0x00000000, 0x00010001, 0x00020002, 0x00030003, 0x00040004, 0x00050005, 0x00060006, 0x00070007,
                        0x00080008, 0x00090009, 0x000a000a, 0x000b000b, 0x000c000c, 0x000d000d, 0x000e000e, 0x000f000f);
  return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, lane, _mm512_castsi256_si512(half)));
}
inline Vec widen(__m256i half, f16) { return _mm512_cvtph_ps(half); }
inline __m256i narrow(Vec a, f16) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
#if defined(__AVX512BF16__)
inline __m256i narrow(Vec a, bf16) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a)); }
#else
inline __m256i narrow(Vec a, bf16) {  // round to nearest even; NaN stays NaN
  const __m512i u = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}
#endif

inline Vec load(const float* p, All) { return _mm512_loadu_ps(p); }
inline Vec load(const float* p, First f) { return _mm512_maskz_loadu_ps(mask(f), p); }
inline void store(float* p, Vec a, All) { _mm512_storeu_ps(p, a); }
inline void store(float* p, Vec a, First f) { _mm512_mask_storeu_ps(p, mask(f), a); }
inline __m256i load_half(const void* p, All) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m256i load_half(const void* p, First f) { return _mm256_maskz_loadu_epi16(mask(f), p); }
inline void store_half(void* p, __m256i a, All) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
inline void store_half(void* p, __m256i a, First f) { _mm256_mask_storeu_epi16(p, mask(f), a); }
using Half = __m256i;

#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
using Vec = __m256;
using Half = __m128i;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec splat(float a) { return _mm256_set1_ps(a); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline float sum(Vec a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline __m256i mask(First f) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(f.n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec keep(Vec a, First f) { return _mm256_and_ps(a, _mm256_castsi256_ps(mask(f))); }

inline Vec widen(__m128i half, bf16) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)); }
inline Vec widen(__m128i half, f16) { return _mm256_cvtph_ps(half); }
inline __m128i narrow(Vec a, f16) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
inline __m128i narrow(Vec a, bf16) {  // round to nearest even; NaN stays NaN
  const __m256i u = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  r = _mm256_srli_epi32(_mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc00000), nan), 16);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08));
}

inline Vec load(const float* p, All) { return _mm256_loadu_ps(p); }
inline Vec load(const float* p, First f) { return _mm256_maskload_ps(p, mask(f)); }
inline void store(float* p, Vec a, All) { _mm256_storeu_ps(p, a); }
inline void store(float* p, Vec a, First f) { _mm256_maskstore_ps(p, mask(f), a); }
inline __m128i load_half(const void* p, All) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m128i load_half(const void* p, First f) {  // AVX2 masks no 16-bit lanes: a tail goes through the stack
  alignas(16) uint16_t lanes[8] = {};
  for (int64_t i = 0; i < f.n; ++i) lanes[i] = static_cast<const uint16_t*>(p)[i];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(lanes));
}
inline void store_half(void* p, __m128i a, All) { _mm_storeu_si128(static_cast<__m128i*>(p), a); }
inline void store_half(void* p, __m128i a, First f) {
  alignas(16) uint16_t lanes[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(lanes), a);
  for (int64_t i = 0; i < f.n; ++i) static_cast<uint16_t*>(p)[i] = lanes[i];
}
#endif

inline Vec keep(Vec a, All) { return a; }

template <class T, class Width>
inline Vec load(const T* p, Width w) {
  return widen(load_half(p, w), T{});
}
template <class T, class Width>
inline void store(T* p, Vec a, Width w) {
  store_half(p, narrow(a, T{}), w);
}

// body(i, lane_group, width) over [0, d): four vectors at a time so that sums have four independent chains.
constexpr int kChains = 4;
template <class Body>
inline PRESTO_INLINE void sweep(int64_t d, Body&& body) {
  int64_t i = 0;
  for (; i + kChains * kLanes <= d; i += kChains * kLanes) {
    body(i, 0, All{});
    body(i + kLanes, 1, All{});
    body(i + 2 * kLanes, 2, All{});
    body(i + 3 * kLanes, 3, All{});
  }
  for (; i + kLanes <= d; i += kLanes) body(i, 0, All{});
  if (i < d) body(i, 1, First{d - i});
}

struct Sum {
  Vec chain[kChains] = {zero(), zero(), zero(), zero()};
  void add(int j, Vec a) { chain[j] += a; }
  void add_product(int j, Vec a, Vec b) { chain[j] = fma(a, b, chain[j]); }
  float total() const { return sum((chain[0] + chain[1]) + (chain[2] + chain[3])); }
};

// ---- two vectors at a time ---------------------------------------------------------------------------------------
// 2 * kLanes neighbours as two vectors.  In natural order a holds the first half and b the second.  bf16 on AVX-512 has
// a cheaper order, a the even elements and b the odd ones: they come apart with a shift and a mask, where natural order
// takes a shuffle each, and shuffles have one port.  Row sums do not care; what is kept as fp32 beside them
// (modulation) is put in the same order once.
constexpr int64_t kPair = 2 * kLanes;
struct Pair {
  Vec a, b;
};
struct Natural {};
struct EvenOdd {};

inline Pair splat_pair(float a) { return {splat(a), splat(a)}; }
inline Pair operator+(Pair x, Pair y) { return {x.a + y.a, x.b + y.b}; }
inline Pair operator-(Pair x, Pair y) { return {x.a - y.a, x.b - y.b}; }
inline Pair operator*(Pair x, Pair y) { return {x.a * y.a, x.b * y.b}; }
inline Pair fma(Pair x, Pair y, Pair z) { return {fma(x.a, y.a, z.a), fma(x.b, y.b, z.b)}; }

inline First first_half(First f) { return {f.n < kLanes ? f.n : kLanes}; }
inline First second_half(First f) { return {f.n < kLanes ? 0 : f.n - kLanes}; }
inline All first_half(All w) { return w; }
inline All second_half(All w) { return w; }

// A pair of a row kept as fp32, padded to whole pairs and already in order.
inline Pair load_pair(const float* p) { return {load(p, All{}), load(p + kLanes, All{})}; }
inline void keep_pair(float* p, Pair v) {
  store(p, v.a, All{});
  store(p + kLanes, v.b, All{});
}

template <class T, class Width>
inline Pair load_pair(const T* p, Width w, Natural) {
  return {load(p, first_half(w)), load(p + kLanes, second_half(w))};
}
inline Vec rounded(Vec a, float) { return a; }
template <class T>
inline Vec rounded(Vec a, T) {
  return widen(narrow(a, T{}), T{});
}
// Stores a pair and gives back what a later load would read.
template <class T, class Width>
inline Pair store_pair(T* p, Pair v, Width w, Natural) {
  store(p, v.a, first_half(w));
  store(p + kLanes, v.b, second_half(w));
  return {rounded(v.a, T{}), rounded(v.b, T{})};
}
template <class Width>
inline Pair keep(Pair v, Width w, Natural) {
  return {keep(v.a, first_half(w)), keep(v.b, second_half(w))};
}
// A row kept as fp32, from natural order into another, and back.
inline void put_in_order(float*, int64_t, Natural) {}
inline void put_back_in_order(float*, int64_t, Natural) {}

#if defined(__AVX512F__)
inline __m512i odd_words() { return _mm512_set1_epi32(static_cast<int>(0xffff0000u)); }
inline Pair split(__m512i words) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)), _mm512_castsi512_ps(_mm512_and_si512(words, odd_words()))};
}
inline __mmask32 mask_words(First f) { return static_cast<__mmask32>((1ull << f.n) - 1ull); }
inline __m512i load_words(const void* p, All) { return _mm512_loadu_si512(p); }
inline __m512i load_words(const void* p, First f) { return _mm512_maskz_loadu_epi16(mask_words(f), p); }
inline void store_words(void* p, __m512i v, All) { _mm512_storeu_si512(p, v); }
inline void store_words(void* p, __m512i v, First f) { _mm512_mask_storeu_epi16(p, mask_words(f), v); }

// e0 o0 e1 o1 ... from e0 e1 ... o0 o1 ...
inline __m512i interleave() {
  alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_load_si512(order);
}
#if defined(__AVX512BF16__)
inline __m512i join(Pair v) {
  return _mm512_permutexvar_epi16(interleave(), reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(v.b, v.a)));
}
#else
inline __m512i join(Pair v) {
  const __m512i words = _mm512_inserti64x4(_mm512_castsi256_si512(narrow(v.a, bf16{})), narrow(v.b, bf16{}), 1);
  return _mm512_permutexvar_epi16(interleave(), words);
}
#endif

template <class Width>
inline Pair load_pair(const bf16* p, Width w, EvenOdd) {
  return split(load_words(p, w));
}
template <class Width>
inline Pair store_pair(bf16* p, Pair v, Width w, EvenOdd) {
  const __m512i words = join(v);
  store_words(p, words, w);
  return split(words);
}
inline Pair keep(Pair v, All, EvenOdd) { return v; }
inline Pair keep(Pair v, First f, EvenOdd) { return {keep(v.a, First{(f.n + 1) / 2}), keep(v.b, First{f.n / 2})}; }
inline void put_in_order(float* row, int64_t d, EvenOdd) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (int64_t i = 0; i < d; i += kPair) {
    const Pair v = load_pair(row + i);
    keep_pair(row + i, {_mm512_permutex2var_ps(v.a, even, v.b), _mm512_permutex2var_ps(v.a, odd, v.b)});
  }
}
inline void put_back_in_order(float* row, int64_t d, EvenOdd) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  for (int64_t i = 0; i < d; i += kPair) {
    const Pair v = load_pair(row + i);
    keep_pair(row + i, {_mm512_permutex2var_ps(v.a, first, v.b), _mm512_permutex2var_ps(v.a, second, v.b)});
  }
}
template <class T, class Other>
struct OrderOf {
  using Type = Natural;
};
template <>
struct OrderOf<bf16, bf16> {
  using Type = EvenOdd;
};
#else
template <class T, class Other>
struct OrderOf {
  using Type = Natural;
};
#endif

// ---- past the cache ----------------------------------------------------------------------------------------------
// A streaming store writes memory without reading the line first, which an ordinary store does: a third of the traffic
// of a copy.  The line does not stay in the cache.  Addresses are multiples of 64 bytes.
#if defined(__AVX512F__)
inline void stream(float* p, Vec v) { _mm512_stream_ps(p, v); }
inline void stream_half(void* p, __m256i v) { _mm256_stream_si256(static_cast<__m256i*>(p), v); }
inline void stream_pair(bf16* p, Pair v, EvenOdd) { _mm512_stream_si512(reinterpret_cast<__m512i*>(p), join(v)); }
#else
inline void stream(float* p, Vec v) { _mm256_stream_ps(p, v); }
inline void stream_half(void* p, __m128i v) { _mm_stream_si128(static_cast<__m128i*>(p), v); }
#endif
template <class T>
inline void stream(T* p, Vec v) {
  stream_half(p, narrow(v, T{}));
}
template <class T>
inline void stream_pair(T* p, Pair v, Natural) {
  stream(p, v.a);
  stream(p + kLanes, v.b);
}
// Whole lines from the cache to memory.
inline void stream_lines(void* to, const void* from, int64_t bytes) {
  auto* out = static_cast<float*>(to);
  const auto* in = static_cast<const float*>(from);
  for (int64_t i = 0; i < bytes / 4; i += kLanes) stream(out + i, load(in + i, All{}));
}
// Streamed lines are ordered before what other threads see next.
inline void end_stream() { _mm_sfence(); }

template <bool kStream, class T, class Width, class Order>
inline void put_pair(T* p, Pair v, Width w, Order order) {
  if constexpr (kStream) {
    stream_pair(p, v, order);  // rows are whole lines, so there is no tail
  } else {
    store_pair(p, v, w, order);
  }
}

// body(i, chain, width) over [0, d), a pair at a time, two pairs in flight.
template <class Body>
inline PRESTO_INLINE void sweep_pairs(int64_t d, Body&& body) {
  int64_t i = 0;
  for (; i + 2 * kPair <= d; i += 2 * kPair) {
    body(i, 0, All{});
    body(i + kPair, 1, All{});
  }
  for (; i + kPair <= d; i += kPair) body(i, 0, All{});
  if (i < d) body(i, 1, First{d - i});
}

struct PairSum : Sum {
  void add(int j, Pair v) {
    Sum::add(2 * j, v.a);
    Sum::add(2 * j + 1, v.b);
  }
  void add_product(int j, Pair x, Pair y) {
    Sum::add_product(2 * j, x.a, y.a);
    Sum::add_product(2 * j + 1, x.b, y.b);
  }
};

}  // namespace presto::cpu::PRESTO_ISA
