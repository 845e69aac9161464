// Sums over the threads that share a row.  The order is fixed, and every thread ends with the same bits.
#pragma once
#include <cuda_runtime.h>

namespace presto::cuda {

template <int K>
__device__ inline void warp_sum(float (&value)[K]) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
#pragma unroll
    for (int k = 0; k < K; ++k) value[k] += __shfl_xor_sync(0xffffffffu, value[k], offset);
  }
}

// K sums over `warps` whole warps.  `barrier` joins exactly these warps; `shared` holds one line for each of them, and
// may be written again only after another barrier of theirs.
template <int K, class Barrier>
__device__ inline void group_sum(float (&value)[K], float (*shared)[K], int warps, Barrier barrier) {
  warp_sum(value);
  if (warps == 1) return;
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int k = 0; k < K; ++k) shared[threadIdx.x / 32][k] = value[k];
  }
  barrier();
#pragma unroll
  for (int k = 0; k < K; ++k) value[k] = shared[0][k];
#pragma unroll 4
  for (int warp = 1; warp < warps; ++warp) {
#pragma unroll
    for (int k = 0; k < K; ++k) value[k] += shared[warp][k];
  }
}

}  // namespace presto::cuda
