"""Byte formulas against the tensors themselves, operation formulas against arithmetic that counts itself."""

import math

import pytest
import torch

from bench import counting
from bench.op_cases import OPS, Case

SHAPE = (2, 3, 5)
SHAPES = {
    "BxNxD": SHAPE,
    "BxCxT": SHAPE,
    "BxNxC": SHAPE,
    "BxNxHxDh": (2, 40, 3, 4),
    "BxNxHxDhxM": (2, 9, 3, 4, 5),
}
# What of its inputs a backward reads: the row that was normalised, and what a gradient is multiplied with.
READ_AGAIN = {
    "adaln_modulate": ("x", "scale"),
    "gated_residual": ("branch", "gate"),
    "gated_residual_adaln": ("x", "branch", "gate", "scale"),
    "adaln_modulate_dyt": ("x", "alpha", "weight"),
    "gated_residual_adaln_residual2": ("x", "scale"),
    "qk_norm_rope": ("q", "k", "q_weight", "k_weight"),
    "qk_norm_rope_dyt": ("q", "k", "q_weight", "k_weight", "q_alpha", "k_alpha"),
    "attention": ("q", "k", "v"),
    "attention_cross": ("q", "k", "v"),
    "swiglu": ("x",),
    "geglu": ("x",),
    "singlu": ("x",),
    "snake": ("x", "alpha", "beta"),
    "edm_denoise": (),
}
ONE_AND_THE_SAME = {  # gradients that are another one, or the incoming one: nothing is written
    ("gated_residual", "x"),
    ("gated_residual_adaln_residual2", "branch"),
    ("gated_residual_adaln_residual2", "residual2"),
}
CPU = torch.device("cpu")


class Number:
    """A number that counts the operations done with it."""

    done = 0

    def __init__(self, value):
        self.value = value

    def _next(self, other, operation):
        Number.done += 1
        return Number(operation(self.value, other.value if isinstance(other, Number) else other))

    def __add__(self, other):
        return self._next(other, lambda a, b: a + b)

    def __sub__(self, other):
        return self._next(other, lambda a, b: a - b)

    def __mul__(self, other):
        return self._next(other, lambda a, b: a * b)

    def __truediv__(self, other):
        return self._next(other, lambda a, b: a / b)

    __radd__ = __add__

    def rsqrt(self):
        return self._next(0, lambda a, _: 1 / math.sqrt(a))


def rows(shape):
    return [[[Number(1.0 + b + n * d) for d in range(shape[2])] for n in range(shape[1])] for b in range(shape[0])]


def total(numbers):
    result = Number(0.0)
    for number in numbers:
        result = result + number
    return result


def modulated(row, one_plus_scale, shift):
    """adaln_modulate of one row, two passes: the operations the formula promises."""
    mean = total(row) / len(row)
    centred = [x - mean for x in row]
    rstd = (total(x * x for x in centred) / len(row) + 1e-6).rsqrt()
    return [x * rstd * s + t for x, s, t in zip(centred, one_plus_scale, shift, strict=True)]


def adaln_modulate(shape, closes_a_branch=False):
    for sample in rows(shape):
        one_plus_scale = [Number(0.5) + 1 for _ in range(shape[2])]
        for row in sample:
            if closes_a_branch:
                row = [x + x * 0.5 for x in row]
            modulated(row, one_plus_scale, [Number(0.1)] * shape[2])


def gated_residual(shape):
    for sample in rows(shape):
        for row in sample:
            [x + x * 0.5 for x in row]


def adaln_modulate_backward(shape, closes_a_branch=False):
    mean, rstd, width = Number(0.5), Number(2.0), shape[2]
    for sample in rows(shape):
        one_plus_scale = [Number(0.5) + 1 for _ in range(width)]
        dscale, dshift, dgate = ([Number(0.0)] * width for _ in range(3))
        for row in sample:
            dh = branch = row
            xhat = [(x - mean) * rstd for x in row]
            dscale = [a + g * x for a, g, x in zip(dscale, dh, xhat, strict=True)]
            dshift = [a + g for a, g in zip(dshift, dh, strict=True)]
            g = [g * s for g, s in zip(dh, one_plus_scale, strict=True)]
            mean_g = total(g) / width
            mean_gx = total(a * x for a, x in zip(g, xhat, strict=True)) / width
            dx = [(a - mean_g - x * mean_gx) * rstd for a, x in zip(g, xhat, strict=True)]
            if closes_a_branch:
                dx = [a + b for a, b in zip(dx, dh, strict=True)]
                [a * 0.5 for a in dx]
                dgate = [a + d * b for a, d, b in zip(dgate, dx, branch, strict=True)]


def gated_residual_backward(shape):
    for sample in rows(shape):
        dgate = [Number(0.0)] * shape[2]
        for row in sample:
            [d * 0.5 for d in row]
            dgate = [a + d * d for a, d in zip(dgate, row, strict=True)]


COUNTED = {
    ("adaln_modulate", False): adaln_modulate,
    ("adaln_modulate", True): adaln_modulate_backward,
    ("gated_residual", False): gated_residual,
    ("gated_residual", True): gated_residual_backward,
    ("gated_residual_adaln", False): lambda shape: adaln_modulate(shape, closes_a_branch=True),
    ("gated_residual_adaln", True): lambda shape: adaln_modulate_backward(shape, closes_a_branch=True),
}


@pytest.mark.parametrize(("op", "backward"), list(COUNTED))
def test_operations_are_those_of_the_arithmetic_done_by_hand(op, backward):
    Number.done = 0
    COUNTED[op, backward](SHAPE)
    assert Case(OPS[op], SHAPE, "fp32", backward, CPU).count.flops == Number.done


@pytest.mark.parametrize("op", list(OPS))
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_forward_bytes_are_those_of_the_inputs_and_outputs(op, dtype):
    case = Case(OPS[op], SHAPES[OPS[op].axes], dtype, False, CPU)
    inputs, constants = case.inputs(0), case.constants()
    read = [*inputs, *(t for t in constants.values() if isinstance(t, torch.Tensor))]
    assert case.count.bytes == sum(t.nbytes for t in (*read, *(case.op.oracle or case.op.eager)(*inputs, **constants)))


@pytest.mark.parametrize("op", [name for name, op in OPS.items() if op.backward])
def test_backward_bytes_are_those_of_what_it_reads_and_writes(op):
    case = Case(OPS[op], SHAPES[OPS[op].axes], "bf16", True, CPU)
    inputs, constants = dict(zip(case.op.tensors, case.inputs(0), strict=True)), case.constants()
    outputs = case.op.eager(*inputs.values(), **constants)
    reads = [*outputs]  # output gradients have the outputs' sizes
    reads += [inputs[name] for name in READ_AGAIN[op]]
    reads += [t for t in constants.values() if isinstance(t, torch.Tensor)]
    if op.startswith("attention"):  # the output itself, and the logarithm of each row's sum
        b, n, h, _ = outputs[0].shape
        reads += [*outputs, torch.empty(b, h, n)]
    writes = [t for name, t in inputs.items() if (op, name) not in ONE_AND_THE_SAME]
    assert case.count.bytes == sum(t.nbytes for t in (*reads, *writes))


def test_rates_are_per_second():
    count = counting.Count(bytes=2_000_000, flops=3_000_000_000, bytes_formula="", flops_formula="")
    assert count.gbs(1.0) == 2.0
    assert count.tflops(1.0) == 3.0
