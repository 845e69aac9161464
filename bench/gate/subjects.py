"""What the gate times: every op, forward and backward, a model step, a decoder, a generation of the shipped model.

All through the public API of whichever packages are on the path, with the implementation that `auto` takes.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import cuda, machine, measure, op_timers, ops
from bench.op_cases import OPS, Case

Call = Callable[[], object]
SUITES = ("ops", "model")
TEXT_TOKENS, SIGMA, GENERATE_SECONDS = 64, 2.5, 2.0


@dataclass(frozen=True)
class Subject:
    """One row of the gate.

    Attributes:
        make: seed to a function that runs it once.
        check: raises where the result is wrong.
        grad: whether it needs autograd.
    """

    make: Callable[[int], Call]
    check: Call
    grad: bool = False


def keys(suites: tuple[str, ...], dtypes: tuple[str, ...], device: torch.device) -> list[str]:
    """The rows of these suites, as :func:`find` knows them."""
    found = []
    if "ops" in suites:
        found += [
            f"{name}/{op.shapes[0]}/{dtype}/{direction}"
            for name, op in OPS.items()
            if op.default
            for dtype in dtypes
            for direction in ("forward", "backward")[: 2 if op.backward else 1]
        ]
    if "model" in suites:
        found += [f"{name}/{dtype}" for name in MODELS for dtype in dtypes]
    return found


def find(key: str, device: torch.device) -> Subject:
    """The row of this key; a `KeyError` where there is none."""
    name, *rest = key.split("/")
    if name in MODELS:
        return MODELS[name](rest[0], device)
    shape, dtype, direction = rest
    case = Case(OPS[name], OPS[name].parse(shape), dtype, direction == "backward", device)
    check = functools.partial(ops.check_implementation, case, ops.Implementation("presto", case.op.presto))
    return Subject(functools.partial(_op, case), check, case.backward)


def timer(call: Call, device: torch.device, grad: bool, slow: float = 0.0) -> Callable[[int], list[float]]:
    """repeats to the milliseconds of each call, after one that is not timed if there are several.

    `slow` makes each call take that share longer, to try the gate itself.
    """
    if slow and device.type == "cuda":
        raise ValueError("a planted slowdown waits on the host, which does not slow a GPU down")

    timed = slowed(call, slow) if slow else call
    if device.type == "cpu":
        once = measure.cpu_timer(timed)
    elif grad:
        once = cuda.event_timer(timed)
    else:
        with torch.no_grad():
            once = cuda.graph_timer([timed])

    def timing(repeats: int) -> list[float]:
        with torch.set_grad_enabled(grad):
            if repeats > 1:  # the other side's turn has taken the caches; a long call refills them by itself
                once(0)
            return [once(0) for _ in range(repeats)]

    return timing


def slowed(call: Call, share: float, *, clock: Callable[[], float] = time.perf_counter) -> Call:
    """The same, but it takes that share longer."""

    def longer() -> None:
        started = clock()
        call()
        done = clock()
        while clock() < done + share * (done - started):
            pass

    return longer


def _op(case: Case, seed: int) -> Call:
    inputs = case.inputs(seed)
    function = functools.partial(case.op.presto, *inputs, **case.constants())
    if not case.backward:
        return function
    with torch.enable_grad():
        gradients = op_timers.random_grads(function(), seed)

    # Forward and backward together, as a training step runs them: a backward alone would need its forward untimed.
    def both() -> object:
        return torch.autograd.grad(function(), inputs, gradients)

    return both


def _step(dtype: str, device: torch.device) -> Subject:
    """A step through one block of the paper's DiT, modulation and text prepared."""
    from presto_models import EDM, Conditioning, DiT, DiTConfig, randomize_weights

    config = dataclasses.replace(DiTConfig.named("presto-32s"), num_blocks=1)

    length = config.nominal_latents if device.type == "cuda" else config.nominal_latents // 4

    def make(seed: int) -> Call:
        model = DiT(config).to(device=device, dtype=machine.DTYPES[dtype]).eval().requires_grad_(False)
        randomize_weights(model, seed=seed)
        random = torch.Generator(device).manual_seed(seed)
        normal = functools.partial(torch.randn, generator=random, device=device)
        pooled = normal(1, config.pooled_dim).to(machine.DTYPES[dtype]) if config.pooled_dim else None
        conditioning = Conditioning(normal(1, TEXT_TOKENS, config.text_dim).to(machine.DTYPES[dtype]), pooled)
        with torch.no_grad():
            ready = model.precompute(conditioning, [SIGMA], length=length).step(0)
        x = normal(1, length, config.in_channels)
        return functools.partial(EDM(model), x, SIGMA, conditioning, precomputed=ready)

    return Subject(make, lambda: None)


def _decode(dtype: str, device: torch.device) -> Subject:
    """The decoder of the paper's size on a short stretch."""
    from presto_models.autoencoders import Oobleck, OobleckConfig

    config = dataclasses.replace(OobleckConfig.named("presto-32s"), audio_channels=1)

    def make(seed: int) -> Call:
        torch.manual_seed(seed)
        module = Oobleck(config).to(device=device, dtype=machine.DTYPES[dtype]).eval().requires_grad_(False)
        latents = torch.randn(1, 128 if device.type == "cuda" else 4, config.latent_channels).to(
            device, machine.DTYPES[dtype]
        )
        return functools.partial(module.decode, latents)

    return Subject(make, lambda: None)


def _generate(dtype: str, device: torch.device) -> Subject:
    """The shipped model from prompt to waveform, the prompt's embedding cached."""
    from presto_models import PrestoPipeline

    def make(seed: int) -> Call:
        pipeline = PrestoPipeline.from_pretrained("presto-tiny-ls", device=device, dtype=machine.DTYPES[dtype])

        def generate() -> Tensor:
            return pipeline("slow church organ chorale", seconds=GENERATE_SECONDS, seed=seed).waveform

        return generate

    return Subject(make, lambda: None)


MODELS: dict[str, Callable[[str, torch.device], Subject]] = {
    "dit step": _step,
    "decode": _decode,
    "generate": _generate,
}
