"""Cases and judgement for the activations: random inputs of every shape, layout and dtype, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_kernels.ops.activation import reference
from presto_kernels.ops.activation.api import geglu, singlu, snake, swiglu
from presto_kernels.testing.tolerance import Outcome, within

OPS: dict[str, Callable[..., Tensor]] = {"swiglu": swiglu, "geglu": geglu, "singlu": singlu, "snake": snake}
TENSORS = {"swiglu": ("x",), "geglu": ("x",), "singlu": ("x",), "snake": ("x", "alpha", "beta")}
_ACTS = {"swiglu": "silu", "geglu": "gelu", "singlu": "sinpi"}


@dataclass(frozen=True)
class Case:
    """One call.  x is ``[batch, rows, 2 dim]`` for the gated ones (fewer or more axes as ``axes`` says) and
    ``[batch, rows, dim]`` for snake, whose channels are its rows.

    x is laid out as "plain", "permuted" (a transposed view), "sliced" (every other row of a longer one) or "columns"
    (some columns of wider rows, which begin at odd addresses); alpha and beta are every other element of a longer
    vector where ``strided``.
    """

    op: str
    batch: int = 2
    rows: int = 7
    dim: int = 64
    axes: int = 3
    dtype: torch.dtype = torch.float32
    alpha_dtype: torch.dtype | None = None
    beta_dtype: torch.dtype | None = None
    gate_first: bool = False
    strided: bool = False
    x_layout: str = "plain"
    size: float = 1.0  # standard deviation of x
    seed: int = 0

    def options(self) -> dict[str, bool]:
        """The keyword arguments of the op that are no tensors."""
        return {} if self.op == "snake" else {"gate_first": self.gate_first}

    def inputs(self, device: str = "cpu") -> dict[str, Tensor]:
        """Seeded inputs, as leaves that require grad."""
        generator = torch.Generator().manual_seed(self.seed)
        width = self.dim if self.op == "snake" else 2 * self.dim
        shape = [(), (width,), (self.rows, width), (self.batch, self.rows, width), (2, self.batch, self.rows, width)]

        def normal(*sizes: int) -> Tensor:
            return (torch.randn(*sizes, generator=generator) * self.size).to(self.dtype).to(device)

        def activations() -> Tensor:
            *leading, rows, width = (1, *shape[self.axes])[-max(2, self.axes) :]
            if self.x_layout == "permuted":
                x = normal(*leading, width, rows).transpose(-1, -2)
            elif self.x_layout == "sliced":
                x = normal(*leading, 2 * rows, width)[..., ::2, :]
            elif self.x_layout == "columns":
                x = normal(*leading, rows, width + 5)[..., 3:-2]
            else:
                x = normal(*leading, rows, width)
            return x[0] if self.axes == 1 else x

        def parameter(dtype: torch.dtype | None) -> Tensor:
            values = (torch.rand(2 * self.rows, generator=generator) + 0.5).to(dtype or self.dtype).to(device)
            return values[::2] if self.strided else values[: self.rows]

        made = {"x": activations()}
        if self.op == "snake":
            made |= {"alpha": parameter(self.alpha_dtype), "beta": parameter(self.beta_dtype)}
        return {name: t.detach().requires_grad_() for name, t in made.items()}


def plain(case: Case, inputs: dict[str, Tensor]) -> Tensor:
    """What a PyTorch user writes, in the dtypes that come in."""
    x = inputs["x"]
    if case.op == "snake":
        alpha, beta = inputs["alpha"][None, :, None], inputs["beta"][None, :, None]
        return (x + (1.0 / (beta + 1e-9)) * torch.sin(alpha * x).pow(2)).to(x.dtype)
    value, gate = x.chunk(2, dim=-1)
    if case.gate_first:
        value, gate = gate, value
    if case.op == "singlu":  # in bf16 pi * gate would be off by percents, and so would be what is allowed
        return value * torch.sin(3.14159265359 * gate.float()).to(gate.dtype)
    return value * (F.silu(gate) if case.op == "swiglu" else F.gelu(gate))


def oracle(case: Case, inputs: dict[str, Tensor]) -> Tensor:
    """The formula in float64."""
    if case.op == "snake":
        return reference.snake(**inputs)
    return reference.glu(inputs["x"], _ACTS[case.op], case.gate_first)


def run(case: Case, inputs: dict[str, Tensor]) -> Tensor:
    """The public op."""
    return OPS[case.op](**inputs, **case.options())


def judge(
    case: Case,
    *,
    device: str = "cpu",
    backward: bool = True,
    implementation: Callable[[Case, dict[str, Tensor]], Tensor] = run,
) -> list[Outcome]:
    """Run one case and compare the output and every gradient with the oracle."""
    inputs = case.inputs(device)
    wide = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    ours, usual, right = implementation(case, inputs), plain(case, inputs), oracle(case, wide)
    x, eps = inputs["x"], torch.finfo(case.dtype).eps
    if ours.dtype != x.dtype or not ours.is_contiguous() or ours.device != x.device:
        raise AssertionError(f"{case.op}: the result is {ours.dtype}, strides {ours.stride()}, on {ours.device}")
    outcomes = [within("y", ours, right, usual, rowwise=True, eps=eps)]
    if not backward:
        return outcomes
    generator = torch.Generator().manual_seed(case.seed + 1)
    upstream = torch.randn(ours.shape, generator=generator).to(case.dtype).to(device)
    results = [
        torch.autograd.grad(y, list(leaves.values()), upstream.to(y.dtype))
        for y, leaves in ((ours, inputs), (right, wide), (usual, inputs))
    ]
    for (name, owner), gradient, right_gradient, usual_gradient in zip(inputs.items(), *results, strict=True):
        if gradient.dtype != owner.dtype or gradient.shape != owner.shape:
            raise AssertionError(f"{case.op}: the gradient of {name} is {gradient.dtype} {list(gradient.shape)}")
        eps_of = max(eps, torch.finfo(owner.dtype).eps)  # gradients pass through tensors of x's dtype
        outcomes.append(within(f"d{name}", gradient, right_gradient, usual_gradient, rowwise=name == "x", eps=eps_of))
    return outcomes


def cases(dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)) -> list[Case]:
    """Shapes that hurt, for every op: one row, one column, tails, odd widths, views, mixed dtypes.

    Snake has several channels where its sums are long: of one or two sums PyTorch may be right by luck.
    """
    made = []
    for op in OPS:
        for dtype in dtypes:
            base = Case(op, dtype=dtype)
            made += [
                base,
                replace(base, batch=1, rows=1, dim=1),
                replace(base, rows=5 if op == "snake" else 1, dim=333),
                replace(base, rows=33, dim=1000),
                replace(base, rows=19, dim=17, size=4.0),
                replace(base, batch=3, rows=3, dim=96, x_layout="sliced"),
                replace(base, dim=40, x_layout="permuted"),
                replace(base, dim=72, x_layout="columns"),
            ]
            if op == "snake":
                wider = torch.float32 if dtype != torch.float32 else torch.bfloat16
                made += [
                    replace(base, alpha_dtype=wider, beta_dtype=wider, strided=True),
                    replace(base, alpha_dtype=wider, dim=65),
                    replace(base, beta_dtype=torch.float16, rows=5, dim=16400),
                    replace(base, dim=77, size=40.0),
                ]
            else:
                made += [
                    replace(base, axes=1, gate_first=True),
                    replace(base, axes=2, dim=2816, rows=3),
                    replace(base, axes=4, gate_first=True, dim=24),
                    replace(base, axes=4, dim=24, x_layout="sliced"),
                    replace(base, axes=2, dim=9, x_layout="columns", size=4.0),
                ]
    return made
