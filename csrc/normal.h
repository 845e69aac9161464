// The constants of Philox4x32-10 (Salmon et al. 2011) and of the Box-Muller transform that every kernel computes alike.
//
// Of two words w0, w1, with t = floor(w / 2^8) as a signed number of 24 bits, so that u = (t + 1/2) 2^-24 modulo 1:
//
//   radius   sqrt(-2 ln u).   With a = (t + 1/2) 2^-24, which is exact, u is a or 1 + a; u = 2^e (1 + f) with 1 + f in
//            [sqrt(1/2), sqrt(2)) and f = 2^-e a (+ 2^-e) - 1, exact also where u near 1 has no room for its last
//            bit; ln u = e ln 2 + f + f^2 L(f).
//   angle    2 pi u = (pi / 2) (q + z) with q = round(4 u), z in [-1/2, 1/2] exact;  its sine and cosine as in
//            sincospi.h.
//
// L is a minimax fit, each coefficient rounded to fp32 before the next was fitted.  Over all 2^24 values of u the
// radius errs by at most 0.97 ulp and the sine and cosine by at most 1.14 * 2^-24 (with rounded products instead of
// fma: 0.99 ulp and 1.16 * 2^-24), so a normal errs by less than 3 ulp of its radius.
#pragma once
#include <cstdint>

namespace presto::noise {

constexpr uint32_t kMultiply0 = 0xD2511F53u, kMultiply1 = 0xCD9E8D57u;
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
constexpr int kRounds = 10;

constexpr float kLn2 = 0x1.62e430p-1f;
constexpr int32_t kSqrtHalfBits = 0x3f3504f3;  // of sqrt(1/2): where an exponent begins
constexpr float kL0 = -0x1.fffff8p-2f, kL1 = 0x1.555550p-2f, kL2 = -0x1.000436p-2f, kL3 = 0x1.99a426p-3f,
                kL4 = -0x1.5424aep-3f, kL5 = 0x1.226bc8p-3f, kL6 = -0x1.0f4804p-3f, kL7 = 0x1.08767ep-3f,
                kL8 = -0x1.3854c2p-4f;

}  // namespace presto::noise
