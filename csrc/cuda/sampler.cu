// The sampler family on CUDA; the formulas, forward and backward, stand in sampler.h, the noise in normal.h.
//
// A thread takes E neighbouring elements of a sample, 16 bytes of x: one counter of noise, or two where x is 16 bits
// wide.  A block is 128 threads, so that 1379 x 64 latents of fp32 make 173 blocks, and there is one column of blocks a
// sample.  Everything of a sample (its coefficients, its key) is computed by every thread: a few instructions beside a
// load from memory.
//
// ..._vectors: 16-byte accesses.  Limits: a sample dense in every tensor, its size a multiple of E, every address
// aligned; dtypes known when compiling.  ..._any: any strides between rows, any alignment, any dtypes.  Elements belong
// to the same thread and sums have the same order in both, so both give the same bits.
//
// dsigma: a block's sum goes to the workspace, and sample_sums adds those of a sample in a fixed order.
//
// Bytes per element of s bytes: edm_denoise 3 s, its backward 2 s to 5 s; renoise 2 s, its backward s.  renoise is 88
// instructions an element of fp32 and 75 of a half (sm_90, counted): issued at their full rate on 132 multiprocessors
// that is 1.7 times what the 8 bytes take at 4.8 TB/s.  Latents are a few hundred kilobytes and either is under 1 us.
// Rounded: each result once.
#include "launch.cuh"
#include "reduce.cuh"
#include "sampler.h"
#include "sampler_math.cuh"
#include "vector.cuh"

