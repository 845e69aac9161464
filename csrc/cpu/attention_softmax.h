// The pointwise middle of attention: powers of two, and which keys a query sees.
#pragma once
#include "attention.h"
#include "attention_pack.h"

namespace presto::cpu::PRESTO_ISA {

constexpr float kLog2E = 1.44269504088896341f;
inline float infinity() { return __builtin_inff(); }

// Lanes [from, to) of a vector; either may lie outside.
struct Lanes {
  int64_t from, to;
};

// Whether all lanes of the vector that begins at `at` are in.
inline bool all_of(Lanes l, int64_t at) { return l.from <= at && l.to >= at + kLanes; }

#if defined(__AVX512F__)
inline Vec whole(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec times_power(Vec a, Vec whole) { return _mm512_scalef_ps(a, whole); }
inline Vec bounded(Vec x) { return x; }  // scalef makes 0 of 2^-inf, whatever the other factor
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
inline Vec bounded(Vec x) { return _mm256_max_ps(splat(-104.f), x); }  // -inf - -inf is NaN; NaN stays
inline Vec greater(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline float greatest(Vec a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

inline Vec select(Lanes l, Vec inside, Vec outside) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const auto bound = [](int64_t n) { return _mm256_set1_epi32(static_cast<int>(n < 0 ? 0 : n > 8 ? 8 : n)); };
  const __m256i in =
      _mm256_andnot_si256(_mm256_cmpgt_epi32(bound(l.from), lane), _mm256_cmpgt_epi32(bound(l.to), lane));
  return _mm256_blendv_ps(outside, inside, _mm256_castsi256_ps(in));
}
#endif

// The base in which C's weights are computed: e for fp32, 2 for weights that are rounded to bf16 anyway.  kUnit<C>
// times a natural exponent is one in that base.
template <class C>
constexpr float kUnit = kPerWord<C> == 2 ? kLog2E : 1.f;

// e^x or 2^x, as 2^n times a minimax polynomial of what is left of x, exact at 0.  fp32: what is left is taken from x
// without rounding (n ln 2 in two parts), relative error 6e-9 before rounding, so that the whole is good to an ulp or
// two.  bf16: 2.8e-6, where rounding the weight costs 2e-3.
template <class C>
inline PRESTO_INLINE Vec power(Vec x) {
  if constexpr (kPerWord<C> == 2) {
    const Vec n = whole(x), r = x - n;
    Vec p = fma(splat(0.009582852944731712f), r, splat(0.055906426161527634f));
    p = fma(p, r, splat(0.24024099111557007f));
    p = fma(p, r, splat(0.6931241750717163f));
    return times_power(fma(p, r, splat(1.f)), n);
  } else {
    x = bounded(x);
    const Vec n = whole(x * splat(kLog2E));
    const Vec r = fma(n, splat(-1.428606765330187e-06f), fma(n, splat(-0.693145751953125f), x));
    Vec p = fma(splat(0.001381461275741458f), r, splat(0.008368710055947304f));
    p = fma(p, r, splat(0.04166838899254799f));
    p = fma(p, r, splat(0.1666652113199234f));
    p = fma(p, r, splat(0.4999999403953552f));
    return times_power(fma(fma(p, r, splat(1.f)), r, splat(1.f)), n);
  }
}

// What lies in the lanes of `x`, the vector that begins at `at`, and `outside` beside them.
inline PRESTO_INLINE Vec within(Lanes l, int64_t at, Vec x, Vec outside) {
  return all_of(l, at) ? x : select(Lanes{l.from - at, l.to - at}, x, outside);
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
