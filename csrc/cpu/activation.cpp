// The family's kernels for the instruction set in use.
#include "activation.h"

#include "cpu/activation_isa.h"
#include "cpu/isa.h"

namespace presto::cpu {
namespace {

const ActivationKernels& kernels() { return PRESTO_CPU_KERNELS(kActivationKernels); }

}  // namespace

void glu_forward(const GluForward& args, int64_t first, int64_t last) { kernels().glu_forward(args, first, last); }

void glu_backward(const GluBackward& args, int64_t first, int64_t last) { kernels().glu_backward(args, first, last); }

int64_t snake_pieces(const SnakeShape& shape) {
  const int64_t piece = kernels().piece;
  return shape.batch * shape.channels * ((shape.length + piece - 1) / piece);
}

int64_t snake_backward_workspace(const SnakeBackward& args) { return 2 * snake_pieces(args); }

void snake_forward(const SnakeForward& args, int64_t first, int64_t last) {
  kernels().snake_forward(args, first, last);
}

void snake_forward_samples(const SnakeForward& args, int64_t first, int64_t last) {
  kernels().snake_forward_samples(args, first, last);
}

void snake_backward(const SnakeBackward& args, int64_t first, int64_t last) {
  kernels().snake_backward(args, first, last);
}

void snake_backward_channels(const SnakeBackward& args, int64_t first, int64_t last) {
  kernels().snake_backward_channels(args, first, last);
}

}  // namespace presto::cpu
