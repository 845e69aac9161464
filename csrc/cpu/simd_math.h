// exp, sigmoid, tanh, erf, sin and cos of a Vec, as accurate as libm's to about an ulp and some ten times faster.
// Included once per instruction set, as simd.h is.
//
//   function   method                                                       worst error found against float64
//   exp        x = n ln2 + r, 2^n (1 + r + r^2 P(r))                         1.1 ulp
//   sigmoid    1 / (1 + exp(-x)), as PyTorch has it                         2.5 ulp (its own: 2.5)
//   tanh       |x| <= 5/8: x + x^3 P(x^2), else 1 - 2 / (1 + exp(2|x|))     1.4 ulp
//   its slope  q (2 - q), q = 2 / (1 + exp(2|x|)) = 1 - tanh|x|             2.8 ulp
//   erf        |x| <= 0.93: x + x P(x^2), else 1 - exp(-x Q(x))             1.3 ulp
//   sin, cos   x = n pi/2 + r, a polynomial of r^2 for each                 1.6 ulp
//   sin_cos_pi of pi x: x is reduced exactly, polynomials of sincospi.h      2.0 ulp
//
// NaN gives NaN, and so does the sine of an infinity.  Sine and cosine of |x| above kReducible, where the three
// constants for pi no longer do, come from libm, lane by lane.  The polynomials are minimax fits (Remez) of relative
// error, their coefficients rounded to fp32.
#pragma once
#include "simd.h"
#include "sincospi.h"

namespace presto::cpu::PRESTO_ISA {

// ---- what simd.h's arithmetic lacks ------------------------------------------------------------------------------
#if defined(__AVX512F__)
using Bits = __m512i;
using Mask = __mmask16;

inline Bits bits(Vec a) { return _mm512_castps_si512(a); }
inline Vec from_bits(Bits a) { return _mm512_castsi512_ps(a); }
inline Bits splat_bits(uint32_t a) { return _mm512_set1_epi32(static_cast<int>(a)); }
template <int kCount>
inline Bits shift_left(Bits a) {
  return _mm512_slli_epi32(a, kCount);
}
inline Bits add(Bits a, Bits b) { return _mm512_add_epi32(a, b); }
inline Bits both(Bits a, Bits b) { return _mm512_and_si512(a, b); }
inline Bits differ(Bits a, Bits b) { return _mm512_xor_si512(a, b); }

inline Vec nearest(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// The second operand where one is NaN.
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Mask greater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline Mask not_at_most(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
inline Mask lowest_bit(Bits a) { return _mm512_test_epi32_mask(a, _mm512_set1_epi32(1)); }
inline bool any(Mask m) { return m != 0; }
inline Vec select(Mask m, Vec yes, Vec no) { return _mm512_mask_blend_ps(m, no, yes); }
// a 2^n for a whole n, with infinity above the range and denormals below it.
inline Vec scale(Vec a, Vec n) { return _mm512_scalef_ps(a, n); }

#elif defined(__AVX2__)
using Bits = __m256i;
using Mask = __m256;

inline Bits bits(Vec a) { return _mm256_castps_si256(a); }
inline Vec from_bits(Bits a) { return _mm256_castsi256_ps(a); }
inline Bits splat_bits(uint32_t a) { return _mm256_set1_epi32(static_cast<int>(a)); }
template <int kCount>
inline Bits shift_left(Bits a) {
  return _mm256_slli_epi32(a, kCount);
}
inline Bits add(Bits a, Bits b) { return _mm256_add_epi32(a, b); }
inline Bits both(Bits a, Bits b) { return _mm256_and_si256(a, b); }
inline Bits differ(Bits a, Bits b) { return _mm256_xor_si256(a, b); }

inline Vec nearest(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Mask greater(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
inline Mask not_at_most(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_NLE_UQ); }
inline Mask lowest_bit(Bits a) { return _mm256_castsi256_ps(_mm256_slli_epi32(a, 31)); }
inline bool any(Mask m) { return _mm256_movemask_ps(m) != 0; }
inline Vec select(Mask m, Vec yes, Vec no) { return _mm256_blendv_ps(no, yes, m); }  // goes by the sign bits
// In two steps: 2^n itself may be out of range where the product is not.
inline Vec scale(Vec a, Vec n) {
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
  const auto power = [&](__m256i e) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, bias), 23)); };
  return a * power(half) * power(_mm256_sub_epi32(whole, half));
}
#endif

