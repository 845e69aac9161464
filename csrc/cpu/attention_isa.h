// What one instruction set offers to csrc/cpu/attention.cpp.
#pragma once
#include "attention.h"

namespace presto::cpu {

struct AttentionKernels {
  int64_t (*forward_tasks)(const AttentionForward&);
  void (*forward)(const AttentionForward&, int64_t first_task, int64_t last_task);
  int64_t (*backward_tasks)(const AttentionBackward&);
  void (*backward)(const AttentionBackward&, int64_t first_task, int64_t last_task);
};

namespace avx2 {
extern const AttentionKernels kAttentionKernels;
}
namespace avx512 {
extern const AttentionKernels kAttentionKernels;
}
namespace avx512bf16 {
extern const AttentionKernels kAttentionKernels;
}

}  // namespace presto::cpu
