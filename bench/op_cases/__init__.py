"""The ops under test, family by family."""

from bench.op_cases import activation, attention, modulation, rotary, sampler
from bench.op_cases.op import Case, Op, Outputs

OPS = {op.name: op for family in (modulation, rotary, attention, activation, sampler) for op in family.OPS}

__all__ = ["OPS", "Case", "Op", "Outputs"]
