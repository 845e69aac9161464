// Tensors as the kernels see them: plain numbers, no torch header, so that the kernels compile with g++ or nvcc alone
// whatever torch is installed.
#pragma once
#include <cstdint>

namespace presto {

enum class DType : int32_t { F32 = 0, F16 = 1, BF16 = 2 };

// Element [b, n, d] is data[b * batch_stride + n * row_stride + d]: the innermost stride is always 1 and the others
// are in elements.  data == nullptr means "not given".
struct Rows {
  const void* data = nullptr;
  DType dtype = DType::F32;
  int64_t batch_stride = 0;
  int64_t row_stride = 0;
};

}  // namespace presto
