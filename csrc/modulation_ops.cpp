// The AdaLN family as torch operators: tensors in, plain structs to the kernels, tensors out.  Arguments were checked
// in Python (presto_kernels/ops/modulation/api.py); here only what would make a kernel read or write out of bounds.
#include "cuda/device.h"
#include "modulation.h"
#include "tensor.h"

namespace presto {
namespace {

using Optional = std::optional<Tensor>;
using Forward = std::tuple<Tensor, Tensor, Tensor>;
using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Tensors a call reads: kept alive here when a copy had to be made.
class Inputs {
 public:
  explicit Inputs(const Tensor& x) : x_(x), batch_(x.size(0)), tokens_(x.size(1)), dim_(x.size(2)) {
    STD_TORCH_CHECK(dim_ > 0, "presto_kernels::seam: x has no channels");
  }

  // [B, N, D] with unit inner stride; other layouts are copied.
  Rows rows(const Optional& given, const char* name) {
    if (!given) return {};
    Tensor t = *given;
    check_device(t, name);
    STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == batch_ && t.size(1) == tokens_ && t.size(2) == dim_,
                    "presto_kernels::seam: ", name, " must have the shape of x");
    if (t.stride(2) != 1 && dim_ > 1) t = torch::stable::contiguous(t);
    kept_.push_back(t);
    return {t.const_data_ptr(), dtype_of(t, name), t.stride(0), t.stride(1)};
  }

  Modulation modulation(const Optional& given, const char* name) {
    Modulation m;
    if (!given) return m;
    Tensor t = *given;
    check_device(t, name);
    const int64_t axes = t.dim();
    STD_TORCH_CHECK(axes >= 1 && axes <= 3 && t.size(axes - 1) == dim_, "presto_kernels::seam: ", name,
                    " must be [D], [B|1, D] or [B|1, 1|N, D]");
    if (t.stride(axes - 1) != 1 && dim_ > 1) t = torch::stable::contiguous(t);
    kept_.push_back(t);
    m.data = t.const_data_ptr();
    m.dtype = dtype_of(t, name);
    if (axes >= 2) {
      STD_TORCH_CHECK(t.size(0) == batch_ || t.size(0) == 1, "presto_kernels::seam: ", name, " has a wrong batch");
      m.per_sample = t.size(0) == batch_;
      m.batch_stride = m.per_sample && batch_ > 1 ? t.stride(0) : 0;
    }
    if (axes == 3) {
      STD_TORCH_CHECK(t.size(1) == tokens_ || t.size(1) == 1, "presto_kernels::seam: ", name, " has a wrong length");
      m.per_token = t.size(1) == tokens_ && tokens_ > 1;
      m.row_stride = m.per_token ? t.stride(1) : 0;
    }
    STD_TORCH_CHECK(m.per_sample || !m.per_token, "presto_kernels::seam: ", name,
                    " must be [B, N, D] where it differs by token: expand it over the batch");
    return m;
  }

  // One element, [] or [1].
  Rows scalar(const Optional& given, const char* name) {
    if (!given) return {};
    check_device(*given, name);
    STD_TORCH_CHECK(given->numel() == 1 && given->dim() <= 1, "presto_kernels::seam: ", name, " must be [1] or []");
    kept_.push_back(*given);
    return {given->const_data_ptr(), dtype_of(*given, name), 0, 0};
  }

  void fill(SeamInputs& to, const Optional& branch, const Optional& gate, const Optional& scale, const Optional& shift,
            const Optional& weight, const Optional& bias, const Optional& alpha, const Optional& residual2) {
    to.branch = rows(branch, "branch");
    to.gate = modulation(gate, "gate");
    to.scale = modulation(scale, "scale");
    to.shift = modulation(shift, "shift");
    to.weight = modulation(weight, "weight");
    to.bias = modulation(bias, "bias");
    static_cast<Rows&>(to.alpha) = scalar(alpha, "alpha");
    to.residual2 = modulation(residual2, "residual2");
    STD_TORCH_CHECK(!to.weight.per_token && !to.bias.per_token,
                    "presto_kernels::seam: weight and bias are shared by the tokens");
    STD_TORCH_CHECK(branch || !residual2, "presto_kernels::seam: residual2 comes with a branch");
  }

