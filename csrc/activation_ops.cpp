// Gated activations and Snake as torch operators: tensors in, plain structs to the kernels, tensors out.  Arguments
// were checked in Python (presto_kernels/ops/activation/api.py); here only what would make a kernel read or write out
// of bounds.
#include "activation.h"
#include "cuda/device.h"
#include "tensor.h"

namespace presto {
namespace {

// About this many elements make a task worth a thread.
constexpr int64_t kGrain = 32768;

void check_device(const Tensor& t, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(t.is_cuda() == x.is_cuda() && t.get_device_index() == x.get_device_index(), "presto_kernels: ", name,
                  " is not on the device of x");
}

// Three axes as rows; `kept` is the tensor, or its copy where the innermost stride is not 1.
Rows rows_of(const Tensor& given, const char* name, Tensor& kept) {
  STD_TORCH_CHECK(given.dim() == 3, "presto_kernels: ", name, " must have three axes");
  kept = given.stride(2) != 1 && given.size(2) > 1 ? torch::stable::contiguous(given) : given;
  return {kept.const_data_ptr(), dtype_of(kept, name), kept.stride(0), kept.stride(1)};
}

// A gradient beside what it is the gradient of.
Rows grad_rows(const Tensor& grad, const Tensor& x, int64_t width, Tensor& kept) {
  check_device(grad, x, "grad");
  const Rows rows = rows_of(grad, "grad", kept);
  STD_TORCH_CHECK(grad.size(0) == x.size(0) && grad.size(1) == x.size(1) && grad.size(2) == width,
                  "presto_kernels: grad has not the shape of the result");
  STD_TORCH_CHECK(rows.dtype == dtype_of(x, "x"), "presto_kernels: grad has not x's dtype");
  return rows;
}

// ---- glu -----------------------------------------------------------------------------------------------------------
GluShape glu_shape(const Tensor& x, int64_t act, bool gate_first) {
  STD_TORCH_CHECK(x.dim() == 3 && x.size(2) > 0 && x.size(2) % 2 == 0, "presto_kernels::glu: x must be [B, N, 2 D]");
  STD_TORCH_CHECK(act >= 0 && act <= 2, "presto_kernels::glu: unknown act");
  return {x.size(0), x.size(1), x.size(2) / 2, static_cast<Act>(act), gate_first};
}

using RunGluForward = void (*)(const GluForward&, const Tensor& x);
using RunGluBackward = void (*)(const GluBackward&, const Tensor& x);

void glu_on_cpu(const GluForward& args, const Tensor&) {
  torch::stable::parallel_for(0, args.batch * args.tokens, kGrain / args.dim + 1,
                              [&](int64_t first, int64_t last) { cpu::glu_forward(args, first, last); });
}

void glu_backward_on_cpu(const GluBackward& args, const Tensor&) {
  torch::stable::parallel_for(0, args.batch * args.tokens, kGrain / args.dim + 1,
                              [&](int64_t first, int64_t last) { cpu::glu_backward(args, first, last); });
}

template <RunGluForward run>
Tensor glu(const Tensor& x, int64_t act, bool gate_first) {
  GluForward args;
  static_cast<GluShape&>(args) = glu_shape(x, act, gate_first);
  Tensor kept;
  args.x = rows_of(x, "x", kept);
  Tensor y = new_tensor(x, {args.batch, args.tokens, args.dim}, x.scalar_type());
  args.y = y.mutable_data_ptr();
  if (args.batch * args.tokens > 0) run(args, x);
  return y;
}

template <RunGluBackward run>
Tensor glu_backward(const Tensor& grad, const Tensor& x, int64_t act, bool gate_first) {
  GluBackward args;
  static_cast<GluShape&>(args) = glu_shape(x, act, gate_first);
  Tensor kept, kept_grad;
  args.x = rows_of(x, "x", kept);
  args.grad = grad_rows(grad, x, args.dim, kept_grad);
  Tensor dx = new_tensor(x, {args.batch, args.tokens, 2 * args.dim}, x.scalar_type());
  args.dx = dx.mutable_data_ptr();
  if (args.batch * args.tokens > 0) run(args, x);
  return dx;
}

// ---- snake ---------------------------------------------------------------------------------------------------------
using Gradients = std::tuple<Tensor, Tensor, Tensor>;
using RunSnakeForward = void (*)(const SnakeForward&, const Tensor& x);
using RunSnakeBackward = void (*)(SnakeBackward&, const Tensor& x);

SnakeShape snake_shape(const Tensor& x, const Tensor& alpha, const Tensor& beta) {
  STD_TORCH_CHECK(x.dim() == 3, "presto_kernels::snake: x must be [B, C, T]");
  const auto channels = [&](const Tensor& t, const char* name) {
    check_device(t, x, name);
    STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == x.size(1), "presto_kernels::snake: ", name, " must be [C]");
    return Rows{t.const_data_ptr(), dtype_of(t, name), 0, t.stride(0)};
  };
  return {x.size(0), x.size(1), x.size(2), channels(alpha, "alpha"), channels(beta, "beta")};
}

// A thread's share in pieces of rows: enough short ones to be worth it.
int64_t snake_grain(const SnakeShape& s) {
  return kGrain / (s.batch * s.channels * s.length / cpu::snake_pieces(s) + 1) + 1;
}

void snake_on_cpu(const SnakeForward& args, const Tensor&) {
  if (args.length == 1 && args.x.row_stride == 1)
    return torch::stable::parallel_for(0, args.batch, kGrain / args.channels + 1, [&](int64_t first, int64_t last) {
      cpu::snake_forward_samples(args, first, last);
    });
  torch::stable::parallel_for(0, cpu::snake_pieces(args), snake_grain(args),
                              [&](int64_t first, int64_t last) { cpu::snake_forward(args, first, last); });
}

void snake_backward_on_cpu(SnakeBackward& args, const Tensor& x) {
  const bool sums = args.dalpha || args.dbeta;
  const Tensor workspace = new_tensor(x, {sums ? cpu::snake_backward_workspace(args) : 0}, ScalarType::Float);
  args.workspace = static_cast<float*>(workspace.mutable_data_ptr());
  torch::stable::parallel_for(0, cpu::snake_pieces(args), snake_grain(args),
                              [&](int64_t first, int64_t last) { cpu::snake_backward(args, first, last); });
  if (sums) cpu::snake_backward_channels(args, 0, args.channels);
}

template <RunSnakeForward run>
Tensor snake(const Tensor& x, const Tensor& alpha, const Tensor& beta) {
  SnakeForward args;
  static_cast<SnakeShape&>(args) = snake_shape(x, alpha, beta);
  Tensor kept;
  args.x = rows_of(x, "x", kept);
  Tensor y = new_tensor(x, {args.batch, args.channels, args.length}, x.scalar_type());
  args.y = y.mutable_data_ptr();
  if (args.batch * args.channels * args.length > 0) run(args, x);
  return y;
}

template <RunSnakeBackward run>
Gradients snake_backward(const Tensor& grad, const Tensor& x, const Tensor& alpha, const Tensor& beta, int64_t needs) {
  SnakeBackward args;
  static_cast<SnakeShape&>(args) = snake_shape(x, alpha, beta);
  Tensor kept, kept_grad;
  args.x = rows_of(x, "x", kept);
  args.grad = grad_rows(grad, x, args.length, kept_grad);
  const bool none = args.batch * args.channels * args.length == 0;
  Tensor dx = needs & 1 ? new_tensor(x, {args.batch, args.channels, args.length}, x.scalar_type())
                        : new_tensor(x, {0}, x.scalar_type());
  const auto like = [&](const Tensor& t, int64_t bit) {
    Tensor gradient = new_tensor(x, {needs & bit ? args.channels : 0}, t.scalar_type());
    if (none) torch::stable::zero_(gradient);
    return gradient;
  };
  Tensor dalpha = like(alpha, 2), dbeta = like(beta, 4);
  if (needs & 1) args.dx = dx.mutable_data_ptr();
  if (needs & 2) args.dalpha = dalpha.mutable_data_ptr();
  if (needs & 4) args.dbeta = dbeta.mutable_data_ptr();
  if (!none && needs & 7) run(args, x);
  return {dx, dalpha, dbeta};
}

#ifdef PRESTO_CUDA
// `launch(stream)` on x's device and its current stream.
template <class Launch>
void on_cuda(const Tensor& x, Launch&& launch) {
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int error = launch(current_cuda_stream(device));
  STD_TORCH_CHECK(error == 0, "presto_kernels: CUDA: ", cuda::error_string(error));
}

void glu_on_cuda(const GluForward& args, const Tensor& x) {
  on_cuda(x, [&](void* stream) { return cuda::glu_forward(args, stream); });
}

void glu_backward_on_cuda(const GluBackward& args, const Tensor& x) {
  on_cuda(x, [&](void* stream) { return cuda::glu_backward(args, stream); });
}

void snake_on_cuda(const SnakeForward& args, const Tensor& x) {
  on_cuda(x, [&](void* stream) { return cuda::snake_forward(args, stream); });
}

void snake_backward_on_cuda(SnakeBackward& args, const Tensor& x) {
  const Tensor workspace = new_tensor(x, {cuda::snake_backward_workspace(args)}, ScalarType::Float);
  args.workspace = static_cast<float*>(workspace.mutable_data_ptr());
  on_cuda(x, [&](void* stream) { return cuda::snake_backward(args, stream); });
}
#endif

}  // namespace
}  // namespace presto

// The schemas are defined in Python, where they are there without this library too.
STABLE_TORCH_LIBRARY_IMPL(presto_kernels, CPU, m) {
  m.impl("glu", TORCH_BOX(&presto::glu<presto::glu_on_cpu>));
  m.impl("glu_backward", TORCH_BOX(&presto::glu_backward<presto::glu_backward_on_cpu>));
  m.impl("snake", TORCH_BOX(&presto::snake<presto::snake_on_cpu>));
  m.impl("snake_backward", TORCH_BOX(&presto::snake_backward<presto::snake_backward_on_cpu>));
}
#ifdef PRESTO_CUDA
STABLE_TORCH_LIBRARY_IMPL(presto_kernels, CUDA, m) {
  m.impl("glu", TORCH_BOX(&presto::glu<presto::glu_on_cuda>));
  m.impl("glu_backward", TORCH_BOX(&presto::glu_backward<presto::glu_backward_on_cuda>));
  m.impl("snake", TORCH_BOX(&presto::snake<presto::snake_on_cuda>));
  m.impl("snake_backward", TORCH_BOX(&presto::snake_backward<presto::snake_backward_on_cuda>));
}
#endif
