"""Cases and judgement for attention: random inputs of every shape, layout and mask, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_kernels.ops.attention.api import attention
from presto_kernels.testing.tolerance import Outcome, within


@dataclass(frozen=True)
class Case:
    """One call.

    ``keys`` None: as many as queries.  ``layout``: "fused" (q, k, v are views of one projection [B, N, (H + 2 Hkv) Dh],
    where there are as many keys as queries), "plain", "heads first" (transposed views of [B, H, N, Dh]) or "inner" (the
    innermost stride is not 1).  ``lengths`` are given as they stand, so that some may lie outside [0, Nk].  ``poison``
    makes what no query of a sample sees NaN and infinity.
    """

    batch: int = 2
    queries: int = 37
    keys: int | None = None
    heads: int = 2
    kv_heads: int = 2
    dim: int = 64
    dtype: torch.dtype = torch.float32
    lengths: tuple[int, ...] | None = None
    lengths_dtype: torch.dtype = torch.int32
    window: tuple[int, int] | None = None
    scale: float | None = None
    layout: str = "fused"
    poison: bool = False
    seed: int = 0

    @property
    def key_count(self) -> int:
        return self.queries if self.keys is None else self.keys

    def key_lengths(self, device: str | torch.device = "cpu") -> Tensor | None:
        return None if self.lengths is None else torch.tensor(self.lengths, dtype=self.lengths_dtype, device=device)

    def options(self, device: str | torch.device = "cpu") -> dict[str, Any]:
        """The keyword arguments of the op."""
        return {"key_lengths": self.key_lengths(device), "window": self.window, "scale": self.scale}

    def visible(self, device: str | torch.device = "cpu") -> Tensor:
        """[B, Nq, Nk]: whether query i of a sample sees key j."""
        i = torch.arange(self.queries, device=device)[:, None]
        j = torch.arange(self.key_count, device=device)
        seen = torch.ones(self.batch, self.queries, self.key_count, dtype=torch.bool, device=device)
        if self.lengths is not None:
            seen &= j < torch.tensor(self.lengths, device=device)[:, None, None]
        if self.window is not None:
            left, right = self.window
            seen &= ((left < 0) | (j >= i - left)) & ((right < 0) | (j <= i + right))
        return seen

    def inputs(self, device: str = "cpu") -> dict[str, Tensor]:
        """Seeded q, k and v, as leaves that require grad; views where the layout says so."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(self.dtype).to(device)

        def one(n: int, heads: int) -> Tensor:
            if self.layout == "heads first":
                return normal(self.batch, heads, n, self.dim).transpose(1, 2)
            if self.layout == "inner":
                return normal(self.batch, n, self.dim, heads).transpose(2, 3)
            return normal(self.batch, n, heads, self.dim)

        heads = [self.heads, self.kv_heads, self.kv_heads]
        if self.layout == "fused" and self.keys is None:
            made = normal(self.batch, self.queries, sum(heads), self.dim).split(heads, dim=2)
        else:
            made = tuple(one(n, h) for n, h in zip((self.queries, *[self.key_count] * 2), heads, strict=True))
        if self.poison:
            # The fused layout's queries are rows of the same tensor, but other columns of it.
            nobody = ~self.visible(device).any(1)
            made[1][nobody], made[2][nobody] = torch.nan, torch.inf
        return {name: t.detach().requires_grad_() for name, t in zip("qkv", made, strict=True)}


def _without_poison(case: Case, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    if not case.poison:
        return inputs
    nobody = ~case.visible(inputs["q"].device).any(1)
    clean = {name: t.detach().clone() for name, t in inputs.items()}
    clean["k"][nobody], clean["v"][nobody] = 0, 0
    return {name: t.requires_grad_() for name, t in clean.items()}


def _heads_first(case: Case, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    group = case.heads // case.kv_heads
    q, k, v = (t.transpose(1, 2) for t in inputs.values())
    return q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)


def plain(case: Case, inputs: dict[str, Tensor]) -> Tensor:
    """What a PyTorch user writes, in the dtypes that come in: SDPA with an additive mask."""
    q, k, v = _heads_first(case, inputs)
    seen = case.visible(q.device)[:, None]
    mask = None
    if not seen.all():
        mask = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, -torch.inf)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=case.scale)
    # Rows that see no key are NaN on some of SDPA's own implementations.
    return torch.where(seen.any(-1, keepdim=True), out, 0).transpose(1, 2)


def oracle(case: Case, inputs: dict[str, Tensor]) -> Tensor:
    """The formula in float64, on float64 inputs."""
    q, k, v = _heads_first(case, inputs)
    seen = case.visible(q.device)[:, None]
    scale = case.dim**-0.5 if case.scale is None else case.scale
    s = (q @ k.mT * scale).masked_fill(~seen, -torch.inf)
    # A row without keys is 0, and so is its gradient: softmax of zeros stands in for softmax of nothing.
    some = seen.any(-1, keepdim=True)
    p = torch.where(seen & some, torch.softmax(torch.where(some, s, 0), -1), 0)
    return (p @ v).transpose(1, 2)


