"""The product's own latency: a prompt through a `PrestoPipeline` to a waveform, stage by stage.

One generation of a batch is one sample of all its stages.  On a CPU the clock is read after each.  On CUDA the stages
are watched without a graph, between events; what a user waits for is timed apart: the pipeline called as it is, which
replays one captured graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import cuda, machine, measure, telemetry
from bench.cli import BadOption
from bench.generation import TEXT_TOKENS
from bench.names import PRESTO
from bench.results import Row, sample_fields
from bench.stages import DECODE, PROMPT, STEREO
from presto_kernels import LayerSchedule
from presto_models import Conditioning, PrestoPipeline
from presto_models.engine import Plan
from presto_models.request import repeated

TOTAL, MONO = "total", "total, mono"
WARM, GRAPH = "warm", "graph"
LAYERS = ("own", "all", "default")
SECONDS = 32.0
ENERGY_SECONDS = 2.0


@dataclass(frozen=True)
class Spec:
    """Which pipeline and what it is asked for; plain values, so that a process of its own can be told.

    `checkpoint` is what `PrestoPipeline.from_pretrained` takes; None: random weights of the size `config`.  None of
    `dtype`, `steps`, `guidance`: the pipeline's own.  `layers`: "own", "all", or "default", the default schedule.
    """

    config: str
    checkpoint: str | None
    device: str
    dtype: str | None
    steps: int | None
    guidance: float | None
    layers: str
    seconds: float | None

    @property
    def name(self) -> str:
        return self.checkpoint or self.config


class Product:
    """A pipeline and its requests.

    Attributes:
        stereo: whether the mono-to-stereo module runs.
        no_prompt: why no text encoder is there, or None; the rest is then timed on random text states.
    """

    def __init__(self, spec: Spec, pipeline: PrestoPipeline, no_prompt: str | None = None) -> None:
        self.spec, self.pipeline, self.no_prompt = spec, pipeline, no_prompt
        self.stereo = pipeline.stereo is not None
        nominal = pipeline.dit.config.nominal_latents * pipeline.autoencoder.hop / pipeline.sample_rate
        self.seconds = spec.seconds or (SECONDS if spec.checkpoint else min(SECONDS, nominal))
        self._numbers = count()
        config = pipeline.dit.config
        schedules: dict[str, Any] = {
            "own": "own",
            "all": None,
            "default": LayerSchedule.default(config.num_blocks, keep_last=config.keep_last),
        }
        self.request = {"steps": spec.steps, "guidance": spec.guidance, "schedule": schedules[spec.layers]}

    def plan(self, batch: int, *, stereo: bool = True) -> Plan:
        return self.pipeline.plan(self.seconds, batch=batch, stereo=stereo and self.stereo, **self.request)

    def conditioning(self, batch: int) -> Conditioning:
        """Prompts that were never embedded before, as a first request has; random states without a text encoder."""
        if self.pipeline.conditioner is None:
            config, device = self.pipeline.dit.config, self.pipeline.device
            dtype = next(self.pipeline.dit.parameters()).dtype
            tokens = torch.randn(batch, TEXT_TOKENS, config.text_dim, device=device, dtype=dtype)
            pooled = torch.randn(batch, config.pooled_dim, device=device, dtype=dtype) if config.pooled_dim else None
            return Conditioning(tokens, pooled)
        text = self.pipeline.conditioner(self.prompts(batch))
        return repeated(text, 1, pooled=self.pipeline.config.dit.pooled_dim > 0)

    def prompts(self, batch: int) -> list[str]:
        return [f"a slow chorale for church organ in g minor, number {next(self._numbers)}" for _ in range(batch)]

    def generate(self, batch: int, *, stereo: bool = True) -> Tensor:
        """As a user calls it; without a text encoder the engine alone."""
        if self.pipeline.conditioner is None:
            plan = self.plan(batch, stereo=stereo)
            audio = self.pipeline.engine(plan, self.conditioning(batch), torch.arange(batch))
            return self.crop(audio)
        stereo = stereo and self.stereo
        done = self.pipeline(self.prompts(batch), seconds=self.seconds, seed=0, stereo=stereo, **self.request)
        return done.waveform

    def keep_graphs(self, count: int) -> None:
        """So many plans are timed in turn: dropping the least recently used would capture each anew."""
        self.pipeline.engine.max_graphs = max(count, self.pipeline.engine.max_graphs)

    def crop(self, audio: Tensor) -> Tensor:
        return audio[..., : self.pipeline.samples(self.seconds)].clone()

    def described(self) -> dict[str, Any]:
        """What it is, for a result file."""
        plan, pipeline = self.plan(1), self.pipeline
        return {
            "name": self.spec.name,
            "weights": "checkpoint" if self.spec.checkpoint else "random",
            "dtype": str(next(pipeline.dit.parameters()).dtype).removeprefix("torch."),
            "audio_dtype": str(next(pipeline.autoencoder.parameters()).dtype).removeprefix("torch."),
            "seconds": round(self.seconds, 4),
            "latents": plan.length,
            "sampler": plan.sampling.sampler,
            "steps": plan.sampling.steps,
            "guidance": plan.sampling.guidance,
            "blocks": [budget(plan, sigma, pipeline) for sigma in plan.sampling.sigmas[:-1]],
            "stereo": self.stereo,
            "no_prompt": self.no_prompt,
        }


def load(spec: Spec) -> Product:
    """The pipeline on its device.  A BadOption where there is no such checkpoint or it cannot be asked for this."""
    dtype = None if spec.dtype is None else machine.DTYPES[spec.dtype]
    no_prompt = None
    if spec.checkpoint is not None:
        try:
            pipeline = PrestoPipeline.from_pretrained(spec.checkpoint, device=spec.device, dtype=dtype)
        except (FileNotFoundError, ValueError, ImportError) as error:
            raise BadOption(f"--checkpoint {spec.checkpoint}: {error}") from error
    else:
        make = partial(PrestoPipeline.random, spec.config, device=spec.device, dtype=dtype)
        try:
            pipeline = make()
        except (ImportError, OSError) as error:  # a GPU runner may have no text encoder, and is right to time the rest
            pipeline, no_prompt = make(text=None), str(error).splitlines()[0]
    product = Product(spec, pipeline, no_prompt)
    try:
        product.plan(1)
    except (TypeError, ValueError) as error:
        raise BadOption(f"{spec.name}: {error}") from error
    return product


def budget(plan: Plan, sigma: float, pipeline: PrestoPipeline) -> int:
    """Blocks that run at this noise level."""
    return pipeline.dit.config.num_blocks if plan.schedule is None else plan.schedule.budget(sigma)


class Timed:
    """A batch, as :func:`measure.interleave` asks for it: part 0 makes a generation, the other parts tell its stages.

    On CUDA the last parts are generations of their own, by the captured graph.

    Attributes:
        parts: (mode, stage) of each part.
    """

    def __init__(self, product: Product, batch: int, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.product, self.batch, self.clock = product, batch, clock
        self.cuda = product.pipeline.device.type == "cuda"
        self.plan = product.plan(batch)
        steps = [f"step {index}" for index in range(self.plan.sampling.steps)]
        prompt = [PROMPT] if product.no_prompt is None else []
        stereo = [STEREO] if product.stereo else []
        totals = [TOTAL, MONO] if product.stereo else [TOTAL]
        self.stages = [*prompt, "prepare", "noise", *steps, DECODE, *stereo, *totals]
        modes = (WARM, GRAPH) if product.pipeline.engine.capture else (WARM,)
        self.parts = [(WARM, stage) for stage in self.stages] + [
            (mode, stage) for mode in modes[1:] for stage in totals
        ]
        self._ms: dict[str, float] = {}

    def __call__(self, part: int) -> float:
        mode, stage = self.parts[part]
        if mode == GRAPH:
            return self.whole(stereo=stage == TOTAL)
        if part == 0:
            self._ms = self.staged()
        return self._ms[stage]

    @torch.no_grad()
    def staged(self) -> dict[str, float]:
        """One generation, its stages watched: milliseconds of each, summed over samples that are made in turn."""
        pipeline, seeds = self.product.pipeline, torch.arange(self.batch)
        names: list[str] = []
        marks = cuda.EventMarks() if self.cuda else measure.Marks(self.clock)

        def on_stage(name: str) -> None:
            marks.mark()
            if name == "step":
                name = f"step {(sum(seen.startswith('step') for seen in names)) % self.plan.sampling.steps}"
            names.append(name)

        started = self._now()
        conditioning = self.product.conditioning(self.batch)
        prompt = self._now() - started
        marks.mark()
        audio = pipeline.engine(self.plan, conditioning, seeds, on_stage=on_stage)
        self.product.crop(audio)
        total = self._now() - started
        found = dict.fromkeys(self.stages, 0.0) | {PROMPT: prompt * 1e3, TOTAL: total * 1e3}
        for name, milliseconds in zip(names, marks.between(), strict=True):
            found[name] += milliseconds
        if self.product.stereo:
            found[MONO] = found[TOTAL] - found[STEREO]
        return found

    def whole(self, *, stereo: bool = True) -> float:
        """Milliseconds until the waveform of one request is there."""
        started = self._now()
        self.product.generate(self.batch, stereo=stereo)
        return (self._now() - started) * 1e3

    def rows(self, samples: measure.Samples) -> list[Row]:
        """A row a stage that was measured."""
        found = []
        for part, (mode, stage) in enumerate(self.parts):
            values = samples.ms(str(self.batch), part)
            if not len(values):
                continue
            sigma = self.plan.sampling.sigmas[int(stage.split()[1])] if stage.startswith("step") else None
            row: Row = {"stage": stage, "batch": self.batch, "mode": mode, "implementation": PRESTO}
            if stage == MONO:
                row |= {"stage": TOTAL, "kind": "mono"}
            row |= {
                "sigma": sigma,
                "budget": None if sigma is None else budget(self.plan, sigma, self.product.pipeline),
            }
            found.append(row | sample_fields(values))
        return found

    def _now(self) -> float:
        machine.synchronize(self.product.pipeline.device)
        return self.clock()


def settled(timed: Sequence[Timed], interval: float) -> Callable[[measure.Samples], bool]:
    """Whether every batch's total is known well enough: the 95 % interval of its median within ± this share of it.

    The interval is that of order statistics, which needs 6 rounds; 0 is never enough.
    """

    def enough(samples: measure.Samples) -> bool:
        return all(
            half_width(samples.ms(str(each.batch), part)) <= interval
            for each in timed
            for part, (_, stage) in enumerate(each.parts)
            if stage == TOTAL
        )

    return enough if interval > 0 else lambda samples: False


def half_width(milliseconds: np.ndarray) -> float:
    """Half the 95 % interval of the median as a share of it; infinite with fewer than 6 values."""
    between = measure.percentile_interval(milliseconds, 50) if len(milliseconds) else None
    if between is None:
        return float("inf")
    return float((between[1] - between[0]) / 2 / np.median(milliseconds))


def energy(timed: Timed, *, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Joules a clip over generations back to back for two seconds, at least one; None with the reason."""
    device = timed.product.pipeline.device
    watched, calls = telemetry.watch(device), 0
    if watched.source.energy() is None and watched.source.read().get("power_w") is None:
        told = watched.fields()
        why = told.get("no_energy") or told.get("reason") or "neither a counter nor the power can be read"
        return {"energy_j_per_clip": None, "no_energy": why}
    with watched:
        started = clock()
        while not calls or clock() - started < ENERGY_SECONDS:
            timed.product.generate(timed.batch)
            calls += 1
        machine.synchronize(device)
    joules = None if watched.energy_j is None else watched.energy_j / calls / timed.batch
    return {"energy_j_per_clip": joules, "energy_clips": calls * timed.batch, "energy_from": watched.energy_from}
