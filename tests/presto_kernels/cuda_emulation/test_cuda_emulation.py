"""The CUDA kernels of the AdaLN family, run without a GPU: ``csrc/cuda`` is compiled by g++ on a small emulation of
CUDA's execution model (``include/cuda_runtime.h``) and compared with float64, forward and backward, on every path.

It shows indices, masks, barriers, formulas and the order of sums; not speed, and not what only hardware does."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field, replace

import pytest
import torch
from emulated import build, needs_compiler
from torch import Tensor

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
CODES = {F32: 0, F16: 1, BF16: 2}
NORMS = {None: 0, "layer": 1, "rms": 2, "dyt": 3}
GATE_FNS = {"identity": 0, "sigmoid_one_minus": 1}
MODULATIONS = ("gate", "scale", "shift", "weight", "bias")
OWNERS = ("x", "branch", *MODULATIONS, "alpha", "residual2")  # of gradients
MULTIPROCESSORS = 3

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    loaded = build("seam", tmp_path_factory.mktemp("emulation"))
    loaded.backward_workspace.restype = loaded.visited_once.restype = ctypes.c_int64
    loaded.visited_once.argtypes = [ctypes.c_int64] * 2
    return loaded


@dataclass(frozen=True)
class Case:
    """One call. A modulation (residual2 too) is given by its layout, any of "D", "1D", "BD", "B1D", "BND", "1ND", or
    None (not given); ``pad`` is the number of elements between the rows of each tensor, or of ``padded`` alone, and
    ``skew`` the element at which it starts."""

    batch: int = 2
    tokens: int = 5
    dim: int = 64
    dtype: torch.dtype = F32
    branch_dtype: torch.dtype | None = None
    modulation_dtype: torch.dtype | None = None
    norm: str | None = "layer"
    gate_fn: str = "identity"
    with_branch: bool = True
    gate: str | None = "BD"
    scale: str | None = "BD"
    shift: str | None = "BD"
    weight: str | None = None
    bias: str | None = None
    residual2: str | None = None
    residual2_dtype: torch.dtype | None = None
    pad: int = 0
    skew: int = 0
    padded: str | None = None
    grad_x: bool = True
    grad_h: bool = True
    wanted: tuple[str, ...] = OWNERS
    eps: float = 1e-6
    mean: float = 0.5


@dataclass
class Run:
    case: Case
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor] = field(default_factory=dict)
    launches: str = ""


def strided(values: Tensor, pad: int, skew: int) -> Tensor:
    """``values`` with ``pad`` elements between rows, inside a buffer of NaN, so that a read out of bounds shows."""
    width = values.shape[-1] + pad
    strides = [1]
    for size in reversed(values.shape[1:]):
        strides.insert(0, width if len(strides) == 1 else strides[0] * size)
    buffer = torch.full((values.numel() // values.shape[-1] * width + 96,), float("nan"), dtype=values.dtype)
    view = buffer.as_strided(values.shape, strides, first_aligned(buffer) + skew)
    view.copy_(values)
    return view


def place(case: Case, name: str, values: Tensor) -> Tensor:
    return strided(values, case.pad, case.skew) if case.padded in (None, name) else strided(values, 0, 0)


def first_aligned(buffer: Tensor) -> int:
    """The first element from the 16th on that lies on a 16-byte boundary."""
    return 16 + -(buffer.data_ptr() // buffer.element_size()) % (16 // buffer.element_size())


def shape_of(case: Case, layout: str) -> tuple[int, ...]:
    sizes = {"B": case.batch, "N": case.tokens, "D": case.dim, "1": 1}
    return tuple(sizes[letter] for letter in layout)


def make_inputs(case: Case, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, *shape: int, dtype: torch.dtype, mean: float = 0.0) -> None:
        inputs[name] = place(case, name, (torch.randn(*shape, generator=generator) + mean).to(dtype))

    inputs: dict[str, Tensor] = {}
    rows = (case.batch, case.tokens, case.dim)
    draw("x", *rows, dtype=case.dtype, mean=case.mean)
    if case.with_branch:
        draw("branch", *rows, dtype=case.branch_dtype or case.dtype)
    for name in MODULATIONS:
        if (layout := getattr(case, name)) is not None and (name != "gate" or case.with_branch):
            draw(name, *shape_of(case, layout), dtype=case.modulation_dtype or case.dtype)
    if case.norm == "dyt":
        draw("alpha", 1, dtype=case.modulation_dtype or case.dtype, mean=1.0)
    if case.residual2 and case.with_branch:
        draw("residual2", *shape_of(case, case.residual2), dtype=case.residual2_dtype or case.dtype)
    for name in ("grad_x", "grad_h"):
        if getattr(case, name):
            draw(name, *rows, dtype=case.dtype)
    return inputs


def describe(case: Case, inputs: dict[str, Tensor]) -> ctypes.Array:
    table = ((ctypes.c_int64 * 6) * 11)()
    for i, name in enumerate((*OWNERS, "grad_x", "grad_h")):
        t = inputs.get(name)
        if t is None:
            continue
        batch_stride = row_stride = 0
        per_sample = per_token = False
        if t.dim() >= 2:
            per_sample = t.shape[0] == case.batch
            batch_stride = t.stride(0) if per_sample and case.batch > 1 else 0
        if t.dim() == 3:
            per_token = t.shape[1] == case.tokens and case.tokens > 1
            row_stride = t.stride(1) if per_token else 0
        table[i][:] = [t.data_ptr(), CODES[t.dtype], batch_stride, row_stride, int(per_sample), int(per_token)]
    return table


def shape_numbers(case: Case) -> ctypes.Array:
    return (ctypes.c_int64 * 5)(case.batch, case.tokens, case.dim, NORMS[case.norm], GATE_FNS[case.gate_fn])


class Output:
    """An output buffer between canaries, filled with NaN, so that what is not written or written too far shows."""

    CANARY = 12345.0

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape, self.numel = shape, torch.Size(shape).numel()
        self.buffer = torch.full((self.numel + 96,), self.CANARY, dtype=dtype)
        self.offset = first_aligned(self.buffer)
        self.inner = self.buffer[self.offset : self.offset + self.numel]
        self.inner.fill_(float("nan"))

    @property
    def pointer(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.inner.data_ptr())

    def take(self) -> Tensor:
        canary = torch.tensor(self.CANARY, dtype=self.buffer.dtype)
        assert (self.buffer[: self.offset] == canary).all(), "written before the start"
        assert (self.buffer[self.offset + self.numel :] == canary).all(), "written past the end"
        return self.inner.view(self.shape).clone()


def emulate_forward(library: ctypes.CDLL, case: Case, inputs: dict[str, Tensor], order: int = 0) -> Run:
    library.set_order(order)
    rows = (case.batch, case.tokens, case.dim)
    outputs = {}
    if case.with_branch:
        outputs["x_new"] = Output(rows, case.dtype)
    if case.norm:
        outputs["h"] = Output(rows, case.dtype)
    if case.norm in ("layer", "rms"):
        outputs["stats"] = Output((case.batch, case.tokens, 2), F32)
    pointers = [outputs[name].pointer if name in outputs else None for name in ("x_new", "h", "stats")]
    error = library.forward(shape_numbers(case), ctypes.c_float(case.eps), describe(case, inputs), *pointers)
    assert error == 0
    return Run(case, inputs, {name: o.take() for name, o in outputs.items()}, library.take_launches().decode())


def emulate_backward(
    library: ctypes.CDLL, case: Case, inputs: dict[str, Tensor], x_new: Tensor, stats: Tensor, order: int = 0
) -> Run:
    library.set_order(order)
    given = dict(inputs, x=place(case, "x", x_new))
    outputs: dict[str, Output | None] = {}
    for name in OWNERS:
        there = name in inputs and name in case.wanted
        outputs[name] = Output(tuple(given[name].shape), given[name].dtype) if there else None
    table = describe(case, given)
    size = library.backward_workspace(shape_numbers(case), table, MULTIPROCESSORS)
    workspace = Output((size,), F32)
    pointers = (ctypes.c_void_p * 9)(*(o.pointer if o else None for o in outputs.values()))
    error = library.backward(
        shape_numbers(case), table, ctypes.c_void_p(stats.data_ptr()), pointers, workspace.pointer, MULTIPROCESSORS
    )
    assert error == 0
    workspace.take()
    taken = {name: o.take() for name, o in outputs.items() if o}
    return Run(case, inputs, taken, library.take_launches().decode())


def over_tokens(t: Tensor) -> Tensor:
    return t.double().unsqueeze(1) if t.dim() == 2 else t.double()


def add_gated(case: Case, leaf: dict[str, Tensor]) -> Tensor:
    if "branch" not in leaf:
        return leaf["x"].double()
    gate = over_tokens(leaf["gate"]) if "gate" in leaf else torch.ones((), dtype=torch.float64)
    if "gate" in leaf and case.gate_fn == "sigmoid_one_minus":
        gate = torch.sigmoid(1 - gate)
    stream = leaf["x"].double() + gate * leaf["branch"].double()
    return stream + over_tokens(leaf["residual2"]) if "residual2" in leaf else stream


def modulate(case: Case, leaf: dict[str, Tensor], x: Tensor) -> Tensor:
    if case.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    if case.norm == "dyt":
        h = torch.tanh(leaf["alpha"].double() * x)
    else:
        h = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + case.eps)
    if "weight" in leaf:
        h = h * over_tokens(leaf["weight"])
    if "bias" in leaf:
        h = h + over_tokens(leaf["bias"])
    if "scale" in leaf:
        h = h * (1 + over_tokens(leaf["scale"]))
    if "shift" in leaf:
        h = h + over_tokens(leaf["shift"])
    return h


def close(got: Tensor, oracle: Tensor, name: str, slack: float = 4.0) -> None:
    """Within the rounding of the stored dtype plus ``slack`` fp32 roundings of the largest value."""
    assert not got.isnan().any(), f"{name}: not written"
    got, bound = got.double(), oracle.abs() * torch.finfo(got.dtype).eps * 0.51
    bound = bound + slack * torch.finfo(F32).eps * (oracle.abs().amax() + 1) + torch.finfo(F16).tiny * 2.0**-10
    worst = ((got - oracle).abs() / bound).max() if got.numel() else torch.zeros(())
    assert worst <= 1, f"{name}: {float(worst):.2f} times the tolerance"


def check(library: ctypes.CDLL, case: Case, seed: int = 0, orders: tuple[int, ...] = (0, 2)) -> tuple[Run, Run]:
    """Forward and backward of a case against float64, and bitwise the same in whatever order threads and blocks run."""
    inputs = make_inputs(case, seed)
    forward = emulate_forward(library, case, inputs, orders[0])
    x_new = forward.outputs.get("x_new", inputs["x"])
    close(x_new, add_gated(case, inputs), "x_new")
    if case.norm:
        close(forward.outputs["h"], modulate(case, inputs, x_new.double()), "h", slack=16)

    stats = forward.outputs.get("stats", torch.zeros(1))
    backward = emulate_backward(library, case, inputs, x_new, stats, orders[0])
    leaf = {name: inputs[name].double().requires_grad_() for name in OWNERS if name in inputs}
    stream = add_gated(case, leaf)
    stored = stream + (x_new.double() - stream).detach()  # the norm sees x' as stored
    loss = torch.zeros((), dtype=torch.float64)
    if case.grad_x:
        loss = loss + (stream * inputs["grad_x"].double()).sum()
    if case.grad_h and case.norm:
        loss = loss + (modulate(case, leaf, stored) * inputs["grad_h"].double()).sum()
    grads = torch.autograd.grad(loss, [leaf[name] for name in backward.outputs], allow_unused=True)
    for name, grad in zip(backward.outputs, grads, strict=True):
        oracle = grad if grad is not None else torch.zeros_like(leaf[name])
        # One sum of everything errs with the number of its terms.
        close(backward.outputs[name], oracle, f"d{name}", slack=64 * (x_new.numel() ** 0.5 if name == "alpha" else 1))

    for order in orders[1:]:
        assert_same_bits(emulate_forward(library, case, inputs, order), forward)
        assert_same_bits(emulate_backward(library, case, inputs, x_new, stats, order), backward)
    return forward, backward


def assert_same_bits(a: Run, b: Run) -> None:
    for name, expected in b.outputs.items():
        assert torch.equal(a.outputs[name].view(torch.uint8), expected.view(torch.uint8)), name


def rows_path(forward: Run, backward: Run) -> tuple[bool, bool]:
    """Whether the forward took several rows a block, and whether the backward did without seam_backward_columns, whose
    blocks are 128 x 1."""
    grid = [int(n) for n in forward.launches.split(";")[0].split(",")]
    return grid[0] < forward.case.tokens, ",128,1;" not in backward.launches


DTYPES = [
    (x, branch, modulation) for x in (F32, F16, BF16) for branch in (F32, F16, BF16) for modulation in (F32, F16, BF16)
]


@pytest.mark.parametrize(("dtype", "branch_dtype", "modulation_dtype"), DTYPES)
def test_dtypes(library, dtype, branch_dtype, modulation_dtype):
    case = Case(
        dim=72,
        tokens=6,
        dtype=dtype,
        branch_dtype=branch_dtype,
        modulation_dtype=modulation_dtype,
        weight="D",
        bias="D",
    )
    forward, backward = check(library, case)
    fast = branch_dtype in (dtype, F32) or dtype == F32
    fast = fast and modulation_dtype in (dtype, F32)
    assert rows_path(forward, backward) == (fast, fast)


@pytest.mark.parametrize("norm", ["layer", "rms", "dyt", None])
@pytest.mark.parametrize("gate_fn", ["identity", "sigmoid_one_minus"])
@pytest.mark.parametrize("modulation_dtype", [BF16, F16])
def test_norms_and_gates(library, norm, gate_fn, modulation_dtype):
    """``modulation_dtype`` bf16 takes the rows path beside a bf16 x, fp16 the other."""
    case = Case(
        dim=256,
        tokens=9,
        dtype=BF16,
        modulation_dtype=modulation_dtype,
        norm=norm,
        gate_fn=gate_fn,
        weight="D",
        bias="D",
    )
    forward, backward = check(library, case)
    assert rows_path(forward, backward)[0] == (modulation_dtype == BF16)


@pytest.mark.parametrize(("dtype", "branch_dtype", "modulation_dtype"), DTYPES)
@pytest.mark.parametrize("residual2_dtype", [F32, BF16])
def test_dtypes_of_dyt_and_residual2(library, dtype, branch_dtype, modulation_dtype, residual2_dtype):
    given = {"dtype": dtype, "branch_dtype": branch_dtype, "modulation_dtype": modulation_dtype}
    given |= {"dim": 72, "tokens": 6, "norm": "dyt", "weight": "D", "bias": "D"}
    fast = branch_dtype == dtype and modulation_dtype in (dtype, F32)
    assert rows_path(*check(library, Case(**given))) == (fast, fast)
    for layout in ("BD", "BND"):
        case = Case(**given, residual2=layout, residual2_dtype=residual2_dtype)
        same = fast and residual2_dtype == dtype
        assert rows_path(*check(library, case)) == (same, fast and (same or layout == "BD"))


@pytest.mark.parametrize("norm", ["layer", "rms", "dyt", None])
@pytest.mark.parametrize("layout", ["D", "1D", "BD", "B1D", "11D", "1ND", "BND"])
@pytest.mark.parametrize("modulation_dtype", [BF16, F16])
def test_layouts_of_residual2(library, layout, norm, modulation_dtype):
    given = {"batch": 3, "tokens": 9, "dim": 264, "dtype": BF16, "modulation_dtype": modulation_dtype, "norm": norm}
    forward, backward = check(library, Case(**given, residual2=layout, weight="D", gate_fn="sigmoid_one_minus"))
    # A row by token that the samples share is left to the kernels that walk the samples.
    assert rows_path(forward, backward) == (modulation_dtype == BF16, modulation_dtype == BF16 and layout != "1ND")


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("dim", [1, 3, 8, 31, 100, 384, 1001, 1536, 1540, 3072, 3080])
def test_dims_of_dyt_and_residual2(library, dtype, dim):
    """Backward, 384 vectors are the widest row that one pass takes."""
    forward, backward = check(library, Case(tokens=3, dim=dim, dtype=dtype, norm="dyt", residual2="BND", weight="D"))
    vector = 16 // dtype.itemsize
    assert rows_path(forward, backward)[1] == (dim % vector == 0 and dim <= 384 * vector)
    check(library, Case(batch=1, tokens=41, dim=dim, dtype=dtype, norm="dyt", residual2="D"), orders=(0, 1, 2))


@pytest.mark.parametrize("modulation_dtype", [F32, F16])
@pytest.mark.parametrize("absent", [*MODULATIONS, "scale shift", "weight bias", " ".join(MODULATIONS), "branch"])
def test_absent_modulation(library, absent, modulation_dtype):
    given = {"gate": "BD", "scale": "BD", "shift": "BD", "weight": "D", "bias": "D", "with_branch": True}
    given |= {"with_branch": False} if absent == "branch" else dict.fromkeys(absent.split())
    check(library, Case(modulation_dtype=modulation_dtype, gate_fn="sigmoid_one_minus", **given))


@pytest.mark.parametrize("layout", ["D", "1D", "BD", "B1D", "11D", "1ND", "BND"])
@pytest.mark.parametrize("who", [*MODULATIONS, "gate scale shift", "all"])
def test_layouts(library, layout, who):
    names = MODULATIONS if who == "all" else who.split()
    given = {"gate": "BD", "scale": "1D", "shift": "D", "weight": "D", "bias": "D"} | dict.fromkeys(names, layout)
    case = Case(batch=3, tokens=4, dim=24, gate_fn="sigmoid_one_minus", **given)
    forward, backward = check(library, case)
    assert rows_path(forward, backward) == (("N" not in layout),) * 2


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 33])
def test_counts(library, batch, tokens):
    check(library, Case(batch=batch, tokens=tokens, dim=40, dtype=BF16, weight="D", bias="D"))
    check(library, Case(batch=batch, tokens=tokens, dim=40, gate="BND", shift="1ND", weight="D", bias="D"))


@pytest.mark.parametrize("dim", [96, 384, 640])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_many_rows_in_any_order(library, dim, norm):
    """Rounds of rows reuse shared memory: two buffers in turn, so that a fast warp cannot overtake a slow one."""
    check(library, Case(batch=1, tokens=41, dim=dim, norm=norm, weight="D"), orders=(0, 1, 2, 2, 2))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7, 8, 31, 33, 100, 255, 256, 257, 1000, 1001, 1024])
def test_dims(library, dtype, dim):
    check(library, Case(batch=2, tokens=3, dim=dim, dtype=dtype, weight="D"))


@pytest.mark.parametrize(
    ("dtype", "dim", "expected"),
    [
        (F32, 1536, (True, True)),  # the last with one vector a thread in the forward
        (F32, 1540, (True, True)),
        (F32, 2052, (True, False)),  # past the backward's 512 vectors
        (F32, 3072, (True, False)),
        (F32, 3076, (False, False)),
        (BF16, 3080, (True, True)),
        (BF16, 4096, (True, True)),
        (BF16, 6152, (False, False)),
        (BF16, 10001, (False, False)),
    ],
)
def test_wide_rows(library, dtype, dim, expected):
    case = Case(batch=1, tokens=5, dim=dim, dtype=dtype, gate_fn="sigmoid_one_minus", bias="D")
    assert rows_path(*check(library, case, orders=(0,))) == expected


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("pad", "skew"), [(0, 1), (8, 0), (16, 8), (1, 0), (4, 4), (3, 5)])
def test_strides_and_alignment(library, dtype, pad, skew):
    for given in ({}, {"gate": "BND", "scale": "1ND", "shift": "BND", "branch_dtype": F32, "modulation_dtype": F16}):
        forward, backward = check(library, Case(dtype=dtype, dim=48, pad=pad, skew=skew, weight="D", bias="D", **given))
        vector = 16 // dtype.itemsize
        fast = not given and pad % vector == 0 and skew % vector == 0
        assert rows_path(forward, backward) == (fast, fast)


@pytest.mark.parametrize("tokens", [3, 4])
@pytest.mark.parametrize("who", ["x", "branch", *MODULATIONS, "residual2", "grad_x", "grad_h"])
def test_one_tensor_out_of_line(library, who, tokens):
    """Every tensor can send a call to the kernels for any alignment: 3 rows of 49 put the next sample off the 16 bytes,
    4 rows only each other."""
    case = Case(batch=2, tokens=tokens, dim=48, pad=1, padded=who, weight="BD", bias="BD", residual2="BND")
    forward, backward = check(library, case)
    # The backward does not read residual2.
    assert rows_path(forward, backward) == (who.startswith("grad"), who == "residual2")


@pytest.mark.parametrize("modulation_dtype", [F32, F16])
@pytest.mark.parametrize("grads", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize(
    "wanted",
    [("x",), ("branch",), ("gate",), ("scale", "bias"), ("shift",), ("weight",), ("alpha",), ("residual2",), OWNERS],
)
def test_absent_gradients(library, grads, wanted, modulation_dtype):
    case = Case(
        grad_x=grads[0], grad_h=grads[1], wanted=wanted, modulation_dtype=modulation_dtype, weight="D", bias="D", dim=32
    )
    for residual2 in ("BD", "BND"):
        check(library, replace(case, norm="dyt", residual2=residual2))
    if wanted not in (("alpha",), ("residual2",)):
        check(library, case)
    if grads[0] and wanted != ("alpha",):
        check(library, replace(case, norm=None, residual2="D"))
    if grads[0] and wanted not in (("alpha",), ("residual2",)):
        check(library, replace(case, norm=None))


@pytest.mark.parametrize("modulation_dtype", [F32, F16])
def test_variance_is_taken_of_the_centred_row(library, modulation_dtype):
    """A one-pass variance in fp32 loses every digit here: the mean is 3000 times the deviation."""
    case = Case(with_branch=False, mean=3000.0, dim=512, tokens=2, modulation_dtype=modulation_dtype)
    inputs = make_inputs(case)
    got = emulate_forward(library, case, inputs).outputs["h"].double()
    oracle = modulate(case, inputs, inputs["x"].double())
    # The mean itself is known to about half an ulp of 3000.
    assert (got - oracle).abs().max() < 3000 * torch.finfo(F32).eps * 4


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("dim", [72, 1544, 75])
@pytest.mark.parametrize("norm", ["layer", "dyt"])
def test_paths_agree_bitwise(library, dtype, dim, norm):
    """h of the fused op is adaln_modulate of x', whichever kernel each of the two takes."""
    plain = Case(dtype=dtype, dim=dim, weight="D", bias="D", gate_fn="sigmoid_one_minus", norm=norm, residual2="BND")
    for fused in (plain, replace(plain, branch_dtype=F16), replace(plain, pad=3, skew=1)):
        inputs = make_inputs(fused)
        whole = emulate_forward(library, fused, inputs)
        rest = {k: strided(v, 0, 0) for k, v in inputs.items() if k not in ("branch", "gate", "residual2")}
        rest["x"] = strided(whole.outputs.pop("x_new"), 0, 0)
        part = emulate_forward(library, replace(plain, with_branch=False), rest)
        assert_same_bits(part, whole)