def _cancelling(case: Case, inputs: dict[str, Tensor], upstream: Tensor) -> dict[str, Tensor]:
    """How large the terms are that cancel in dq and dk: scale p (|dp| + |D|) against |k| and |q|, dp = grad_out v^T.

    With one key to see they cancel to exactly 0, which a difference of two fp32 sums need not.
    """
    q, k, v = (t.detach() for t in _heads_first(case, inputs))
    seen = case.visible(q.device)[:, None]
    scale = case.dim**-0.5 if case.scale is None else case.scale
    p = torch.nan_to_num(torch.softmax((q @ k.mT * scale).masked_fill(~seen, -torch.inf), -1))
    dp = upstream.double().transpose(1, 2) @ v.mT
    terms = abs(scale) * p * (dp.abs() + (p * dp).sum(-1, keepdim=True).abs())
    return {"q": (terms @ k.abs()).max(), "k": (terms.mT @ q.abs()).max(), "v": q.new_zeros(())}


def run(case: Case, inputs: dict[str, Tensor]) -> Tensor:
    """The public op."""
    return attention(inputs["q"], inputs["k"], inputs["v"], **case.options(inputs["q"].device))


def _gradients(out: Tensor, inputs: dict[str, Tensor], upstream: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad(out, list(inputs.values()), upstream.to(out.dtype))
    return dict(zip(inputs, grads, strict=True))


def judge(
    case: Case,
    *,
    device: str = "cpu",
    backward: bool = True,
    implementation: Callable[[Case, dict[str, Tensor]], Tensor] = run,
) -> list[Outcome]:
    """Run one case and compare the output and every gradient with the oracle."""
    inputs = case.inputs(device)
    clean = _without_poison(case, inputs)
    wide = {name: t.detach().double().requires_grad_() for name, t in clean.items()}
    ours, common, truth = implementation(case, inputs), plain(case, clean), oracle(case, wide)
    if ours.dtype != case.dtype or not ours.is_contiguous() or ours.device != inputs["q"].device:
        raise AssertionError(f"attention: the result is {ours.dtype}, strides {ours.stride()}, on {ours.device}")
    eps = torch.finfo(case.dtype).eps
    outcomes = [within("out", ours, truth, common, rowwise=False, eps=eps)]
    empty = ~case.visible(device).any(-1)
    if ours[empty].any():
        raise AssertionError("attention: a row that sees no key is not 0")
    if not backward:
        return outcomes
    generator = torch.Generator().manual_seed(case.seed + 1)
    upstream = torch.randn(ours.shape, generator=generator).to(case.dtype).to(device)
    gradients, usual = _gradients(ours, inputs, upstream), _gradients(common, clean, upstream)
    right = _gradients(truth, wide, upstream)
    nobody = ~case.visible(device).any(1)
    fp32 = 4 * torch.finfo(torch.float32).eps
    terms = _cancelling(case, wide, upstream) if ours.numel() and case.key_count else {}
    for name, gradient in gradients.items():
        if gradient.dtype != case.dtype or gradient.shape != inputs[name].shape:
            raise AssertionError(f"attention: the gradient of {name} is {gradient.dtype} {list(gradient.shape)}")
        if name != "q" and gradient[nobody].any():
            raise AssertionError(f"attention: the gradient of {name} is not 0 for keys that nobody sees")
        # Where plain PyTorch has NaN (rows that see no key), the oracle's 0 is right.
        plain_gradient = torch.where(usual[name].isnan(), 0, usual[name])
        if terms:
            # plain may be exact by luck where what is right is a difference of much larger numbers
            plain_error = (plain_gradient.double() - right[name]).abs().clamp(min=fp32 * terms[name])
            plain_gradient = right[name] + plain_error
        outcomes.append(within(f"d{name}", gradient, right[name], plain_gradient, rowwise=False, eps=eps))
    return outcomes


def cases(dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)) -> list[Case]:
    """Shapes that hurt: N = 1, odd lengths, tails, head dims that are no power of two, every mask, grouped heads."""
    made = []
    for dtype in dtypes:
        base = Case(dtype=dtype)
        made += [
            base,
            replace(base, queries=1, batch=1, dim=32),
            replace(base, queries=1, keys=77, dim=40),
            replace(base, queries=77, keys=1, dim=48),
            replace(base, queries=131, batch=1, dim=80, heads=4, kv_heads=1),
            replace(base, queries=65, keys=131, dim=72, heads=4, kv_heads=2, layout="plain"),
            replace(base, queries=64, dim=128, layout="heads first"),
            replace(base, queries=129, batch=1, dim=96, layout="inner"),
            replace(base, dim=112, scale=0.3),
            # key lengths: none, some, all, and beyond both ends
            replace(base, lengths=(5, 37), dim=32),
            replace(base, batch=4, lengths=(0, -3, 99, 17), lengths_dtype=torch.int64, dim=32, poison=True),
            replace(base, queries=33, keys=70, lengths=(65, 1), heads=4, kv_heads=2, dim=40, poison=True),
            # windows: around, behind, ahead, only oneself, wider than the sequence
            replace(base, queries=150, batch=1, window=(17, 17), dim=32),
            replace(base, queries=150, batch=1, window=(-1, 0), dim=48, heads=2, kv_heads=1),
            replace(base, queries=100, window=(0, -1)),
            replace(base, queries=70, window=(0, 0), dim=40),
            replace(base, window=(1000, 3), dim=32),
            replace(base, queries=140, window=(3, 90), dim=32, batch=1),
            # both: a window beside key lengths leaves rows without keys
            replace(base, queries=150, window=(9, 5), lengths=(150, 60), poison=True, dim=32, heads=4, kv_heads=2),
            replace(base, queries=90, window=(-1, 4), lengths=(0, 44), poison=True, dim=64),
        ]
    return made
