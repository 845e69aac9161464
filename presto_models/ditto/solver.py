"""DITTO and DITTO-2: the starting noise that makes music follow its controls.

    noise* = argmin over noise of  sum_k weight_k error_k(S(sigma_0 noise)),        S: a whole sampler, frozen

DITTO (Novack et al. 2024, 2401.12179, equations 2 and 3, algorithm 1): Adam on the noise alone, its gradient through
every step of the sampler and the decoder, one gradient checkpoint a model call.  The noise is not renormalised.
DITTO-2 (2405.20289): the gradient goes through M steps of a distilled model, and the music is made with T.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from presto_models.ditto.control import Control
from presto_models.ditto.options import DittoOptions
from presto_models.ditto.result import Optimized
from presto_models.ditto.search import Search, load_noise
from presto_models.ditto.setup import Setup
from presto_models.ditto.shown import Advance, progress_bar
from presto_models.pipeline import PrestoPipeline
from presto_models.text.tags import Tags


@dataclass(frozen=True)
class StepReport:
    """What a callback is told: the step just made (from 1), and the errors before it, control to one a sample."""

    step: int
    steps: int
    errors: dict[str, list[float]]


def optimize(
    pipeline: PrestoPipeline,
    controls: Control | Sequence[Control],
    *,
    prompt: str | Sequence[str] = "",
    seconds: float = 10.0,
    seed: int | Sequence[int] | None = None,
    tags: Tags | Sequence[Tags | None] | None = None,
    num_samples: int = 1,
    stereo: bool = False,
    options: DittoOptions | None = None,
    start: Tensor | Optimized | str | os.PathLike[str] | None = None,
    save: str | os.PathLike[str] | None = None,
    resume: bool = False,
    callback: Callable[[StepReport], bool | None] | None = None,
    progress: bool = False,
) -> Optimized:
    """Music for a prompt that follows its controls, by optimising the noise it starts from.

    Args:
        controls: one or several; the sum of weight times error is minimised.
        prompt, seconds, seed, tags, num_samples, stereo: as for a call of the pipeline; all samples are optimised side
            by side, each by itself, and before the first step they are what the pipeline makes from these seeds with
            the same sampler.
        options: see :class:`DittoOptions`; None: its defaults for this checkpoint.
        start: unit noise ``[B, N, C]``, an earlier result, or a file that ``save`` wrote: where to begin instead of at
            the seeds' own noise.  An edit that begins at the last one's result needs fewer steps.
        save: a file that keeps the state of the search as it goes, every few seconds and at the end, never half.
        resume: go on from ``save`` where it is there; it must be of this same optimisation (more steps are allowed).
        callback: called after each step; True ends the search.
        progress: a bar, on a terminal.

    The errors of CUDA's steps come to the host one step late and are never waited for, so an early stop may be one step
    late too; the noise is the right one all the same.

    Raises:
        TypeError, ValueError: something does not fit; controls are checked before the first step.
        ArithmeticError: every sample had an error that was NaN or infinite; the best noise before that is in ``save``.
    """
    if resume and save is None:
        raise ValueError("resume=True goes on from the file save=, and none was given")
    setup = Setup.of(
        pipeline,
        controls,
        prompt=prompt,
        seconds=seconds,
        seed=seed,
        tags=tags,
        num_samples=num_samples,
        stereo=stereo,
        options=options,
    )
    options = setup.options
    through = setup.walk(setup.near)
    search = Search(
        through,
        setup.scene,
        setup.bound,
        _start(start, setup),
        steps=options.steps,
        learning_rate=options.learning_rate,
    )
    config = _identity(setup)
    if resume and save is not None and os.path.exists(save):
        search.resume(save, config)
    with progress_bar("optimising", options.steps, progress) as advance:
        took = run(search, callback, advance, save=save, config=config)
    history = search.history[: int(search.done)].cpu()
    with torch.no_grad():
        apart = setup.near is not setup.far
        x = (setup.walk(setup.far) if apart else through)(search.best_noise)
        close = through(search.best_noise) if apart else None
    return setup.result(
        x,
        noise=search.best_noise,
        close=close,
        history=history,
        steps_to_threshold=first_reached(history, search),
        seconds_per_step=median(took) if took else None,
        model_calls=setup.near.sampling.model_calls,
    )


def run(
    search: Search,
    callback: Callable[[StepReport], bool | None] | None,
    advance: Advance,
    *,
    save: str | os.PathLike[str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> list[float]:
    """All steps, or as many as are needed; the seconds each took.

    Raises:
        ArithmeticError: every sample had an error that was NaN or infinite; ``save`` is written first.
    """
    config = {} if config is None else config
    names, took = [b.name for b in search.bound], list[float]()
    first, saved = int(search.done), time.monotonic()
    reader = _Reader(search)
    advance(first, None)
    if search.stops and bool(search.reached.all()):
        return took  # resumed where nothing was left to do
    for index in range(first, search.steps):
        started = time.perf_counter()
        search.step()
        known = reader.read(index)
        took.append(time.perf_counter() - started)
        if known is None:
            continue
        number, errors, reached = known
        if not bool(errors.isfinite().all(0).any()):
            if save is not None:
                search.save(save, config)
            raise ArithmeticError(_not_finite(names, errors, number, save))
        advance(number + 1, {name: float(row.mean()) for name, row in zip(names, errors, strict=True)})
        report = StepReport(number + 1, search.steps, dict(zip(names, errors.tolist(), strict=True)))
        if callback is not None and callback(report):
            break
        if search.stops and bool(reached.all()):
            break
        if save is not None and time.monotonic() - saved > 5:
            search.save(save, config)
            saved = time.monotonic()
    if save is not None:
        search.save(save, config)
    return took


class _Reader:
    """The errors of a step on the host: at once on a CPU; on CUDA those of the step before, so that the device always
    has a step to do."""

    def __init__(self, search: Search) -> None:
        self.search, self.waiting = search, list[Any]()

    def read(self, index: int) -> tuple[int, Tensor, Tensor] | None:
        search = self.search
        if search.noise.device.type != "cuda":
            return index, search.history[index], search.reached
        errors = torch.empty(search.history.shape[1:], pin_memory=True)
        reached = torch.empty(search.reached.shape, dtype=torch.bool, pin_memory=True)
        errors.copy_(search.history[index], non_blocking=True)
        reached.copy_(search.reached, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self.waiting.append((index, errors, reached, event))
        if len(self.waiting) < 2:
            return None
        number, errors, reached, event = self.waiting.pop(0)
        event.synchronize()
        return number, errors, reached


def _start(start: Any, setup: Setup) -> Tensor:
    """The unit noise to begin from."""
    if start is None:
        return setup.noise()
    noise = start.noise if isinstance(start, Optimized) else start
    if isinstance(noise, (str, os.PathLike)):
        noise = load_noise(noise)
    if not isinstance(noise, Tensor):
        raise TypeError(f"start must be noise, an earlier result or a file of one, got {type(start).__name__}")
    if noise.shape != setup.noise_shape:
        raise ValueError(f"start must be noise {setup.noise_shape}, of this length and batch, got {tuple(noise.shape)}")
    return noise.to(device=setup.scene.device, dtype=torch.float32)


def _identity(setup: Setup) -> dict[str, Any]:
    """What a saved search must agree in to be gone on with; more steps are not another search."""
    options = asdict(setup.options).items()
    return {name: value for name, value in options if name not in ("steps", "checkpointed")} | {
        "prompts": list(setup.prompts),
        "seeds": list(setup.seeds),
        "samples": setup.scene.samples,
        "text": _fingerprint(setup.text.tokens),  # tags too
        "model": _fingerprint(setup.pipeline.dit.proj_out.weight),
        "controls": [[b.name, b.weight, b.threshold, _fingerprint(b.target)] for b in setup.bound],
    }


def _fingerprint(target: Tensor) -> str:
    import hashlib

    data = target.detach().float().cpu().contiguous()
    return f"{tuple(data.shape)} {hashlib.sha256(data.numpy().tobytes()).hexdigest()[:16]}"


def first_reached(history: Tensor, search: Search) -> tuple[int | None, ...]:
    """For each sample the number of steps after which it was good enough: 0 where it was so at the start."""
    if not search.stops or not len(history):
        return (None,) * search.best.shape[0]
    good = (history <= search.thresholds.cpu()).all(1)
    return tuple(int(column.int().argmax()) if bool(column.any()) else None for column in good.T)


def _not_finite(names: Sequence[str], errors: Tensor, step: int, save: object) -> str:
    bad = ", ".join(name for name, row in zip(names, errors, strict=True) if not bool(row.isfinite().all()))
    kept = "" if save is None else f"; the last good noise is in {save}"
    return f"the error of {bad} was NaN or infinite in every sample before step {step + 1}; try dtype fp32{kept}"
