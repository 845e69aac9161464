// The family's kernels for the instruction set in use.
#include "modulation.h"

#include "cpu/isa.h"
#include "cpu/modulation_isa.h"

namespace presto::cpu {
namespace {

const SeamKernels& kernels() { return PRESTO_CPU_KERNELS(kSeamKernels); }

}  // namespace

void seam_forward(const SeamForward& args, int64_t first, int64_t last) { kernels().forward(args, first, last); }

int64_t seam_backward_chunks(const SeamBackward& args) {
  const int64_t rows = kernels().chunk_rows;
  return args.batch * ((args.tokens + rows - 1) / rows);
}

int64_t seam_backward_workspace(const SeamBackward& args) {
  return (seam_backward_chunks(args) * kernels().columns + 1) * args.dim;  // and a line for dalpha
}

// The columns' sums of dalpha: the last line of the workspace.
static float* alpha_line(const SeamBackward& args) { return args.workspace + seam_backward_workspace(args) - args.dim; }

void seam_backward_rows(const SeamBackward& args, int64_t first_chunk, int64_t last_chunk) {
  kernels().backward_chunks(args, first_chunk, last_chunk);
}

void seam_backward_columns(const SeamBackward& args, int64_t first, int64_t last) {
  kernels().backward_columns(args, alpha_line(args), first, last);
}

void seam_backward_alpha(const SeamBackward& args) { kernels().backward_alpha(args, alpha_line(args)); }

}  // namespace presto::cpu
