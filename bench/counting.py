"""How many bytes an op must move and how many floating-point operations it must do, each with its formula in words.

Bytes are the fewest there can be: every input read once, every output written once, nothing kept in between. Operations
count an addition, a multiplication, a division, a root, an exponential or a sine as one, a fused multiply-add as two.
In the formulas B is the batch, N the tokens, D the width, s the bytes of one element. Each op's formulas stand beside
its cases in bench/op_cases.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Count:
    """Bytes and floating-point operations of one call, and the formulas they came from."""

    bytes: int
    flops: int
    bytes_formula: str
    flops_formula: str

    def gbs(self, milliseconds: float) -> float:
        """GB/s at this time a call."""
        return self.bytes / milliseconds / 1e6

    def tflops(self, milliseconds: float) -> float:
        """TFLOP/s at this time a call."""
        return self.flops / milliseconds / 1e9

    def floor_ms(self, copy_gbs: float, matmul_tflops: float) -> float:
        """The time no implementation can beat on a machine with these ceilings: the longer of moving and computing."""
        return max(self.bytes / copy_gbs / 1e6, self.flops / matmul_tflops / 1e9)
