"""Cases and judgement for the sampler family: random inputs of every shape, layout and dtype, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from presto_kernels.ops.sampler import reference
from presto_kernels.ops.sampler.api import edm_denoise, renoise
from presto_kernels.testing.tolerance import Outcome, within

TENSORS = {"edm_denoise": ("model_output", "x", "sigma"), "renoise": ("x0", "sigma")}
OPS: dict[str, Callable[..., Tensor]] = {"edm_denoise": edm_denoise, "renoise": renoise}


@dataclass(frozen=True)
class Case:
    """One call.

    ``layout`` of x and x0: "plain", "permuted" (a sample's dimensions the other way round), "sliced" (every other index
    of a sample's first dimension), "columns" (part of a wider last dimension), or "broadcast" (one sample seen by the
    whole batch); F is plain but for "columns".  ``sigma`` (a number in renoise alone), ``seed``, ``offset``: a number,
    or None, one for each sample.
    """

    op: str
    shape: tuple[int, ...] = (2, 7, 64)
    dtype: torch.dtype = torch.float32
    output_dtype: torch.dtype | None = None
    sigma_dtype: torch.dtype = torch.float32
    sigma: float | None = None
    sigma_data: float = 0.5
    sigma_min: float = 0.0
    seed: int | None = 12345
    offset: int | None = 1
    signal: float = 1.0
    layout: str = "plain"
    random: int = 0

    def options(self, device: str = "cpu") -> dict[str, Any]:
        """The keyword arguments of the op that have no gradient."""
        if self.op == "edm_denoise":
            return {"sigma_data": self.sigma_data, "sigma_min": self.sigma_min}
        each = torch.arange(self.shape[0], device=device)
        seed = each * 2**40 - 3 if self.seed is None else self.seed
        offset = each + 5 if self.offset is None else self.offset
        return {"seed": seed, "offset": offset, "signal": self.signal}

    def inputs(self, device: str = "cpu") -> dict[str, Tensor]:
        """Seeded inputs, as leaves that require grad."""
        generator = torch.Generator().manual_seed(self.random)

        def normal(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype).to(device)

        def sample(dtype: torch.dtype, layout: str) -> Tensor:
            batch, *inner = self.shape
            if layout == "permuted":
                return normal(batch, *reversed(inner), dtype=dtype).permute(0, *range(len(inner), 0, -1))
            if layout == "sliced":
                return normal(batch, 2 * inner[0], *inner[1:], dtype=dtype)[:, ::2]
            if layout == "columns":
                return normal(batch, *inner[:-1], 2 * inner[-1] + 1, dtype=dtype)[..., 1 : inner[-1] + 1]
            if layout == "broadcast":
                return normal(1, *inner, dtype=dtype).expand(self.shape)
            return normal(*self.shape, dtype=dtype)

        x = sample(self.dtype, self.layout)
        sigma = torch.exp(1.5 * torch.randn(self.shape[0], generator=generator)).to(self.sigma_dtype).to(device)
        if self.op == "renoise":
            made = {"x0": x} if self.sigma is not None else {"x0": x, "sigma": sigma}
        else:
            output = sample(self.output_dtype or self.dtype, "columns" if self.layout == "columns" else "plain")
            made = {"model_output": output, "x": x, "sigma": sigma}
        return {name: t.detach().requires_grad_() for name, t in made.items()}


def _arguments(case: Case, inputs: dict[str, Tensor]) -> dict[str, Any]:
    return dict(inputs) if "sigma" in inputs else {**inputs, "sigma": case.sigma}


def run(case: Case, inputs: dict[str, Tensor]) -> Tensor:
    """The public op."""
    device = next(iter(inputs.values())).device.type
    return OPS[case.op](**_arguments(case, inputs), **case.options(device))


def formula(case: Case, inputs: dict[str, Tensor], eps: Tensor | None) -> Tensor:
    """What a PyTorch user writes, in the dtypes that come in; ``eps`` is the noise where the op draws some."""
    t: dict[str, Any] = _arguments(case, inputs)
    x, sigma = t["x0" if case.op == "renoise" else "x"], t["sigma"]
    if isinstance(sigma, Tensor) and sigma.shape != x.shape:
        sigma = sigma.view(-1, *[1] * (x.dim() - 1))
    if case.op == "renoise":
        return (case.signal * x + sigma * eps).to(x.dtype)
    reach = sigma - case.sigma_min
    c_skip = case.sigma_data**2 / (reach**2 + case.sigma_data**2)
    c_out = case.sigma_data * reach / (sigma**2 + case.sigma_data**2).sqrt()
    return (c_skip * x + c_out * t["model_output"]).to(x.dtype)


def _drawn(case: Case, device: str) -> tuple[torch.Size, int | Tensor, int | Tensor, torch.device]:
    """What the reference draws the noise of a case from: a seed's 64 bits as an int64 holds them."""
    seed, offset = (case.options(device)[name] for name in ("seed", "offset"))
    signed = seed - 2**64 if not isinstance(seed, Tensor) and seed >= 2**63 else seed
    return torch.Size(case.shape), signed, offset, torch.device(device)


