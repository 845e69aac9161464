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

from presto_models.diffusion import initial_noise
from presto_models.ditto.control import Bound, Control, bind_all
from presto_models.ditto.options import DittoOptions
from presto_models.ditto.result import Optimized, Outcome
from presto_models.ditto.scene import Made, Scene
from presto_models.ditto.search import Search, load_noise
from presto_models.ditto.shown import progress_bar
from presto_models.ditto.walk import Walk
from presto_models.pipeline import PrestoPipeline
from presto_models.request import check_prompts, repeated, seeds_of_each, tags_of_each
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
        ArithmeticError: every sample's error was NaN or infinite from the first step on.
    """
    if pipeline.conditioner is None:
        raise ValueError("prompt cannot be embedded: this pipeline was made without a text encoder")
    if resume and save is None:
        raise ValueError("resume=True goes on from the file save=, and none was given")
    prompts = check_prompts(prompt)
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be an int of at least 1, got {num_samples!r}")
    options = (options or DittoOptions()).completed(pipeline)
    batch = len(prompts) * num_samples
    near, far = options.plans(pipeline, seconds, batch, stereo=stereo)
    scene = Scene(pipeline, pipeline.samples(seconds), batch)
    seeds = seeds_of_each(seed, batch)
    bound = bind_all(controls, scene)
    noise = _start(start, scene, seeds)
    each = torch.tensor(seeds, dtype=torch.int64, device=pipeline.device)
    with torch.no_grad():
        text = pipeline.conditioner(prompts, tags_of_each(tags, len(prompts)))
        text = repeated(text, num_samples, pooled=pipeline.config.dit.pooled_dim > 0).to(pipeline.device)

    def walk(plan: Any) -> Walk:
        return Walk(pipeline.engine, plan, text, each, x_max=options.x_max, checkpointed=options.checkpointed)

    through = walk(near)
    search = Search(through, scene, bound, noise, steps=options.steps, learning_rate=options.learning_rate)
    config = _identity(options, prompts, seeds, scene, bound)
    if resume and save is not None and os.path.exists(save):
        search.resume(save, config)
    took = _search(search, config, save, callback, progress_bar("optimising", options.steps, progress))

    make = through if near is far else walk(far)
    with torch.no_grad():
        found = search.best_noise
        made = scene.made(make(found))
        close = made if make is through else scene.made(through(found))
        unsteered = scene.made(make(initial_noise(found.shape, seed=each, device=pipeline.device)))
        done = int(search.done)
        history = search.history[:done].cpu()
        outcomes = {b.name: _outcome(b, made, close, unsteered, history[:, i]) for i, b in enumerate(bound)}
        audio = pipeline.engine.widen(pipeline.engine.decode(made.x)) if far.stereo else made.audio
        waveform = audio[..., : scene.samples].clone(memory_format=torch.contiguous_format)
    return Optimized(
        waveform=waveform,
        sample_rate=pipeline.sample_rate,
        seeds=tuple(seeds),
        noise=found.clone(),
        x=made.x,
        outcomes=outcomes,
        steps=done,
        steps_to_threshold=_first_reached(history, search),
        seconds_per_step=median(took) if took else None,
        model_calls=near.sampling.model_calls,
    )


def _search(
    search: Search,
    config: Mapping[str, Any],
    save: str | os.PathLike[str] | None,
    callback: Callable[[StepReport], bool | None] | None,
    bar: Any,
) -> list[float]:
    """All steps, or as many as are needed; the seconds each took."""
    names, took = [b.name for b in search.bound], []
    first, saved = int(search.done), time.monotonic()
    reader = _Reader(search)
    with bar as advance:
        advance(first, None)
        for index in range(first, search.steps):
            started = time.perf_counter()
            search.step()
            known = reader.read(index)
            took.append(time.perf_counter() - started)
            if known is None:
                continue
            number, errors, reached = known
            if not bool(errors.isfinite().any()):
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


def _start(start: Any, scene: Scene, seeds: Sequence[int]) -> Tensor:
    """The unit noise to begin from."""
    shape = (scene.batch, scene.length, scene.pipeline.autoencoder.latent_channels)
    if start is None:
        return initial_noise(shape, seed=list(seeds), device=scene.device)
    noise = start.noise if isinstance(start, Optimized) else start
    if isinstance(noise, (str, os.PathLike)):
        noise = load_noise(noise)
    if not isinstance(noise, Tensor):
        raise TypeError(f"start must be noise, an earlier result or a file of one, got {type(start).__name__}")
    if noise.shape != shape:
        raise ValueError(f"start must be noise {shape}, of this length and batch, got {tuple(noise.shape)}")
    return noise.to(device=scene.device, dtype=torch.float32)


def _identity(
    options: DittoOptions, prompts: Sequence[str], seeds: Sequence[int], scene: Scene, bound: Sequence[Bound]
) -> dict[str, Any]:
    """What a saved search must agree in to be gone on with; more steps are not another search."""
    asked = {name: value for name, value in asdict(options).items() if name not in ("steps", "checkpointed")}
    return asked | {
        "prompts": list(prompts),
        "seeds": list(seeds),
        "samples": scene.samples,
        "controls": [[b.name, b.weight, b.threshold, _fingerprint(b.target)] for b in bound],
    }


def _fingerprint(target: Tensor) -> str:
    import hashlib

    data = target.detach().float().cpu().contiguous()
    return f"{tuple(data.shape)} {hashlib.sha256(data.numpy().tobytes()).hexdigest()[:16]}"


def _outcome(bound: Bound, made: Made, close: Made, unsteered: Made, history: Tensor) -> Outcome:
    obtained, near = bound.feature(made), bound.feature(close)
    return Outcome(
        kind=bound.kind,
        spans=bound.spans,
        target=bound.target.cpu(),
        obtained=obtained.cpu(),
        error=bound.error(made).cpu(),
        before=bound.error(unsteered).cpu(),
        drift=(near - obtained).abs().flatten(1).mean(1).cpu(),
        figures={name: value.cpu() for name, value in bound.figures(made).items()},
        history=history,
    )


def _first_reached(history: Tensor, search: Search) -> tuple[int | None, ...]:
    """For each sample the number of steps after which it was good enough: 0 where it was so at the start."""
    if not search.stops or not len(history):
        return (None,) * search.best.shape[0]
    good = (history <= search.thresholds.cpu()).all(1)
    return tuple(int(column.int().argmax()) if bool(column.any()) else None for column in good.T)


def _not_finite(names: Sequence[str], errors: Tensor, step: int, save: object) -> str:
    bad = ", ".join(name for name, row in zip(names, errors, strict=True) if not bool(row.isfinite().all()))
    kept = "" if save is None else f"; the last good noise is in {save}"
    return f"the error of {bad} was NaN or infinite in every sample before step {step + 1}; try dtype fp32{kept}"
