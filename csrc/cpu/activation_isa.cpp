// Compiled once per instruction set (setup.py gives the flags and PRESTO_ISA).
#include "activation_isa.h"

#include "activation_kernels.h"

namespace presto::cpu::PRESTO_ISA {
namespace {

void run_glu_forward(const GluForward& args, int64_t first, int64_t last) {
  with_type(args.x.dtype, [&](auto t) {
    args.act == Act::Silu ? glu_forward<Act::Silu, decltype(t)>(args, first, last)
                          : glu_forward<Act::Gelu, decltype(t)>(args, first, last);
  });
}

void run_glu_backward(const GluBackward& args, int64_t first, int64_t last) {
  with_type(args.x.dtype, [&](auto t) {
    args.act == Act::Silu ? glu_backward<Act::Silu, decltype(t)>(args, first, last)
                          : glu_backward<Act::Gelu, decltype(t)>(args, first, last);
  });
}

void run_snake_forward(const SnakeForward& args, int64_t first, int64_t last) {
  with_type(args.x.dtype, [&](auto t) { snake_forward<decltype(t)>(args, first, last); });
}

void run_snake_forward_samples(const SnakeForward& args, int64_t first, int64_t last) {
  with_type(args.x.dtype, [&](auto t) { snake_forward_samples<decltype(t)>(args, first, last); });
}

void run_snake_backward(const SnakeBackward& args, int64_t first, int64_t last) {
  with_type(args.x.dtype, [&](auto t) { snake_backward<decltype(t)>(args, first, last); });
}

}  // namespace

extern const ActivationKernels kActivationKernels = {run_glu_forward,
                                                     run_glu_backward,
                                                     run_snake_forward,
                                                     run_snake_forward_samples,
                                                     run_snake_backward,
                                                     snake_backward_channels,
                                                     kPiece};

}  // namespace presto::cpu::PRESTO_ISA
