// Head norm and rotary embedding on CUDA: formulas, bytes and limits stand at the head of rotary_forward.cuh and
// rotary_backward.cuh.
#include "rotary.h"
#include "rotary_backward.cuh"
#include "rotary_forward.cuh"

namespace presto::cuda {

int rotary_forward(const RotaryForward& args, void* stream) {
  if (there(args, args.sides[0]) || there(args, args.sides[1])) launch_forward(args, static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}

int64_t rotary_backward_workspace(const RotaryBackward& args) {
  return (runs(args, args.sides[0]) + runs(args, args.sides[1])) * rotary_sums(args);
}

int rotary_backward(const RotaryBackward& args, void* stream) {
  if (runs(args, args.sides[0]) || runs(args, args.sides[1])) launch_backward(args, static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}

}  // namespace presto::cuda
