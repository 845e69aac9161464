#include "cpu/isa.h"

namespace presto::cpu {
namespace {

// The best set this processor has, up to `limit`.
int best(int limit) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (limit >= 3 && avx512 && __builtin_cpu_supports("avx512bf16")) return 3;
  if (limit >= 2 && avx512) return 2;
  if (limit >= 1 && avx2) return 1;
#endif
  return 0;
}

int current = best(3);

}  // namespace

int instruction_set() { return current; }

int limit_instruction_set(int limit) {
  const int found = best(limit);
  if (found != 0) current = found;
  return current;
}

}  // namespace presto::cpu
