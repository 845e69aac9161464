"""The optimisations, each as a way to do without it.

An ablation replaces names in the modules that call them, or a method of the engine at hand, while its context is
entered, and nothing else: the product has no switch for any of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import presto_kernels as fused
from bench import plain_ops as plain
from bench.product import DECODE, PARTS, PREPARE, STEPS, Denoise, Product
from presto_models import Conditioning, DiT, classifier_free
from presto_models.dit import Block
from presto_models.embeddings import rotary_tables
from presto_models.engine import Plan
from presto_models.precomputed import Step, TextCache

BITWISE, ROUNDING = "bitwise", "within rounding"
OTHER_NOISE, CHANGED = "other noise", "changed"

DIT, EDM = "presto_models.dit", "presto_models.diffusion.edm"
OOBLECK, SPECTRAL = "presto_kernels.oobleck.layers", "presto_models.autoencoders.spectral"
NOISE = ("presto_models.diffusion.noise", "presto_models.diffusion.sampling", "presto_models.diffusion.samplers")


@dataclass(frozen=True)
class Ablation:
    """One optimisation off.

    Args:
        words: what is done instead.
        off: enters the state without it; gives the product that is then asked (the same, or one of another plan).
        result: what its output is, beside that with everything on.
        parts: which parts of a generation it touches, of this product.
        missing: why it cannot be switched off here, or None.
        eager: its calls are made one by one, where all others are captured as a CUDA graph.
    """

    words: str
    off: Callable[[Product], AbstractContextManager[Product]]
    result: str
    parts: Callable[[Product], tuple[str, ...]]
    missing: Callable[[Product], str | None] = lambda product: None
    eager: bool = False

    @property
    def lossless(self) -> bool:
        """Whether the music is the same, but for rounding."""
        return self.result in (BITWISE, ROUNDING)


Names = dict[str, Callable[..., Any]]


def put(**of_module: Names) -> Callable[[Product], AbstractContextManager[Product]]:
    """A context in which these names stand for other functions; modules by the keys of `MODULES`."""

    @contextmanager
    def off(product: Product) -> Iterator[Product]:
        with ExitStack() as stack:
            for key, names in of_module.items():
                for module in MODULES[key]:
                    for name, function in names.items():
                        stack.enter_context(mock.patch.object(importlib.import_module(module), name, function))
            yield product

    return off


MODULES = {"dit": (DIT,), "oobleck": (OOBLECK,), "spectral": (SPECTRAL,), "edm": (EDM,), "noise": NOISE}


def seam_apart(x: Tensor, branch: Tensor, gate: Any, scale: Any, shift: Any, **norm: Any) -> tuple[Tensor, Tensor]:
    """gated_residual_adaln as two of our ops."""
    x = fused.gated_residual(x, branch, gate)
    return x, fused.adaln_modulate(x, scale, shift, **norm)


def prologue_apart(
    norm_rope: Callable[..., Any], attend: Callable[..., Tensor]
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """qk_norm_rope_attention as two ops."""

    def apart(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, **weights: Any) -> Tensor:
        q, k = norm_rope(q, k, cos, sin, **weights)
        return attend(q, k, v)

    return apart


def prologue_missing(product: Product) -> str | None:
    """Whether the fused kernel runs for this model's shapes is asked of PyTorch, which sees every operator called."""
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    attention = cast(Block, product.dit.blocks[0]).self_attention
    config, like = product.dit.config, attention.qkv.weight
    h = torch.zeros(1, product.plan.length, config.dim, dtype=like.dtype, device=like.device)
    with torch.no_grad(), Watch():
        attention(h, *rotary_of(product.dit, product.plan))
    if any("attention_qk_norm_rope" in name for name in seen):
        return None
    return "not used here: the two ops run one after the other"


def rotary_of(dit: DiT, plan: Plan) -> tuple[Tensor, Tensor]:
    config = dit.config
    return rotary_tables(plan.length, config.rotary_size, base=config.rotary_base, device=dit.proj_in.weight.device)


class ProjectedEachTime:
    """Text keys and values, block by block, computed whenever a block asks for its own."""

    def __init__(self, dit: DiT, tokens: Tensor) -> None:
        self.dit, self.tokens = dit, tokens

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return cast(Block, self.dit.blocks[index]).cross_attention.keys_values(self.tokens)


def uncached(*, modulation: bool, text: bool) -> Callable[[Product], AbstractContextManager[Product]]:
    """Before the steps only what is True here is computed, the rest in every step; rotary tables always before."""

    @contextmanager
    def off(product: Product) -> Iterator[Product]:
        dit, edm, schedule = product.dit, product.engine.edm, product.plan.schedule

        def prepare(plan: Plan, conditioning: Conditioning) -> Denoise:
            guidance = plan.sampling.guidance
            given = conditioning if guidance == 1 else conditioning.with_null()
            projected: Any = ProjectedEachTime(dit, given.tokens)
            if text:
                projected = tuple(projected[index] for index in range(dit.config.num_blocks))
            cache, rotary = TextCache(projected, None, None), rotary_of(dit, plan)

            def steps(levels: tuple[float, ...]) -> dict[float, Step]:
                budgets = [dit.config.num_blocks if schedule is None else schedule.budget(s) for s in levels]
                made = dit.precompute(given, levels, budgets, text=cache)
                return {step.sigma: replace(step, rotary=rotary) for step in made.steps}

            once = steps(plan.sampling.levels) if modulation else {}

            def denoise(x: Tensor, sigma: float) -> Tensor:
                step = once[sigma] if modulation else steps((sigma,))[sigma]
                return edm(x, sigma, given, precomputed=step)

            return denoise if guidance == 1 else classifier_free(denoise, guidance)

        with mock.patch.object(product.engine, "prepare", prepare):
            yield product

    return off


