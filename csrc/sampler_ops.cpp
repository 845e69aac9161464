// The sampler family as torch operators: tensors in, plain structs to the kernels, tensors out.  Arguments were checked
// in Python (presto_kernels/ops/sampler/api.py); here only what would make a kernel read or write out of bounds.
#include "cuda/device.h"
#include "sampler.h"
#include "tensor.h"

namespace presto {
namespace {

using Optional = std::optional<Tensor>;

std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes(t.dim());
  for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = t.size(i);
  return sizes;
}

// The strides at which a sample of t can be walked: dense in one run, in rows of the last dimension, or in neither.
enum class Walk { Dense, Rows, None };
Walk walk_of(const Tensor& t, int64_t& row_stride) {
  row_stride = 0;
  const int64_t axes = t.dim();
  if (axes == 1) return Walk::Dense;
  int64_t dense = 1, expected = 0;
  bool is_dense = true, by_rows = true, has_rows = false;
  for (int64_t i = axes - 1; i >= 1; dense *= t.size(i--)) {
    const int64_t size = t.size(i), stride = t.stride(i);
    if (size == 1) continue;
    is_dense = is_dense && stride == dense;
    if (i == axes - 1) {
      by_rows = stride == 1;
    } else if (!has_rows) {
      row_stride = stride, expected = stride * size, has_rows = true;
    } else {
      by_rows = by_rows && stride == expected;
      expected = stride * size;
    }
  }
  return is_dense ? Walk::Dense : by_rows ? Walk::Rows : Walk::None;
}

// Tensors of one shape that a call reads, laid out alike; kept alive here when a copy had to be made.
class Inputs {
 public:
  explicit Inputs(const Tensor& x) : x_(x), sizes_(sizes_of(x)) {
    STD_TORCH_CHECK(!sizes_.empty(), "presto_kernels: a sampler's tensor must be [B, ...]");
    for (size_t i = 1; i < sizes_.size(); ++i) sample_ *= sizes_[i];
  }

  void add(const Optional& given, const char* name, Rows* to) {
    if (!given) return;
    Tensor t = *given;
    check_device(t, name);
    STD_TORCH_CHECK(sizes_of(t) == sizes_, "presto_kernels: ", name, " must have the shape of x");
    Entry entry{to, dtype_of(t, name)};
    Walk walk = walk_of(t, entry.row_stride);
    if (walk == Walk::None) {
      t = torch::stable::contiguous(t);
      walk = walk_of(t, entry.row_stride);
    }
    dense_ = dense_ && walk == Walk::Dense;
    entry.data = t.const_data_ptr();
    entry.batch_stride = t.stride(0);
    kept_.push_back(t);
    entries_.push_back(entry);
  }

  // Once every tensor is in: fills in their rows and gives the shape.
  SamplerShape finish() {
    SamplerShape shape{sizes_[0], 1, sample_};
    if (!dense_ && sample_ > 0) shape.dim = sizes_.back(), shape.tokens = sample_ / shape.dim;
    for (const Entry& e : entries_) *e.to = {e.data, e.dtype, e.batch_stride, dense_ ? 0 : e.row_stride};
    return shape;
  }

  EachFloat each(const Optional& given, const char* name, double value) {
    EachFloat each;
    each.value = static_cast<float>(value);
    if (given) {
      check_each(*given, name);
      each.data = given->const_data_ptr();
      each.dtype = dtype_of(*given, name);
      each.stride = given->stride(0);
    }
    return each;
  }

  EachInt each(const Optional& given, const char* name, int64_t value) {
    EachInt each;
    each.value = value;
    if (given) {
      check_each(*given, name);
      STD_TORCH_CHECK(given->scalar_type() == ScalarType::Long, "presto_kernels::renoise: ", name, " must be int64");
      each.data = static_cast<const int64_t*>(given->const_data_ptr());
      each.stride = given->stride(0);
    }
    return each;
  }

  Tensor nothing(ScalarType dtype) const { return new_tensor(x_, {0}, dtype); }
  Tensor like(ScalarType dtype) const { return new_tensor(x_, sizes_.data(), sizes_.size(), dtype); }
  Tensor one_each(ScalarType dtype) const { return new_tensor(x_, {sizes_[0]}, dtype); }
  bool empty() const { return sizes_[0] * sample_ == 0; }

 private:
  struct Entry {
    Rows* to;
    DType dtype;
    const void* data = nullptr;
    int64_t batch_stride = 0, row_stride = 0;
  };

