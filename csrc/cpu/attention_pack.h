// How rows of q, k, v and grad_out become the operands of attention_product.h, padded with zeros to whole vectors:
//
//   rows     [row][word]                as A: reduced over the head dimension
//   lanes    [kLanes rows][word][lane]  as B: a row to a lane, reduced over the head dimension
//   steps    [word of rows][dim]        as B: a dimension to a lane, reduced over the rows
//   columns  [dim][word of rows]        as A: reduced over the rows
//
// A word holds kPerWord<C> neighbours along the reduced axis.
#pragma once
#include "attention_product.h"
#include "scratch.h"

namespace presto::cpu::PRESTO_ISA {

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// [count] rows of one head
template <class T>
struct HeadRows {
  const T* data;
  int64_t stride;
  const T* row(int64_t n) const { return data + n * stride; }
};

// The words of a head dimension, and where one vector of `lanes` begins after another: a line further than its size, as
// vectors 2 KB apart would fall on the same cache sets.
template <class C>
inline int64_t words_of(int64_t dim) {
  return (dim + kPerWord<C> - 1) / kPerWord<C>;
}
inline int64_t lanes_stride(int64_t words) { return words * kLanes + kLanes; }

// kLanes words of a row, zero from element n on.
template <class C, class T>
inline Vec row_words(const T* p, int64_t n) {
#if defined(__AVX512BF16__)
  if constexpr (kPerWord<C> == 2)
    return _mm512_castsi512_ps(n >= kPair ? load_words(p, All{}) : load_words(p, First{most(n, 0)}));
#endif
  return n >= kLanes ? load(p, All{}) : load(p, First{most(n, 0)});
}

// Both elements of every word negated.
inline Vec flip_signs(Vec words, float) { return words * splat(-1.f); }
#if defined(__AVX512BF16__)
inline Vec flip_signs(Vec words, bf16) {
  return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(words), _mm512_set1_epi16(-0x8000)));
}
// a[from], b[from], a[from + 1], b[from + 1], ... of 16-bit elements
inline __m512i interleave_rows(int from) {
  const __m512i pairs = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i low = _mm512_add_epi32(pairs, _mm512_set1_epi32(from));
  return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(32)), 16));
}
#endif

#if defined(__AVX512F__)
// Lane j of a[i] becomes lane i of a[j].
inline void transpose(Vec (&a)[kLanes]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m512d x = _mm512_castps_pd(t[i + j]), y = _mm512_castps_pd(t[i + j + 2]);
      a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
      a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      t[i + j] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0x88);
      t[i + j + 4] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    a[j] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0x88);
    a[j + 8] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0xdd);
  }
}
#else
inline void transpose(Vec (&a)[kLanes]) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      a[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
    }
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm256_permute2f128_ps(a[j], a[j + 4], 0x20);
    t[j + 4] = _mm256_permute2f128_ps(a[j], a[j + 4], 0x31);
  }
  for (int i = 0; i < 8; ++i) a[i] = t[i];
}
#endif

template <class C, class T>
inline void pack_rows(HeadRows<T> in, int64_t count, int64_t padded, int64_t dim, bool negative, float* out,
                      int64_t out_row) {
  for (int64_t n = 0; n < padded; ++n)
    for (int64_t w = 0; w < out_row; w += kLanes) {
      Vec words = n < count ? row_words<C>(in.row(n) + w * kPerWord<C>, dim - w * kPerWord<C>) : zero();
      if (negative) words = flip_signs(words, C{});
      store(out + n * out_row + w, words, All{});
    }
}

// Rows that are asked for before they are read.
constexpr int64_t kAhead = 16;

// The rows of one head lie far apart where heads are neighbours, too far for the processor to guess the next.
template <class T>
inline void prefetch(HeadRows<T> in, int64_t first, int64_t last, int64_t dim) {
  for (int64_t n = first; n < last; ++n)
    for (int64_t d = 0; d < dim; d += 64 / static_cast<int64_t>(sizeof(T)))
      _mm_prefetch(reinterpret_cast<const char*>(in.row(n) + d), _MM_HINT_T1);
}

template <class C, class T>
inline void pack_lanes(HeadRows<T> in, int64_t count, int64_t dim, float* out) {
  const int64_t words = words_of<C>(dim), stride = lanes_stride(words);
  for (int64_t n = 0; n < count; n += kLanes, out += stride) {
    prefetch(in, n + kLanes, least(n + 2 * kLanes, count), dim);
    for (int64_t w = 0; w < words; w += kLanes) {
      Vec block[kLanes];
      for (int64_t i = 0; i < kLanes; ++i)
        block[i] = n + i < count ? row_words<C>(in.row(n + i) + w * kPerWord<C>, dim - w * kPerWord<C>) : zero();
      transpose(block);
      for (int64_t i = 0; i < kLanes && w + i < words; ++i) store(out + (w + i) * kLanes, block[i], All{});
    }
  }
}

// `count` rows and zeros up to `padded`, an even number.
template <class C, class T>
inline void pack_steps(HeadRows<T> in, int64_t count, int64_t padded, int64_t dim, float* out, int64_t out_row) {
#if defined(__AVX512BF16__)
  if constexpr (kPerWord<C> == 2) {
    const __m512i first = interleave_rows(0), second = interleave_rows(16);
    for (int64_t n = 0; n < padded; n += 2, out += out_row) {
      prefetch(in, least(n + kAhead, count), least(n + kAhead + 2, count), dim);
      for (int64_t d = 0; d < out_row; d += kPair) {
        const __m512i a = n < count ? _mm512_castps_si512(row_words<C>(in.row(n) + d, dim - d)) : __m512i{};
        const __m512i b = n + 1 < count ? _mm512_castps_si512(row_words<C>(in.row(n + 1) + d, dim - d)) : __m512i{};
        _mm512_storeu_si512(out + d, _mm512_permutex2var_epi16(a, first, b));
        if (d + kLanes < out_row) _mm512_storeu_si512(out + d + kLanes, _mm512_permutex2var_epi16(a, second, b));
      }
    }
    return;
  }
#endif
  for (int64_t n = 0; n < padded; ++n, out += out_row) {
    prefetch(in, least(n + kAhead, count), least(n + kAhead + 1, count), dim);
    for (int64_t d = 0; d < out_row; d += kLanes)
      store(out + d, n < count ? row_words<C>(in.row(n) + d, dim - d) : zero(), All{});
  }
}

// in [rows][columns] words -> out [columns][out_row], rows and columns multiples of kLanes
inline void transpose_words(const float* in, int64_t rows, int64_t columns, float* out, int64_t out_row) {
  for (int64_t c = 0; c < columns; c += kLanes)
    for (int64_t r = 0; r < rows; r += kLanes) {
      Vec block[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) block[i] = load(in + (r + i) * columns + c, All{});
      transpose(block);
      for (int64_t i = 0; i < kLanes; ++i) store(out + (c + i) * out_row + r, block[i], All{});
    }
}

// Whether every element of packed words is finite.
template <class C>
inline bool all_finite(const float* words, int64_t count) {
  Sum zeros;  // anything else times 0 is NaN
  sweep(count, [&](int64_t i, int c, auto w)
                   PRESTO_INLINE { zeros.chain[c] = step(load(words + i, w), zero(), zeros.chain[c], C{}); });
  return zeros.total() == 0.f;
}

}  // namespace presto::cpu::PRESTO_ISA
