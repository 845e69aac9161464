"""Oracles, tolerances and cases: what the tests and the benchmarks both judge an implementation by."""

from presto_kernels.testing.tolerance import Outcome, check, within

__all__ = ["Outcome", "check", "within"]
