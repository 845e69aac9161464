// Compiled once per instruction set (setup.py gives the flags and PRESTO_ISA).
#include "rotary_isa.h"

#include "rotary_kernels.h"

namespace presto::cpu::PRESTO_ISA {
namespace {

void run_forward(const RotaryShape& shape, const RotaryForwardSide& side, int64_t first, int64_t last) {
  with_type(side.x.dtype, [&](auto t) { forward<decltype(t)>(shape, side, first, last); });
}

void run_backward(const RotaryShape& shape, const RotaryBackwardSide& side, int64_t first, int64_t last, float* sums) {
  with_type(side.grad.dtype, [&](auto t) { backward<decltype(t)>(shape, side, first, last, sums); });
}

}  // namespace

extern const RotaryKernels kRotaryKernels = {run_forward, run_backward, backward_sums, kChunkTokens};

}  // namespace presto::cpu::PRESTO_ISA
