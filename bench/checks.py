"""What makes an implementation untrustworthy: a wrong one is refused, and one that is only fast when it is watched.

Right is `presto_kernels.testing`'s rule: against the float64 formula on the inputs as rounded, an implementation may
err at most twice as much as ordinary PyTorch in the same dtypes does, plus two ulps.  `bench.trust` puts an op's
implementations through all of this; docs/bench/ops.md tells it to those who read the results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bench import measure
from presto_kernels.testing import within

SEEN, FRESH, ZEROS, CONSTANT = "inputs it has seen", "new inputs", "zeros", "a constant"
SHORTCUT = 1.5
"""So many times faster on special data is no accident.  Ours move and compute the same whatever the numbers are.  127
honest ones, PyTorch's among them, on two busy cores: the median of up to 21 rounds was 1.36 at most; a GPU's clock may
rise where fewer bits switch."""

ESCAPE, ESCAPE_MS = 1.5, 0.3
"""The clock may tell so many times what the events tell, and so much more: waiting for the device takes its time."""


class Refused(AssertionError):
    """An implementation whose times are not reported."""


class WrongResult(Refused):
    """Further from float64 than rounding explains."""


class Nondeterministic(Refused):
    """Other bits on a second call with the same inputs."""


class Cheating(Refused):
    """Remembers results, gives memory that is not its caller's own, or works where the timer does not look."""


class SkipsWork(Refused):
    """Faster on data where work can be left out."""


def check(
    implementation: str,
    results: Sequence[Tensor],
    oracles: Sequence[Tensor],
    plains: Sequence[Tensor],
    names: Sequence[str],
    *,
    rowwise: bool,
) -> float:
    """Compares every output (or gradient) with its float64 oracle; returns the largest error over what is allowed.

    Args:
        rowwise: also judge row by row, where a result is an activation [B, N, D] of a row-wise op.

    Raises:
        WrongResult: naming the implementation and every result that is wrong; NaN never passes.
    """
    if len(results) != len(oracles):
        raise WrongResult(f"{implementation}: {len(results)} results where {len(oracles)} are due")
    outcomes = []
    for name, result, oracle, plain in zip(names, results, oracles, plains, strict=True):
        if result.shape != oracle.shape or result.dtype != plain.dtype:
            got, due = (f"{t.dtype} {list(t.shape)}" for t in (result, plain))
            raise WrongResult(f"{implementation}: {name} is {got}, due is {due}")
        eps = torch.finfo(result.dtype).eps
        outcomes.append(within(name, result, oracle, plain, rowwise=rowwise and oracle.dim() == 3, eps=eps))
    wrong = [str(outcome) for outcome in outcomes if not outcome.ok]
    if wrong:
        raise WrongResult(f"{implementation}: {'; '.join(wrong)}")
    return max(outcome.ratio for outcome in outcomes)


def same_bits(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether all tensors are equal bit for bit: shapes, dtypes, and -0 is not 0."""
    return len(ones) == len(others) and all(
        one.shape == other.shape and one.dtype == other.dtype and torch.equal(_bits(one), _bits(other))
        for one, other in zip(ones, others, strict=True)
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def apart(implementation: str, inputs: Sequence[Tensor], calls: Sequence[Sequence[Tensor]]) -> None:
    """`Cheating` unless the results of all calls, all still held, lie in memory of their own."""
    owners = {_memory(tensor): "an input" for tensor in inputs}
    for number, results in enumerate(calls, 1):
        for memory in {_memory(tensor) for tensor in results if tensor.numel()}:
            if memory in owners:
                raise Cheating(f"{implementation}: a result of call {number} lies in the memory of {owners[memory]}")
            owners[memory] = f"call {number}'s result"


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def unchanged(implementation: str, held: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    """`Cheating` where a result that a caller holds is not what it was when it was returned."""
    if not same_bits(held, kept):
        raise Cheating(f"{implementation}: the result of a call changes when it is called again")


def random_data(names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """A `ValueError` naming what would be timed on a constant or mostly on zeros; a single number is no data."""
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.numel() > 1 and (tensor.min() == tensor.max() or (tensor == 0).double().mean() > 0.5):
            raise ValueError(f"{name}: would be timed on data that is not random")


def shortcuts(
    implementation: str,
    measures: Mapping[str, measure.Measure],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Compares the time on new random inputs with that on inputs it has seen, on zeros and on a constant.

    Three rounds; only where they make one of them suspicious, fifteen, and what is refused is beyond `SHORTCUT` with
    the whole 95 % interval.

    Args:
        measures: by kind of data, each filling the same tensors anew before its clock runs.

    Raises:
        Cheating: faster on inputs that it has seen. SkipsWork: faster on zeros or on a constant.
    """
    for rounds, seconds, least in ((3, 1.0, 1), (15, 20.0, 5)):
        samples = measure.interleave(measures, rounds=rounds, seconds=seconds, min_rounds=least, warmup=0, clock=clock)
        if samples.interrupted:
            raise KeyboardInterrupt
        found = {kind: measure.paired_ratio(samples, FRESH, kind) for kind in measures if kind != FRESH}
        ratios = {kind: ratio for kind, ratio in found.items() if ratio and ratio.median > SHORTCUT}
        if not ratios:
            return
    for kind, ratio in ratios.items():
        if ratio.low > SHORTCUT:
            reason = Cheating if kind == SEEN else SkipsWork
            raise reason(f"{implementation}: {ratio.median:.1f} times faster on {kind} than on new random inputs")


def escapes(implementation: str, event_ms: float, wall_ms: float) -> None:
    """`Cheating` where the device was busy for much longer than the events around the calls tell."""
    if wall_ms > ESCAPE * event_ms + ESCAPE_MS:
        raise Cheating(
            f"{implementation}: {wall_ms:.2f} ms until the device was idle where its events tell {event_ms:.2f} ms: "
            "it works outside of the stream that is timed"
        )
