// csrc/cuda/modulation.cu on the emulation, behind a C interface of plain numbers for ctypes.
#include "cuda/modulation.cu"

namespace {

using namespace presto;

// A tensor is 6 numbers: address, dtype, batch stride, row stride, per_sample, per_token.  In this order:
enum { kX, kBranch, kGateAt, kScaleAt, kShiftAt, kWeightAt, kBiasAt, kAlphaAt, kResidual2At, kGradX, kGradH };

Rows rows(const int64_t* t) { return {reinterpret_cast<const void*>(t[0]), static_cast<DType>(t[1]), t[2], t[3]}; }

Modulation modulation(const int64_t* t) {
  Modulation m;
  static_cast<Rows&>(m) = rows(t);
  m.per_sample = t[4], m.per_token = t[5];
  return m;
}

template <class Args>
void fill(Args& args, const int64_t* shape, float eps, const int64_t (*tensors)[6]) {
  static_cast<SeamShape&>(args) = {
      shape[0], shape[1], shape[2], static_cast<Norm>(shape[3]), static_cast<GateFn>(shape[4]), eps};
  args.x = rows(tensors[kX]);
  args.branch = rows(tensors[kBranch]);
  args.gate = modulation(tensors[kGateAt]);
  args.scale = modulation(tensors[kScaleAt]);
  args.shift = modulation(tensors[kShiftAt]);
  args.weight = modulation(tensors[kWeightAt]);
  args.bias = modulation(tensors[kBiasAt]);
  args.alpha = modulation(tensors[kAlphaAt]);
  args.residual2 = modulation(tensors[kResidual2At]);
}

SeamBackward backward_args(const int64_t* shape, const int64_t (*tensors)[6], const float* stats, void* const* outputs,
                           float* workspace) {
  SeamBackward args;
  fill(args, shape, 0.f, tensors);
  args.grad_x = rows(tensors[kGradX]);
  args.grad_h = rows(tensors[kGradH]);
  args.stats = stats;
  args.dx = outputs[0], args.dbranch = outputs[1], args.dgate = outputs[2], args.dscale = outputs[3];
  args.dshift = outputs[4], args.dweight = outputs[5], args.dbias = outputs[6];
  args.dalpha = outputs[7], args.dresidual2 = outputs[8];
  args.workspace = workspace;
  return args;
}

void mark_block(std::vector<int>* visits, int64_t columns, presto::cuda::Origin origin) {
  ++(*visits)[(origin.y + blockIdx.y) * columns + origin.x + blockIdx.x];
}

}  // namespace

extern "C" {

// How many blocks of a grid ran exactly once.
int64_t visited_once(int64_t columns, int64_t rows) {
  std::vector<int> visits(columns * rows);
  cuda::launch(mark_block, columns, rows, dim3(1), nullptr, &visits, columns);
  return std::count(visits.begin(), visits.end(), 1);
}

void set_order(int order) { emulation::order = static_cast<emulation::Order>(order); }

const char* take_launches() {
  static std::string taken;
  taken = std::exchange(emulation::launches, {});
  return taken.c_str();
}

int forward(const int64_t* shape, float eps, const int64_t (*tensors)[6], void* x_new, void* h, float* stats) {
  SeamForward args;
  fill(args, shape, eps, tensors);
  args.x_new = x_new, args.h = h, args.stats = stats;
  return cuda::seam_forward(args, nullptr);
}

int64_t backward_workspace(const int64_t* shape, const int64_t (*tensors)[6], int multiprocessors) {
  void* none[9] = {};
  return cuda::seam_backward_workspace(backward_args(shape, tensors, nullptr, none, nullptr), multiprocessors);
}

int backward(const int64_t* shape, const int64_t (*tensors)[6], const float* stats, void* const* outputs,
             float* workspace, int multiprocessors) {
  return cuda::seam_backward(backward_args(shape, tensors, stats, outputs, workspace), multiprocessors, nullptr);
}
}