inline Vec absolute(Vec a) { return from_bits(both(bits(a), splat_bits(0x7fffffffu))); }
inline Vec flip_sign(Vec a, Bits sign) { return from_bits(differ(bits(a), sign)); }
inline Bits sign_of(Vec a) { return both(bits(a), splat_bits(0x80000000u)); }

// c[0] + c[1] x + ... by Horner's rule.
template <int kTerms>
inline PRESTO_INLINE Vec polynomial(Vec x, const float (&c)[kTerms]) {
  Vec sum = splat(c[kTerms - 1]);
#pragma GCC unroll 8
  for (int i = kTerms - 2; i >= 0; --i) sum = fma(sum, x, splat(c[i]));
  return sum;
}

// ---- exp, sigmoid, tanh, erf -------------------------------------------------------------------------------------
inline PRESTO_INLINE Vec exp(Vec x) {
  static constexpr float kTail[] = {0.499999934124f, 0.166665201083f, 0.0416683942528f, 0.00836878037457f,
                                    0.00138144646072f};  // |r| <= ln2 / 2, 2^-28
  x = min(splat(89.f), max(splat(-104.f), x));           // infinity and 0 from here on, and n stays small
  const Vec n = nearest(x * splat(1.44269504f));
  // ln2 in two parts: x - n * 0.693147182 is exact.
  const Vec r = fma(n, splat(1.90465421e-9f), fma(n, splat(-0.693147182f), x));
  return scale(fma(r * r, polynomial(r, kTail), r) + splat(1.f), n);
}

inline PRESTO_INLINE Vec sigmoid(Vec x) { return splat(1.f) / (splat(1.f) + exp(zero() - x)); }

// 1 - tanh|x|
inline PRESTO_INLINE Vec tanh_complement(Vec x) {
  const Vec t = absolute(x);
  return splat(2.f) / (splat(1.f) + exp(t + t));
}

// Near 0 the digits of 1 - 2 / ... would cancel; there it is a polynomial.
inline PRESTO_INLINE Vec tanh(Vec x) {
  static constexpr float kNear[] = {-0.333332806826f, 0.133314415812f, -0.0537397004664f, 0.0206390507519f,
                                    -0.00570495193824f};  // of x^2, 2^-26
  const Vec t = absolute(x), square = x * x;
  const Vec near = fma(polynomial(square, kNear) * square, x, x);
  const Vec far = splat(1.f) - tanh_complement(x);
  return select(greater(t, splat(0.625f)), flip_sign(far, sign_of(x)), near);
}

// 1 - tanh(x)^2, without the cancellation where tanh is near 1.
inline PRESTO_INLINE Vec tanh_slope(Vec x) {
  const Vec q = tanh_complement(x);
  return q * (splat(2.f) - q);
}

inline PRESTO_INLINE Vec erf(Vec x) {
  static constexpr float kNear[] = {0.128379147691f,  -0.376124811007f,  0.112816825462f,
                                    -0.026761720019f, 0.00498594078403f, -0.000595374250882f};  // of x^2, 2^-26
  static constexpr float kFar[] = {0.12851279012f,   0.635723606013f,   0.105254896982f,
                                   -0.022885524158f, 0.00321357455275f, -0.000213817780328f};  // 2^-28
  const Vec t = absolute(x);
  const Vec near = fma(polynomial(x * x, kNear), x, x);
  const Vec clamped = min(splat(4.f), t);  // erf is 1 from 3.92 on
  const Vec far = splat(1.f) - exp(zero() - fma(polynomial(clamped, kFar), clamped, clamped));
  return select(greater(t, splat(0.93f)), flip_sign(far, sign_of(x)), near);
}

// ---- sin and cos -------------------------------------------------------------------------------------------------
// Up to here n (the first part of pi / 2) is exact in an fma and n is right to within an eighth.
constexpr float kReducible = 131072.f;

