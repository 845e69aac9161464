"""Cases and judgement for ``qk_norm_rope``: random inputs of every shape, layout and dtype, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_kernels.ops.rotary import reference
from presto_kernels.ops.rotary.api import qk_norm_rope
from presto_kernels.testing.tolerance import Outcome, within

TENSORS = (
    "q", "k", "cos", "sin", "k_cos", "k_sin", "q_weight", "k_weight", "q_bias", "k_bias", "q_alpha", "k_alpha"
)  # fmt: skip
TABLES = ("cos", "sin", "k_cos", "k_sin")
_ROWWISE = ("q", "k")


@dataclass(frozen=True)
class Case:
    """One call.  ``k_tokens`` and ``k_heads`` None: as q's; ``k_heads`` 0: no k.  ``rotary`` is R, 0 for none.

    q and k are laid out as "plain", "fused" (views of one [B, N, 3, H, Dh], where their shapes and dtypes allow it),
    "permuted" (views of [B, H, N, Dh]) or "strided" (their innermost stride is not 1).
    """

    batch: int = 2
    tokens: int = 7
    heads: int = 3
    dim: int = 64
    rotary: int = 64
    k_tokens: int | None = None
    k_heads: int | None = None
    dtype: torch.dtype = torch.float32
    k_dtype: torch.dtype | None = None
    affine_dtype: torch.dtype | None = None
    weight: bool = True
    bias: bool = False
    norm: str | None = "rms"
    eps: float = 1e-6
    alpha: float = 1.5  # with norm "dyt", q's; k's is half of it
    alpha_axes: int = 1
    interleaved: bool = False
    layout: str = "fused"
    offset: float = 0.0
    seed: int = 0

    def options(self) -> dict[str, object]:
        """The keyword arguments of the op that are no tensors."""
        return {"norm": self.norm, "eps": self.eps, "interleaved": self.interleaved}

    def inputs(self, device: str = "cpu") -> dict[str, Tensor | None]:
        """Seeded inputs; all but cos and sin are leaves that require grad."""
        generator = torch.Generator().manual_seed(self.seed)
        k_tokens = self.tokens if self.k_tokens is None else self.k_tokens
        k_heads = self.heads if self.k_heads is None else self.k_heads

        def normal(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype).to(device)

        def heads(place: int, tokens: int, heads: int, dtype: torch.dtype) -> Tensor:
            b, d = self.batch, self.dim
            if self.layout == "permuted":
                return (normal(b, heads, tokens, d, dtype=dtype) + self.offset).transpose(1, 2)
            if self.layout == "strided":
                return (normal(b, tokens, d, heads, dtype=dtype) + self.offset).transpose(2, 3)
            if self.layout == "fused":
                return (normal(b, tokens, 3, heads, d, dtype=dtype) + self.offset)[:, :, place]
            return normal(b, tokens, heads, d, dtype=dtype) + self.offset

        def tables(tokens: int) -> tuple[Tensor, Tensor]:
            angles = torch.randn(tokens, self.rotary // 2, generator=generator).to(device) * 3
            return angles.cos(), angles.sin()

        made: dict[str, Tensor | None] = dict.fromkeys(TENSORS)
        made["q"] = heads(0, self.tokens, self.heads, self.dtype)
        if self.rotary:
            made["cos"], made["sin"] = tables(self.tokens)
        sides = ["q"]
        if k_heads:
            sides.append("k")
            made["k"] = heads(1, k_tokens, k_heads, self.k_dtype or self.dtype)
            if self.rotary and self.k_tokens is not None:
                made["k_cos"], made["k_sin"] = tables(k_tokens)
        for side in sides:
            dtype = self.affine_dtype or self.dtype
            if self.weight:
                made[f"{side}_weight"] = normal(self.dim, dtype=dtype)
            if self.bias:
                made[f"{side}_bias"] = normal(self.dim, dtype=dtype)
            if self.norm == "dyt":
                alpha = torch.full((1,) * self.alpha_axes, self.alpha if side == "q" else self.alpha / 2)
                made[f"{side}_alpha"] = alpha.to(dtype).to(device)
        return {name: t if t is None or name in TABLES else t.detach().requires_grad_() for name, t in made.items()}


def _of(side: str, inputs: dict[str, Tensor | None]) -> tuple[Tensor | None, ...]:
    """x, cos, sin, weight, bias, alpha of q or k."""
    tables = ("k_cos", "k_sin") if side == "k" and inputs["k_cos"] is not None else ("cos", "sin")
    return tuple(inputs[name] for name in (side, *tables, f"{side}_weight", f"{side}_bias", f"{side}_alpha"))


def plain(case: Case, inputs: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
    """What a PyTorch user writes: the norm in the dtype that comes in, the rotation in fp32."""
    outputs = []
    for side in ("q", "k"):
        x, cos, sin, weight, bias, alpha = _of(side, inputs)
        if x is None:
            continue
        y = x
        if case.norm == "rms":
            y = F.rms_norm(x, (case.dim,), eps=case.eps)
        elif case.norm == "layer":
            y = F.layer_norm(x, (case.dim,), eps=case.eps)
        elif case.norm == "l2":
            y = F.normalize(x, dim=-1, eps=case.eps)
        elif alpha is not None:
            y = torch.tanh(alpha * x)
        if weight is not None:
            y = y * weight
        if bias is not None:
            y = y + bias
        if cos is not None and sin is not None:
            y = reference.rotate(y.float(), cos, sin, case.interleaved)
        outputs.append(y.to(x.dtype))
    return tuple(outputs)


def oracle(case: Case, inputs: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
    """The formula, on float64 inputs."""
    outputs = []
    for side in ("q", "k"):
        x, cos, sin, weight, bias, alpha = _of(side, inputs)
        if x is not None:
            outputs.append(reference.norm_rope(x, cos, sin, weight, bias, alpha, case.norm, case.eps, case.interleaved))
    return tuple(outputs)


def run(case: Case, inputs: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
    """The public op; one result where there is no k."""
    q, k = qk_norm_rope(**inputs, **case.options())  # type: ignore[arg-type, type-var]
    return (q,) if k is None else (q, k)  # type: ignore[return-value]


def gradients(
    outputs: tuple[Tensor, ...], inputs: dict[str, Tensor | None], upstream: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """The gradient of every input that has one."""
    given = {name: t for name, t in inputs.items() if t is not None and name not in TABLES}
    upstream = tuple(g.to(o.dtype) for g, o in zip(upstream, outputs, strict=True))
    return dict(zip(given, torch.autograd.grad(outputs, list(given.values()), upstream), strict=True))


def _sum_size(case: Case, wide: dict[str, Tensor | None], side: str, upstream: tuple[Tensor, ...]) -> Tensor:
    """The norm of the terms of dalpha: what its rounding error goes by, however far the terms cancel."""
    x, alpha = wide[side], wide[f"{side}_alpha"]
    assert x is not None and alpha is not None
    n = torch.tanh(alpha * x).detach().requires_grad_()
    place = ("q", "k").index(side)
    (dn,) = torch.autograd.grad(oracle(replace(case, norm=None), wide | {side: n})[place], n, upstream[place].double())
    return (dn * (1 - n * n) * x).detach().norm()


def judge(
    case: Case,
    *,
    device: str = "cpu",
    backward: bool = True,
    implementation: Callable[[Case, dict[str, Tensor | None]], tuple[Tensor, ...]] = run,
) -> list[Outcome]:
    """Run one case and compare every output and every gradient with the oracle."""
    inputs = case.inputs(device)
    wide = {
        name: None if t is None else t.detach().double().requires_grad_(t.requires_grad) for name, t in inputs.items()
    }
    ours, common, truth = implementation(case, inputs), plain(case, inputs), oracle(case, wide)
    outcomes = []
    for name, y, usual, right in zip(("q", "k"), ours, common, truth, strict=False):
        x = inputs[name]
        assert x is not None
        if y.dtype != x.dtype or y.shape != x.shape or not y.is_contiguous() or y.device != x.device:
            raise AssertionError(f"{name}: the result is {y.dtype} {list(y.shape)}, strides {y.stride()}, {y.device}")
        outcomes.append(within(f"{name}'", y, right, usual, rowwise=True, eps=torch.finfo(x.dtype).eps))
    if not backward:
        return outcomes
    generator = torch.Generator().manual_seed(case.seed + 1)
    upstream = tuple(torch.randn(y.shape, generator=generator).to(y.dtype).to(device) for y in ours)
    usual_gradients, right_gradients = gradients(common, inputs, upstream), gradients(truth, wide, upstream)
    found = gradients(ours, inputs, upstream)
    for name, gradient in found.items():
        owner = inputs[name]
        assert owner is not None
        if gradient.dtype != owner.dtype or gradient.shape != owner.shape:
            raise AssertionError(f"the gradient of {name} is {gradient.dtype} {list(gradient.shape)}")
        # Gradients pass through tensors of q's and k's dtypes, whatever their own.
        eps = max(torch.finfo(t.dtype).eps for t in (owner, *ours))
        compared = [of[name] for of in (found, right_gradients, usual_gradients)]
        if name.endswith("_alpha") and owner.numel():  # compared as if it stood beside something of its terms' size
            beside = torch.copysign(_sum_size(case, wide, name[0], upstream), compared[1])
            compared = [t.double() + beside for t in compared]
        outcomes.append(within(f"d{name}", *compared, rowwise=name in _ROWWISE, eps=eps))
    return outcomes


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases(dtypes: tuple[torch.dtype, ...] = DTYPES) -> list[Case]:
    """Shapes that hurt: N = 1, odd lengths and sizes, GQA, other key lengths, views, mixed dtypes, what is absent."""
    made = []
    for dtype in dtypes:
        base = Case(dtype=dtype)
        wider = torch.float32 if dtype != torch.float32 else torch.bfloat16
        made += [
            base,
            replace(base, batch=1, tokens=1, heads=1, dim=8, rotary=8),
            replace(base, heads=5, rotary=32, bias=True, norm="layer"),
            replace(base, dim=128, rotary=128, heads=4, k_heads=2, affine_dtype=wider),
            replace(base, dim=128, rotary=64, norm="layer", offset=3.0, bias=True),
            replace(base, dim=32, rotary=32, norm="l2", heads=9),
            replace(base, dim=96, rotary=96, tokens=5, k_tokens=9, k_heads=1),
            replace(base, dim=80, rotary=80, bias=True, heads=2),
            replace(base, dim=80, rotary=40, norm=None, weight=False),
            replace(base, interleaved=True, heads=4),
            replace(base, dim=128, rotary=128, interleaved=True, bias=True, norm="layer"),
            replace(base, rotary=32, interleaved=True),
            replace(base, dim=17, rotary=10, tokens=67, k_tokens=3),
            replace(base, dim=17, rotary=6, interleaved=True, bias=True, norm="layer"),
            replace(base, dim=256, rotary=256, heads=2, tokens=3),
            replace(base, tokens=3, heads=1, dim=2, rotary=2, eps=1.0),
            replace(base, tokens=2, heads=1, dim=1, rotary=0, eps=1.0),
            replace(base, rotary=0, bias=True),
            replace(base, dim=128, rotary=0, norm="l2", weight=False),
            replace(base, norm=None, weight=False, rotary=64),
            replace(base, norm=None, bias=True),
            replace(base, norm=None, weight=False, rotary=0),
            replace(base, norm="l2", eps=8.0, rotary=32),  # some heads shorter than eps, some longer
            replace(base, k_heads=0, weight=False),
            replace(base, k_dtype=wider, affine_dtype=wider, dim=40, rotary=16),
            replace(base, layout="permuted", dim=48, rotary=24),
            replace(base, layout="strided", dim=24, rotary=24),
            replace(base, layout="plain", tokens=131, heads=2),
            replace(base, norm="dyt", rotary=32, bias=True, alpha_axes=0),
            replace(base, norm="dyt", dim=128, rotary=128, k_heads=2, affine_dtype=wider, alpha=4.0),
            replace(base, norm="dyt", dim=80, rotary=40, tokens=5, k_tokens=9, k_heads=1, bias=True),
            replace(base, norm="dyt", dim=17, rotary=10, tokens=67, weight=False, interleaved=True),
            replace(base, norm="dyt", interleaved=True, k_heads=0),
            replace(base, norm="dyt", dim=1, rotary=0, tokens=2, heads=1, layout="plain"),
        ]
    return made
