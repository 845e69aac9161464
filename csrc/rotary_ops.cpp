// Head norm and rotary embedding as torch operators: tensors in, plain structs to the kernels, tensors out.  Arguments
// were checked in Python (presto_kernels/ops/rotary/api.py); here only what would make a kernel read or write out of
// bounds.
#include "cuda/device.h"
#include "rotary.h"
#include "tensor.h"

namespace presto {
namespace {

using Optional = std::optional<Tensor>;
using Forward = std::tuple<Tensor, Tensor>;
using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Tensors a call reads: kept alive here when a copy had to be made.
class Inputs {
 public:
  explicit Inputs(const Tensor& x) : x_(x), batch_(x.size(0)), dim_(x.size(3)) {
    STD_TORCH_CHECK(dim_ > 0, "presto_kernels::qk_norm_rope: heads have no elements");
  }

  // [B, tokens, heads, Dh] with unit inner stride; other layouts are copied.
  Heads heads(const Optional& given, const char* name, int64_t tokens, int64_t heads) {
    if (!given) return {};
    Tensor t = *given;
    check_device(t, name);
    STD_TORCH_CHECK(
        t.dim() == 4 && t.size(0) == batch_ && t.size(1) == tokens && t.size(2) == heads && t.size(3) == dim_,
        "presto_kernels::qk_norm_rope: ", name, " has a wrong shape");
    if (t.stride(3) != 1 && dim_ > 1) t = torch::stable::contiguous(t);
    kept_.push_back(t);
    return {t.const_data_ptr(), dtype_of(t, name), t.stride(0), t.stride(1), t.stride(2)};
  }

  HeadVector vector(const Optional& given, const char* name, int64_t size) {
    if (!given) return {};
    Tensor t = *given;
    check_device(t, name);
    STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == size, "presto_kernels::qk_norm_rope: ", name, " has a wrong shape");
    if (t.stride(0) != 1 && size > 1) t = torch::stable::contiguous(t);
    kept_.push_back(t);
    return {t.const_data_ptr(), dtype_of(t, name)};
  }

  void table(const Tensor& given, const char* name, int64_t tokens, int64_t half, const float*& data, int64_t& stride) {
    Tensor t = given;
    check_device(t, name);
    STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == tokens && t.size(1) == half && half > 0 && 2 * half <= dim_ &&
                        t.scalar_type() == ScalarType::Float,
                    "presto_kernels::qk_norm_rope: ", name, " must be float32 [tokens, R/2]");
    if (t.stride(1) != 1 && half > 1) t = torch::stable::contiguous(t);
    kept_.push_back(t);
    data = static_cast<const float*>(t.const_data_ptr());
    stride = t.stride(0);
  }

  // The side's tokens, tables, weight, bias and alpha.
  void fill(RotarySide& side, const Tensor& x, const Optional& cos, const Optional& sin, const Optional& weight,
            const Optional& bias, const Optional& alpha, const RotaryShape& shape) {
    const int64_t half = shape.half;
    side.tokens = x.size(1), side.heads = x.size(2);
    STD_TORCH_CHECK(cos.has_value() == (half > 0) && sin.has_value() == (half > 0),
                    "presto_kernels::qk_norm_rope: cos and sin come together");
    if (half > 0) {
      table(*cos, "cos", side.tokens, half, side.cos, side.cos_stride);
      table(*sin, "sin", side.tokens, half, side.sin, side.sin_stride);
    }
    side.weight = vector(weight, "weight", dim_);
    side.bias = vector(bias, "bias", dim_);
    STD_TORCH_CHECK(alpha.has_value() == (shape.norm == HeadNorm::DyT),
                    "presto_kernels::qk_norm_rope: alpha and DyT come together");
    side.alpha = vector(alpha, "alpha", 1);
  }

  RotaryShape shape(const Optional& cos, int64_t norm, double eps, bool interleaved) const {
    STD_TORCH_CHECK(norm >= 0 && norm <= 4, "presto_kernels::qk_norm_rope: unknown norm");
    return {batch_, dim_, cos ? cos->size(1) : 0, static_cast<HeadNorm>(norm), interleaved, static_cast<float>(eps)};
  }

