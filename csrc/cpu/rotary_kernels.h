// Head norm and rotary embedding on the CPU, for one instruction set; the formulas stand in rotary.h.
//
// A head of the usual sizes lives in registers from its load to its store ("tile": whole vectors, its rotary partners
// in other registers or in neighbouring lanes), several heads of a token side by side, so that they share what the
// token brings and their sums over lanes are taken together.  Heads of any other size pass through L1 twice.  cos, sin,
// weight and bias are folded once per token into  out = n * own + partner(n) * other + add.  DyT has kernels of its
// own, which are never streamed: a tanh an element hides the reading of the lines that are written.
//
// Bytes: forward a row read and a row written per head, backward two read (one without norm and weight) and one
// written; 4 R per token for cos and sin; they are read once per token, whatever the number of heads.
#pragma once
#include "rotary_backward.h"
#include "rotary_forward.h"

namespace presto::cpu::PRESTO_ISA {

// Calls f with the tile that fits: heads of 2, 4, 6 or 8 vectors (AVX-512: 32, 64, 96, 128 elements; AVX2: 32, 64), all
// of them turned, or of 4 or 8 a half or none.  False where none fits.
template <class F>
inline bool with_tile(const RotaryShape& s, F&& f) {
  const int64_t half = s.half, v = s.dim / kLanes;
  if (s.dim % kLanes != 0) return false;
  const bool all = 2 * half == s.dim;
  if (half > 0 && s.interleaved) {
    if (all && v == 4) return f(Tile<4, 4, 0>{}), true;
    if (all && v == 8) return f(Tile<8, 8, 0>{}), true;
    return false;
  }
  if (all && v == 2) return f(Tile<2, 2, 1>{}), true;
  if (all && v == 4) return f(Tile<4, 4, 2>{}), true;
  if (all && v == 6) return f(Tile<6, 6, 3>{}), true;
  if (all && v == 8) return f(Tile<8, 8, 4>{}), true;
  if (4 * half == s.dim && v == 4) return f(Tile<4, 2, 1>{}), true;
  if (4 * half == s.dim && v == 8) return f(Tile<8, 4, 2>{}), true;
  if (half == 0 && v == 4) return f(Tile<4, 0, 0>{}), true;
  if (half == 0 && v == 8) return f(Tile<8, 0, 0>{}), true;
  return false;
}

template <class T>
void forward(const RotaryShape& s, const RotaryForwardSide& side, int64_t first, int64_t last) {
  const bool dyt = s.norm == HeadNorm::DyT, stream = can_stream<T>(s, side, side.out);
  const bool done = with_tile(s, [&](auto tile) {
    if (dyt) return forward_tokens<false, true, decltype(tile), T>(s, side, first, last);
    if (stream) return forward_tokens<true, false, decltype(tile), T>(s, side, first, last);
    forward_tokens<false, false, decltype(tile), T>(s, side, first, last);
  });
  if (done) return;
  dyt ? forward_any<true, T>(s, side, first, last) : forward_any<false, T>(s, side, first, last);
}

template <class T>
void backward(const RotaryShape& s, const RotaryBackwardSide& side, int64_t first, int64_t last, float* sums) {
  const bool dyt = s.norm == HeadNorm::DyT, stream = side.dx && can_stream<T>(s, side, side.dx);
  const bool done = with_tile(s, [&](auto tile) {
    if (dyt) return backward_chunks<false, true, decltype(tile), T>(s, side, first, last, sums);
    if (stream) return backward_chunks<true, false, decltype(tile), T>(s, side, first, last, sums);
    backward_chunks<false, false, decltype(tile), T>(s, side, first, last, sums);
  });
  if (done) return;
  dyt ? backward_any<true, T>(s, side, first, last, sums) : backward_any<false, T>(s, side, first, last, sums);
}

}  // namespace presto::cpu::PRESTO_ISA
