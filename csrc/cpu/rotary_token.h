// What the rotary kernels share: sums over lanes, what the norm finds, and what a token brings to its heads.
// Included once per instruction set, as simd.h is.
#pragma once
#include "rotary.h"
#include "scratch.h"
#include "simd_math.h"

namespace presto::cpu::PRESTO_ISA {

#if defined(__AVX512F__)
inline Vec swap_neighbours(Vec a) { return _mm512_permute_ps(a, 0xb1); }
// Each of four vectors summed over its lanes: a third of the instructions of four sums one by one.
inline __m128 sums(Vec a, Vec b, Vec c, Vec d) {
  const Vec ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
  const Vec cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
  const Vec low = _mm512_shuffle_ps(ab, cd, 0x44), high = _mm512_shuffle_ps(ab, cd, 0xee);
  const Vec all = low + high;
  const __m256 two = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  return _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
}
#else
inline Vec swap_neighbours(Vec a) { return _mm256_permute_ps(a, 0xb1); }
inline __m128 sums(Vec a, Vec b, Vec c, Vec d) {
  const Vec ab = _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b);
  const Vec cd = _mm256_unpacklo_ps(c, d) + _mm256_unpackhi_ps(c, d);
  const Vec all = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);
  return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}
#endif

template <class T>
inline const T* head(const Heads& heads, int64_t b, int64_t n) {
  return static_cast<const T*>(heads.data) + b * heads.batch_stride + n * heads.token_stride;
}

inline void to_float(const HeadVector& vector, int64_t d, float otherwise, float* out) {
  to_float(Rows{vector.data, vector.dtype}, 0, 0, d, otherwise, out);
}

// What the norm found, of up to four heads.
struct Stats {
  float mean[4] = {}, scale[4] = {1.f, 1.f, 1.f, 1.f};
  float reach[4] = {};  // factor of sum(dn * n) in the gradient: 1/Dh, or for l2 1 where |x| >= eps, else 0
};

inline void set_scale(const RotaryShape& s, __m128 squares, Stats& stats) {
  const float inverse_dim = 1.f / static_cast<float>(s.dim);
  const __m128 eps = _mm_set1_ps(s.eps), one = _mm_set1_ps(1.f);
  __m128 scale, reach = _mm_set1_ps(inverse_dim);
  if (s.norm == HeadNorm::L2) {
    const __m128 length = _mm_sqrt_ps(squares);
    scale = _mm_div_ps(one, _mm_max_ps(eps, length));  // the second operand where it is NaN
    reach = _mm_and_ps(_mm_cmpge_ps(length, eps), one);
  } else {
    const __m128 mean = _mm_mul_ps(squares, _mm_set1_ps(inverse_dim));
    scale = _mm_div_ps(one, _mm_sqrt_ps(_mm_add_ps(mean, eps)));
  }
  _mm_storeu_ps(stats.scale, scale);
  _mm_storeu_ps(stats.reach, reach);
}

// ---- what a token brings -----------------------------------------------------------------------------------------
// out = n * own + partner(n) * other + add, rows of Dh floats in `order`, with
//   own = weight * cos,  other = -+ the partner's weight * sin,  add = bias turned.
// Backward, with weight left out: dy = grad * own + partner(grad) * other, turned by -sin.
class Token {
 public:
  Token(const RotaryShape& shape, const RotarySide& side, bool backward)
      : shape_(shape), side_(side), backward_(backward), has_add_(side.bias.data && !backward), rows_(5, shape.dim) {
    to_float(side.weight, shape.dim, 1.f, weight());
    to_float(side.bias, shape.dim, 0.f, bias());
    to_float(side.alpha, 1, 0.f, &alpha_);
    for (int64_t i = 2 * shape.half; i < shape.dim; ++i) {
      own()[i] = backward ? 1.f : weight()[i];
      add()[i] = bias()[i];
    }
  }

  template <class Order>
  void prepare(int64_t n, Order order) {
    const int64_t h = shape_.half, d = shape_.dim;
    if (n == n_ || (h == 0 && n_ >= 0)) return;
    n_ = n;
    const float *cos = side_.cos + n * side_.cos_stride, *sin = side_.sin + n * side_.sin_stride;
    const float *w = weight(), *b = bias();
    float *own = this->own(), *other = this->other(), *add = this->add();
    if (backward_) {
      turn_back(cos, sin);
    } else if (shape_.interleaved) {
      for (int64_t j = 0; j < h; ++j) {
        own[2 * j] = w[2 * j] * cos[j], own[2 * j + 1] = w[2 * j + 1] * cos[j];
        other[2 * j] = -w[2 * j + 1] * sin[j], other[2 * j + 1] = w[2 * j] * sin[j];
        add[2 * j] = b[2 * j] * cos[j] - b[2 * j + 1] * sin[j];
        add[2 * j + 1] = b[2 * j + 1] * cos[j] + b[2 * j] * sin[j];
      }
    } else {
      sweep(h, [&](int64_t i, int, auto width) PRESTO_INLINE {
        const Vec c = load(cos + i, width), s = load(sin + i, width);
        const Vec w1 = load(w + i, width), w2 = load(w + h + i, width);
        store(own + i, w1 * c, width);
        store(own + h + i, w2 * c, width);
        store(other + i, zero() - w2 * s, width);
        store(other + h + i, w1 * s, width);
        if (!has_add_) return;
        const Vec b1 = load(b + i, width), b2 = load(b + h + i, width);
        store(add + i, b1 * c - b2 * s, width);
        store(add + h + i, fma(b2, c, b1 * s), width);
      });
    }
    order_row(own, d, order, kOwn);
    order_row(other, d, order, kOther);
    if (has_add_) order_row(add, d, order, kAdd);
  }

  bool has_add() const { return has_add_; }
  Vec alpha() const { return splat(alpha_); }
  float* own() { return rows_.row(0); }
  float* other() { return rows_.row(1); }
  float* add() { return rows_.row(2); }
  float* weight() { return rows_.row(3); }

 private:
  enum { kOwn, kOther, kAdd };
  float* bias() { return rows_.row(4); }

  void turn_back(const float* cos, const float* sin) {
    const int64_t h = shape_.half, step = shape_.interleaved ? 2 : 1, apart = shape_.interleaved ? 1 : h;
    for (int64_t j = 0; j < h; ++j) {
      own()[step * j] = own()[step * j + apart] = cos[j];
      other()[step * j] = sin[j];
      other()[step * j + apart] = -sin[j];
    }
  }

  // Behind the turned elements a row stays as it is, so there it is put in order once.
  template <class Order>
  void order_row(float* row, int64_t d, Order order, int which) {
    const int64_t turned = 2 * shape_.half;
    put_in_order(row, ordered_[which] ? turned : d, order);
    ordered_[which] = true;
  }

  const RotaryShape& shape_;
  const RotarySide& side_;
  bool backward_, has_add_;
  float alpha_;
  Scratch rows_;
  int64_t n_ = -1;
  bool ordered_[3] = {};
};

}  // namespace presto::cpu::PRESTO_ISA
