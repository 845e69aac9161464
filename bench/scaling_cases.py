"""What `python -m bench scaling` times: one point of an axis, by every implementation, on one set of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench import checks, counting_dit, machine
from bench.generation import TEXT_TOKENS, Generation
from bench.names import COMPILE, PRESTO, REFERENCE
from bench.plain_decoder import plain_decoder
from presto_models import EDM, Conditioning, Precomputed, ReferenceDiT, karras_sigmas, sample_pingpong
from presto_models.autoencoders import Oobleck, OobleckConfig

LENGTH, BATCH, DEPTH, STEPS = "length", "batch", "depth", "steps"
STEP, WALK, DECODE = "step", "walk", "decode"
STAGES = {STEP: (LENGTH, BATCH, DEPTH, STEPS), DECODE: (LENGTH, BATCH)}
CHECKED_LATENTS = 24  # of the decoder: longer than its context on both sides, short enough for a wider dtype

Calls = dict[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Point:
    """What one call does: `batch` samples of `length` latents through `blocks` blocks, one step, or a walk of `steps`;
    at the stage "decode" `batch` samples of `length` latents to audio.
    """

    stage: str
    length: int
    batch: int
    blocks: int
    steps: int

    def at(self, axis: str, value: int) -> Point:
        """This point moved along an axis; along that of steps it is the whole walk that is timed."""
        if axis == STEPS:
            return replace(self, stage=WALK, steps=value)
        if axis == DEPTH:
            return replace(self, blocks=value)
        return replace(self, length=value) if axis == LENGTH else replace(self, batch=value)


@dataclass(frozen=True)
class Cost:
    """What a call must do at least: operations (of the products and attention alone), and the time they and the bytes
    take at this machine's ceilings.
    """

    flops: int
    floor_ms: float


class Steps:
    """The DiT by itself: one step, or all steps of a walk and the noise between them; what a generation computes before
    its first step is computed before.

    Every depth is a number of kept blocks of one model, so that all points share its weights.
    """

    def __init__(self, generation: Generation, compile: bool) -> None:
        self.generation, setup = generation, generation.setup
        self.models: dict[str, nn.Module] = {REFERENCE: generation.reference}
        if compile:
            torch._dynamo.reset()
            self.models[COMPILE] = torch.compile(generation.reference, dynamic=False, fullgraph=True)  # type: ignore
        self.models[PRESTO] = generation.presto
        self._normal = partial(torch.randn, generator=torch.Generator(setup.device).manual_seed(1), device=setup.device)

    def calls(self, point: Point) -> Calls:
        """Implementation → runs the point once."""
        conditioning, sigmas, precomputed = self._given(point)
        size = (point.batch, point.length, self.generation.config.in_channels)
        x = 0.5 * self._normal(*size) + sigmas[0] * self._normal(*size)
        noise = [self._normal(*size) for _ in sigmas[1:]]
        of_level = {step.sigma: step for step in precomputed.steps}

        def call(edm: EDM) -> Tensor:
            def denoise(x: Tensor, sigma: float) -> Tensor:
                return edm(x, sigma, conditioning, precomputed=of_level[sigma])

            return denoise(x, sigmas[0]) if point.stage == STEP else sample_pingpong(denoise, x, walk, noise=noise)

        walk = (*sigmas, 0.0)
        return {name: partial(call, EDM(model)) for name, model in self.models.items()}

    def cost(self, point: Point, ceilings: dict[str, Any]) -> Cost:
        """Of one step, times the steps of a walk."""
        setup = self.generation.setup
        counts = counting_dit.dit_step(
            self.generation.config,
            batch=point.batch,
            length=point.length,
            text_tokens=TEXT_TOKENS,
            blocks=point.blocks,
            itemsize=machine.DTYPES[setup.dtype].itemsize,
        )
        rate = ceilings["matmul_tflops"][setup.dtype]
        floor = sum(count.floor_ms(ceilings["copy_gbs"], rate) for count in counts.values())
        steps = 1 if point.stage == STEP else point.steps
        return Cost(steps * counting_dit.model_flops(counts), steps * floor)

    def check(self, point: Point) -> dict[str, Exception]:
        """Each model's raw output at this point against a wider reference; what is wrong, by name."""
        setup, config = self.generation.setup, self.generation.config
        wide = torch.float64 if setup.dtype == "fp32" else torch.float32
        with torch.device("meta"):
            oracle = ReferenceDiT(config).eval()
        weights = self.generation.reference.state_dict()
        oracle.load_state_dict({name: weight.to(wide) for name, weight in weights.items()}, assign=True)
        conditioning, (sigma, *_), precomputed = self._given(point)
        blocks = precomputed.step(0).blocks
        x = self._normal(point.batch, point.length, config.in_channels).to(machine.DTYPES[setup.dtype]).float()
        level = torch.full((point.batch,), sigma, device=setup.device)
        expected = oracle(x.to(wide), level, conditioning.to(dtype=wide), blocks=blocks)
        plain = self.generation.reference(x, level, conditioning, blocks=blocks)
        step = precomputed.step(0)
        ways = {n: partial(m, x, level, conditioning, precomputed=step) for n, m in self.models.items()}
        return _wrong(ways, expected, plain)

    def _given(self, point: Point) -> tuple[Conditioning, tuple[float, ...], Precomputed]:
        """Text, the noise level of each step, and what is computed of both before the first."""
        sigmas = karras_sigmas(point.steps, spacing="interval")[:-1] if point.stage == WALK else (80.0,)
        conditioning = Conditioning.cat([self.generation.conditioning] * point.batch)
        budgets = [point.blocks] * len(sigmas)
        made = self.generation.presto.precompute(conditioning, sigmas, budgets, length=point.length)
        return conditioning, sigmas, made


