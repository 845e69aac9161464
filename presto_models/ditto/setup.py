"""What every way of controlling a model begins and ends with: the request checked and bound, the result measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from presto_models.conditioning import Conditioning
from presto_models.diffusion import initial_noise
from presto_models.ditto.control import Bound, Control, bind_all
from presto_models.ditto.options import DittoOptions
from presto_models.ditto.result import Optimized, Outcome
from presto_models.ditto.scene import Made, Scene
from presto_models.ditto.walk import Walk
from presto_models.engine import Plan
from presto_models.pipeline import PrestoPipeline
from presto_models.request import check_prompts, repeated, seeds_of_each, tags_of_each
from presto_models.text.tags import Tags


class Request(TypedDict, total=False):
    """What is asked of every method alike; see :func:`presto_models.ditto.optimize`."""

    prompt: str | Sequence[str]
    seconds: float
    seed: int | Sequence[int] | None
    tags: Tags | Sequence[Tags | None] | None
    num_samples: int
    stereo: bool
    options: DittoOptions | None


@dataclass(frozen=True, eq=False)
class Setup:
    """A request, checked.

    ``bound``: its controls beside the scene.  ``text``: B samples of it.  ``prompts``, ``seeds``: of each prompt and
    each sample.  ``each``: the seeds as int64 ``[B]`` on the device.  ``options``: completed.  ``near``: the plan that
    gradients go through; ``far``: the one that makes the music; the same object where they are one.  ``started``: when
    the request came, of ``time.perf_counter``.
    """

    pipeline: PrestoPipeline
    scene: Scene
    bound: list[Bound]
    prompts: tuple[str, ...]
    text: Conditioning
    seeds: tuple[int, ...]
    each: Tensor
    options: DittoOptions
    near: Plan
    far: Plan
    started: float

    @classmethod
    def of(
        cls,
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
    ) -> Setup:
        """Arguments as for :func:`presto_models.ditto.optimize`.

        Raises:
            TypeError, ValueError: something does not fit.
        """
        started = time.perf_counter()
        if pipeline.conditioner is None:
            raise ValueError("prompt cannot be embedded: this pipeline was made without a text encoder")
        prompts = check_prompts(prompt)
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples must be an int of at least 1, got {num_samples!r}")
        options = (options or DittoOptions()).completed(pipeline)
        batch = len(prompts) * num_samples
        near, far = options.plans(pipeline, seconds, batch, stereo=stereo)
        scene = Scene(pipeline, pipeline.samples(seconds), batch)
        seeds = seeds_of_each(seed, batch)
        bound = bind_all(controls, scene)
        with torch.no_grad():
            text = pipeline.conditioner(prompts, tags_of_each(tags, len(prompts)))
            text = repeated(text, num_samples, pooled=pipeline.config.dit.pooled_dim > 0).to(pipeline.device)
        each = torch.tensor(seeds, dtype=torch.int64, device=pipeline.device)
        return cls(pipeline, scene, bound, tuple(prompts), text, tuple(seeds), each, options, near, far, started)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(B, N, C)."""
        return self.scene.batch, self.scene.length, self.pipeline.autoencoder.latent_channels

    def noise(self) -> Tensor:
        """The seeds' own unit noise ``[B, N, C]``: what the pipeline makes music from without control."""
        return initial_noise(self.noise_shape, seed=self.each, device=self.scene.device)

    def walk(self, plan: Plan) -> Walk:
        """Through that plan, with this text, these seeds and the options' threshold and checkpoints."""
        options = self.options
        return Walk(
            self.pipeline.engine,
            plan,
            self.text,
            self.each,
            x_max=options.x_max,
            checkpointed=options.checkpointed,
        )

    @torch.no_grad()
    def result(
        self,
        x: Tensor,
        *,
        noise: Tensor,
        close: Tensor | None = None,
        history: Tensor | None = None,
        steps_to_threshold: Sequence[int | None] | None = None,
        seconds_per_step: float | None = None,
        model_calls: int,
    ) -> Optimized:
        """The result, measured.

        Args:
            x: what the DiT works on, ``[B, N, C]``, of the finished music.
            noise: the unit noise it began from.
            close: what the walk that gradients went through makes of that noise; None: x itself.
            history: ``[steps, controls, B]``, on the CPU; None: no steps.
        """
        scene, count = self.scene, len(self.bound)
        history = torch.empty(0, count, scene.batch) if history is None else history
        made, engine = scene.made(x), self.pipeline.engine
        audio = engine.widen(engine.decode(x)) if self.far.stereo else made.audio
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        seconds = time.perf_counter() - self.started
        unsteered = scene.made(self.walk(self.far)(self.noise()))
        near = made if close is None else scene.made(close)
        outcomes = {b.name: _outcome(b, made, near, unsteered, history[:, i]) for i, b in enumerate(self.bound)}
        return Optimized(
            waveform=audio[..., : scene.samples].clone(memory_format=torch.contiguous_format),
            sample_rate=scene.sample_rate,
            seeds=self.seeds,
            noise=noise.detach().clone(),
            x=x,
            outcomes=outcomes,
            steps=len(history),
            steps_to_threshold=tuple(steps_to_threshold or (None,) * scene.batch),
            seconds_per_step=seconds_per_step,
            seconds=seconds,
            model_calls=model_calls,
        )


def _outcome(bound: Bound, made: Made, close: Made, unsteered: Made, history: Tensor) -> Outcome:
    obtained, near = bound.feature(made), bound.feature(close)
    return Outcome(
        kind=bound.kind,
        spans=bound.spans,
        weight=bound.weight,
        threshold=bound.threshold,
        target=bound.target.cpu(),
        obtained=obtained.cpu(),
        uncontrolled=bound.feature(unsteered).cpu(),
        error=bound.error(made).cpu(),
        before=bound.error(unsteered).cpu(),
        drift=(near - obtained).abs().flatten(1).mean(1).cpu(),
        figures={name: value.cpu() for name, value in bound.figures(made).items()},
        history=history,
    )
