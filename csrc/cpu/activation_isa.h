// What one instruction set offers to csrc/cpu/activation.cpp.
#pragma once
#include "activation.h"

namespace presto::cpu {

struct ActivationKernels {
  void (*glu_forward)(const GluForward&, int64_t first_row, int64_t last_row);
  void (*glu_backward)(const GluBackward&, int64_t first_row, int64_t last_row);
  void (*snake_forward)(const SnakeForward&, int64_t first_piece, int64_t last_piece);
  void (*snake_forward_samples)(const SnakeForward&, int64_t first_sample, int64_t last_sample);
  void (*snake_backward)(const SnakeBackward&, int64_t first_piece, int64_t last_piece);
  void (*snake_backward_channels)(const SnakeBackward&, int64_t first, int64_t last);
  int64_t piece;  // elements of a row of Snake that are one task
};

namespace avx2 {
extern const ActivationKernels kActivationKernels;
}
namespace avx512 {
extern const ActivationKernels kActivationKernels;
}
namespace avx512bf16 {
extern const ActivationKernels kActivationKernels;
}

}  // namespace presto::cpu
