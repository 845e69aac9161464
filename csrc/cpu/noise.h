// Standard normals of a counter, for one instruction set; words and polynomials stand in csrc/normal.h.
//
// kLanes counters at a time.  A counter's word lives in the low half of a 64-bit lane, so that one multiplication gives
// both halves of the product where they are needed: the high half after a shift, the low half as it is, because what
// stands above a word is never looked at.  Two such halves, of the even and the odd lanes, make the kLanes counters.
// The lanes are dealt out so that the four words of a counter come to lie next to one another after a transposition
// within each 128 bits: lane 4 l + j holds counter kLanes / 4 * j + l.
#pragma once
#include "normal.h"
#include "simd_math.h"

namespace presto::cpu::PRESTO_ISA {

using Ints = Bits;

#if defined(__AVX512F__)
inline Ints splat_int(int32_t a) { return _mm512_set1_epi32(a); }
inline Ints splat_int64(uint64_t a) { return _mm512_set1_epi64(static_cast<long long>(a)); }
inline Ints lane_counters() { return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); }
inline Ints subtract(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
inline Ints multiply(Ints a, Ints b) { return _mm512_mul_epu32(a, b); }
inline Ints high_half(Ints a) { return _mm512_srli_epi64(a, 32); }
inline Ints exclusive_or(Ints a, Ints b, Ints c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
inline Ints merge_halves(Ints even, Ints odd) {
  return _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
}
template <int kBits>
inline Ints shift_right(Ints a) {  // of signed numbers
  return _mm512_srai_epi32(a, kBits);
}
inline Vec to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
inline Vec square_root(Vec a) { return _mm512_sqrt_ps(a); }
// a where the bit is set, else b
inline Vec where_bit(Ints flags, int bit, Vec a, Vec b) {
  return _mm512_mask_blend_ps(_mm512_test_epi32_mask(flags, splat_int(1 << bit)), b, a);
}
inline Vec low_pairs(Vec a, Vec b) { return _mm512_unpacklo_ps(a, b); }
inline Vec high_pairs(Vec a, Vec b) { return _mm512_unpackhi_ps(a, b); }
inline Vec low_quads(Vec a, Vec b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
inline Vec high_quads(Vec a, Vec b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
#else
inline Ints splat_int(int32_t a) { return _mm256_set1_epi32(a); }
inline Ints splat_int64(uint64_t a) { return _mm256_set1_epi64x(static_cast<long long>(a)); }
inline Ints lane_counters() { return _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7); }
inline Ints subtract(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
inline Ints multiply(Ints a, Ints b) { return _mm256_mul_epu32(a, b); }
inline Ints high_half(Ints a) { return _mm256_srli_epi64(a, 32); }
inline Ints exclusive_or(Ints a, Ints b, Ints c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
inline Ints merge_halves(Ints even, Ints odd) { return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa); }
template <int kBits>
inline Ints shift_right(Ints a) {  // of signed numbers
  return _mm256_srai_epi32(a, kBits);
}
inline Vec to_floats(Ints a) { return _mm256_cvtepi32_ps(a); }
inline Vec square_root(Vec a) { return _mm256_sqrt_ps(a); }
inline Vec where_bit(Ints flags, int bit, Vec a, Vec b) {
  return _mm256_blendv_ps(b, a, from_bits(_mm256_sll_epi32(flags, _mm_cvtsi32_si128(31 - bit))));
}
inline Vec low_pairs(Vec a, Vec b) { return _mm256_unpacklo_ps(a, b); }
inline Vec high_pairs(Vec a, Vec b) { return _mm256_unpackhi_ps(a, b); }
inline Vec low_quads(Vec a, Vec b) {
  return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
inline Vec high_quads(Vec a, Vec b) {
  return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
#endif

struct Words {
  Ints w[4];
};

// One round after another for the counters in the even and in the odd lanes: two chains that fill each other's waits.
inline PRESTO_INLINE Words philox(Ints c0, uint32_t offset, uint32_t sample, uint64_t seed) {
  const Ints multiply0 = splat_int64(noise::kMultiply0), multiply1 = splat_int64(noise::kMultiply1);
  Ints c[2][4];
  for (int half = 0; half < 2; ++half) {
    c[half][0] = half ? high_half(c0) : c0;
    c[half][1] = splat_int64(offset), c[half][2] = splat_int64(sample), c[half][3] = splat_int64(0);
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < noise::kRounds; ++round) {
    const Ints key0 = splat_int64(k0), key1 = splat_int64(k1);
    for (auto& word : c) {
      const Ints product0 = multiply(word[0], multiply0), product1 = multiply(word[2], multiply1);
      word[0] = exclusive_or(high_half(product1), word[1], key0);
      word[1] = product1;
      word[2] = exclusive_or(high_half(product0), word[3], key1);
      word[3] = product0;
    }
    k0 += noise::kWeyl0, k1 += noise::kWeyl1;
  }
  Words words;
  for (int i = 0; i < 4; ++i) words.w[i] = merge_halves(c[0][i], c[1][i]);
  return words;
}

// a (cos, sin) pair of normals of the words of a radius and of an angle.
inline PRESTO_INLINE Pair box_muller(Ints of_radius, Ints of_angle) {
  using namespace noise;
  const Ints t = shift_right<8>(of_radius);
  const Vec a = fma(to_floats(t), splat(0x1p-24f), splat(0x1p-25f));
  const Vec one = where_bit(t, 31, splat(1.f), zero());
  const Ints e = shift_right<23>(subtract(bits(a + one), splat_int(kSqrtHalfBits)));
  const Vec scale = from_bits(subtract(splat_int(0x3f800000), shift_left<23>(e)));
  const Vec f = fma(a, scale, fma(one, scale, splat(-1.f)));
  Vec l = fma(splat(kL8), f, splat(kL7));
  l = fma(l, f, splat(kL6));
  l = fma(l, f, splat(kL5));
  l = fma(l, f, splat(kL4));
  l = fma(l, f, splat(kL3));
  l = fma(l, f, splat(kL2));
  l = fma(l, f, splat(kL1));
  l = fma(l, f, splat(kL0));
  const Vec logarithm = fma(to_floats(e), splat(kLn2), fma(f * f, l, f));
  const Vec radius = square_root(splat(-2.f) * logarithm);

  const Ints turn = shift_right<8>(of_angle);
  const Ints quadrant = shift_right<22>(add(turn, splat_int(1 << 21)));
  const Vec z = fma(to_floats(subtract(turn, shift_left<22>(quadrant))), splat(0x1p-22f), splat(0x1p-23f));
  const SinCos at = sin_cos_quarters(quadrant, z);
  return {radius * at.cos, radius * at.sin};
}

// eps of elements [4 first, 4 first + 4 kLanes) of a sample, in order.
constexpr int64_t kDrawn = 4 * kLanes;
inline PRESTO_INLINE void draw(int64_t first, uint32_t offset, uint32_t sample, uint64_t seed, float* eps) {
  const Words words = philox(add(splat_int(static_cast<int32_t>(first)), lane_counters()), offset, sample, seed);
  const Pair p = box_muller(words.w[0], words.w[1]), q = box_muller(words.w[2], words.w[3]);
  const Vec p_low = low_pairs(p.a, p.b), p_high = high_pairs(p.a, p.b);
  const Vec q_low = low_pairs(q.a, q.b), q_high = high_pairs(q.a, q.b);
  store(eps, low_quads(p_low, q_low), All{});
  store(eps + kLanes, high_quads(p_low, q_low), All{});
  store(eps + 2 * kLanes, low_quads(p_high, q_high), All{});
  store(eps + 3 * kLanes, high_quads(p_high, q_high), All{});
}

}  // namespace presto::cpu::PRESTO_ISA
