"""The ops under test, family by family."""

from bench.op_cases import modulation
from bench.op_cases.op import Case, Op, Outputs

OPS = {op.name: op for family in (modulation,) for op in family.OPS}

__all__ = ["OPS", "Case", "Op", "Outputs"]
