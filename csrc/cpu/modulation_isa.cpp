// Compiled once per instruction set (setup.py gives the flags and PRESTO_ISA).
#include "modulation_isa.h"

#include "modulation_backward.h"
#include "modulation_forward.h"

namespace presto::cpu::PRESTO_ISA {
namespace {

// Calls f with values of x's and the branch's element type.
template <class F>
void with_types(DType x, const Rows& branch, F&& f) {
  with_type(x, [&](auto t) {
    if (branch.data && branch.dtype != x && branch.dtype == DType::F32) return f(t, float{});
    if (branch.data && branch.dtype != x && branch.dtype == DType::F16) return f(t, f16{});
    if (branch.data && branch.dtype != x) return f(t, bf16{});
    f(t, t);
  });
}

void run_forward(const SeamForward& args, int64_t first, int64_t last) {
  with_types(args.x.dtype, args.branch,
             [&](auto t, auto branch) { forward<decltype(t), decltype(branch)>(args, first, last); });
}

void run_backward(const SeamBackward& args, int64_t first, int64_t last) {
  with_types(args.x.dtype, args.branch,
             [&](auto t, auto branch) { backward<decltype(t), decltype(branch)>(args, first, last); });
}

}  // namespace

extern const SeamKernels kSeamKernels = {run_forward,    run_backward, backward_columns,
                                         backward_alpha, kChunkRows,   kColumns};

}  // namespace presto::cpu::PRESTO_ISA
