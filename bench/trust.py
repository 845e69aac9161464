"""Whom the bench believes: what every implementation of an op goes through before it is timed, and again afterwards.

Before, on input sets that are not timed: right against float64 on two of them; the same bits on a second call; results
in memory of their own, which later calls leave alone; right again when the same tensors hold other numbers; no faster
on inputs it has seen, on zeros or on a constant; on CUDA nothing outside of the stream that is timed.  Afterwards: what
was timed, on the very tensors, filled anew.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import checks, cuda, machine, names, op_timers
from bench.checks import Cheating, Nondeterministic, WrongResult
from bench.op_cases import Case, Outputs
from bench.op_implementations import Implementation, forced, timed
from bench.op_timers import Timed

KINDS = (checks.SEEN, checks.FRESH, checks.ZEROS, checks.CONSTANT)


@dataclass(frozen=True)
class Known:
    """Numbers for a case's tensors, for a backward also for the gradients of its outputs, and what they must give."""

    inputs: Outputs
    grads: Outputs
    oracle: Outputs
    plain: Outputs


@dataclass(frozen=True)
class Verdict:
    """Of an implementation that passed: its largest error over what is allowed, and whether its bits repeat."""

    error: float
    deterministic: bool


class Trial:
    """Examines the implementations of one case; what they must give is computed once for all of them."""

    def __init__(self, case: Case, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.case, self.clock = case, clock
        self.known = functools.cache(self._known)
        self.factor = random.Random(0)  # one for all implementations: none gets numbers that another has had

    def before(self, implementation: Implementation) -> Verdict:
        """Raises a `checks.Refused`, or whatever the implementation itself raises, unless it may be timed.

        Bits that differ from call to call are against our own contract; of others it is only noted.
        """
        name, case = implementation.name, self.case
        checked = name not in case.op.unchecked
        one, two = self.known(1), self.known(2)
        inputs, others = case.inputs(1), case.inputs(2)
        first = self._run(implementation, inputs, one)
        error = self._right(name, first, one) if checked else 0.0
        kept = tuple(t.clone() for t in first)
        second = self._run(implementation, inputs, one)
        checks.apart(name, inputs, [first, second])
        checks.unchanged(name, first, kept)
        deterministic = checks.same_bits(second, kept)
        if names.is_ours(name) and not deterministic:
            raise Nondeterministic(f"{name}: other bits on a second call with the same inputs")
        third = self._run(implementation, others, two)
        if checked:
            error = max(error, self._right_on_others(name, third, two, kept))
        refill(inputs, two.inputs)
        fourth = self._run(implementation, inputs, two)
        if checked:
            self._right_anew(name, fourth, two)
        checks.apart(name, [*inputs, *others], [first, second, third, fourth])
        checks.unchanged(name, first, kept)
        if case.device.type == "cuda":
            call = functools.partial(self._run, implementation, inputs, two)
            checks.escapes(name, *cuda.event_and_wall(call, clock=self.clock))
        self._shortcuts(implementation)
        return Verdict(error, deterministic)

    def after(self, name: str, what: Timed) -> None:
        """`Cheating` unless that which was timed is right on new numbers in its own tensors, the first and the last."""
        if name in self.case.op.unchecked:
            return
        known = self.known(1)
        for index in {0, len(what.tensors) - 1}:
            refill(what.tensors[index], (*known.inputs, *known.grads))
            self._right_anew(name, what.once(index), known)

    def _known(self, seed: int) -> Known:
        """Random numbers: the float64 oracle gets the very ones that the others get, rounded to the case's dtype."""
        case, formula = self.case, self.case.op.oracle or self.case.op.eager
        inputs = case.inputs(seed)
        wide = tuple(t.detach().double().requires_grad_(case.backward) for t in inputs)
        if not case.backward:
            with torch.no_grad():
                return Known(inputs, (), formula(*wide, **case.constants()), formula(*inputs, **case.constants()))
        outputs, oracles = formula(*inputs, **case.constants()), formula(*wide, **case.constants())
        grads = op_timers.random_grads(outputs, seed, machine.DTYPES[case.dtype])
        oracle = torch.autograd.grad(oracles, wide, [grad.double() for grad in grads])
        return Known(inputs, grads, oracle, torch.autograd.grad(outputs, inputs, grads))

    def _run(self, implementation: Implementation, inputs: Outputs, known: Known) -> Outputs:
        case = self.case
        with forced(case, implementation.backend), torch.set_grad_enabled(case.backward):
            outputs = implementation.function(*inputs, **case.constants())
            if not case.backward:
                return outputs
            # Copies: a gradient that is passed through may be handed on as it is.
            return torch.autograd.grad(outputs, inputs, [grad.clone() for grad in known.grads])

    def _right(self, name: str, results: Outputs, known: Known) -> float:
        op = self.case.op
        labels = [f"d {tensor}" for tensor in op.tensors] if self.case.backward else op.results
        return checks.check(name, results, known.oracle, known.plain, labels, rowwise=True)

    def _right_on_others(self, name: str, results: Outputs, known: Known, earlier: Outputs) -> float:
        try:
            return self._right(name, results, known)
        except WrongResult:
            if checks.same_bits(results, earlier):
                raise Cheating(f"{name}: returns what it returned for other inputs") from None
            raise

    def _right_anew(self, name: str, results: Outputs, known: Known) -> None:
        try:
            self._right(name, results, known)
        except WrongResult as error:
            raise Cheating(f"wrong where tensors it has seen hold new numbers: {error}") from None

    def _shortcuts(self, implementation: Implementation) -> None:
        """Every sample's numbers are written the same way, so that the caches hold the same."""
        mode = op_timers.GRAPH if self.case.device.type == "cuda" else op_timers.CALL
        made = timed(self.case, implementation, [self.case.inputs(3)], mode, repeats=1, clock=self.clock)
        tensors = made.tensors[0]
        base = [t.detach().clone() for t in tensors]

        def on(kind: str) -> Callable[[int], float]:
            def measured(part: int) -> float:
                refill(tensors, base)
                for tensor in tensors:
                    if kind in (checks.ZEROS, checks.CONSTANT):
                        tensor.data.fill_(0.0 if kind == checks.ZEROS else 0.5)
                    else:
                        tensor.data.mul_(1.0 if kind == checks.SEEN else self.factor.uniform(0.5, 1.0))
                return made.measure(part)

            return measured

        checks.shortcuts(implementation.name, {kind: on(kind) for kind in KINDS}, clock=self.clock)


def refill(tensors: Sequence[Tensor], numbers: Sequence[Tensor]) -> None:
    """Writes numbers into tensors behind autograd's back: whoever remembers a tensor's version sees no other one."""
    for tensor, values in zip(tensors, numbers, strict=True):
        tensor.data.copy_(values.detach())