  void check_device(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.is_cuda() == x_.is_cuda() && t.get_device_index() == x_.get_device_index(),
                    "presto_kernels: ", name, " is not on the device of x");
  }
  void check_each(const Tensor& t, const char* name) const {
    check_device(t, name);
    STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == sizes_[0], "presto_kernels: ", name, " must be one number a sample");
  }

  const Tensor& x_;
  std::vector<int64_t> sizes_;
  int64_t sample_ = 1;
  bool dense_ = true;
  std::vector<Entry> entries_;
  std::vector<Tensor> kept_;
};

ScalarType scalar_type(int64_t code) {
  STD_TORCH_CHECK(code >= 0 && code <= 2, "presto_kernels: unknown dtype");
  return code == 0 ? ScalarType::Float : code == 1 ? ScalarType::Half : ScalarType::BFloat16;
}

void fill(Draw& draw, Inputs& in, const Optional& seeds, int64_t seed, const Optional& offsets, int64_t offset) {
  draw.seed = in.each(seeds, "seed", seed);
  draw.offset = in.each(offsets, "offset", offset);
}

// How the work of a kernel is done on a device.
struct OnCpu {
  // Chunks of 4096 elements worth a thread: 32768 elements that are only moved, or 8192 whose noise is drawn.
  static constexpr int64_t kMove = 8, kDraw = 2;
  template <class Args, class Kernel>
  static void run(const Args& args, int64_t grain, Kernel kernel) {
    torch::stable::parallel_for(0, args.batch * cpu::sampler_chunks(args), grain,
                                [&](int64_t first, int64_t last) { kernel(args, first, last); });
  }
  template <class Args, class Kernel>
  static void sum(Args& args, const Tensor& like, int64_t grain, Kernel kernel, DType dtype) {
    const Tensor workspace = new_tensor(like, {args.batch * cpu::sampler_chunks(args)}, ScalarType::Float);
    args.workspace = static_cast<float*>(workspace.mutable_data_ptr());
    run(args, grain, kernel);
    cpu::sampler_sums(args, args.workspace, dtype, args.dsigma);
  }
  static void edm_denoise(const EdmDenoise& args, const Tensor&) { run(args, kMove, cpu::edm_denoise); }
  static void edm_denoise_backward(EdmDenoiseBackward& args, const Tensor& like) {
    if (!args.dsigma) return run(args, kMove, cpu::edm_denoise_backward);
    sum(args, like, kMove, cpu::edm_denoise_backward, args.sigma.dtype);
  }
  static void renoise(const Renoise& args, const Tensor&) { run(args, kDraw, cpu::renoise); }
  static void renoise_backward(RenoiseBackward& args, const Tensor& like) {
    sum(args, like, kDraw, cpu::renoise_backward, args.sigma_dtype);
  }
};

#ifdef PRESTO_CUDA
struct OnCuda {
  template <class Call>
  static void run(const Tensor& like, Call call) {
    const int32_t device = like.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    const int error = call(current_cuda_stream(device));
    STD_TORCH_CHECK(error == 0, "presto_kernels: CUDA: ", cuda::error_string(error));
  }
  static void edm_denoise(const EdmDenoise& args, const Tensor& like) {
    run(like, [&](void* stream) { return cuda::edm_denoise(args, stream); });
  }
  static void edm_denoise_backward(EdmDenoiseBackward& args, const Tensor& like) {
    const Tensor workspace = new_tensor(like, {cuda::edm_denoise_backward_workspace(args)}, ScalarType::Float);
    args.workspace = static_cast<float*>(workspace.mutable_data_ptr());
    run(like, [&](void* stream) { return cuda::edm_denoise_backward(args, stream); });
  }
  static void renoise(const Renoise& args, const Tensor& like) {
    run(like, [&](void* stream) { return cuda::renoise(args, stream); });
  }
  static void renoise_backward(RenoiseBackward& args, const Tensor& like) {
    const Tensor workspace = new_tensor(like, {cuda::renoise_backward_workspace(args)}, ScalarType::Float);
    args.workspace = static_cast<float*>(workspace.mutable_data_ptr());
    run(like, [&](void* stream) { return cuda::renoise_backward(args, stream); });
  }
};
#endif

