// The family's kernels for the instruction set in use.
#include "attention.h"

#include "cpu/attention_isa.h"
#include "cpu/isa.h"

namespace presto::cpu {
namespace {

const AttentionKernels& kernels() { return PRESTO_CPU_KERNELS(kAttentionKernels); }

}  // namespace

int64_t attention_tasks(const AttentionForward& args) { return kernels().forward_tasks(args); }

void attention(const AttentionForward& args, int64_t first_task, int64_t last_task) {
  kernels().forward(args, first_task, last_task);
}

int64_t attention_backward_tasks(const AttentionBackward& args) { return kernels().backward_tasks(args); }

void attention_backward(const AttentionBackward& args, int64_t first_task, int64_t last_task) {
  kernels().backward(args, first_task, last_task);
}

}  // namespace presto::cpu
