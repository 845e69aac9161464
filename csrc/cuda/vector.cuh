// Rows in memory and their fp32 values: 16 bytes at a time where the dtype is known when compiling, and any dtype
// and alignment where it is not.  Every conversion to a stored dtype rounds to nearest even.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>

#include "rows.h"

namespace presto::cuda {

template <DType T>
constexpr int kSize = T == DType::F32 ? 4 : 2;

template <class To, class From>
__device__ inline To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// Two 16-bit values of one word, the lower address in the lower half.
__device__ inline float2 unpack(uint32_t word, bool bf16) {
  if (bf16) return {bits_as<float>(word << 16), bits_as<float>(word & 0xffff0000u)};
  return __half22float2(bits_as<__half2>(word));
}

__device__ inline uint32_t pack(float low, float high, bool bf16) {
  return bf16 ? bits_as<uint32_t>(__floats2bfloat162_rn(low, high)) : bits_as<uint32_t>(__floats2half2_rn(low, high));
}

// E neighbouring elements as they lie in memory.
template <DType T, int E>
struct Pack {
  static constexpr int kBytes = E * kSize<T>;
  static_assert(kBytes == 8 || kBytes % 16 == 0);
  uint32_t words[kBytes / 4] = {};
};

// Element `at` of data that no thread writes while the kernel runs; the address is aligned to min(16, kBytes).
template <DType T, int E>
__device__ inline Pack<T, E> load(const void* data, int64_t at) {
  Pack<T, E> pack;
  const char* address = static_cast<const char*>(data) + at * kSize<T>;
  if constexpr (Pack<T, E>::kBytes == 8) {
    const uint2 part = __ldg(reinterpret_cast<const uint2*>(address));
    pack.words[0] = part.x, pack.words[1] = part.y;
  } else {
#pragma unroll
    for (int i = 0; i < Pack<T, E>::kBytes / 16; ++i) {
      const uint4 part = __ldg(reinterpret_cast<const uint4*>(address) + i);
      pack.words[4 * i] = part.x, pack.words[4 * i + 1] = part.y;
      pack.words[4 * i + 2] = part.z, pack.words[4 * i + 3] = part.w;
    }
  }
  return pack;
}

template <DType T, int E>
__device__ inline void store(void* data, int64_t at, const Pack<T, E>& pack) {
  char* address = static_cast<char*>(data) + at * kSize<T>;
  if constexpr (Pack<T, E>::kBytes == 8) {
    *reinterpret_cast<uint2*>(address) = {pack.words[0], pack.words[1]};
  } else {
#pragma unroll
    for (int i = 0; i < Pack<T, E>::kBytes / 16; ++i)
      reinterpret_cast<uint4*>(address)[i] = {pack.words[4 * i], pack.words[4 * i + 1], pack.words[4 * i + 2],
                                              pack.words[4 * i + 3]};
  }
}

template <DType T, int E>
__device__ inline void decode(const Pack<T, E>& pack, float (&value)[E]) {
#pragma unroll
  for (int e = 0; e < E; ++e) {
    if constexpr (T == DType::F32) {
      value[e] = bits_as<float>(pack.words[e]);
    } else if (e % 2 == 0) {
      const float2 two = unpack(pack.words[e / 2], T == DType::BF16);
      value[e] = two.x, value[e + 1] = two.y;
    }
  }
}

template <DType T, int E>
__device__ inline Pack<T, E> encode(const float (&value)[E]) {
  Pack<T, E> packed;
#pragma unroll
  for (int e = 0; e < E; ++e) {
    if constexpr (T == DType::F32)
      packed.words[e] = bits_as<uint32_t>(value[e]);
    else if (e % 2 == 0)
      packed.words[e / 2] = pack(value[e], value[e + 1], T == DType::BF16);
  }
  return packed;
}

// Elements [at, at + E) of data of any dtype and alignment.  Plain loads: what this thread wrote before, it reads.
template <int E>
__device__ inline void load_any(const void* data, DType dtype, int64_t at, float (&value)[E]) {
  const int size = dtype == DType::F32 ? 4 : 2;
  const char* address = static_cast<const char*>(data) + at * size;
  const int alignment = E * size < 16 ? E * size : 16;
  uint32_t words[E] = {};
  if (E > 1 && reinterpret_cast<uintptr_t>(address) % alignment == 0) {
    if (E * size == 8) {
      const uint2 part = *reinterpret_cast<const uint2*>(address);
      words[0] = part.x, words[E > 1 ? 1 : 0] = part.y;
    } else {
#pragma unroll
      for (int i = 0; i < E / 4; ++i) {
        if (i * 16 >= E * size) break;
        const uint4 part = reinterpret_cast<const uint4*>(address)[i];
        words[4 * i] = part.x, words[4 * i + 1] = part.y, words[4 * i + 2] = part.z, words[4 * i + 3] = part.w;
      }
    }
  } else if (dtype == DType::F32) {
#pragma unroll
    for (int e = 0; e < E; ++e) words[e] = reinterpret_cast<const uint32_t*>(address)[e];
  } else {
#pragma unroll
    for (int e = 0; e < E; ++e) words[e / 2] |= uint32_t{reinterpret_cast<const uint16_t*>(address)[e]} << (e % 2 * 16);
  }
#pragma unroll
  for (int e = 0; e < E; ++e) {
    const float2 two = unpack(words[e / 2], dtype == DType::BF16);
    value[e] = dtype == DType::F32 ? bits_as<float>(words[e]) : e % 2 ? two.y : two.x;
  }
}

// The stored value of each element comes back in `value`.
template <int E>
__device__ inline void store_any(void* data, DType dtype, int64_t at, float (&value)[E]) {
  const int size = dtype == DType::F32 ? 4 : 2;
  char* address = static_cast<char*>(data) + at * size;
  const int alignment = E * size < 16 ? E * size : 16;
  uint32_t words[E] = {};
#pragma unroll
  for (int e = 0; e < E; ++e) {
    if (dtype == DType::F32) {
      words[e] = bits_as<uint32_t>(value[e]);
    } else {
      const uint32_t word = pack(value[e], 0.f, dtype == DType::BF16);
      value[e] = unpack(word, dtype == DType::BF16).x;
      words[e / 2] |= word << (e % 2 * 16);
    }
  }
  if (E > 1 && reinterpret_cast<uintptr_t>(address) % alignment == 0) {
    if (E * size == 8) {
      *reinterpret_cast<uint2*>(address) = {words[0], words[E > 1 ? 1 : 0]};
    } else {
#pragma unroll
      for (int i = 0; i < E / 4; ++i)
        if (i * 16 < E * size)
          reinterpret_cast<uint4*>(address)[i] = {words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]};
    }
  } else {
#pragma unroll
    for (int e = 0; e < E; ++e) {
      if (dtype == DType::F32)
        reinterpret_cast<uint32_t*>(address)[e] = words[e];
      else
        reinterpret_cast<uint16_t*>(address)[e] = static_cast<uint16_t>(words[e / 2] >> (e % 2 * 16));
    }
  }
}

}  // namespace presto::cuda
