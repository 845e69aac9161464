// The pointwise middle of attention: powers of two, and which keys a query sees.
#pragma once
#include "attention.h"
#include "attention_pack.h"

namespace presto::cpu::PRESTO_ISA {

constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;
inline float infinity() { return __builtin_inff(); }

// Lanes [from, to) of a vector; either may lie outside.
struct Lanes {
  int64_t from, to;
};

#if defined(__AVX512F__)
// 2^x for x <= 128: r = x - round(x), a polynomial in r, times 2^round(x).
inline Vec whole(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec times_power(Vec a, Vec whole) { return _mm512_scalef_ps(a, whole); }
// The greater; b where either is NaN.
inline Vec greater(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline float greatest(Vec a) { return _mm512_reduce_max_ps(a); }

inline __mmask16 mask(Lanes l) {
  const auto upto = [](int64_t n) { return n <= 0 ? 0u : n >= 16 ? 0xffffu : (1u << n) - 1u; };
  return static_cast<__mmask16>(upto(l.to) & ~upto(l.from));
}
inline Vec select(Lanes l, Vec inside, Vec outside) { return _mm512_mask_mov_ps(outside, mask(l), inside); }
#else
inline Vec whole(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// Below 2^-126 the result is 0.
inline Vec times_power(Vec a, Vec whole) {
  const Vec bounded = _mm256_max_ps(splat(-127.f), whole);  // NaN stays
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(bounded), _mm256_set1_epi32(127)), 23);
  return a * _mm256_castsi256_ps(power);
}
inline Vec greater(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline float greatest(Vec a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

inline Vec select(Lanes l, Vec inside, Vec outside) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const auto bound = [](int64_t n) { return _mm256_set1_epi32(static_cast<int>(n < 0 ? 0 : n > 8 ? 8 : n)); };
  const __m256i in = _mm256_andnot_si256(_mm256_cmpgt_epi32(bound(l.from), lane), _mm256_cmpgt_epi32(bound(l.to), lane));
  return _mm256_blendv_ps(outside, inside, _mm256_castsi256_ps(in));
}
#endif

// Minimax polynomials of 2^r on [-1/2, 1/2], exact at 0: relative error 2.0e-9 before rounding for fp32, and 2.8e-6 for
// weights that are rounded to bf16's 2e-3 anyway.
template <class C>
inline Vec exp2_fraction(Vec r) {
  if constexpr (kPerWord<C> == 2) {
    Vec p = fma(splat(0.009582852944731712f), r, splat(0.055906426161527634f));
    p = fma(p, r, splat(0.24024099111557007f));
    p = fma(p, r, splat(0.6931241750717163f));
    return fma(p, r, splat(1.f));
  } else {
    Vec p = fma(splat(0.00015353361959569156f), r, splat(0.0013398875016719103f));
    p = fma(p, r, splat(0.00961843691766262f));
    p = fma(p, r, splat(0.055503323674201965f));
    p = fma(p, r, splat(0.24022647738456726f));
    p = fma(p, r, splat(0.6931471824645996f));
    return fma(p, r, splat(1.f));
  }
}

template <class C>
inline PRESTO_INLINE Vec exp2(Vec x) {
  const Vec n = whole(x);
  return times_power(exp2_fraction<C>(x - n), n);
}

// Which keys query i sees: [first(i), end(i)); and which queries see key j.  Both are empty where end <= first.
struct Visible {
  int64_t left, right, queries, length;
  Visible(const AttentionInputs& a, int64_t b)
      : left(a.left), right(a.right), queries(a.queries), length(a.lengths ? a.lengths[b] : a.keys) {}
  bool window() const { return left >= 0 || right >= 0; }
  int64_t first_key(int64_t i) const { return left < 0 ? 0 : most(i - left, 0); }
  int64_t end_key(int64_t i) const { return right < 0 ? length : least(i + right + 1, length); }
  int64_t first_query(int64_t j) const { return right < 0 ? 0 : most(j - right, 0); }
  int64_t end_query(int64_t j) const { return j >= length ? 0 : left < 0 ? queries : least(j + left + 1, queries); }
};

}  // namespace presto::cpu::PRESTO_ISA
