"""What can be said of the launches of the activations' Triton kernels in a process without a GPU."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from test_triton_launch import LENGTHS, compiled, specialisation

from presto_kernels.ops.activation import triton_kernels
from presto_kernels.testing import aot, aot_activation

BF16 = torch.bfloat16


def all_launches():
    return [*aot_activation.glu_launches(0, BF16, 2816), *aot_activation.snake_launches(BF16, 110080)]


def test_a_launch_names_the_arguments_of_its_kernel_and_no_others():
    for launch in all_launches():
        assert set(launch.arguments) == {parameter.name for parameter in launch.kernel.params}


def test_aot_compiles_what_the_launcher_would():
    for launch in all_launches():
        types, constants = aot.signature(launch)
        for (name, type_), (jit_type, jit_value) in zip(types.items(), specialisation(launch), strict=True):
            assert type_ == jit_type, name
            assert jit_value == (constants[name] if type_ == "constexpr" else None), name


@pytest.mark.parametrize("dim", [2816, 1365, 24])
def test_one_compile_of_glu_for_every_length(dim):
    kernels = [compiled(aot_activation.glu_launches(1, BF16, dim, tokens=n)) for n in LENGTHS]
    assert len(kernels[0]) == 2
    assert set.union(*kernels) == kernels[0]


def test_one_compile_of_snake_for_every_length_channel_and_batch():
    """One for lengths of whole 16 bytes, one for others: not one for each length."""
    for lengths in ([n for n in LENGTHS if n % 8], [n * 8 for n in LENGTHS]):
        kernels = [
            compiled(aot_activation.snake_launches(BF16, n, batch=b, channels=c))
            for n in lengths
            for b, c in ((1, 1), (2, 24), (3, 128))
        ]
        assert len(kernels[0]) == 3  # forward; backward rows; sums
        assert set.union(*kernels) == kernels[0]


def test_sixteen_byte_variant_where_rows_allow_it():
    whole = torch.empty(4, 10, 128, dtype=BF16)
    wide = {
        "plain": whole,
        "prefix": whole[:, :7],
        "some columns": whole[..., 16:112],
        "permuted": whole.transpose(0, 1),
    }
    for name, x in wide.items():
        launch = triton_kernels.plan_glu(x, x[..., ::2].contiguous(), act=0, gate_first=False)
        assert launch.arguments["VECTOR"], name
        assert launch.arguments["x"] is x, f"{name} was copied"
    narrow = {"odd start": whole[..., 1:113], "odd half": whole[..., :24]}
    for name, x in narrow.items():
        launch = triton_kernels.plan_glu(x, x[..., ::2].contiguous(), act=0, gate_first=False)
        assert not launch.arguments["VECTOR"], name
    transposed = whole.transpose(1, 2)
    parameter = torch.ones(128)
    launch = triton_kernels.plan_snake(transposed, parameter, parameter, torch.empty(4, 128, 10, dtype=BF16))
    assert launch.arguments["x"].is_contiguous()


def test_order_of_sums_depends_on_the_shape_alone():
    for dtype in (BF16, torch.float32):
        _, rows, sums = aot_activation.snake_launches(dtype, 110080)
        assert rows.grid == (2 * 24 * 14,) and sums.grid == (24,)
        assert (sums.arguments["terms"], sums.arguments["TERMS"]) == (28, 256)


def test_limits():
    assert triton_kernels.glu_limits(2**31 - 2**16, 2816) is None
    assert "rows" in triton_kernels.glu_limits(2**31, 2816)
    assert "wider" in triton_kernels.glu_limits(1, 2**27)
    assert triton_kernels.snake_limits(128, 2**30) is None
    assert "longer" in triton_kernels.snake_limits(1, 2**31)
    assert "blocks" in triton_kernels.snake_limits(2**31, 1)