template <class Device>
Tensor edm_denoise(const Tensor& model_output, const Tensor& x, const Tensor& sigma, double sigma_data,
                   double sigma_min) {
  Inputs in(x);
  EdmDenoise args;
  in.add(model_output, "model_output", &args.model_output);
  in.add(x, "x", &args.x);
  static_cast<SamplerShape&>(args) = in.finish();
  args.sigma = in.each(sigma, "sigma", 0.0);
  args.sigma_data = static_cast<float>(sigma_data), args.sigma_min = static_cast<float>(sigma_min);
  Tensor out = in.like(x.scalar_type());
  args.out = out.mutable_data_ptr();
  if (!in.empty()) Device::edm_denoise(args, x);
  return out;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> edm_denoise_backward(const Tensor& grad, const Optional& model_output,
                                                        const Optional& x, const Tensor& sigma, double sigma_data,
                                                        double sigma_min, int64_t output_dtype, int64_t needs) {
  Inputs in(grad);
  EdmDenoiseBackward args;
  const ScalarType output_type = scalar_type(output_dtype);
  const bool of_sigma = needs & 4;
  STD_TORCH_CHECK(!of_sigma || (model_output && x),
                  "presto_kernels::edm_denoise_backward: dsigma needs model_output and x");
  in.add(grad, "grad", &args.grad);
  if (of_sigma) {
    STD_TORCH_CHECK(x->scalar_type() == grad.scalar_type() && model_output->scalar_type() == output_type,
                    "presto_kernels::edm_denoise_backward: x or model_output has not the dtype of its gradient");
    in.add(model_output, "model_output", &args.model_output);
    in.add(x, "x", &args.x);
  }
  static_cast<SamplerShape&>(args) = in.finish();
  args.sigma = in.each(sigma, "sigma", 0.0);
  args.sigma_data = static_cast<float>(sigma_data), args.sigma_min = static_cast<float>(sigma_min);
  args.output_dtype = static_cast<DType>(output_dtype);
  Tensor doutput = needs & 1 ? in.like(output_type) : in.nothing(output_type);
  Tensor dx = needs & 2 ? in.like(grad.scalar_type()) : in.nothing(grad.scalar_type());
  Tensor dsigma = of_sigma ? in.one_each(sigma.scalar_type()) : in.nothing(sigma.scalar_type());
  if (in.empty()) {
    if (of_sigma) torch::stable::zero_(dsigma);
  } else if (needs) {
    if (needs & 1) args.doutput = doutput.mutable_data_ptr();
    if (needs & 2) args.dx = dx.mutable_data_ptr();
    if (of_sigma) args.dsigma = dsigma.mutable_data_ptr();
    Device::edm_denoise_backward(args, grad);
  }
  return {doutput, dx, dsigma};
}

template <class Device>
Tensor renoise(const Tensor& x0, const Optional& sigmas, double sigma, const Optional& seeds, int64_t seed,
               const Optional& offsets, int64_t offset, double signal) {
  Inputs in(x0);
  Renoise args;
  in.add(x0, "x0", &args.x0);
  static_cast<SamplerShape&>(args) = in.finish();
  args.sigma = in.each(sigmas, "sigma", sigma);
  fill(args, in, seeds, seed, offsets, offset);
  args.signal = static_cast<float>(signal);
  Tensor out = in.like(x0.scalar_type());
  args.out = out.mutable_data_ptr();
  if (!in.empty()) Device::renoise(args, x0);
  return out;
}

template <class Device>
Tensor renoise_backward(const Tensor& grad, const Tensor& sigma, const Optional& seeds, int64_t seed,
                        const Optional& offsets, int64_t offset) {
  Inputs in(grad);
  RenoiseBackward args;
  in.add(grad, "grad", &args.grad);
  static_cast<SamplerShape&>(args) = in.finish();
  fill(args, in, seeds, seed, offsets, offset);
  args.sigma_dtype = dtype_of(sigma, "sigma");
  Tensor dsigma = in.one_each(sigma.scalar_type());
  args.dsigma = dsigma.mutable_data_ptr();
  if (in.empty()) {
    torch::stable::zero_(dsigma);
  } else {
    Device::renoise_backward(args, grad);
  }
  return dsigma;
}

}  // namespace
}  // namespace presto

// The schemas are defined in Python, where they are there without this library too.
STABLE_TORCH_LIBRARY_IMPL(presto_kernels, CPU, m) {
  m.impl("edm_denoise", TORCH_BOX(&presto::edm_denoise<presto::OnCpu>));
  m.impl("edm_denoise_backward", TORCH_BOX(&presto::edm_denoise_backward<presto::OnCpu>));
  m.impl("renoise", TORCH_BOX(&presto::renoise<presto::OnCpu>));
  m.impl("renoise_backward", TORCH_BOX(&presto::renoise_backward<presto::OnCpu>));
}
#ifdef PRESTO_CUDA
STABLE_TORCH_LIBRARY_IMPL(presto_kernels, CUDA, m) {
  m.impl("edm_denoise", TORCH_BOX(&presto::edm_denoise<presto::OnCuda>));
  m.impl("edm_denoise_backward", TORCH_BOX(&presto::edm_denoise_backward<presto::OnCuda>));
  m.impl("renoise", TORCH_BOX(&presto::renoise<presto::OnCuda>));
  m.impl("renoise_backward", TORCH_BOX(&presto::renoise_backward<presto::OnCuda>));
}
#endif