def plain_noise(case: Case, device: str) -> Tensor:
    """Box-Muller of the same words as PyTorch does it in fp32."""
    words = reference.words(*_drawn(case, device))
    u0, u1, u2, u3 = (((word >> 8).float() + 0.5) * 2.0**-24 for word in words)
    parts = []
    for radius, turn in ((u0, u1), (u2, u3)):
        radius, angle = torch.sqrt(-2 * torch.log(radius)), 2 * math.pi * turn
        parts += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(parts, dim=-1).flatten(1)[:, : math.prod(case.shape[1:])].reshape(case.shape)


def exact_noise(case: Case, device: str) -> Tensor:
    """Box-Muller of the same words in float64."""
    return reference.normal(*_drawn(case, device))


def _gradients(output: Tensor, inputs: dict[str, Tensor], upstream: Tensor) -> dict[str, Tensor]:
    return dict(zip(inputs, torch.autograd.grad(output, list(inputs.values()), upstream.to(output.dtype)), strict=True))


def _sum_size(case: Case, wide: dict[str, Tensor], noise: Tensor | None, upstream: Tensor) -> Tensor:
    """The norm of the terms that a sample's dsigma is the sum of: what its rounding error goes by, however far the
    terms cancel."""
    x = wide["x0" if case.op == "renoise" else "x"]
    sigma = reference.per_sample(wide["sigma"].detach(), x).expand(x.shape).clone().requires_grad_()
    (terms,) = torch.autograd.grad(formula(case, wide | {"sigma": sigma}, noise), sigma, upstream.double())
    return terms.reshape(x.shape[0], -1).norm(dim=1)


def judge(
    case: Case,
    *,
    device: str = "cpu",
    backward: bool = True,
    implementation: Callable[[Case, dict[str, Tensor]], Tensor] = run,
) -> list[Outcome]:
    """Run one case and compare its output and every gradient with the formula in float64."""
    inputs = case.inputs(device)
    wide = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    noisy = case.op == "renoise"
    exact = exact_noise(case, device) if noisy else None
    ours = implementation(case, inputs)
    usual, right = formula(case, inputs, plain_noise(case, device) if noisy else None), formula(case, wide, exact)
    x = inputs["x0" if noisy else "x"]
    if ours.dtype != x.dtype or not ours.is_contiguous() or ours.device != x.device:
        raise AssertionError(f"{case.op}: the result is {ours.dtype}, strides {ours.stride()}, on {ours.device}")
    eps = torch.finfo(case.dtype).eps
    outcomes = [within("out", ours, right, usual, rowwise=True, eps=eps)]
    if not backward:
        return outcomes
    generator = torch.Generator().manual_seed(case.random + 1)
    upstream = torch.randn(case.shape, generator=generator).to(case.dtype).to(device)
    gradients, usuals, rights = (
        _gradients(y, t, upstream) for y, t in ((ours, inputs), (usual, inputs), (right, wide))
    )
    for name, gradient in gradients.items():
        owner = inputs[name]
        if gradient.dtype != owner.dtype or gradient.shape != owner.shape:
            raise AssertionError(f"{case.op}: the gradient of {name} is {gradient.dtype} {list(gradient.shape)}")
        # Sums are compared as if each stood beside something of the size of its terms.
        beside: float | Tensor = 0.0
        if name == "sigma":
            beside = torch.copysign(_sum_size(case, wide, exact, upstream), rights[name])
        compared = (t[name].double() + beside for t in (gradients, rights, usuals))
        band = max(eps, torch.finfo(owner.dtype).eps)
        outcomes.append(within(f"d{name}", *compared, rowwise=name != "sigma", eps=band))
    return outcomes


def cases(dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)) -> list[Case]:
    """Shapes that hurt, for both ops: one element, odd sizes, tails, more than a chunk, views, mixed dtypes."""
    made = []
    for op in OPS:
        for dtype in dtypes:
            base = Case(op, dtype=dtype)
            wider = torch.float32 if dtype != torch.float32 else torch.bfloat16
            made += [
                base,
                replace(base, shape=(1, 1)),
                replace(base, shape=(3,)),
                replace(base, shape=(3, 5)),
                replace(base, shape=(2, 37, 3)),
                replace(base, shape=(2, 2, 3, 50)),
                replace(base, shape=(1, 1379, 8)),
                replace(base, shape=(2, 65, 64), sigma_dtype=dtype),
                replace(base, shape=(2, 13, 40), layout="permuted"),
                replace(base, shape=(2, 70, 64), layout="sliced"),
                replace(base, shape=(2, 70, 19), layout="columns"),
                replace(base, shape=(2, 3, 5, 8), layout="columns"),
                replace(base, shape=(3, 11, 16), layout="broadcast"),
            ]
            if op == "edm_denoise":
                made += [
                    replace(base, output_dtype=wider, shape=(2, 69, 64)),
                    replace(base, output_dtype=torch.float16, shape=(2, 9, 24)),
                    replace(base, sigma_min=0.002, sigma_data=0.7),
                    replace(base, sigma_min=0.5, output_dtype=wider, layout="sliced"),
                ]
            else:
                made += [
                    replace(base, sigma=2.5, signal=0.25),
                    replace(base, seed=None, shape=(3, 9, 24)),
                    replace(base, offset=None, shape=(3, 9, 24)),
                    replace(base, seed=None, offset=None, sigma=0.3, shape=(3, 41)),
                    replace(base, seed=-(2**63), offset=2**32 - 1, layout="sliced"),
                    replace(base, seed=2**64 - 1, offset=0, signal=-1.5),
                ]
    return made
