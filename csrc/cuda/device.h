// What the glue asks CUDA for.
#pragma once

namespace presto::cuda {

int multiprocessor_count(int device);
const char* error_string(int error);

}  // namespace presto::cuda