  Tensor nothing() const { return new_tensor(x_, {0}, x_.scalar_type()); }
  Tensor like(const Tensor& t) const {
    if (t.dim() == 1) return new_tensor(x_, {t.size(0)}, t.scalar_type());
    return new_tensor(x_, {batch_, t.size(1), t.size(2), dim_}, t.scalar_type());
  }

 private:
  void check_device(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.is_cuda() == x_.is_cuda() && t.get_device_index() == x_.get_device_index(),
                    "presto_kernels::qk_norm_rope: ", name, " is on another device");
  }

  const Tensor& x_;
  int64_t batch_, dim_;
  std::vector<Tensor> kept_;
};

template <class Args>
int64_t elements(const Args& args) {
  return args.batch * args.dim *
         (args.sides[0].tokens * args.sides[0].heads + args.sides[1].tokens * args.sides[1].heads);
}

// About this many elements make a task worth a thread.
constexpr int64_t kGrain = 32768;

using RunForward = void (*)(const RotaryForward&, const Tensor&);
using RunBackward = void (*)(RotaryBackward&, const Tensor&);

void forward_on_cpu(const RotaryForward& args, const Tensor&) {
  const int64_t tokens = args.batch * (args.sides[0].tokens + args.sides[1].tokens);
  torch::stable::parallel_for(0, tokens, kGrain * tokens / elements(args) + 1,
                              [&](int64_t first, int64_t last) { cpu::rotary_forward(args, first, last); });
}

void backward_on_cpu(RotaryBackward& args, const Tensor& like) {
  const Tensor workspace = new_tensor(like, {cpu::rotary_backward_workspace(args)}, ScalarType::Float);
  args.workspace = static_cast<float*>(workspace.mutable_data_ptr());
  torch::stable::parallel_for(0, cpu::rotary_backward_chunks(args), 1,
                              [&](int64_t first, int64_t last) { cpu::rotary_backward(args, first, last); });
  cpu::rotary_backward_sums(args);
}

template <RunForward run>
Forward qk_norm_rope(const Tensor& q, const Optional& k, const Optional& cos, const Optional& sin,
                     const Optional& k_cos, const Optional& k_sin, const Optional& q_weight, const Optional& k_weight,
                     const Optional& q_bias, const Optional& k_bias, const Optional& q_alpha, const Optional& k_alpha,
                     int64_t norm, double eps, bool interleaved) {
  Inputs in(q);
  RotaryForward args;
  static_cast<RotaryShape&>(args) = in.shape(cos, norm, eps, interleaved);
  Tensor q_out = in.like(q), k_out = k ? in.like(*k) : in.nothing();
  in.fill(args.sides[0], q, cos, sin, q_weight, q_bias, q_alpha, args);
  args.sides[0].x = in.heads(q, "q", q.size(1), q.size(2));
  args.sides[0].out = q_out.mutable_data_ptr();
  if (k) {
    in.fill(args.sides[1], *k, k_cos ? k_cos : cos, k_sin ? k_sin : sin, k_weight, k_bias, k_alpha, args);
    args.sides[1].x = in.heads(k, "k", k->size(1), k->size(2));
    args.sides[1].out = k_out.mutable_data_ptr();
  }
  if (elements(args) > 0) run(args, q);
  return {q_out, k_out};
}

