// Attention, as plain C++: no torch header here, so that the kernels compile with g++ alone whatever torch is
// installed.
//
//   out[i] = sum_j p[i, j] v[j]          p[i, j] = exp(scale * q[i] . k[j] - lse[i])
//   lse[i] = ln sum_j exp(scale * q[i] . k[j])
//
// over the keys j that query i sees: j < key_lengths[b] and i - left <= j <= i + right, a negative bound being none.
// q is [B, Nq, H, Dh], k and v [B, Nk, Hkv, Dh]; query head h reads kv head h / (H / Hkv).  A query that sees no key
// gives 0 and lse -inf.  Nothing that is hidden is ever multiplied with something that is not.
#pragma once
#include <cstdint>

#include "rows.h"

namespace presto {

// Element [b, n, h, d] is data[b * batch_stride + n * row_stride + h * head_stride + d].
struct Heads {
  const void* data = nullptr;
  int64_t batch_stride = 0, row_stride = 0, head_stride = 0;
};

struct AttentionInputs {
  DType dtype = DType::F32;  // of q, k, v, out and their gradients
  int64_t batch = 0, queries = 0, keys = 0, heads = 0, kv_heads = 0, dim = 0;
  int64_t left = -1, right = -1;
  float scale = 1.f;
  const int64_t* lengths = nullptr;  // [B], in [0, keys]; null: all keys
  Heads q, k, v;
};

struct AttentionForward : AttentionInputs {
  void* out = nullptr;   // [B, Nq, H, Dh], contiguous
  float* lse = nullptr;  // [B, H, Nq]
};

// With delta[i] = sum_d out[i, d] grad_out[i, d] and dS = p * (grad_out v^T - delta):
//   dv = p^T grad_out        dq = scale * dS k        dk = scale * dS^T q
// dk and dv are summed over the query heads that share the kv head, in a fixed order.
struct AttentionBackward : AttentionInputs {
  Heads out, grad_out;
  const float* lse = nullptr;                        // [B, H, Nq]
  void *dq = nullptr, *dk = nullptr, *dv = nullptr;  // contiguous
};

namespace cpu {
// Both split into tasks that may run in any order and on any number of threads; results do not depend on either.
int64_t attention_tasks(const AttentionForward& args);
void attention(const AttentionForward& args, int64_t first_task, int64_t last_task);
int64_t attention_backward_tasks(const AttentionBackward& args);
void attention_backward(const AttentionBackward& args, int64_t first_task, int64_t last_task);
}  // namespace cpu

}  // namespace presto
