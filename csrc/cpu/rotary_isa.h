// What one instruction set offers to csrc/cpu/rotary.cpp.
#pragma once
#include "rotary.h"

namespace presto::cpu {

struct RotaryKernels {
  // Tokens [first, last) of one side, counted sample by sample.
  void (*forward)(const RotaryShape&, const RotaryForwardSide&, int64_t first, int64_t last);
  // Chunks [first, last) of one side; `sums` is where the first of them leaves its rotary_sums().
  void (*backward)(const RotaryShape&, const RotaryBackwardSide&, int64_t first, int64_t last, float* sums);
  // Adds the sums of all the side's chunks.
  void (*backward_sums)(const RotaryShape&, const RotaryBackwardSide&, const float* sums, int64_t chunks);
  int64_t chunk_tokens;  // tokens that share one set of sums
};

namespace avx2 {
extern const RotaryKernels kRotaryKernels;
}
namespace avx512 {
extern const RotaryKernels kRotaryKernels;
}
namespace avx512bf16 {
extern const RotaryKernels kRotaryKernels;
}

}  // namespace presto::cpu
