// csrc/cuda/rotary.cu on the emulation, behind a C interface of plain numbers for ctypes.
#include "cuda/rotary.cu"

namespace {

using namespace presto;

// A side is 27 numbers: tokens, heads; x and grad (address, dtype, three strides each); cos, its stride, sin, its
// stride; weight, its dtype, bias, its dtype, alpha, its dtype; the addresses of out, dx, dweight, dbias, dalpha.
constexpr int kNumbers = 27;

const float* floats(int64_t address) { return reinterpret_cast<const float*>(address); }
void* output(int64_t address) { return reinterpret_cast<void*>(address); }
Heads heads(const int64_t* n) {
  return {reinterpret_cast<const void*>(n[0]), static_cast<DType>(n[1]), n[2], n[3], n[4]};
}
HeadVector vector(const int64_t* n) { return {reinterpret_cast<const void*>(n[0]), static_cast<DType>(n[1])}; }

void fill(RotarySide& side, const int64_t* n) {
  side.tokens = n[0], side.heads = n[1], side.x = heads(n + 2);
  side.cos = floats(n[12]), side.cos_stride = n[13], side.sin = floats(n[14]), side.sin_stride = n[15];
  side.weight = vector(n + 16), side.bias = vector(n + 18), side.alpha = vector(n + 20);
}

RotaryShape shape_of(const int64_t* n, float eps) {
  return {n[0], n[1], n[2], static_cast<HeadNorm>(n[3]), n[4] != 0, eps};
}

RotaryBackward backward_args(const int64_t* shape, float eps, const int64_t (*sides)[kNumbers], float* workspace) {
  RotaryBackward args;
  static_cast<RotaryShape&>(args) = shape_of(shape, eps);
  for (int s = 0; s < 2; ++s) {
    const int64_t* n = sides[s];
    fill(args.sides[s], n);
    args.sides[s].grad = heads(n + 7);
    args.sides[s].dx = output(n[23]), args.sides[s].dweight = output(n[24]), args.sides[s].dbias = output(n[25]);
    args.sides[s].dalpha = output(n[26]);
  }
  args.workspace = workspace;
  return args;
}

}  // namespace

extern "C" {

void set_order(int order) { emulation::order = static_cast<emulation::Order>(order); }

const char* take_launches() {
  static std::string taken;
  taken = std::exchange(emulation::launches, {});
  return taken.c_str();
}

// Whether the call takes the kernels that read 16 bytes at a time.
int by_vectors(const int64_t* shape, float eps, const int64_t (*sides)[kNumbers], int backward) {
  const RotaryBackward args = backward_args(shape, eps, sides, nullptr);
  if (backward) return cuda::backward_by_vectors(args, args.sides[cuda::runs(args, args.sides[0]) ? 0 : 1].grad.dtype);
  RotaryForward forward;
  static_cast<RotaryShape&>(forward) = args;
  for (int s = 0; s < 2; ++s) {
    static_cast<RotarySide&>(forward.sides[s]) = args.sides[s];
    forward.sides[s].out = output(sides[s][22]);
  }
  return cuda::forward_by_vectors(forward, forward.sides[0].x.dtype);
}

int forward(const int64_t* shape, float eps, const int64_t (*sides)[kNumbers]) {
  RotaryForward args;
  static_cast<RotaryShape&>(args) = shape_of(shape, eps);
  for (int s = 0; s < 2; ++s) {
    fill(args.sides[s], sides[s]);
    args.sides[s].out = output(sides[s][22]);
  }
  return cuda::rotary_forward(args, nullptr);
}

int64_t backward_workspace(const int64_t* shape, float eps, const int64_t (*sides)[kNumbers]) {
  return cuda::rotary_backward_workspace(backward_args(shape, eps, sides, nullptr));
}

int backward(const int64_t* shape, float eps, const int64_t (*sides)[kNumbers], float* workspace) {
  return cuda::rotary_backward(backward_args(shape, eps, sides, workspace), nullptr);
}
}