template <RunBackward run>
Backward qk_norm_rope_backward(const Optional& grad_q, const Optional& grad_k, const Optional& q, const Optional& k,
                               const Optional& cos, const Optional& sin, const Optional& k_cos, const Optional& k_sin,
                               const Optional& q_weight, const Optional& k_weight, const Optional& q_bias,
                               const Optional& k_bias, const Optional& q_alpha, const Optional& k_alpha, int64_t norm,
                               double eps, bool interleaved, int64_t needs) {
  STD_TORCH_CHECK(grad_q || grad_k, "presto_kernels::qk_norm_rope_backward: no gradient came in");
  const Tensor& like = grad_q ? *grad_q : *grad_k;
  Inputs in(like);
  RotaryBackward args;
  static_cast<RotaryShape&>(args) = in.shape(cos, norm, eps, interleaved);
  const Optional* grads[] = {&grad_q, &grad_k};
  const Optional* xs[] = {&q, &k};
  const Optional* tables[][2] = {{&cos, &sin}, {k_cos ? &k_cos : &cos, k_sin ? &k_sin : &sin}};
  const Optional* parameters[][3] = {{&q_weight, &q_bias, &q_alpha}, {&k_weight, &k_bias, &k_alpha}};
  std::vector<Tensor> results;
  for (int i = 0; i < 8; ++i) results.push_back(in.nothing());
  for (int s = 0; s < 2; ++s) {
    const Optional &grad = *grads[s], &weight = *parameters[s][0], &bias = *parameters[s][1],
                   &alpha = *parameters[s][2];
    const Optional* owners[] = {&grad, &weight, &bias, &alpha};
    bool wanted[4], any = false;
    for (int i = 0; i < 4; ++i) {
      wanted[i] = (needs >> (2 * i + s) & 1) != 0;
      any = any || wanted[i];
      STD_TORCH_CHECK(*owners[i] || !wanted[i],
                      "presto_kernels::qk_norm_rope_backward: a gradient is needed of a tensor not given");
    }
    STD_TORCH_CHECK(grad || !any,
                    "presto_kernels::qk_norm_rope_backward: a gradient is needed of a side that has none");
    if (!any) continue;
    RotaryBackwardSide& side = args.sides[s];
    in.fill(side, *grad, *tables[s][0], *tables[s][1], weight, bias, alpha, args);
    side.grad = in.heads(grad, "a gradient", side.tokens, side.heads);
    if (norm != 0 || weight) {
      STD_TORCH_CHECK(*xs[s], "presto_kernels::qk_norm_rope_backward: q or k is missing");
      side.x = in.heads(*xs[s], "q or k", side.tokens, side.heads);
      STD_TORCH_CHECK(side.x.dtype == side.grad.dtype,
                      "presto_kernels::qk_norm_rope_backward: a gradient has not the dtype of q or k");
    }
    void** outputs[] = {&side.dx, &side.dweight, &side.dbias, &side.dalpha};
    for (int i = 0; i < 4; ++i) {
      if (!wanted[i]) continue;
      results[2 * i + s] = in.like(**owners[i]);
      *outputs[i] = results[2 * i + s].mutable_data_ptr();
      if (args.batch * side.tokens * side.heads == 0) torch::stable::zero_(results[2 * i + s]);
    }
    if (args.batch * side.tokens * side.heads == 0) side = {};  // nothing to read, and its results are zero
  }
  if (elements(args) > 0) run(args, like);
  return {results[0], results[1], results[2], results[3], results[4], results[5], results[6], results[7]};
}

#ifdef PRESTO_CUDA
void check_cuda(int error) {
  STD_TORCH_CHECK(error == 0, "presto_kernels::qk_norm_rope: CUDA: ", cuda::error_string(error));
}

void forward_on_cuda(const RotaryForward& args, const Tensor& q) {
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  check_cuda(cuda::rotary_forward(args, current_cuda_stream(q.get_device_index())));
}

void backward_on_cuda(RotaryBackward& args, const Tensor& like) {
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  const Tensor workspace = new_tensor(like, {cuda::rotary_backward_workspace(args)}, ScalarType::Float);
  args.workspace = static_cast<float*>(workspace.mutable_data_ptr());
  check_cuda(cuda::rotary_backward(args, current_cuda_stream(like.get_device_index())));
}
#endif

}  // namespace
}  // namespace presto

// The schemas are defined in Python, where they are there without this library too.
STABLE_TORCH_LIBRARY_IMPL(presto_kernels, CPU, m) {
  m.impl("qk_norm_rope", TORCH_BOX(&presto::qk_norm_rope<presto::forward_on_cpu>));
  m.impl("qk_norm_rope_backward", TORCH_BOX(&presto::qk_norm_rope_backward<presto::backward_on_cpu>));
}
#ifdef PRESTO_CUDA
STABLE_TORCH_LIBRARY_IMPL(presto_kernels, CUDA, m) {
  m.impl("qk_norm_rope", TORCH_BOX(&presto::qk_norm_rope<presto::forward_on_cuda>));
  m.impl("qk_norm_rope_backward", TORCH_BOX(&presto::qk_norm_rope_backward<presto::backward_on_cuda>));
}
#endif
