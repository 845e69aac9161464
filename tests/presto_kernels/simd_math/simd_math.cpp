// The functions of csrc/cpu/simd_math.h over arrays, behind a C interface for ctypes.
#include "cpu/simd_math.h"

using namespace presto::cpu::PRESTO_ISA;

namespace {

template <class Function>
void map(const float* in, float* out, int64_t n, Function function) {
  sweep(n, [&](int64_t i, int, auto width) PRESTO_INLINE { store(out + i, function(load(in + i, width)), width); });
}

}  // namespace

extern "C" {
void map_exp(const float* in, float* out, int64_t n) {
  map(in, out, n, [](Vec x) PRESTO_INLINE { return exp(x); });
}
void map_sigmoid(const float* in, float* out, int64_t n) {
  map(in, out, n, [](Vec x) PRESTO_INLINE { return sigmoid(x); });
}
void map_tanh(const float* in, float* out, int64_t n) {
  map(in, out, n, [](Vec x) PRESTO_INLINE { return tanh(x); });
}
void map_tanh_slope(const float* in, float* out, int64_t n) {
  map(in, out, n, [](Vec x) PRESTO_INLINE { return tanh_slope(x); });
}
void map_erf(const float* in, float* out, int64_t n) {
  map(in, out, n, [](Vec x) PRESTO_INLINE { return erf(x); });
}
void map_sin(const float* in, float* out, int64_t n) {
  map(in, out, n, [](Vec x) PRESTO_INLINE { return sin(x); });
}
void map_sin_of_both(const float* in, float* out, int64_t n) {
  map(in, out, n, [](Vec x) PRESTO_INLINE { return sin_cos(x).sin; });
}
void map_cos_of_both(const float* in, float* out, int64_t n) {
  map(in, out, n, [](Vec x) PRESTO_INLINE { return sin_cos(x).cos; });
}
void map_sin_pi(const float* in, float* out, int64_t n) {
  map(in, out, n, [](Vec x) PRESTO_INLINE { return sin_cos_pi(x).sin; });
}
void map_cos_pi(const float* in, float* out, int64_t n) {
  map(in, out, n, [](Vec x) PRESTO_INLINE { return sin_cos_pi(x).cos; });
}
}
