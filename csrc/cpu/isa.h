// Which vector instructions the CPU kernels use: the best this processor has, unless limited.
#pragma once

namespace presto::cpu {

// 0 none, 1 avx2, 2 avx512, 3 avx512bf16.
int instruction_set();

// Lowers it, for tests and comparisons; a limit that this processor cannot meet changes nothing.  Not to be called
// while kernels run.
int limit_instruction_set(int limit);

}  // namespace presto::cpu

// Of a family's kernels, which every instruction set's namespace has under one name, those that run now.
#if defined(__x86_64__)
#define PRESTO_CPU_KERNELS(name)                                         \
  (presto::cpu::instruction_set() >= 3   ? presto::cpu::avx512bf16::name \
   : presto::cpu::instruction_set() == 2 ? presto::cpu::avx512::name     \
                                         : presto::cpu::avx2::name)
#else  // none were compiled, and nobody asks: instruction_set() is 0
#define PRESTO_CPU_KERNELS(name) (*static_cast<decltype(&presto::cpu::avx2::name)>(nullptr))
#endif
