// Gated activations and Snake on CUDA: formulas, shapes and limits stand at the head of activation_glu.cuh and
// activation_snake.cuh.
#include "activation.h"
#include "activation_glu.cuh"
#include "activation_snake.cuh"

namespace presto::cuda {

int glu_forward(const GluForward& args, void* stream) {
  if (args.batch * args.tokens > 0) launch_glu_forward(args, static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}

int glu_backward(const GluBackward& args, void* stream) {
  if (args.batch * args.tokens > 0) launch_glu_backward(args, static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}

int snake_forward(const SnakeForward& args, void* stream) {
  if (args.batch * args.channels * args.length > 0) launch_snake_forward(args, static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}

int64_t snake_backward_workspace(const SnakeBackward& args) { return snake_workspace(args); }

int snake_backward(const SnakeBackward& args, void* stream) {
  if (args.batch * args.channels * args.length > 0) launch_snake_backward(args, static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}

}  // namespace presto::cuda