  SeamShape shape(int64_t norm, int64_t gate_fn, double eps, const Optional& alpha) const {
    STD_TORCH_CHECK(norm >= 0 && norm <= 3 && gate_fn >= 0 && gate_fn <= 1,
                    "presto_kernels::seam: unknown norm or gate_fn");
    STD_TORCH_CHECK(alpha || static_cast<Norm>(norm) != Norm::Dyt, "presto_kernels::seam: norm dyt needs alpha");
    return {batch_, tokens_, dim_, static_cast<Norm>(norm), static_cast<GateFn>(gate_fn), static_cast<float>(eps)};
  }

  Tensor nothing(ScalarType dtype) const { return new_tensor(x_, {0}, dtype); }
  Tensor like_x() const { return new_tensor(x_, {batch_, tokens_, dim_}, x_.scalar_type()); }
  Tensor like(const Tensor& t) const {
    if (t.dim() == 0) return new_tensor(x_, {}, t.scalar_type());
    if (t.dim() == 1) return new_tensor(x_, {t.size(0)}, t.scalar_type());
    if (t.dim() == 2) return new_tensor(x_, {t.size(0), t.size(1)}, t.scalar_type());
    return new_tensor(x_, {t.size(0), t.size(1), t.size(2)}, t.scalar_type());
  }
  bool empty() const { return batch_ * tokens_ == 0; }
  int64_t batch() const { return batch_; }
  int64_t tokens() const { return tokens_; }

 private:
  void check_device(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.is_cuda() == x_.is_cuda() && t.get_device_index() == x_.get_device_index(),
                    "presto_kernels::seam: ", name, " is not on the device of x");
  }

  const Tensor& x_;
  int64_t batch_, tokens_, dim_;
  std::vector<Tensor> kept_;
};

// About this many elements make a task worth a thread.
constexpr int64_t kGrain = 32768;

using RunForward = void (*)(const SeamForward&, const Tensor& x);
using RunBackward = void (*)(SeamBackward&, const Tensor& x);

void forward_on_cpu(const SeamForward& args, const Tensor&) {
  torch::stable::parallel_for(0, args.batch * args.tokens, kGrain / args.dim + 1,
                              [&](int64_t first, int64_t last) { cpu::seam_forward(args, first, last); });
}

void backward_on_cpu(SeamBackward& args, const Tensor& x) {
  const Tensor workspace = new_tensor(x, {cpu::seam_backward_workspace(args)}, ScalarType::Float);
  args.workspace = static_cast<float*>(workspace.mutable_data_ptr());
  torch::stable::parallel_for(0, cpu::seam_backward_chunks(args), 1,
                              [&](int64_t first, int64_t last) { cpu::seam_backward_rows(args, first, last); });
  torch::stable::parallel_for(0, args.dim, 128,
                              [&](int64_t first, int64_t last) { cpu::seam_backward_columns(args, first, last); });
  if (args.dalpha) cpu::seam_backward_alpha(args);
}

template <RunForward run>
Forward seam(const Tensor& x, const Optional& branch, const Optional& gate, const Optional& scale,
             const Optional& shift, const Optional& weight, const Optional& bias, const Optional& alpha,
             const Optional& residual2, int64_t norm, int64_t gate_fn, double eps) {
  Inputs in(x);
  SeamForward args;
  static_cast<SeamShape&>(args) = in.shape(norm, gate_fn, eps, alpha);
  args.x = in.rows(x, "x");
  in.fill(args, branch, gate, scale, shift, weight, bias, alpha, residual2);
  const ScalarType dtype = x.scalar_type();
  Tensor x_new = branch ? in.like_x() : in.nothing(dtype);
  Tensor h = norm ? in.like_x() : in.nothing(dtype);
  const bool with_stats = has_stats(args.norm);
  Tensor stats =
      with_stats ? new_tensor(x, {in.batch(), in.tokens(), 2}, ScalarType::Float) : in.nothing(ScalarType::Float);
  if (!in.empty()) {
    if (branch) args.x_new = x_new.mutable_data_ptr();
    if (norm) args.h = h.mutable_data_ptr();
    if (with_stats) args.stats = static_cast<float*>(stats.mutable_data_ptr());
    run(args, x);
  }
  return {x_new, h, stats};
}

