"""One search of `python -m bench ditto`, by any implementation: which model, walk, text and length, and its check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import checks, machine
from bench.ditto_sides import PlainEngine, compiled, heard, with_engine
from bench.generation import TEXT_TOKENS
from bench.names import COMPILE, PRESTO, REFERENCE
from presto_models import Conditioning
from presto_models.ditto import DittoOptions, Intensity
from presto_models.ditto.scene import Scene
from presto_models.ditto.search import Search
from presto_models.ditto.walk import Walk
from presto_models.engine import Engine
from presto_models.pipeline import PrestoPipeline

DITTO, DITTO_2 = "ditto", "ditto-2"
METHODS = (DITTO, DITTO_2)
LEARNING_RATE = DittoOptions.learning_rate
CHECKED_LATENTS, CHECKED_STEPS = 24, 2
CRESCENDO = (-40.0, -15.0)
"""What is asked for, in dB: music lies at -30 to -10, so that both ends must be worked for."""


@dataclass(frozen=True)
class Sizes:
    """Which search; plain values, so that a process of its own can be told.

    Args:
        checkpoint, student: the models of DITTO and of DITTO-2, by name or folder.
        config: random weights of this named size for both, instead.
        audio: seconds.  batch: candidates side by side.
        sampling_steps, guidance: of DITTO's walk.  surrogate_steps: of DITTO-2's.
        student_sampler, student_steps: of the walk that makes DITTO-2's music; None: the product's choice.
        dtype: of the network.
    """

    checkpoint: str
    student: str
    config: str | None
    audio: float
    batch: int
    sampling_steps: int
    guidance: float
    surrogate_steps: int
    student_sampler: str | None
    student_steps: int | None
    dtype: str
    device: str

    def pipeline(self, method: str) -> PrestoPipeline:
        """The method's model, frozen."""
        given: dict[str, Any] = {"device": self.device, "dtype": machine.DTYPES[self.dtype]}
        if self.config is not None:
            return PrestoPipeline.random(self.config, text=None, **given)
        pipeline = PrestoPipeline.from_pretrained(self.checkpoint if method == DITTO else self.student, **given)
        for module in (pipeline.dit, pipeline.autoencoder):
            module.requires_grad_(False)
        return pipeline

    def options(self, method: str) -> DittoOptions:
        """As the product's solver is given them."""
        if method == DITTO:
            return DittoOptions(sampler="ddim", sampling_steps=self.sampling_steps, guidance=self.guidance)
        return DittoOptions(
            surrogate_steps=self.surrogate_steps, sampler=self.student_sampler, sampling_steps=self.student_steps
        )


class Task:
    """A method's search on random text, ready to be made by any implementation.

    Attributes:
        plan: of the walk that gradients go through.  engines: by the implementation's name.
    """

    def __init__(self, method: str, sizes: Sizes) -> None:
        self.method, self.sizes, self.pipeline = method, sizes, sizes.pipeline(method)
        options = sizes.options(method).completed(self.pipeline)
        self.x_max, device = options.x_max, self.pipeline.device
        self.plan, _ = options.plans(self.pipeline, sizes.audio, sizes.batch)
        self.samples = self.pipeline.samples(sizes.audio)
        dit = self.pipeline.config.dit
        normal = partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device)
        pooled = normal(sizes.batch, dit.pooled_dim) if dit.pooled_dim else None
        self.text = Conditioning(normal(sizes.batch, TEXT_TOKENS, dit.text_dim), pooled)
        self.seeds = torch.arange(sizes.batch, device=device)
        self.noise = normal(sizes.batch, self.plan.length, dit.in_channels)
        self.engines: dict[str, Engine] = {
            REFERENCE: PlainEngine(self.pipeline),
            PRESTO: self.pipeline.engine,
        }

    def compile(self) -> None:
        """Adds torch.compile of the reference's network."""
        plain = self.engines[REFERENCE]
        assert isinstance(plain, PlainEngine)
        self.engines[COMPILE] = compiled(plain)

    def changed(self, *, latents: int | None = None, steps: int | None = None) -> Task:
        """This task, shorter or longer, or with another number of steps in its walk."""
        other = object.__new__(Task)
        other.__dict__.update(self.__dict__)
        length = self.plan.length if latents is None else latents
        sampling = self.plan.sampling.changed(steps=steps)
        other.plan = replace(self.plan, length=length, sampling=sampling)
        other.noise = self.noise[:, :length]
        other.samples = min(self.samples, length * self.pipeline.autoencoder.hop)
        return other

    def walk(self, name: str, *, checkpointed: bool = True) -> Walk:
        return Walk(self.engines[name], self.plan, self.text, self.seeds, x_max=self.x_max, checkpointed=checkpointed)

    def search(self, name: str, *, eager: bool = False, checkpointed: bool = True) -> Search:
        """The product's search from this task's noise; ``eager``: without a CUDA graph."""
        pipeline = with_engine(self.pipeline, self.engines[name])
        scene = Scene(pipeline, self.samples, self.sizes.batch)
        with torch.no_grad():
            bound = Intensity(curve=CRESCENDO).bind(scene)
            walk = self.walk(name, checkpointed=checkpointed)
        made = EagerSearch if eager else Search
        return made(walk, scene, [bound], self.noise, steps=1, learning_rate=LEARNING_RATE)


class EagerSearch(Search):
    """A search that captures nothing."""

    def step(self) -> None:
        self._step()


def restart(search: Search) -> None:
    """The next step is written into the first row of the history again: so many as one likes can be made."""
    search.done.zero_()


def check(task: Task, names: Sequence[str]) -> dict[str, Exception]:
    """What is wrong with each of these implementations, by name.

    The latents of a short walk with the task's own sampler, and the gradient of its noise through that walk and the
    decoder's network, against plain PyTorch in float64; plain PyTorch in the task's dtype is the measure.
    """
    short = task.changed(
        latents=min(CHECKED_LATENTS, task.plan.length), steps=min(CHECKED_STEPS, task.plan.sampling.steps)
    )
    wide = PlainEngine(task.pipeline, torch.float64)
    oracle, plain = _results(short, wide, torch.float64), _results(short, task.engines[REFERENCE], torch.float32)
    found: dict[str, Exception] = {}
    for name in names:
        try:
            ours = _results(short, task.engines[name], torch.float32)
            checks.check(name, ours, oracle, plain, ("x", "d noise"), rowwise=False)
        except Exception as error:
            found[name] = error
    return found


def _results(task: Task, engine: Engine, dtype: torch.dtype) -> list[Tensor]:
    """x, and the gradient of the noise of a random sum over what is heard."""
    text = task.text.to(dtype=dtype) if dtype == torch.float64 else task.text
    with torch.no_grad():
        walk = Walk(engine, task.plan, text, task.seeds, x_max=task.x_max)
    noise = task.noise.to(dtype).requires_grad_()
    x = walk(noise)
    random = torch.Generator(noise.device).manual_seed(1)
    total = x.new_zeros(())
    for part in heard(engine, x):
        weights = torch.randn(part.shape, generator=random, device=part.device)
        total = total + (weights.to(part.dtype) * part).sum()
    (gradient,) = torch.autograd.grad(total, noise)
    return [x.detach(), gradient]
