"""Cases and judgement for the AdaLN family: random inputs of every shape, layout and dtype, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_kernels.ops.modulation import reference
from presto_kernels.ops.modulation.api import adaln_modulate, gated_residual, gated_residual_adaln
from presto_kernels.testing.tolerance import Outcome, within

OPS: dict[str, Callable[..., Tensor | tuple[Tensor, Tensor]]] = {
    "adaln_modulate": adaln_modulate,
    "gated_residual": gated_residual,
    "gated_residual_adaln": gated_residual_adaln,
}
TENSORS = {
    "adaln_modulate": ("x", "scale", "shift", "weight", "bias", "alpha"),
    "gated_residual": ("x", "branch", "gate", "residual2"),
    "gated_residual_adaln": ("x", "branch", "gate", "scale", "shift", "weight", "bias", "alpha", "residual2"),
}
_ROWWISE = ("x", "branch")


@dataclass(frozen=True)
class Case:
    """One call.  A modulation (residual2 too) is laid out as "D", "1D", "BD", "B1D", "1ND", "BND", "chunk" (a chunk()
    view of [B, 6D]), or None (not given); x as "plain", "permuted" (a transposed view) or "sliced" (every other row of
    a longer one).  alpha, [1] or [], is there with norm "dyt" alone.
    """

    op: str
    batch: int = 2
    tokens: int = 7
    dim: int = 64
    dtype: torch.dtype = torch.float32
    branch_dtype: torch.dtype | None = None
    modulation_dtype: torch.dtype | None = None
    gate: str | None = "chunk"
    scale: str | None = "chunk"
    shift: str | None = "chunk"
    weight: str | None = None
    bias: str | None = None
    alpha: tuple[int, ...] = (1,)
    residual2: str | None = None
    norm: str = "layer"
    gate_fn: str = "identity"
    eps: float = 1e-6
    x_layout: str = "plain"
    offset: float = 0.0
    seed: int = 0

    def options(self) -> dict[str, object]:
        """The keyword arguments of the op that are no tensors."""
        options: dict[str, object] = {}
        if self.op != "gated_residual":
            options |= {"norm": self.norm, "eps": self.eps}
        if self.op != "adaln_modulate":
            options |= {"gate_fn": self.gate_fn}
        return options

    def inputs(self, device: str = "cpu") -> dict[str, Tensor | None]:
        """Seeded inputs, as leaves that require grad; modulations are views where the layout says so."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype).to(device)

        def activations(dtype: torch.dtype, offset: float) -> Tensor:
            b, n, d = self.batch, self.tokens, self.dim
            if self.x_layout == "permuted":
                return (normal(b, d, n, dtype=dtype) + offset).transpose(1, 2)
            if self.x_layout == "sliced":
                return (normal(b, 2 * n, d, dtype=dtype) + offset)[:, ::2]
            return normal(b, n, d, dtype=dtype) + offset

        def modulation(layout: str | None) -> Tensor | None:
            b, n, d = self.batch, self.tokens, self.dim
            dtype = self.modulation_dtype or self.dtype
            if layout is None:
                return None
            if layout == "chunk":
                return normal(b, 6 * d, dtype=dtype).chunk(6, dim=-1)[2]
            shape = {"D": (d,), "1D": (1, d), "BD": (b, d), "B1D": (b, 1, d), "1ND": (1, n, d), "BND": (b, n, d)}
            return normal(*shape[layout], dtype=dtype)

        made: dict[str, Tensor | None] = {
            "x": activations(self.dtype, self.offset),
            "branch": activations(self.branch_dtype or self.dtype, 0.0),
            "gate": modulation(self.gate),
            "scale": modulation(self.scale),
            "shift": modulation(self.shift),
            "weight": modulation(self.weight),
            "bias": modulation(self.bias),
            "residual2": modulation(self.residual2),
            "alpha": None,
        }
        if self.norm == "dyt":
            alpha = 0.25 + torch.rand(self.alpha, generator=generator)
            made["alpha"] = alpha.to(self.modulation_dtype or self.dtype).to(device)
        return {
            name: None if made[name] is None else made[name].detach().requires_grad_()  # type: ignore[union-attr]
            for name in TENSORS[self.op]
        }


def _broadcast(t: Tensor | None) -> Tensor | None:
    return t.unsqueeze(1) if t is not None and t.dim() == 2 else t


