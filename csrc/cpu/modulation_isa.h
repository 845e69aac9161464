// What one instruction set offers to csrc/cpu/modulation.cpp.
#pragma once
#include "modulation.h"

namespace presto::cpu {

struct SeamKernels {
  void (*forward)(const SeamForward&, int64_t first_row, int64_t last_row);
  void (*backward_chunks)(const SeamBackward&, int64_t first_chunk, int64_t last_chunk);
  void (*backward_columns)(const SeamBackward&, float* alpha_line, int64_t first, int64_t last);
  void (*backward_alpha)(const SeamBackward&, const float* alpha_line);
  int64_t chunk_rows;  // rows of a sample that share one set of column sums
  int64_t columns;     // column sums of D floats each that a chunk keeps
};

namespace avx2 {
extern const SeamKernels kSeamKernels;
}
namespace avx512 {
extern const SeamKernels kSeamKernels;
}
namespace avx512bf16 {
extern const SeamKernels kSeamKernels;
}

}  // namespace presto::cpu
