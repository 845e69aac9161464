// csrc/cuda/activation.cu on the emulation, behind a C interface of plain numbers for ctypes.
#include "cuda/activation.cu"

namespace {

using namespace presto;

// A tensor is 4 numbers: address, dtype, batch stride, row stride.
Rows rows(const int64_t* t) { return {reinterpret_cast<const void*>(t[0]), static_cast<DType>(t[1]), t[2], t[3]}; }

// batch, tokens, dim, act, gate_first
GluShape glu_shape(const int64_t* s) { return {s[0], s[1], s[2], static_cast<Act>(s[3]), s[4] != 0}; }

// batch, channels, length
SnakeShape snake_shape(const int64_t* s, const int64_t* alpha, const int64_t* beta) {
  return {s[0], s[1], s[2], rows(alpha), rows(beta)};
}

}  // namespace

extern "C" {

void set_order(int order) { emulation::order = static_cast<emulation::Order>(order); }

const char* take_launches() {
  static std::string taken;
  taken = std::exchange(emulation::launches, {});
  return taken.c_str();
}

int glu_forward(const int64_t* shape, const int64_t* x, void* y) {
  GluForward args;
  static_cast<GluShape&>(args) = glu_shape(shape);
  args.x = rows(x), args.y = y;
  return cuda::glu_forward(args, nullptr);
}

int glu_backward(const int64_t* shape, const int64_t* grad, const int64_t* x, void* dx) {
  GluBackward args;
  static_cast<GluShape&>(args) = glu_shape(shape);
  args.grad = rows(grad), args.x = rows(x), args.dx = dx;
  return cuda::glu_backward(args, nullptr);
}

int snake_forward(const int64_t* shape, const int64_t* x, const int64_t* alpha, const int64_t* beta, void* y) {
  SnakeForward args;
  static_cast<SnakeShape&>(args) = snake_shape(shape, alpha, beta);
  args.x = rows(x), args.y = y;
  return cuda::snake_forward(args, nullptr);
}

// The size of the workspace where that is null, else the error.
int64_t snake_backward(const int64_t* shape, const int64_t* grad, const int64_t* x, const int64_t* alpha,
                       const int64_t* beta, void* dx, void* dalpha, void* dbeta, float* workspace) {
  SnakeBackward args;
  static_cast<SnakeShape&>(args) = snake_shape(shape, alpha, beta);
  args.grad = rows(grad), args.x = rows(x);
  args.dx = dx, args.dalpha = dalpha, args.dbeta = dbeta, args.workspace = workspace;
  return workspace ? cuda::snake_backward(args, nullptr) : cuda::snake_backward_workspace(args);
}
}
