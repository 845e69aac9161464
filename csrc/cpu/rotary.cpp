// The kernels for the instruction set in use, on the tokens of q and then of k.
#include "rotary.h"

#include "cpu/isa.h"
#include "cpu/rotary_isa.h"

namespace presto::cpu {
namespace {

const RotaryKernels& kernels() { return PRESTO_CPU_KERNELS(kRotaryKernels); }

int64_t chunks(const RotaryBackward& args, int side) {
  const int64_t tokens = args.batch * args.sides[side].tokens, each = kernels().chunk_tokens;
  return (tokens + each - 1) / each;
}

// Calls f(side, first, last) with the part of [first, last) that each side has, `count` items being the first side's.
template <class F>
void by_side(int64_t count, int64_t first, int64_t last, F&& f) {
  if (first < count) f(0, first, last < count ? last : count);
  if (last > count) f(1, first > count ? first - count : 0, last - count);
}

}  // namespace

void rotary_forward(const RotaryForward& args, int64_t first, int64_t last) {
  by_side(args.batch * args.sides[0].tokens, first, last,
          [&](int side, int64_t from, int64_t to) { kernels().forward(args, args.sides[side], from, to); });
}

int64_t rotary_backward_chunks(const RotaryBackward& args) { return chunks(args, 0) + chunks(args, 1); }

int64_t rotary_backward_workspace(const RotaryBackward& args) {
  return rotary_backward_chunks(args) * rotary_sums(args);
}

void rotary_backward(const RotaryBackward& args, int64_t first_chunk, int64_t last_chunk) {
  const int64_t of_q = chunks(args, 0);
  by_side(of_q, first_chunk, last_chunk, [&](int side, int64_t from, int64_t to) {
    float* sums = args.workspace + ((side ? of_q : 0) + from) * rotary_sums(args);
    kernels().backward(args, args.sides[side], from, to, sums);
  });
}

void rotary_backward_sums(const RotaryBackward& args) {
  const int64_t of_q = chunks(args, 0);
  kernels().backward_sums(args, args.sides[0], args.workspace, of_q);
  kernels().backward_sums(args, args.sides[1], args.workspace + of_q * rotary_sums(args), chunks(args, 1));
}

}  // namespace presto::cpu