@contextmanager
def all_blocks(product: Product) -> Iterator[Product]:
    yield replace(product, plan=replace(product.plan, schedule=None))


def dropping_missing(product: Product) -> str | None:
    if min(product.blocks) < product.dit.config.num_blocks:
        return None
    return "not used here: every step keeps every block"


@contextmanager
def as_it_is(product: Product) -> Iterator[Product]:
    yield product


PLAIN_SPECTRAL: Names = {
    "adaln_modulate": plain.adaln_modulate,
    "gated_residual": plain.gated_residual,
    "swiglu": plain.swiglu,
}
PLAIN_SAMPLER = put(edm={"edm_denoise": plain.edm_denoise}, noise={"renoise": plain.renoise})


@contextmanager
def plain_decode(product: Product) -> Iterator[Product]:
    """Conv1d, ConvTranspose1d and Snake by hand, whole and untiled; of a spectral decoder its fused ops."""
    if product.plain_decode is None:
        with put(spectral=PLAIN_SPECTRAL)(product):
            yield product
        return
    whole = product.plain_decode
    with (
        mock.patch.object(product.engine.autoencoder, "decode", whole),
        mock.patch.object(product.engine.autoencoder, "decode_chunked", lambda latents, chunk: whole(latents)),
    ):
        yield product


@contextmanager
def all_plain(product: Product) -> Iterator[Product]:
    """Plain PyTorch: its own network and decoder, all blocks, nothing computed before the first step."""
    with (
        all_blocks(product) as full,
        PLAIN_SAMPLER(full),
        plain_decode(full),
        mock.patch.object(full.engine, "prepare", lambda plan, conditioning: full.plain_denoiser()),
    ):
        yield full


def only(*parts: str) -> Callable[[Product], tuple[str, ...]]:
    return lambda product: parts


def decoder_too(*, oobleck: bool = False) -> Callable[[Product], tuple[str, ...]]:
    """The steps, and the decoder where it has such ops."""
    return lambda product: (STEPS, DECODE) if product.spectral or oobleck else (STEPS,)


ALL_ON, ALL_OFF = "nothing", "everything"

ABLATIONS: dict[str, Ablation] = {
    "seam fusion": Ablation(
        "gated_residual, then adaln_modulate", put(dit={"gated_residual_adaln": seam_apart}), ROUNDING, only(STEPS)
    ),
    "attention prologue": Ablation(
        "qk_norm_rope, then attention",
        put(dit={"qk_norm_rope_attention": prologue_apart(fused.qk_norm_rope, fused.attention)}),
        ROUNDING,
        only(STEPS),
        prologue_missing,
    ),
    "modulation cache": Ablation(
        "modulation in every step", uncached(modulation=False, text=True), ROUNDING, only(PREPARE, STEPS)
    ),
    "text cache": Ablation(
        "text keys and values in every block", uncached(modulation=True, text=False), BITWISE, only(PREPARE, STEPS)
    ),
    "graph": Ablation(
        "every kernel launched by itself",
        as_it_is,
        ROUNDING,
        only(*PARTS),
        lambda product: None if product.engine.device.type == "cuda" else "not applicable on a CPU",
        eager=True,
    ),
    "layer dropping": Ablation(
        "all blocks in every step",
        all_blocks,
        CHANGED,
        only(PREPARE, STEPS),
        dropping_missing,
    ),
    "fused decoder": Ablation("the decoder in PyTorch's own layers", plain_decode, ROUNDING, only(DECODE)),
    "adaln": Ablation(
        "norm, modulation, residual: plain PyTorch",
        put(
            dit={"adaln_modulate": plain.adaln_modulate, "gated_residual_adaln": plain.gated_residual_adaln},
            spectral={"adaln_modulate": plain.adaln_modulate, "gated_residual": plain.gated_residual},
        ),
        ROUNDING,
        decoder_too(),
    ),
    "rotary": Ablation(
        "QK-norm and rotary: plain PyTorch",
        put(
            dit={
                "qk_norm_rope": plain.qk_norm_rope,
                "qk_norm_rope_attention": prologue_apart(plain.qk_norm_rope, fused.attention),
            }
        ),
        ROUNDING,
        only(PREPARE, STEPS),
    ),
    "attention": Ablation(
        "attention: PyTorch's SDPA",
        put(
            dit={
                "attention": plain.attention,
                "qk_norm_rope_attention": prologue_apart(fused.qk_norm_rope, plain.attention),
            }
        ),
        ROUNDING,
        only(STEPS),
    ),
    "activation": Ablation(
        "SwiGLU and Snake: plain PyTorch",
        put(dit={"swiglu": plain.swiglu}, spectral={"swiglu": plain.swiglu}, oobleck={"snake": plain.snake}),
        ROUNDING,
        decoder_too(oobleck=True),
    ),
    "sampler": Ablation("EDM's sum and the noise: plain PyTorch", PLAIN_SAMPLER, OTHER_NOISE, only(STEPS)),
    ALL_OFF: Ablation("plain PyTorch, all blocks", all_plain, CHANGED, only(*PARTS)),
}
"""Name → how to do without it."""
