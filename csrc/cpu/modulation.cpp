// Picks the instruction set once, when the library is first asked, from what this processor has.
#include "modulation.h"

#include "cpu/modulation_isa.h"

namespace presto::cpu {
namespace {

struct Choice {
  int level;
  const SeamKernels* kernels;
};

// The best set this processor has, up to `limit` (0 none, 1 avx2, 2 avx512, 3 avx512bf16).
Choice choose(int limit) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (limit >= 3 && avx512 && __builtin_cpu_supports("avx512bf16")) return {3, &avx512bf16::kSeamKernels};
  if (limit >= 2 && avx512) return {2, &avx512::kSeamKernels};
  if (limit >= 1 && avx2) return {1, &avx2::kSeamKernels};
#endif
  return {0, nullptr};
}

Choice current = choose(3);

}  // namespace

int instruction_set() { return current.level; }

int limit_instruction_set(int limit) {
  const Choice choice = choose(limit);
  if (choice.kernels != nullptr) current = choice;
  return current.level;
}

void seam_forward(const SeamForward& args, int64_t first, int64_t last) { current.kernels->forward(args, first, last); }

int64_t seam_backward_chunks(const SeamBackward& args) {
  const int64_t rows = current.kernels->chunk_rows;
  return args.batch * ((args.tokens + rows - 1) / rows);
}

int64_t seam_backward_workspace(const SeamBackward& args) {
  return seam_backward_chunks(args) * current.kernels->columns * args.dim;
}

void seam_backward_rows(const SeamBackward& args, int64_t first_chunk, int64_t last_chunk) {
  current.kernels->backward_chunks(args, first_chunk, last_chunk);
}

void seam_backward_columns(const SeamBackward& args, int64_t first, int64_t last) {
  current.kernels->backward_columns(args, first, last);
}

}  // namespace presto::cpu