// Sine and cosine of r, where x = n pi / 2 + r and |r| is at most pi / 4 or a little more; n is in the lowest bits.
struct Reduced {
  Vec sin, cos;
  Bits n;
};
inline PRESTO_INLINE Reduced reduce(Vec x) {
  static constexpr float kSin[] = {-0.166666530795f, 0.00833206387374f, -0.000195021347151f};        // 2^-28
  static constexpr float kCos[] = {-0.5f, 0.0416666429837f, -0.00138871847008f, 2.44181282469e-5f};  // 2^-33
  // Adding 1.5 * 2^23 leaves the nearest whole number in the lowest bits.
  const Vec shifted = fma(x, splat(0.636619772f), splat(12582912.f)), n = shifted - splat(12582912.f);
  Vec r = fma(n, splat(-1.57079637f), x);
  r = fma(n, splat(4.37113883e-8f), r);
  r = fma(n, splat(1.71512451e-15f), r);
  const Vec s = r * r;
  return {fma(polynomial(s, kSin) * s, r, r), fma(polynomial(s, kCos), s, splat(1.f)), bits(shifted)};
}
inline PRESTO_INLINE Vec sin_of(const Reduced& of) {
  const Vec size = select(lowest_bit(of.n), of.cos, of.sin);
  return flip_sign(size, shift_left<30>(both(of.n, splat_bits(2))));
}
inline PRESTO_INLINE Vec cos_of(const Reduced& of) {
  const Vec size = select(lowest_bit(of.n), of.sin, of.cos);
  return flip_sign(size, shift_left<30>(both(add(of.n, splat_bits(1)), splat_bits(2))));
}

// Where |x| is beyond kReducible (or NaN), what libm says.
inline bool any_irreducible(Vec x) { return any(not_at_most(absolute(x), splat(kReducible))); }
inline __attribute__((noinline, cold)) Vec patched_by_libm(Vec x, Vec result, float (*function)(float)) {
  alignas(64) float in[kLanes], out[kLanes];
  store(in, x, All{});
  store(out, result, All{});
  for (int64_t i = 0; i < kLanes; ++i)
    if (!(__builtin_fabsf(in[i]) <= kReducible)) out[i] = function(in[i]);
  return load(out, All{});
}

inline PRESTO_INLINE Vec sin(Vec x) {
  Vec result = sin_of(reduce(x));
  if (__builtin_expect(any_irreducible(x), false)) result = patched_by_libm(x, result, __builtin_sinf);
  return result;
}

struct SinCos {
  Vec sin, cos;
};
inline PRESTO_INLINE SinCos sin_cos(Vec x) {
  const Reduced reduced = reduce(x);
  SinCos result{sin_of(reduced), cos_of(reduced)};
  if (__builtin_expect(any_irreducible(x), false)) {
    result.sin = patched_by_libm(x, result.sin, __builtin_sinf);
    result.cos = patched_by_libm(x, result.cos, __builtin_cosf);
  }
  return result;
}

// Of (pi / 2) (quadrant + z), |z| <= 1/2; the quadrant is in the lowest bits.
inline PRESTO_INLINE SinCos sin_cos_quarters(Bits quadrant, Vec z) {
  using namespace sincospi;
  const Vec w = z * z;
  const Vec s = z * fma(fma(fma(splat(kS3), w, splat(kS2)), w, splat(kS1)), w, splat(kS0));
  const Vec c = fma(fma(fma(fma(splat(kC3), w, splat(kC2)), w, splat(kC1)), w, splat(kC0)), w, splat(1.f));
  const Reduced reduced{s, c, quadrant};
  return {sin_of(reduced), cos_of(reduced)};
}

// Of pi x, for any finite x.
inline PRESTO_INLINE SinCos sin_cos_pi(Vec x) {
  const Vec turn = fma(nearest(x * splat(0.5f)), splat(-2.f), x);  // in [-1, 1]
  const Vec shifted = fma(turn, splat(2.f), splat(12582912.f));    // as in reduce()
  return sin_cos_quarters(bits(shifted), fma(turn, splat(2.f), splat(12582912.f) - shifted));
}

}  // namespace presto::cpu::PRESTO_ISA