class Decoder:
    """Oobleck's decoder of the named size, mono: ours, and its weights in PyTorch's own layers."""

    def __init__(self, config: str, dtype: str, device: torch.device, compile: bool) -> None:
        self.dtype, self.device = dtype, device
        torch.manual_seed(0)
        self.autoencoder = Oobleck(replace(OobleckConfig.named(config), audio_channels=1))
        for name, parameter in self.autoencoder.named_parameters():
            if name.endswith(("alpha", "beta")):
                nn.init.uniform_(parameter, 0.5, 1.5)
        self.autoencoder.to(device=device, dtype=machine.DTYPES[dtype]).eval().requires_grad_(False)
        plain = plain_decoder(self.autoencoder)
        self.ways: dict[str, Callable[[Tensor], Tensor]] = {REFERENCE: plain}
        if compile:
            torch._dynamo.reset()
            self.ways[COMPILE] = torch.compile(plain, dynamic=False, fullgraph=True)
        self.ways[PRESTO] = self.autoencoder.decode

    def calls(self, point: Point) -> Calls:
        """Implementation → decodes once."""
        latents = self._latents(point)
        return {name: partial(way, latents) for name, way in self.ways.items()}

    def cost(self, point: Point, ceilings: dict[str, Any]) -> Cost:
        """The convolutions' arithmetic alone; bytes are not counted."""
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            plain_decoder(Oobleck(self.autoencoder.config))(torch.empty(point.batch, point.length, self._channels))
        flops = counter.get_total_flops()
        return Cost(flops, flops / ceilings["matmul_tflops"][self.dtype] / 1e9)

    def check(self, point: Point) -> dict[str, Exception]:
        """A short stretch against a wider dtype; what is wrong, by name."""
        latents = self._latents(replace(point, length=min(point.length, CHECKED_LATENTS)))
        wide = torch.float64 if self.dtype == "fp32" else torch.float32
        expected, plain = plain_decoder(self.autoencoder, wide)(latents), self.ways[REFERENCE](latents)
        return _wrong({name: partial(way, latents) for name, way in self.ways.items()}, expected, plain)

    @property
    def _channels(self) -> int:
        return self.autoencoder.latent_channels

    def _latents(self, point: Point) -> Tensor:
        random = torch.Generator(self.device).manual_seed(1)
        size = (point.batch, point.length, self._channels)
        return torch.randn(size, generator=random, device=self.device).to(machine.DTYPES[self.dtype])


def _wrong(ways: Mapping[str, Callable[[], Tensor]], expected: Tensor, plain: Tensor) -> dict[str, Exception]:
    found = {}
    for name, way in ways.items():
        try:
            checks.check(name, [way()], [expected], [plain], ["output"], rowwise=False)
        except Exception as error:
            found[name] = error
    return found