def test_a_grid_with_more_rows_than_one_launch_takes(library):
    assert library.visited_once(2, 65537) == 2 * 65537
    assert library.take_launches().count(b";") == 2


def test_nothing_is_launched_for_nothing(library):
    for case in (Case(batch=0), Case(tokens=0)):
        assert emulate_forward(library, case, make_inputs(case)).launches == ""


@pytest.mark.parametrize("seed", range(40))
def test_random_cases(library, seed):
    generator = torch.Generator().manual_seed(seed)

    def pick(*options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    dtype = pick(F32, F16, BF16)
    layouts = ("D", "1D", "BD", "B1D", None) if seed % 3 else ("D", "BD", "1ND", "BND", None)
    check(
        library,
        Case(
            batch=pick(1, 2, 3),
            tokens=pick(1, 2, 7, 18),
            dim=pick(1, 5, 8, 24, 64, 100, 129, 384),
            dtype=dtype,
            branch_dtype=pick(dtype, dtype, F32, F16, BF16),
            modulation_dtype=pick(dtype, dtype, F32, F16, BF16),
            norm=pick("layer", "rms", "dyt"),
            residual2=pick(None, *layouts),
            residual2_dtype=pick(dtype, dtype, F32, BF16),
            gate_fn=pick("identity", "sigmoid_one_minus"),
            pad=pick(0, 0, 8, 3),
            skew=pick(0, 0, 8, 1),
            grad_x=pick(True, True, False),
            eps=pick(1e-6, 1e-3),
            **{name: pick(*layouts) for name in MODULATIONS},
        ),
        seed,
        orders=(0, 1, 2),
    )
