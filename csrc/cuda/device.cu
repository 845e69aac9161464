#include <cuda_runtime.h>

#include "cuda/device.h"

namespace presto::cuda {

int multiprocessor_count(int device) {
  int count = 1;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace presto::cuda
