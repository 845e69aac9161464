"""What is timed: the steps of one generation of latents, by the reference and by presto, on the same weights and
inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench import checks, counting, counting_dit, machine
from presto_kernels import LayerSchedule
from presto_models import (
    EDM,
    Conditioning,
    DiT,
    DiTConfig,
    Precomputed,
    ReferenceDiT,
    classifier_free,
    edm_coefficients,
    karras_sigmas,
    randomize_weights,
    sample_pingpong,
)

TEXT_TOKENS = 64


@dataclass(frozen=True)
class Setup:
    """Which generation: a named config, sampler steps, dtype, guidance scale (1: no guidance), device."""

    config: str
    steps: int
    dtype: str
    guidance: float
    device: torch.device
    seed: int = 0

    @property
    def batch(self) -> int:
        """Samples in one model call: with guidance both halves run in one."""
        return 1 if self.guidance == 1 else 2


@dataclass(frozen=True)
class Implementation:
    """A model, and what it is given beforehand: all blocks of every step, or those that the layer schedule keeps."""

    model: nn.Module
    precomputed: Precomputed

    def blocks(self, step: int) -> int:
        return len(self.precomputed.step(step).blocks)


class Generation:
    """A generation with random weights, and everything that is known before its first step.

    Both models hold the same parameter storage. The steps are those of ping-pong sampling on the few-step Karras
    spacing; what enters step i is the same tensor for every implementation, so that each step can be timed by itself.

    Attributes:
        sigmas: the noise level of each step.
        full, scheduled: every step's modulation, text keys and values and rotary tables, with all blocks and with the
            default layer schedule. Both models are given them.
        inputs: x of each step, [1, N, C], fp32.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.config = setup, DiTConfig.named(setup.config)
        self.presto, self.reference = _models(self.config, setup)
        self.sigmas = karras_sigmas(setup.steps, spacing="interval")[:-1]
        random = torch.Generator(setup.device).manual_seed(setup.seed)
        normal = partial(torch.randn, generator=random, device=setup.device)

        dtype = machine.DTYPES[setup.dtype]
        pooled = normal(1, self.config.pooled_dim).to(dtype) if self.config.pooled_dim else None
        conditioning = Conditioning(normal(1, TEXT_TOKENS, self.config.text_dim).to(dtype), pooled)
        self.conditioning = conditioning if setup.batch == 1 else conditioning.with_null()
        size = (1, self.config.nominal_latents, self.config.in_channels)
        latents = 0.5 * normal(*size)
        self.inputs = [latents + sigma * normal(*size) for sigma in self.sigmas]
        self.noise = [normal(*size) for _ in self.sigmas[1:]]

        schedule = LayerSchedule.default(self.config.num_blocks, keep_last=self.config.keep_last)
        self.full = self.prepare()
        self.scheduled = self.prepare([schedule.budget(sigma) for sigma in self.sigmas])

    def prepare(self, budgets: list[int] | None = None) -> Precomputed:
        """What is done once per prompt and schedule: every step's modulation, every block's text keys and values."""
        return self.presto.precompute(self.conditioning, self.sigmas, budgets, length=self.config.nominal_latents)

    def steps(self, made: Implementation) -> list[Callable[[], Tensor]]:
        """For each step a function that runs it: EDM's preconditioning, the model, guidance."""
        denoise = self._denoiser(made)
        return [partial(denoise, x, sigma) for x, sigma in zip(self.inputs, self.sigmas, strict=True)]

    def walk(self, made: Implementation) -> Tensor:
        """The whole generation: every step, and the noise added between them."""
        return sample_pingpong(self._denoiser(made), self.inputs[0], (*self.sigmas, 0.0), noise=self.noise)

    def _denoiser(self, made: Implementation) -> Callable[[Tensor, float], Tensor]:
        edm = EDM(made.model)
        of_level = {step.sigma: step for step in made.precomputed.steps}

        def denoise(x: Tensor, sigma: float) -> Tensor:
            return edm(x, sigma, self.conditioning, precomputed=of_level[sigma])

        return denoise if self.setup.batch == 1 else classifier_free(denoise, self.setup.guidance)

    def counts(self, blocks: int) -> dict[str, counting.Count]:
        """What a step through this many blocks must do, by kind of op."""
        return counting_dit.dit_step(
            self.config,
            batch=self.setup.batch,
            length=self.config.nominal_latents,
            text_tokens=TEXT_TOKENS,
            blocks=blocks,
            itemsize=machine.DTYPES[self.setup.dtype].itemsize,
        )

    def check(self, found: Mapping[str, Implementation]) -> dict[str, Exception | None]:
        """Compares each model's raw output in step 0 with a wider reference; name → None, or why it is refused.

        The wider copy gets weights, latents and precomputed tensors as the others have them, rounded to their dtype. It
        is float64 for an fp32 model. For bf16 and fp16 it is fp32, thousands of times finer than they are: at paper
        scale float64 would take longer than the measurement.
        """
        wide = torch.float64 if self.setup.dtype == "fp32" else torch.float32
        with torch.device("meta"):
            oracle_model = ReferenceDiT(self.config).eval()
        weights = {name: weight.to(wide) for name, weight in self.reference.state_dict().items()}
        oracle_model.load_state_dict(weights, assign=True)
        x = edm_coefficients(self.sigmas[0])[2] * self.inputs[0]
        x = x.to(machine.DTYPES[self.setup.dtype]).float().expand(self.setup.batch, -1, -1)
        sigma = torch.full((self.setup.batch,), self.sigmas[0], device=self.setup.device)
        expected: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        verdicts: dict[str, Exception | None] = {}
        for name, made in found.items():
            step = made.precomputed.step(0)
            if step.blocks not in expected:
                oracle = oracle_model(x.to(wide), sigma, self.conditioning, precomputed=_cast(step, wide))
                expected[step.blocks] = oracle, self.reference(x, sigma, self.conditioning, precomputed=step)
            oracle, plain = expected[step.blocks]
            try:
                result = made.model(x, sigma, self.conditioning, precomputed=step)
                checks.check(name, [result], [oracle], [plain], ["model output"], rowwise=False)
                verdicts[name] = None
            except Exception as error:
                verdicts[name] = error
        return verdicts


def _models(config: DiTConfig, setup: Setup) -> tuple[DiT, ReferenceDiT]:
    """presto's DiT with random weights, and the reference on the very same parameters."""
    with torch.device("meta"):
        presto, reference = DiT(config), ReferenceDiT(config)
    presto = presto.to(machine.DTYPES[setup.dtype]).to_empty(device=setup.device)
    randomize_weights(presto, seed=setup.seed)
    reference.load_state_dict(presto.state_dict(), assign=True)
    for model in (presto, reference):
        model.eval().requires_grad_(False)
    return presto, reference


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """The same data structure with every floating-point tensor in `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _cast(getattr(value, field.name), dtype) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value