namespace presto::cuda {
namespace {

constexpr int kSamplerThreads = 128;

inline int elements_of(DType dtype) { return dtype == DType::F32 ? 4 : 8; }
inline int bytes_of(DType dtype) { return dtype == DType::F32 ? 4 : 2; }
inline int64_t size_of(const SamplerShape& s) { return s.tokens * s.dim; }
inline int64_t blocks_of(const SamplerShape& s, int elements) {
  return ceil_div(size_of(s), int64_t{kSamplerThreads} * elements);
}

struct Place {
  int64_t sample, at;  // the first of this thread's elements
};
template <int E>
__device__ inline Place place_of(const Origin& origin) {
  return {origin.y + blockIdx.y, ((origin.x + blockIdx.x) * blockDim.x + threadIdx.x) * E};
}

// Where an element of a sample is.
__device__ inline int64_t address(const SamplerShape& s, const Rows& rows, int64_t sample, int64_t at) {
  return sample * rows.batch_stride + (s.tokens == 1 ? at : at / s.dim * rows.row_stride + at % s.dim);
}

// Elements [at, at + E) of a sample, of any layout; 0 behind its end.
template <int E>
__device__ inline void read_any(const SamplerShape& s, const Rows& rows, const Place& p, float (&value)[E]) {
#pragma unroll
  for (int e = 0; e < E; ++e) {
    float one[1] = {};
    if (p.at + e < s.tokens * s.dim) load_any(rows.data, rows.dtype, address(s, rows, p.sample, p.at + e), one);
    value[e] = one[0];
  }
}

template <int E>
__device__ inline void write_any(const SamplerShape& s, void* out, DType dtype, const Place& p, float (&value)[E]) {
#pragma unroll
  for (int e = 0; e < E; ++e) {
    float one[1] = {value[e]};
    if (p.at + e < s.tokens * s.dim) store_any(out, dtype, p.sample * s.tokens * s.dim + p.at + e, one);
  }
}

// This block's sum into its place of the workspace.
__device__ inline void store_sum(float value, float* workspace, int64_t blocks, const Origin& origin) {
  __shared__ float shared[kSamplerThreads / 32][1];
  float total[1] = {value};
  group_sum(total, shared, kSamplerThreads / 32, [] { __syncthreads(); });
  if (threadIdx.x == 0) workspace[(origin.y + blockIdx.y) * blocks + origin.x + blockIdx.x] = total[0];
}

// ---- edm_denoise -------------------------------------------------------------------------------------------------
template <int E>
__device__ inline void denoise(const EdmDenoise& a, int64_t sample, const float (&f)[E], float (&x)[E]) {
  const Coefficients c = coefficients(a, number(a.sigma, sample));
#pragma unroll
  for (int e = 0; e < E; ++e) x[e] = fmaf(c.out, f[e], c.skip * x[e]);
}

// 64 registers would still let 1024 threads run at once on a multiprocessor, each with two loads in flight.
template <DType X, DType Output>
__global__ void __launch_bounds__(kSamplerThreads)
    edm_denoise_vectors(const __grid_constant__ EdmDenoise a, const Origin origin) {
  constexpr int E = 16 / kSize<X>;
  const Place p = place_of<E>(origin);
  if (p.at >= a.dim) return;
  const auto x_pack = load<X, E>(a.x.data, p.sample * a.x.batch_stride + p.at);
  const auto f_pack = load<Output, E>(a.model_output.data, p.sample * a.model_output.batch_stride + p.at);
  float x[E], f[E];
  decode(x_pack, x);
  decode(f_pack, f);
  denoise(a, p.sample, f, x);
  store(a.out, p.sample * a.dim + p.at, encode<X>(x));
}

template <int E>
__global__ void __launch_bounds__(kSamplerThreads)
    edm_denoise_any(const __grid_constant__ EdmDenoise a, const Origin origin) {
  const Place p = place_of<E>(origin);
  float x[E], f[E];
  read_any(a, a.x, p, x);
  read_any(a, a.model_output, p, f);
  denoise(a, p.sample, f, x);
  write_any(a, a.out, a.x.dtype, p, x);
}

template <int E>
__device__ inline float slope_sum(const EdmDenoiseBackward& a, int64_t sample, const float (&g)[E], const float (&x)[E],
                                  const float (&f)[E]) {
  const Coefficients slope = slopes(a, number(a.sigma, sample));
  float sum = 0.f;
#pragma unroll
  for (int e = 0; e < E; ++e) sum = fmaf(g[e], fmaf(slope.skip, x[e], slope.out * f[e]), sum);
  return sum;
}

template <int E>
__device__ inline void scaled(const float (&g)[E], float by, float (&value)[E]) {
#pragma unroll
  for (int e = 0; e < E; ++e) value[e] = by * g[e];
}

template <DType X, DType Output>
__global__ void __launch_bounds__(kSamplerThreads)
    edm_denoise_backward_vectors(const __grid_constant__ EdmDenoiseBackward a, const int64_t blocks,
                                 const Origin origin) {
  constexpr int E = 16 / kSize<X>;
  const Place p = place_of<E>(origin);
  float sum = 0.f;
  if (p.at < a.dim) {
    const Coefficients c = coefficients(a, number(a.sigma, p.sample));
    float g[E], value[E];
    decode(load<X, E>(a.grad.data, p.sample * a.grad.batch_stride + p.at), g);
    if (a.dx) {
      scaled(g, c.skip, value);
      store(a.dx, p.sample * a.dim + p.at, encode<X>(value));
    }
    if (a.doutput) {
      scaled(g, c.out, value);
      store(a.doutput, p.sample * a.dim + p.at, encode<Output>(value));
    }
    if (a.dsigma) {
      float x[E], f[E];
      decode(load<X, E>(a.x.data, p.sample * a.x.batch_stride + p.at), x);
      decode(load<Output, E>(a.model_output.data, p.sample * a.model_output.batch_stride + p.at), f);
      sum = slope_sum(a, p.sample, g, x, f);
    }
  }
  if (a.dsigma) store_sum(sum, a.workspace, blocks, origin);
}

template <int E>
__global__ void __launch_bounds__(kSamplerThreads)
    edm_denoise_backward_any(const __grid_constant__ EdmDenoiseBackward a, const int64_t blocks, const Origin origin) {
  const Place p = place_of<E>(origin);
  const Coefficients c = coefficients(a, number(a.sigma, p.sample));
  float g[E], value[E];
  read_any(a, a.grad, p, g);
  if (a.dx) {
    scaled(g, c.skip, value);
    write_any(a, a.dx, a.grad.dtype, p, value);
  }
  if (a.doutput) {
    scaled(g, c.out, value);
    write_any(a, a.doutput, a.output_dtype, p, value);
  }
  if (a.dsigma) {
    float x[E], f[E];
    read_any(a, a.x, p, x);
    read_any(a, a.model_output, p, f);
    store_sum(slope_sum(a, p.sample, g, x, f), a.workspace, blocks, origin);
  }
}

// ---- renoise -----------------------------------------------------------------------------------------------------
template <int E>
__device__ inline void add_noise(const Renoise& a, const Place& p, float (&x)[E]) {
  const float sigma = number(a.sigma, p.sample);
  float eps[E];
  draw_normals(stream_of(a, p.sample), p.at, eps);
#pragma unroll
  for (int e = 0; e < E; ++e) x[e] = fmaf(sigma, eps[e], a.signal * x[e]);
}

template <DType X>
__global__ void __launch_bounds__(kSamplerThreads)
    renoise_vectors(const __grid_constant__ Renoise a, const Origin origin) {
  constexpr int E = 16 / kSize<X>;
  const Place p = place_of<E>(origin);
  if (p.at >= a.dim) return;
  const auto pack = load<X, E>(a.x0.data, p.sample * a.x0.batch_stride + p.at);  // arrives while the noise is drawn
  float x[E];
  decode(pack, x);
  add_noise(a, p, x);
  store(a.out, p.sample * a.dim + p.at, encode<X>(x));
}

template <int E>
__global__ void __launch_bounds__(kSamplerThreads) renoise_any(const __grid_constant__ Renoise a, const Origin origin) {
  const Place p = place_of<E>(origin);
  float x[E];
  read_any(a, a.x0, p, x);
  add_noise(a, p, x);
  write_any(a, a.out, a.x0.dtype, p, x);
}

template <int E>
__device__ inline float noise_sum(const RenoiseBackward& a, const Place& p, const float (&g)[E]) {
  float eps[E], sum = 0.f;
  draw_normals(stream_of(a, p.sample), p.at, eps);
#pragma unroll
  for (int e = 0; e < E; ++e) sum = fmaf(g[e], eps[e], sum);
  return sum;
}

template <DType X>
__global__ void __launch_bounds__(kSamplerThreads)
    renoise_backward_vectors(const __grid_constant__ RenoiseBackward a, const int64_t blocks, const Origin origin) {
  constexpr int E = 16 / kSize<X>;
  const Place p = place_of<E>(origin);
  float g[E] = {};
  if (p.at < a.dim) decode(load<X, E>(a.grad.data, p.sample * a.grad.batch_stride + p.at), g);
  store_sum(noise_sum(a, p, g), a.workspace, blocks, origin);
}

template <int E>
__global__ void __launch_bounds__(kSamplerThreads)
    renoise_backward_any(const __grid_constant__ RenoiseBackward a, const int64_t blocks, const Origin origin) {
  const Place p = place_of<E>(origin);
  float g[E];
  read_any(a, a.grad, p, g);
  store_sum(noise_sum(a, p, g), a.workspace, blocks, origin);
}

// A block a sample: out[b] = the sum of its `terms` sums.
__global__ void __launch_bounds__(kSamplerThreads)
    sample_sums(const float* workspace, const int64_t terms, void* out, const DType dtype, const Origin origin) {
  __shared__ float shared[kSamplerThreads / 32][1];
  const int64_t sample = origin.x + blockIdx.x;
  float total[1] = {};
  for (int64_t i = threadIdx.x; i < terms; i += kSamplerThreads) total[0] += workspace[sample * terms + i];
  group_sum(total, shared, kSamplerThreads / 32, [] { __syncthreads(); });
  if (threadIdx.x == 0) store_any(out, dtype, sample, total);
}

// ---- choosing ----------------------------------------------------------------------------------------------------
// Whether E elements at a time can be accessed 16 bytes (or, of F beside a wider x, 8) at once.
bool by_vectors(const SamplerShape& s, const Rows& rows, int elements) {
  const int width = std::min(16, elements * bytes_of(rows.dtype));
  return s.tokens == 1 && s.dim % elements == 0 && reinterpret_cast<uintptr_t>(rows.data) % width == 0 &&
         (s.batch == 1 || rows.batch_stride * bytes_of(rows.dtype) % width == 0);
}
bool by_vectors(const SamplerShape& s, const void* out, DType dtype, int elements) {
  return by_vectors(s, Rows{out, dtype, s.dim, 0}, elements);
}

// pick.template of<X, Output>() for the dtypes at hand.
template <class Pick, DType X>
auto pick_output(DType output) {
  if (output == DType::F32) return Pick::template of<X, DType::F32>();
  if (output == DType::F16) return Pick::template of<X, DType::F16>();
  return Pick::template of<X, DType::BF16>();
}
template <class Pick>
auto pick(DType x, DType output) {
  if (x == DType::F32) return pick_output<Pick, DType::F32>(output);
  if (x == DType::F16) return pick_output<Pick, DType::F16>(output);
  return pick_output<Pick, DType::BF16>(output);
}

struct Forward {
  template <DType X, DType Output>
  static auto of() {
    return edm_denoise_vectors<X, Output>;
  }
};
struct Backward {
  template <DType X, DType Output>
  static auto of() {
    return edm_denoise_backward_vectors<X, Output>;
  }
};

template <class Kernel, class... Args>
void launch_elements(Kernel kernel, const SamplerShape& s, int elements, cudaStream_t stream, const Args&... args) {
  launch(kernel, blocks_of(s, elements), s.batch, dim3(kSamplerThreads), stream, args...);
}

void launch_sums(const float* workspace, const SamplerShape& s, int elements, DType dtype, void* out,
                 cudaStream_t stream) {
  launch(sample_sums, s.batch, 1, dim3(kSamplerThreads), stream, workspace, blocks_of(s, elements), out, dtype);
}

}  // namespace

int edm_denoise(const EdmDenoise& a, void* stream) {
  const int elements = elements_of(a.x.dtype);
  const bool vectors = by_vectors(a, a.x, elements) && by_vectors(a, a.model_output, elements) &&
                       by_vectors(a, a.out, a.x.dtype, elements);
  auto kernel = elements == 4 ? edm_denoise_any<4> : edm_denoise_any<8>;
  if (vectors) kernel = pick<Forward>(a.x.dtype, a.model_output.dtype);
  launch_elements(kernel, a, elements, static_cast<cudaStream_t>(stream), a);
  return cudaGetLastError();
}

int64_t edm_denoise_backward_workspace(const EdmDenoiseBackward& a) {
  return a.dsigma ? a.batch * blocks_of(a, elements_of(a.grad.dtype)) : 0;
}

int edm_denoise_backward(const EdmDenoiseBackward& a, void* stream) {
  const int elements = elements_of(a.grad.dtype);
  bool vectors = by_vectors(a, a.grad, elements);
  if (a.dx) vectors = vectors && by_vectors(a, a.dx, a.grad.dtype, elements);
  if (a.doutput) vectors = vectors && by_vectors(a, a.doutput, a.output_dtype, elements);
  if (a.dsigma) vectors = vectors && by_vectors(a, a.x, elements) && by_vectors(a, a.model_output, elements);
  auto kernel = elements == 4 ? edm_denoise_backward_any<4> : edm_denoise_backward_any<8>;
  if (vectors) kernel = pick<Backward>(a.grad.dtype, a.output_dtype);
  launch_elements(kernel, a, elements, static_cast<cudaStream_t>(stream), a, blocks_of(a, elements));
  if (a.dsigma) launch_sums(a.workspace, a, elements, a.sigma.dtype, a.dsigma, static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}

int renoise(const Renoise& a, void* stream) {
  const int elements = elements_of(a.x0.dtype);
  auto kernel = elements == 4 ? renoise_any<4> : renoise_any<8>;
  if (by_vectors(a, a.x0, elements) && by_vectors(a, a.out, a.x0.dtype, elements))
    kernel = a.x0.dtype == DType::F32   ? renoise_vectors<DType::F32>
             : a.x0.dtype == DType::F16 ? renoise_vectors<DType::F16>
                                        : renoise_vectors<DType::BF16>;
  launch_elements(kernel, a, elements, static_cast<cudaStream_t>(stream), a);
  return cudaGetLastError();
}

int64_t renoise_backward_workspace(const RenoiseBackward& a) {
  return a.batch * blocks_of(a, elements_of(a.grad.dtype));
}

int renoise_backward(const RenoiseBackward& a, void* stream) {
  const int elements = elements_of(a.grad.dtype);
  auto kernel = elements == 4 ? renoise_backward_any<4> : renoise_backward_any<8>;
  if (by_vectors(a, a.grad, elements))
    kernel = a.grad.dtype == DType::F32   ? renoise_backward_vectors<DType::F32>
             : a.grad.dtype == DType::F16 ? renoise_backward_vectors<DType::F16>
                                          : renoise_backward_vectors<DType::BF16>;
  launch_elements(kernel, a, elements, static_cast<cudaStream_t>(stream), a, blocks_of(a, elements));
  launch_sums(a.workspace, a, elements, a.sigma_dtype, a.dsigma, static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}

}  // namespace presto::cuda
