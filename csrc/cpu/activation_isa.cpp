// Compiled once per instruction set (setup.py gives the flags and PRESTO_ISA).
#include "activation_isa.h"

#include "activation_kernels.h"

namespace presto::cpu::PRESTO_ISA {
namespace {

template <Act kAct>
struct OfAct {
  static constexpr Act value = kAct;
};
template <class F>
void with_act(Act act, F&& f) {
  if (act == Act::Silu) return f(OfAct<Act::Silu>{});
  if (act == Act::Gelu) return f(OfAct<Act::Gelu>{});
  return f(OfAct<Act::SinPi>{});
}

void run_glu_forward(const GluForward& args, int64_t first, int64_t last) {
  with_type(args.x.dtype, [&](auto t) {
    with_act(args.act, [&](auto act) { glu_forward<act.value, decltype(t)>(args, first, last); });
  });
}

void run_glu_backward(const GluBackward& args, int64_t first, int64_t last) {
  with_type(args.x.dtype, [&](auto t) {
    with_act(args.act, [&](auto act) { glu_backward<act.value, decltype(t)>(args, first, last); });
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
