// What every op family's glue needs of torch's stable ABI.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "rows.h"

namespace presto {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::F32;
    case ScalarType::Half:
      return DType::F16;
    case ScalarType::BFloat16:
      return DType::BF16;
    default:
      STD_TORCH_CHECK(false, "presto_kernels: ", name, " must be float32, float16 or bfloat16");
  }
  return DType::F32;
}

// A new contiguous tensor on the device of `like`.  Straight through the shim: the dispatcher's way costs three times
// more.
inline Tensor new_tensor(const Tensor& like, const int64_t* sizes, size_t axes, ScalarType dtype) {
  constexpr size_t kAxes = 16;
  STD_TORCH_CHECK(axes <= kAxes, "presto_kernels: a tensor has more than 16 dimensions");
  int64_t strides[kAxes], stride = 1;
  for (size_t i = axes; i-- > 0; stride *= sizes[i] > 0 ? sizes[i] : 1) strides[i] = stride;
  int32_t type_code = 0, device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  switch (dtype) {
    case ScalarType::Float:
      type_code = aoti_torch_dtype_float32();
      break;
    case ScalarType::Half:
      type_code = aoti_torch_dtype_float16();
      break;
    case ScalarType::BFloat16:
      type_code = aoti_torch_dtype_bfloat16();
      break;
    default:
      STD_TORCH_CHECK(false, "presto_kernels: results are float32, float16 or bfloat16");
  }
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(axes), sizes, strides, type_code, device_type,
                                                  like.get_device_index(), &handle));
  return Tensor(handle);
}
inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return new_tensor(like, sizes.begin(), sizes.size(), dtype);
}

// The stream torch launches on.  aoti_torch_get_current_cuda_stream lives in libtorch_cuda.so, which a CPU build of
// torch does not have; it is looked up in the copy torch has already loaded (RTLD_NOLOAD loads none), so that this
// library has no undefined CUDA symbol and one binary serves both.  (A weak reference stays null even on CUDA torch:
// the linker drops the library it came from.)
bool torch_has_cuda();
void* current_cuda_stream(int32_t device);

}  // namespace presto
