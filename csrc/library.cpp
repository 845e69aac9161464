// The library as a whole: what it was built with, and where CUDA's stream comes from.
#include <dlfcn.h>

#include "cpu/isa.h"
#include "tensor.h"

namespace presto {
namespace {

using StreamFn = AOTITorchError (*)(int32_t, void**);

StreamFn stream_fn() {
  static const StreamFn fn = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<StreamFn>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
  }();
  return fn;
}

// Bit 0: built with nvcc.  Bit 1: the running torch has CUDA.  Bits 2 and up: cpu::instruction_set().
int64_t build_info() {
  int64_t info = torch_has_cuda() ? 2 : 0;
#ifdef PRESTO_CUDA
  info |= 1;
#endif
  return info | cpu::instruction_set() << 2;
}

int64_t limit_instruction_set(int64_t limit) { return cpu::limit_instruction_set(static_cast<int>(limit)); }

}  // namespace

bool torch_has_cuda() { return stream_fn() != nullptr; }

void* current_cuda_stream(int32_t device) {
  STD_TORCH_CHECK(torch_has_cuda(), "presto_kernels: this torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(stream_fn()(device, &stream));
  return stream;
}

}  // namespace presto

STABLE_TORCH_LIBRARY_FRAGMENT(presto_kernels, m) {
  m.def("build_info() -> int");
  m.def("limit_instruction_set(int limit) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(presto_kernels, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&presto::build_info));
  m.impl("limit_instruction_set", TORCH_BOX(&presto::limit_instruction_set));
}
