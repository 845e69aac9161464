"""What an optimisation gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from presto_models.ditto.control import Span


@dataclass(frozen=True, eq=False)
class Outcome:
    """One control in the finished music, tensors on the CPU.

    ``weight``, ``threshold``: the control's.  ``target``: what was asked for.  ``obtained`` ``[B, ...]``: the feature
    of the music; ``uncontrolled``: of the music without control, from the same seeds.  ``error`` ``[B]``: of the
    music; ``before`` ``[B]``: of the music without control, from the same seeds.  ``drift`` ``[B]``: mean
    |f(S_M) - f(S_T)| between the walk the gradient went through and the one the music was made with, zeros where they
    are one.  ``figures``: name to ``[B]``.  ``history`` ``[steps, B]``: the error before each step that was made.
    """

    kind: str
    spans: tuple[Span, ...]
    weight: float
    threshold: float | None
    target: Tensor
    obtained: Tensor
    uncontrolled: Tensor
    error: Tensor
    before: Tensor
    drift: Tensor
    figures: dict[str, Tensor]
    history: Tensor


@dataclass(frozen=True, eq=False)
class Optimized:
    """Music that follows its controls.

    ``waveform``: fp32 ``[B, channels, samples]`` on the pipeline's device.  ``sample_rate``: Hz.  ``seeds``: of each
    sample.  ``noise``: the unit noise ``[B, N, C]`` it was made from: give it as ``start`` of the next edit.
    ``x``: what the DiT works on, ``[B, N, C]``.  ``outcomes``: name of a control to what became of it.
    ``steps``: of Adam that were made.  ``steps_to_threshold``: of each sample, None where it did not reach it or there
    is none.  ``seconds_per_step``: the median; None where no step was made.  ``seconds``: all that was needed for the
    music, from the checked request to the waveform; comparing it with the music without control is not in it.
    ``model_calls``: of one step, forward.
    """

    waveform: Tensor
    sample_rate: int
    seeds: tuple[int, ...]
    noise: Tensor
    x: Tensor
    outcomes: dict[str, Outcome]
    steps: int
    steps_to_threshold: tuple[int | None, ...]
    seconds_per_step: float | None
    seconds: float
    model_calls: int

    @property
    def total(self) -> Tensor:
        """Mean error over the controls of each sample, ``[B]``, unweighted."""
        errors = [outcome.error for outcome in self.outcomes.values()]
        return sum(errors[1:], errors[0]) / len(errors)
