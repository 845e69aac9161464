// csrc/cuda/sampler.cu on the emulation, behind a C interface of plain numbers for ctypes.
#include "cuda/sampler.cu"

namespace {

using namespace presto;

// A tensor is 4 numbers: address, dtype, batch stride, row stride.
Rows rows(const int64_t* t) { return {reinterpret_cast<const void*>(t[0]), static_cast<DType>(t[1]), t[2], t[3]}; }

// One number a sample is 4 numbers: address (0: none), dtype, stride, the number where there is none.
EachFloat each(const int64_t* t, float value) {
  return {reinterpret_cast<const void*>(t[0]), static_cast<DType>(t[1]), t[2], value};
}
EachInt each(const int64_t* t) { return {reinterpret_cast<const int64_t*>(t[0]), t[2], t[3]}; }

SamplerShape shape_of(const int64_t* s) { return {s[0], s[1], s[2]}; }

}  // namespace

extern "C" {

void set_order(int order) { emulation::order = static_cast<emulation::Order>(order); }

const char* take_launches() {
  static std::string taken;
  taken = std::exchange(emulation::launches, {});
  return taken.c_str();
}

// tensors: F, x, sigma
int edm_denoise(const int64_t* shape, const int64_t (*tensors)[4], float sigma_data, float sigma_min, void* out) {
  EdmDenoise a;
  static_cast<SamplerShape&>(a) = shape_of(shape);
  a.model_output = rows(tensors[0]), a.x = rows(tensors[1]), a.sigma = each(tensors[2], 0.f);
  a.sigma_data = sigma_data, a.sigma_min = sigma_min, a.out = out;
  return cuda::edm_denoise(a, nullptr);
}

// tensors: F, x, sigma, grad.  Without a workspace: how many floats it has.
int64_t edm_denoise_backward(const int64_t* shape, const int64_t (*tensors)[4], float sigma_data, float sigma_min,
                             void* doutput, void* dx, void* dsigma, float* workspace) {
  EdmDenoiseBackward a;
  static_cast<SamplerShape&>(a) = shape_of(shape);
  a.model_output = rows(tensors[0]), a.x = rows(tensors[1]), a.sigma = each(tensors[2], 0.f), a.grad = rows(tensors[3]);
  a.sigma_data = sigma_data, a.sigma_min = sigma_min, a.output_dtype = a.model_output.dtype;
  a.doutput = doutput, a.dx = dx, a.dsigma = dsigma, a.workspace = workspace;
  return workspace ? cuda::edm_denoise_backward(a, nullptr) : cuda::edm_denoise_backward_workspace(a);
}

// tensors: x0, sigma, seed, offset
int renoise(const int64_t* shape, const int64_t (*tensors)[4], float sigma, float signal, void* out) {
  Renoise a;
  static_cast<SamplerShape&>(a) = shape_of(shape);
  a.x0 = rows(tensors[0]), a.sigma = each(tensors[1], sigma), a.seed = each(tensors[2]), a.offset = each(tensors[3]);
  a.signal = signal, a.out = out;
  return cuda::renoise(a, nullptr);
}

// tensors: grad, sigma, seed, offset.  Without a workspace: how many floats it has.
int64_t renoise_backward(const int64_t* shape, const int64_t (*tensors)[4], void* dsigma, float* workspace) {
  RenoiseBackward a;
  static_cast<SamplerShape&>(a) = shape_of(shape);
  a.grad = rows(tensors[0]), a.sigma_dtype = static_cast<DType>(tensors[1][1]);
  a.seed = each(tensors[2]), a.offset = each(tensors[3]), a.dsigma = dsigma, a.workspace = workspace;
  return workspace ? cuda::renoise_backward(a, nullptr) : cuda::renoise_backward_workspace(a);
}

// (cos, sin) normals of `count` pairs of words.
void normals(const uint32_t* of_radius, const uint32_t* of_angle, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) cuda::box_muller(of_radius[i], of_angle[i], out + 2 * i);
}
}
