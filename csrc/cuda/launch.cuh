// Grids of any size: a grid larger than the hardware takes is launched in pieces, each told where it starts.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace presto::cuda {

struct Origin {
  int64_t x, y;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// kernel(args..., origin) on columns x rows blocks.  The caller asks cudaGetLastError().
template <class Kernel, class... Args>
void launch(Kernel kernel, int64_t columns, int64_t rows, dim3 block, cudaStream_t stream, const Args&... args) {
  constexpr int64_t kColumns = 2147483647, kRows = 65535;
  for (int64_t y = 0; y < rows; y += kRows) {
    for (int64_t x = 0; x < columns; x += kColumns) {
      cudaLaunchConfig_t config = {};
      config.gridDim = dim3(static_cast<unsigned>(std::min(columns - x, kColumns)),
                            static_cast<unsigned>(std::min(rows - y, kRows)));
      config.blockDim = block;
      config.stream = stream;
      if (cudaLaunchKernelEx(&config, kernel, args..., Origin{x, y}) != cudaSuccess) return;
    }
  }
}

}  // namespace presto::cuda
