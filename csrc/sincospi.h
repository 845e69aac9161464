// The polynomials of sine and cosine that every kernel computes alike.
//
// An angle of (pi / 2) (q + z), q a whole number and z in [-1/2, 1/2]:  sin = z S(z^2),  cos = 1 + z^2 C(z^2),
// exchanged and negated as the quadrant q says.  Angles that come as a number of half turns, pi x, lose nothing in q
// and z: x less an even number is exact, so is twice that less its nearest whole number, and no digit of pi is asked
// for.
//
// The polynomials are minimax fits, each coefficient rounded to fp32 before the next was fitted.  The sine and cosine
// err by at most 1.14 * 2^-24 (with rounded products instead of fma: 1.16 * 2^-24).
#pragma once

namespace presto::sincospi {

constexpr float kS0 = 0x1.921fb4p+0f, kS1 = -0x1.4abb66p-1f, kS2 = 0x1.4648acp-4f, kS3 = -0x1.2a5536p-8f;
constexpr float kC0 = -0x1.3bd3ccp+0f, kC1 = 0x1.03c1acp-2f, kC2 = -0x1.55afbap-6f, kC3 = 0x1.d3edecp-11f;
constexpr float kPi = 3.14159274f;

}  // namespace presto::sincospi