def plain(case: Case, inputs: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
    """What a PyTorch user writes, in the dtypes that come in."""
    t = {name: value if name in _ROWWISE else _broadcast(value) for name, value in inputs.items()}
    x, residual2, alpha = t["x"], t.get("residual2"), t.get("alpha")
    assert x is not None
    dtype, outputs = x.dtype, []
    if "branch" in t:
        gate, branch = t["gate"], t["branch"]
        assert branch is not None
        if gate is not None and case.gate_fn == "sigmoid_one_minus":
            gate = torch.sigmoid(1 - gate)
        x = x + (branch if gate is None else gate * branch)
        x = (x if residual2 is None else x + residual2).to(dtype)
        outputs.append(x)
    if case.op == "gated_residual":
        return tuple(outputs)
    if alpha is not None:
        h = torch.tanh(alpha * x)
    else:
        normed = F.layer_norm if case.norm == "layer" else F.rms_norm
        h = normed(x, (x.shape[-1],), eps=case.eps)
    if t["weight"] is not None:
        h = h * t["weight"]
    if t["bias"] is not None:
        h = h + t["bias"]
    if t["scale"] is not None:
        h = h * (1 + t["scale"])
    if t["shift"] is not None:
        h = h + t["shift"]
    return (*outputs, h.to(dtype))


def oracle(case: Case, inputs: dict[str, Tensor | None], stored: Tensor | None) -> tuple[Tensor, ...]:
    """The formula in float64.  ``stored`` is the x' that the judged implementation wrote: h is defined on it, and
    rounding passes gradients through unchanged."""
    t = inputs
    x = t["x"]
    assert x is not None
    outputs = []
    if "branch" in t:
        assert t["branch"] is not None
        x = reference.add_gated(x, t["branch"], t["gate"], case.gate_fn, t["residual2"])
        outputs.append(x)
        if stored is not None:
            x = x + (stored.double() - x).detach()
    if case.op == "gated_residual":
        return tuple(outputs)
    modulation = (t["scale"], t["shift"], t["weight"], t["bias"])
    return (*outputs, reference.modulate(x, *modulation, case.norm, case.eps, t["alpha"]))


def _gradients(
    outputs: tuple[Tensor, ...], inputs: dict[str, Tensor | None], upstream: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    given = {name: t for name, t in inputs.items() if t is not None}
    upstream = tuple(g.to(o.dtype) for g, o in zip(upstream, outputs, strict=True))
    return dict(zip(given, torch.autograd.grad(outputs, list(given.values()), upstream), strict=True))


def _sum_size(
    case: Case, wide: dict[str, Tensor | None], stored: Tensor | None, upstream: tuple[Tensor, ...]
) -> Tensor:
    """The norm of the terms that dalpha is the sum of: what its rounding error goes by, however far they cancel.  A
    term is the gradient of alpha x', through x', times x' / alpha."""
    x, alpha = wide["x"], wide["alpha"]
    assert x is not None and alpha is not None
    (through,) = torch.autograd.grad(oracle(case, wide, stored)[-1], x, upstream[-1].double())
    return (through * (x if stored is None else stored) / alpha).detach().norm()


def run(case: Case, inputs: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
    """The public op, its results as a tuple."""
    outputs = OPS[case.op](**inputs, **case.options())
    return outputs if isinstance(outputs, tuple) else (outputs,)


def judge(
    case: Case,
    *,
    device: str = "cpu",
    backward: bool = True,
    implementation: Callable[[Case, dict[str, Tensor | None]], tuple[Tensor, ...]] = run,
) -> list[Outcome]:
    """Run one case and compare every output and every gradient with the oracle."""
    inputs = case.inputs(device)
    wide = {name: None if t is None else t.detach().double().requires_grad_() for name, t in inputs.items()}
    ours, common = implementation(case, inputs), plain(case, inputs)
    stored, common_stored = (ours[0], common[0]) if len(ours) == 2 else (None, None)
    truth, common_truth = oracle(case, wide, stored), oracle(case, wide, common_stored)
    names = {"adaln_modulate": ("h",), "gated_residual": ("x'",), "gated_residual_adaln": ("x'", "h")}[case.op]
    eps = torch.finfo(case.dtype).eps  # gradients pass through tensors of x's dtype, whatever their own
    outcomes = [
        # h is judged against the oracle of its own x'; PyTorch's error is carried over to that oracle.
        within(name, y, right, right + (usual.double() - usual_right), rowwise=True, eps=eps)
        for name, y, right, usual, usual_right in zip(names, ours, truth, common, common_truth, strict=True)
    ]
    for y, t in zip(ours, (inputs["x"],) * len(ours), strict=True):
        assert t is not None
        if y.dtype != t.dtype or not y.is_contiguous() or y.device != t.device:
            raise AssertionError(f"{case.op}: a result is {y.dtype}, strides {y.stride()}, on {y.device}")
    if not backward:
        return outcomes
    generator = torch.Generator().manual_seed(case.seed + 1)
    upstream = tuple(torch.randn(y.shape, generator=generator).to(case.dtype).to(device) for y in ours)
    gradients, usual = _gradients(ours, inputs, upstream), _gradients(common, inputs, upstream)
    right, usual_right = _gradients(truth, wide, upstream), _gradients(common_truth, wide, upstream)
    for name, gradient in gradients.items():
        owner = inputs[name]
        assert owner is not None
        if gradient.dtype != owner.dtype or gradient.shape != owner.shape:
            raise AssertionError(f"{case.op}: the gradient of {name} is {gradient.dtype} {list(gradient.shape)}")
        # One sum of everything may cancel: it is compared as if it stood beside something of the size of its terms.
        beside: float | Tensor = 0.0
        if name == "alpha":
            beside = torch.copysign(_sum_size(case, wide, stored, upstream), right[name])
        outcomes.append(
            within(
                f"d{name}",
                gradient.double() + beside,
                right[name] + beside,
                right[name] + beside + (usual[name].double() - usual_right[name]),
                rowwise=name in _ROWWISE,
                eps=max(eps, torch.finfo(owner.dtype).eps),
            )
        )
    return outcomes


def cases(dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)) -> list[Case]:
    """Shapes that hurt, for every op: N = 1, odd lengths, tails, D = 1000, views, mixed dtypes, absent arguments."""
    made = []
    for op in OPS:
        for dtype in dtypes:
            base = Case(op, dtype=dtype)
            wider = torch.float32 if dtype != torch.float32 else torch.bfloat16
            made += [
                base,
                replace(base, tokens=1, batch=1, dim=8),
                replace(base, tokens=33, dim=1000),
                replace(base, tokens=67, batch=3, dim=96, norm="rms", weight="D"),
                replace(base, tokens=5, dim=1536, offset=3.0),
                replace(base, tokens=130, batch=1, dim=17),
                replace(base, dim=1, tokens=3, eps=1.0),
                replace(base, gate=None, scale=None, shift=None),
                replace(base, gate="D", scale="1D", shift="BD", weight="D", bias="D"),
                replace(base, gate="B1D", scale="BND", shift="1ND", weight="D", bias="D", tokens=9),
                replace(base, gate="BND", scale="D", shift="BND", norm="rms", tokens=9),
                replace(base, modulation_dtype=wider, dim=104),
                replace(base, x_layout="permuted", dim=40),
                replace(base, x_layout="sliced", dim=72),
            ]
            if op != "gated_residual":
                dyt = replace(base, norm="dyt", weight="D", bias="D", scale=None, shift=None)
                made += [
                    dyt,
                    replace(dyt, tokens=131, batch=3, dim=96, scale="chunk", shift="BD", alpha=()),
                    replace(dyt, tokens=9, dim=1000, scale="BND", shift="1ND", modulation_dtype=wider),
                    replace(dyt, tokens=1, batch=1, dim=8, weight=None, bias=None, x_layout="sliced"),
                    replace(dyt, tokens=5, dim=17, offset=3.0, gate="BND"),
                ]
            if op != "adaln_modulate":
                made += [
                    replace(base, residual2="BND", tokens=67, dim=96),
                    replace(base, residual2="BD", gate="D", gate_fn="sigmoid_one_minus", tokens=131, batch=1, dim=17),
                    replace(base, residual2="1ND", gate=None, x_layout="permuted", dim=40),
                    replace(base, residual2="D", gate=None, branch_dtype=wider, dim=1000),
                    replace(base, residual2="BND", modulation_dtype=wider, gate="BND", tokens=9, dim=104),
                    replace(base, gate_fn="sigmoid_one_minus", tokens=21),
                    replace(base, branch_dtype=wider, dim=88),
                    replace(base, gate=None, branch_dtype=wider),
                ]
            if op == "gated_residual_adaln":
                made += [replace(base, norm="dyt", residual2=layout, tokens=35, dim=72) for layout in ("BND", "chunk")]
    return made
