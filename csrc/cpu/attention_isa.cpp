// Compiled once per instruction set (setup.py gives the flags and PRESTO_ISA).
#include "attention_isa.h"

#include "attention_backward.h"
#include "attention_forward.h"

namespace presto::cpu::PRESTO_ISA {
namespace {

void run_forward(const AttentionForward& args, int64_t first, int64_t last) {
  with_type(args.dtype, [&](auto t) { forward<decltype(t)>(args, first, last); });
}

void run_backward(const AttentionBackward& args, int64_t first, int64_t last) {
  with_type(args.dtype, [&](auto t) { backward<decltype(t)>(args, first, last); });
}

}  // namespace

extern const AttentionKernels kAttentionKernels = {forward_tasks, run_forward, backward_tasks, run_backward};

}  // namespace presto::cpu::PRESTO_ISA
