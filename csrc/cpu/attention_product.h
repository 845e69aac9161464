// The one product that attention is made of: a few rows of A times a few vectors of B, sums in registers.
//
//   C[r, lane] += sum_step A[r, step] * B[step, lane]
//
// A and B are packed in words of 32 bits.  A word is one fp32, or, where the processor multiplies bf16 (avx512bf16),
// two bf16 neighbours along the reduced axis, whose two products are added in one instruction.  Sums are fp32.
//
// Registers: 6 rows x 4 vectors of sums, 4 of B, 1 of A are 29 of AVX-512's 32; 6 x 2, 2 and 1 are 15 of AVX2's 16.  A
// step of 6 x 4 is 24 multiply-adds on 4 vector loads and 6 broadcast loads, so multiply-adds are what limits it.
#pragma once
#include "simd.h"

namespace presto::cpu::PRESTO_ISA {

#if defined(__AVX512F__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif
constexpr int kRows = 6;

// What a dtype is multiplied as, and how many of it make a word.
template <class T>
struct Compute {
  using Type = float;
};
#if defined(__AVX512BF16__)
template <>
struct Compute<bf16> {
  using Type = bf16;
};
#endif
template <class C>
constexpr int64_t kPerWord = sizeof(float) / sizeof(C);

inline float as_float(float a) { return a; }
inline float as_float(bf16 a) { return __builtin_bit_cast(float, static_cast<uint32_t>(a.bits) << 16); }

inline Vec step(Vec a, Vec b, Vec sum, float) { return fma(a, b, sum); }
#if defined(__AVX512BF16__)
inline Vec step(Vec a, Vec b, Vec sum, bf16) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
#endif

// Strides are in words.  b_vector is the distance of neighbouring vectors, b_step that of neighbouring steps.
template <class C, int R, int V>
inline PRESTO_INLINE void multiply(const float* a, int64_t a_row, const float* b, int64_t b_step, int64_t b_vector,
                                   int64_t steps, Vec (&sums)[R][V]) {
  for (int64_t s = 0; s < steps; ++s, b += b_step) {
    Vec lanes[V];
    for (int v = 0; v < V; ++v) lanes[v] = load(b + v * b_vector, All{});
    for (int r = 0; r < R; ++r) {
      const Vec row = splat(a[r * a_row + s]);
      for (int v = 0; v < V; ++v) sums[r][v] = step(row, lanes[v], sums[r][v], C{});
    }
  }
}

// The same from zero, for sums that become exponents.  In fp32 one long chain of roundings is cut into parts: at 128
// steps a chain errs twice as much as the products PyTorch uses for small matrices do, and parts of 32 as little.
constexpr int64_t kPart = 32;
template <class C, int R, int V>
inline PRESTO_INLINE void multiply_exponents(const float* a, int64_t a_row, const float* b, int64_t b_step,
                                             int64_t b_vector, int64_t steps, Vec (&sums)[R][V]) {
  const auto clear = [&]() PRESTO_INLINE {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) sums[r][v] = zero();
  };
  clear();
  if constexpr (kPerWord<C> == 1) {
    if (steps > kPart) {
      alignas(64) float parts[R * V * kLanes] = {};
      for (; steps > kPart; steps -= kPart, a += kPart, b += kPart * b_step) {
        multiply<C>(a, a_row, b, b_step, b_vector, kPart, sums);
        for (int r = 0; r < R; ++r)
          for (int v = 0; v < V; ++v) {
            float* part = parts + (r * V + v) * kLanes;
            store(part, load(part, All{}) + sums[r][v], All{});
          }
        clear();
      }
      multiply<C>(a, a_row, b, b_step, b_vector, steps, sums);
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) sums[r][v] += load(parts + (r * V + v) * kLanes, All{});
      return;
    }
  }
  multiply<C>(a, a_row, b, b_step, b_vector, steps, sums);
}

template <int N>
struct Count {
  static constexpr int value = N;
};
// body(vector, Count<how many>) over `vectors` of them, kVectors at a time.
template <class Body>
inline PRESTO_INLINE void by_vectors(int64_t vectors, Body&& body) {
  int64_t v = 0;
  for (; v + kVectors <= vectors; v += kVectors) body(v, Count<kVectors>{});
  if (vectors - v == 1) body(v, Count<1>{});
#if defined(__AVX512F__)
  if (vectors - v == 2) body(v, Count<2>{});
  if (vectors - v == 3) body(v, Count<3>{});
#endif
}

}  // namespace presto::cpu::PRESTO_ISA
