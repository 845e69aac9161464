"""The CUDA kernels of ``qk_norm_rope``, run without a GPU on the emulation of CUDA's execution model, forward and
backward, on every path, against float64."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest
import torch
from emulated import build, needs_compiler
from torch import Tensor

from presto_kernels.ops.rotary import operators
from presto_kernels.testing import check
from presto_kernels.testing.rotary import Case, cases, gradients, judge

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
CODES = {F32: 0, F16: 1, BF16: 2}
SIDES = ("q", "k")

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    loaded = build("rotary", tmp_path_factory.mktemp("emulation"))
    loaded.backward_workspace.restype = ctypes.c_int64
    return loaded


class Output:
    """A result between canaries, filled with NaN, so that what is not written or written too far shows."""

    CANARY = 12345.0

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.buffer = torch.full((torch.Size(shape).numel() + 96,), self.CANARY, dtype=dtype)
        first = 16 + -(self.buffer.data_ptr() // dtype.itemsize) % (16 // dtype.itemsize)  # on 16 bytes
        self.inner = self.buffer[first : first + torch.Size(shape).numel()].view(shape)
        self.inner.fill_(float("nan"))
        self.first = first

    def take(self) -> Tensor:
        canary = torch.tensor(self.CANARY, dtype=self.buffer.dtype)
        assert (self.buffer[: self.first] == canary).all(), "written before the start"
        assert (self.buffer[self.first + self.inner.numel() :] == canary).all(), "written past the end"
        return self.inner.clone()


class Emulated:
    """``implementation`` for :func:`judge`, and what the launches were."""

    def __init__(self, library: ctypes.CDLL, order: int = 0) -> None:
        self.library, self.order = library, order
        self.forward_vectors = self.backward_vectors = False
        self.launches = ""

    def __call__(self, case: Case, inputs: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
        return _Function.apply(self, case, *inputs.values())

    def describe(self, case: Case, inputs: dict, grads: dict, outputs: dict[str, Output]) -> tuple:
        """(shape, eps, sides) as rotary.cpp reads them."""
        cos = inputs["cos"]
        half = 0 if cos is None else cos.shape[1]
        q = inputs["q"]
        shape = (q.shape[0], q.shape[3], half, operators.NORMS[case.norm], int(case.interleaved))
        table = ((ctypes.c_int64 * 27) * 2)()

        def heads(t: Tensor | None) -> tuple[int, ...]:
            return (0,) * 5 if t is None else (t.data_ptr(), CODES[t.dtype], *t.stride()[:3])

        def vector(t: Tensor | None) -> tuple[int, ...]:
            return (0, 0) if t is None else (t.data_ptr(), CODES[t.dtype])

        for i, side in enumerate(SIDES):
            x, grad = inputs[side], grads.get(side)
            if x is None or (grads and grad is None):
                continue
            names = ("k_cos", "k_sin") if side == "k" and inputs["k_cos"] is not None else ("cos", "sin")
            tables = [number for t in (inputs[n] for n in names)
                      for number in ((0, 0) if t is None else (t.data_ptr(), t.stride(0)))]  # fmt: skip
            results = (side + "'", "d" + side, f"d{side}_weight", f"d{side}_bias", f"d{side}_alpha")
            reads_x = not grads or case.norm is not None or inputs[f"{side}_weight"] is not None
            table[i][:] = [
                *x.shape[1:3], *heads(x if reads_x else None), *heads(grad), *tables,
                *vector(inputs[f"{side}_weight"]), *vector(inputs[f"{side}_bias"]), *vector(inputs[f"{side}_alpha"]),
                *(outputs[name].inner.data_ptr() if name in outputs else 0 for name in results),
            ]  # fmt: skip
        return (ctypes.c_int64 * 5)(*shape), ctypes.c_float(case.eps), table


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, emulated, case, *tensors):
        inputs = dict(zip(case.inputs(), tensors, strict=True))
        # The glue copies what has no unit inner stride.
        inputs = {
            k: t.contiguous() if k in SIDES and t is not None and t.stride(-1) != 1 else t for k, t in inputs.items()
        }
        outputs = {
            f"{side}'": Output(inputs[side].shape, inputs[side].dtype) for side in SIDES if inputs[side] is not None
        }
        arguments = emulated.describe(case, inputs, {}, outputs)
        emulated.library.set_order(emulated.order)
        emulated.forward_vectors = bool(emulated.library.by_vectors(*arguments, 0))
        assert emulated.library.forward(*arguments) == 0
        emulated.launches = emulated.library.take_launches().decode()
        ctx.emulated, ctx.case, ctx.inputs, ctx.outputs = emulated, case, inputs, outputs
        return tuple(output.take() for output in outputs.values())

    @staticmethod
    def backward(ctx, *grads):
        emulated, inputs = ctx.emulated, ctx.inputs
        of = {name[0]: grad for name, grad in zip(ctx.outputs, grads, strict=True)}
        outputs = {}
        for name, t in inputs.items():
            if t is not None and name not in ("cos", "sin", "k_cos", "k_sin"):
                outputs[f"d{name}"] = Output(t.shape, t.dtype)
        arguments = emulated.describe(ctx.case, inputs, of, outputs)
        workspace = Output((emulated.library.backward_workspace(*arguments),), F32)
        emulated.backward_vectors = bool(emulated.library.by_vectors(*arguments, 1))
        assert emulated.library.backward(*arguments, ctypes.c_void_p(workspace.inner.data_ptr())) == 0
        workspace.take()
        emulated.launches += "|" + emulated.library.take_launches().decode()
        return None, None, *(outputs[f"d{n}"].take() if f"d{n}" in outputs else None for n in inputs)


def label(case: Case) -> str:
    return ",".join(f"{k}={v}" for k, v in vars(case).items() if v != getattr(Case(), k)) or "base"


def small(case: Case) -> Case:
    """The emulation runs a thread at a time."""
    return replace(case, tokens=min(case.tokens, 6))


@pytest.mark.parametrize("case", [small(case) for case in cases()], ids=label)
def test_error_is_at_most_twice_that_of_pytorch(library, case):
    check(judge(case, implementation=Emulated(library)))


VECTORS = {  # dtype: sizes (Dh, R) of both paths
    F32: {True: [(8, 8), (16, 8), (64, 64), (80, 40), (80, 80), (128, 64), (256, 256)],
          False: [(4, 4), (12, 12), (16, 4), (17, 10), (264, 264), (64, 20)]},
    BF16: {True: [(16, 16), (32, 32), (64, 32), (80, 80), (96, 96), (128, 128), (512, 512), (64, 0)],
           False: [(8, 8), (24, 24), (80, 40), (64, 8), (17, 10), (528, 528)]},
}  # fmt: skip


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    "dtype, vectors, size", [(d, v, s) for d, by in VECTORS.items() for v, sizes in by.items() for s in sizes]
)
def test_sizes_take_the_kernel_meant_for_them(library, dtype, vectors, size, interleaved):
    dim, rotary = size
    case = Case(tokens=3, heads=5, k_heads=2, dim=dim, rotary=rotary, dtype=dtype, bias=True, interleaved=interleaved)
    emulated = Emulated(library)
    check(judge(case, implementation=emulated))
    assert (emulated.forward_vectors, emulated.backward_vectors) == (vectors, vectors)


@pytest.mark.parametrize("norm", ["rms", "layer", "l2", "dyt", None])
@pytest.mark.parametrize("dim", [64, 68])
def test_norms_and_orders(library, norm, dim):
    """Bitwise the same in whatever order threads and blocks run; several runs of tokens, and a run that is not full."""
    case = Case(
        batch=2, tokens=7, heads=11, k_tokens=5, k_heads=3, dim=dim, rotary=dim, dtype=BF16, bias=True, norm=norm
    )
    seen = []
    for order in (0, 1, 2, 2):
        emulated, inputs = Emulated(library, order), case.inputs()
        if order == 0:
            check(judge(case, implementation=emulated))
        outputs = emulated(case, inputs)
        seen.append([*outputs, *gradients(outputs, inputs, outputs).values()])
        assert emulated.forward_vectors == (dim == 64)
    for other in seen[1:]:
        assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(seen[0], other, strict=True))


def test_one_launch_serves_both_sides(library):
    emulated, case = Emulated(library), Case(tokens=5, heads=4, k_heads=2)
    check(judge(case, implementation=emulated))
    forward, backward = emulated.launches.split("|")
    assert forward.count(";") == 1
    assert backward.count(";") == 2  # the rows, and the sums of weights


def test_mixed_dtypes_and_views_that_are_not_aligned(library):
    for case, fast in (
        (Case(tokens=3, dtype=BF16, affine_dtype=F32), True),
        (Case(tokens=3, dtype=BF16, affine_dtype=F16), False),
        (Case(tokens=3, dtype=BF16, k_dtype=F32), False),
        (Case(tokens=3, dtype=F16, layout="permuted"), True),
    ):
        emulated = Emulated(library)
        check(judge(case, implementation=emulated))
        assert (emulated.forward_vectors, emulated.backward_vectors) == (fast, fast), case

    def skewed(case: Case, inputs: dict) -> tuple[Tensor, ...]:
        """The same q one element further on."""
        q = inputs["q"]
        moved = torch.cat((q.new_zeros(1), q.flatten()))[1:].view(q.shape)
        return emulated(case, inputs | {"q": moved})

    check(judge(Case(tokens=3), implementation=skewed))
    assert not emulated.forward_vectors


@pytest.mark.parametrize("seed", range(24))
def test_random_cases(library, seed):
    generator = torch.Generator().manual_seed(seed)

    def pick(*options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    dtype, dim = pick(F32, F16, BF16), pick(5, 16, 24, 32, 48, 64, 80, 128, 129)
    case = Case(
        batch=pick(1, 2, 3),
        tokens=pick(1, 2, 7),
        heads=pick(1, 2, 3, 9),
        dim=dim,
        rotary=2 * pick(0, dim // 2, dim // 4, 1),
        k_tokens=pick(None, 4),
        k_heads=pick(None, 1, 5),
        dtype=dtype,
        k_dtype=pick(dtype, dtype, dtype, F32, F16, BF16),
        affine_dtype=pick(dtype, dtype, F32, F16, BF16),
        weight=pick(True, True, False),
        bias=pick(True, False),
        norm=pick("rms", "layer", "l2", "dyt", None),
        interleaved=pick(True, False),
        layout=pick("plain", "fused", "permuted", "strided"),
        seed=seed,
    )
    check(judge(case, implementation=Emulated(library)))