template <RunBackward run>
Backward seam_backward(const Optional& grad_x, const Optional& grad_h, const Tensor& x, const Tensor& stats,
                       const Optional& branch, const Optional& gate, const Optional& scale, const Optional& shift,
                       const Optional& weight, const Optional& bias, const Optional& alpha, const Optional& residual2,
                       int64_t norm, int64_t gate_fn, int64_t needs) {
  Inputs in(x);
  SeamBackward args;
  static_cast<SeamShape&>(args) = in.shape(norm, gate_fn, 0.0, alpha);
  STD_TORCH_CHECK(grad_x || grad_h, "presto_kernels::seam_backward: no gradient came in");
  STD_TORCH_CHECK(grad_h.has_value() == (norm != 0), "presto_kernels::seam_backward: grad_h comes with a norm");
  args.x = in.rows(x, "x");
  args.grad_x = in.rows(grad_x, "grad_x");
  args.grad_h = in.rows(grad_h, "grad_h");
  for (const Rows* grad : {&args.grad_x, &args.grad_h})
    STD_TORCH_CHECK(!grad->data || grad->dtype == args.x.dtype,
                    "presto_kernels::seam_backward: a gradient has not x's dtype");
  in.fill(args, branch, gate, scale, shift, weight, bias, alpha, residual2);
  if (has_stats(args.norm)) {
    STD_TORCH_CHECK(stats.is_contiguous() && stats.numel() == 2 * in.batch() * in.tokens() &&
                        stats.scalar_type() == ScalarType::Float,
                    "presto_kernels::seam_backward: stats are not those of the forward");
    args.stats = static_cast<const float*>(stats.const_data_ptr());
  }
  const Optional owners[] = {x, branch, gate, scale, shift, weight, bias, alpha, residual2};
  void** outputs[] = {&args.dx,      &args.dbranch, &args.dgate,  &args.dscale,    &args.dshift,
                      &args.dweight, &args.dbias,   &args.dalpha, &args.dresidual2};
  std::vector<Tensor> results;
  for (int i = 0; i < 9; ++i) {
    const bool wanted = needs >> i & 1;
    STD_TORCH_CHECK(!wanted || owners[i], "presto_kernels::seam_backward: a gradient is needed of a tensor not given");
    results.push_back(wanted ? in.like(*owners[i]) : in.nothing(x.scalar_type()));
    if (wanted) *outputs[i] = results.back().mutable_data_ptr();
    if (wanted && in.empty()) torch::stable::zero_(results.back());
  }
  if (!in.empty() && needs) run(args, x);
  return {results[0], results[1], results[2], results[3], results[4], results[5], results[6], results[7], results[8]};
}

#ifdef PRESTO_CUDA
void check_cuda(int error) { STD_TORCH_CHECK(error == 0, "presto_kernels::seam: CUDA: ", cuda::error_string(error)); }

void forward_on_cuda(const SeamForward& args, const Tensor& x) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  check_cuda(cuda::seam_forward(args, current_cuda_stream(x.get_device_index())));
}

void backward_on_cuda(SeamBackward& args, const Tensor& x) {
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int multiprocessors = cuda::multiprocessor_count(device);
  const Tensor workspace = new_tensor(x, {cuda::seam_backward_workspace(args, multiprocessors)}, ScalarType::Float);
  args.workspace = static_cast<float*>(workspace.mutable_data_ptr());
  check_cuda(cuda::seam_backward(args, multiprocessors, current_cuda_stream(device)));
}
#endif

}  // namespace
}  // namespace presto

// The schemas are defined in Python, where they are there without this library too.
STABLE_TORCH_LIBRARY_IMPL(presto_kernels, CPU, m) {
  m.impl("seam", TORCH_BOX(&presto::seam<presto::forward_on_cpu>));
  m.impl("seam_backward", TORCH_BOX(&presto::seam_backward<presto::backward_on_cpu>));
}
#ifdef PRESTO_CUDA
STABLE_TORCH_LIBRARY_IMPL(presto_kernels, CUDA, m) {
  m.impl("seam", TORCH_BOX(&presto::seam<presto::forward_on_cuda>));
  m.impl("seam_backward", TORCH_BOX(&presto::seam_backward<presto::backward_on_cuda>));
}
#endif
