// What the sampler's kernels compute for one sample, one counter, one element.  A product that is added to something
// is written as fmaf, so that every kernel rounds alike whatever the compiler would have contracted, and the normals
// are those of the CPU's vectors bit for bit.
#pragma once
#include "normal.h"
#include "sampler.h"
#include "sincospi.cuh"
#include "vector.cuh"

namespace presto::cuda {

__device__ inline float number(const EachFloat& each, int64_t b) {
  if (!each.data) return each.value;
  float value[1];
  load_any(each.data, each.dtype, b * each.stride, value);
  return value[0];
}

__device__ inline int64_t number(const EachInt& each, int64_t b) {
  return each.data ? each.data[b * each.stride] : each.value;
}

struct Coefficients {
  float skip, out;
};

template <class Args>
__device__ inline Coefficients coefficients(const Args& a, float sigma) {
  const float square = a.sigma_data * a.sigma_data, r = sigma - a.sigma_min;
  return {square / fmaf(r, r, square), a.sigma_data * r / sqrtf(fmaf(sigma, sigma, square))};
}

// In double: every term of a sum has the same rounding error of a slope, so it would not average out.
__device__ inline Coefficients slopes(const EdmDenoiseBackward& a, double sigma) {
  const double sigma_data = a.sigma_data, square = sigma_data * sigma_data, r = sigma - a.sigma_min;
  const double q = r * r + square, t = sigma * sigma + square;
  return {static_cast<float>(-2 * r * square / (q * q)),
          static_cast<float>(sigma_data * (square + a.sigma_min * sigma) / (t * sqrt(t)))};
}

// The stream that a sample draws from.
struct Stream {
  uint32_t k0, k1, offset, sample;
};

__device__ inline Stream stream_of(const Draw& draw, int64_t b) {
  const uint64_t seed = static_cast<uint64_t>(number(draw.seed, b));
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(number(draw.offset, b)),
          draw.seed.data ? 0u : static_cast<uint32_t>(b)};
}

// The high word of the product, and the low one in its place: one instruction.
__device__ inline uint32_t multiply(uint32_t& word, uint32_t by) {
  const uint64_t product = uint64_t{word} * by;
  word = static_cast<uint32_t>(product);
  return static_cast<uint32_t>(product >> 32);
}

// A (cos, sin) pair of normals of the words of a radius and of an angle; the steps are explained in normal.h.
__device__ inline void box_muller(uint32_t of_radius, uint32_t of_angle, float* normal) {
  using namespace noise;
  const int32_t t = static_cast<int32_t>(of_radius) >> 8;
  const float a = fmaf(static_cast<float>(t), 0x1p-24f, 0x1p-25f);
  const float one = t < 0 ? 1.f : 0.f;
  const int32_t e = (bits_as<int32_t>(a + one) - kSqrtHalfBits) >> 23;
  const float scale = bits_as<float>(0x3f800000 - e * 0x800000);
  const float f = fmaf(a, scale, fmaf(one, scale, -1.f));
  float l = fmaf(kL8, f, kL7);
  l = fmaf(l, f, kL6);
  l = fmaf(l, f, kL5);
  l = fmaf(l, f, kL4);
  l = fmaf(l, f, kL3);
  l = fmaf(l, f, kL2);
  l = fmaf(l, f, kL1);
  l = fmaf(l, f, kL0);
  const float radius = sqrtf(-2.f * fmaf(static_cast<float>(e), kLn2, fmaf(f * f, l, f)));

  const int32_t turn = static_cast<int32_t>(of_angle) >> 8;
  const int32_t quadrant = (turn + (1 << 21)) >> 22;
  const float z = fmaf(static_cast<float>(turn - quadrant * (1 << 22)), 0x1p-22f, 0x1p-23f);
  const SinCos at = sin_cos_quarters(quadrant, z);
  normal[0] = radius * at.cos;
  normal[1] = radius * at.sin;
}

// eps of elements [at, at + E) of a sample; at and E are multiples of 4.
template <int E>
__device__ inline void draw_normals(const Stream& stream, int64_t at, float (&eps)[E]) {
#pragma unroll
  for (int i = 0; i < E / 4; ++i) {
    uint32_t c0 = static_cast<uint32_t>(at / 4 + i), c1 = stream.offset, c2 = stream.sample, c3 = 0;
    uint32_t k0 = stream.k0, k1 = stream.k1;
#pragma unroll
    for (int round = 0; round < noise::kRounds; ++round) {
      const uint32_t high0 = multiply(c0, noise::kMultiply0), high1 = multiply(c2, noise::kMultiply1);
      const uint32_t low0 = c0, low1 = c2;
      c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
      k0 += noise::kWeyl0, k1 += noise::kWeyl1;
    }
    box_muller(c0, c1, eps + 4 * i);
    box_muller(c2, c3, eps + 4 * i + 2);
  }
}

}  // namespace presto::cuda
