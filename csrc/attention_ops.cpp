// Attention as torch operators: tensors in, plain structs to the kernels, tensors out.  Arguments were checked in
// Python (presto_kernels/ops/attention/api.py); here only what would make a kernel read or write out of bounds.
#include <algorithm>

#include "attention.h"
#include "tensor.h"

namespace presto {
namespace {

using Optional = std::optional<Tensor>;

// Tensors a call reads: kept alive here when a copy had to be made.
class Inputs {
 public:
  Inputs(const Tensor& q, const Tensor& k) : q_(q) {
    STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4, "presto_kernels::attention: q, k and v must be [B, N, H, Dh]");
    batch_ = q.size(0), queries_ = q.size(1), heads_ = q.size(2), dim_ = q.size(3);
    keys_ = k.size(1), kv_heads_ = k.size(2);
    STD_TORCH_CHECK(dim_ > 0, "presto_kernels::attention: q has no head dimension");
    STD_TORCH_CHECK(kv_heads_ > 0 ? heads_ % kv_heads_ == 0 : heads_ == 0,
                    "presto_kernels::attention: q's heads must be a multiple of k's");
  }

  // [B, N, H, Dh] with unit inner stride; other layouts are copied.
  Heads heads(const Tensor& given, int64_t tokens, int64_t heads, const char* name) {
    Tensor t = given;
    STD_TORCH_CHECK(
        t.dim() == 4 && t.size(0) == batch_ && t.size(1) == tokens && t.size(2) == heads && t.size(3) == dim_,
        "presto_kernels::attention: ", name, " has a wrong shape");
    STD_TORCH_CHECK(t.scalar_type() == q_.scalar_type(), "presto_kernels::attention: ", name, " has not q's dtype");
    if (t.stride(3) != 1 && dim_ > 1) t = torch::stable::contiguous(t);
    kept_.push_back(t);
    return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
  }
  Heads of_queries(const Tensor& t, const char* name) { return heads(t, queries_, heads_, name); }
  Heads of_keys(const Tensor& t, const char* name) { return heads(t, keys_, kv_heads_, name); }

  void fill(AttentionInputs& to, const Tensor& k, const Tensor& v, const Optional& key_lengths, int64_t left,
            int64_t right, double scale) {
    to.dtype = dtype_of(q_, "q");
    to.batch = batch_, to.queries = queries_, to.keys = keys_, to.heads = heads_, to.kv_heads = kv_heads_;
    to.dim = dim_;
    const int64_t longest = std::max(queries_, keys_);
    to.left = left < 0 ? -1 : std::min(left, longest);
    to.right = right < 0 ? -1 : std::min(right, longest);
    to.scale = static_cast<float>(scale);
    to.q = of_queries(q_, "q");
    to.k = of_keys(k, "k");
    to.v = of_keys(v, "v");
    if (key_lengths) to.lengths = lengths(*key_lengths);
  }

  Tensor like_queries() const { return new_tensor(q_, {batch_, queries_, heads_, dim_}, q_.scalar_type()); }
  Tensor like_keys() const { return new_tensor(q_, {batch_, keys_, kv_heads_, dim_}, q_.scalar_type()); }
  Tensor lse() const { return new_tensor(q_, {batch_, heads_, queries_}, ScalarType::Float); }
  int64_t lse_numel() const { return batch_ * heads_ * queries_; }
  bool no_queries() const { return batch_ * queries_ * heads_ == 0; }
  bool no_keys() const { return batch_ * keys_ * kv_heads_ == 0; }

 private:
  const int64_t* lengths(const Tensor& given) {
    STD_TORCH_CHECK(given.dim() == 1 && given.size(0) == batch_, "presto_kernels::attention: key_lengths must be [B]");
    const ScalarType dtype = given.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Int || dtype == ScalarType::Long,
                    "presto_kernels::attention: key_lengths must be int32 or int64");
    for (int64_t b = 0; b < batch_; ++b) {
      const int64_t at = b * given.stride(0);
      const int64_t length = dtype == ScalarType::Int ? static_cast<const int32_t*>(given.const_data_ptr())[at]
                                                      : static_cast<const int64_t*>(given.const_data_ptr())[at];
      lengths_.push_back(std::clamp<int64_t>(length, 0, keys_));
    }
    return lengths_.data();
  }

  const Tensor& q_;
  int64_t batch_, queries_, keys_, heads_, kv_heads_, dim_;
  std::vector<Tensor> kept_;
  std::vector<int64_t> lengths_;
};

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& key_lengths,
                                     int64_t left, int64_t right, double scale) {
  Inputs in(q, k);
  AttentionForward args;
  in.fill(args, k, v, key_lengths, left, right, scale);
  Tensor out = in.like_queries(), lse = in.lse();
  if (!in.no_queries()) {
    args.out = out.mutable_data_ptr();
    args.lse = static_cast<float*>(lse.mutable_data_ptr());
    torch::stable::parallel_for(0, cpu::attention_tasks(args), 1,
                                [&](int64_t first, int64_t last) { cpu::attention(args, first, last); });
  }
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_out, const Tensor& q, const Tensor& k,
                                                      const Tensor& v, const Tensor& out, const Tensor& lse,
                                                      const Optional& key_lengths, int64_t left, int64_t right,
                                                      double scale) {
  Inputs in(q, k);
  AttentionBackward args;
  in.fill(args, k, v, key_lengths, left, right, scale);
  args.out = in.of_queries(out, "out");
  args.grad_out = in.of_queries(grad_out, "grad_out");
  STD_TORCH_CHECK(lse.is_contiguous() && lse.numel() == in.lse_numel() && lse.scalar_type() == ScalarType::Float,
                  "presto_kernels::attention_backward: lse is not that of the forward");
  args.lse = static_cast<const float*>(lse.const_data_ptr());
  Tensor dq = in.like_queries(), dk = in.like_keys(), dv = in.like_keys();
  if (in.no_queries() || in.no_keys()) {
    for (Tensor* t : {&dq, &dk, &dv}) torch::stable::zero_(*t);
  } else {
    args.dq = dq.mutable_data_ptr();
    args.dk = dk.mutable_data_ptr();
    args.dv = dv.mutable_data_ptr();
    torch::stable::parallel_for(0, cpu::attention_backward_tasks(args), 1,
                                [&](int64_t first, int64_t last) { cpu::attention_backward(args, first, last); });
  }
  return {dq, dk, dv};
}

}  // namespace
}  // namespace presto

// The schemas are defined in Python, where they are there without this library too.
STABLE_TORCH_LIBRARY_IMPL(presto_kernels, CPU, m) {
  m.impl("attention", TORCH_BOX(&presto::attention));
  m.impl("attention_backward", TORCH_BOX(&presto::attention_backward));
}
