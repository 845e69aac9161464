// The AdaLN family on CUDA: formulas, shapes and limits stand at the head of modulation_forward.cuh and
// modulation_backward.cuh.
#include "modulation.h"
#include "modulation_backward.cuh"
#include "modulation_forward.cuh"

namespace presto::cuda {

int seam_forward(const SeamForward& args, void* stream) {
  if (args.batch * args.tokens * args.dim > 0) launch_forward(args, static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}

int64_t seam_backward_workspace(const SeamBackward& args, int multiprocessors) {
  return args.batch * args.tokens * args.dim > 0 ? backward_workspace(args, multiprocessors) : 0;
}

int seam_backward(const SeamBackward& args, int multiprocessors, void* stream) {
  if (args.batch * args.tokens * args.dim > 0)
    launch_backward(args, multiprocessors, static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}

}  // namespace presto::cuda
