"""What can be said of the sampler's Triton launches in a process without a GPU; their results: interpreted/."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from presto_kernels.ops.sampler import triton_kernels
from presto_kernels.ops.triton_common import Launch
from presto_kernels.testing import aot, aot_sampler

LENGTHS = (1, 7, 16, 33, 48, 100, 1379, 1380, 70000)
DENOISE = aot_sampler.Call("edm_denoise", gradients="Fxs")
RENOISE = aot_sampler.Call("renoise", each=True, gradients="s")


def specialisation(launch: Launch) -> list[tuple]:
    """What Triton's launcher looks a compiled kernel up by, for each argument: its type, and what it specialises on."""
    bind = create_function_from_signature(
        launch.kernel.signature, launch.kernel.params, make_backend(GPUTarget("cuda", 90, 32))
    )
    return bind(**launch.arguments)[1]


def compiled(launches: list[Launch]) -> set[str]:
    """The kernels that Triton would compile for these launches."""
    return {repr((launch.kernel.fn.__name__, specialisation(launch), launch.options)) for launch in launches}


@pytest.mark.parametrize("call, dtype", aot_sampler.CALLS)
def test_a_launch_names_the_arguments_of_its_kernel_and_no_others(call, dtype):
    for launch in aot_sampler.launches(call, dtype):
        assert set(launch.arguments) == {parameter.name for parameter in launch.kernel.params}


@pytest.mark.parametrize("call, dtype", aot_sampler.CALLS)
def test_aot_compiles_what_the_launcher_would(call, dtype):
    for launch in aot_sampler.launches(call, dtype):
        types, constants = aot.signature(launch)
        for (name, type_), (jit_type, jit_value) in zip(types.items(), specialisation(launch), strict=True):
            assert type_ == jit_type, name
            assert jit_value == (constants[name] if type_ == "constexpr" else None), name


@pytest.mark.parametrize("call", [DENOISE, RENOISE, replace(DENOISE, rows=True), replace(RENOISE, each=False)])
def test_one_compile_for_every_length_and_batch(call):
    first = compiled(aot_sampler.launches(call, torch.bfloat16))
    assert len(first) == 3  # forward; backward; the sums of sigma's gradient
    for tokens in LENGTHS[1 if call.rows else 0 :]:  # of one row, every other one is that row
        assert compiled(aot_sampler.launches(replace(call, tokens=tokens), torch.bfloat16)) == first
    for batch in (1, 3, 16, 65):
        assert compiled(aot_sampler.launches(call, torch.bfloat16, batch=batch)) == first


def test_no_seed_or_offset_is_compiled_in():
    x = torch.empty(2, 9, 64)

    def launches(seed, offset, sigma):
        return triton_kernels.plan_renoise(x, None, sigma, None, seed, None, offset, 1.0, x)

    first = compiled(launches(0, 0, 1.0))
    for seed, offset, sigma in ((1, 1, 0.0), (16, 16, 0.5), (-1, 2**32 - 1, 80.0), (2**62, 3, 1e-3)):
        assert compiled(launches(seed, offset, sigma)) == first


def walk(x: torch.Tensor) -> dict:
    (launch,) = triton_kernels.plan_renoise(x, None, 1.0, None, 0, None, 0, 1.0, torch.empty(x.shape, dtype=x.dtype))
    return launch.arguments


def test_a_sample_is_walked_flat_where_it_is_dense_and_copied_only_where_no_row_serves():
    whole = torch.empty(4, 10, 64, dtype=torch.bfloat16)
    flat = {"plain": whole, "prefix": whole[:, :7], "later": whole[1:, 3:], "every other sample": whole[::2]}
    for name, x in flat.items():
        arguments = walk(x)
        assert arguments["x0"] is x and arguments["FLAT"] and arguments["VECTOR"], name
    rows = {"every other row": whole[:, ::2], "columns": whole[..., :32], "heads": whole.view(4, 10, 4, 16)[..., :8]}
    for name, x in rows.items():
        arguments = walk(x)
        assert arguments["x0"] is x and not arguments["FLAT"] and not arguments["VECTOR"], name
    assert walk(whole.transpose(1, 2))["x0"].is_contiguous()
    assert walk(whole[..., :48].reshape(4, 10, 6, 8)[:, ::2].transpose(1, 2))["x0"].is_contiguous()
    assert not walk(torch.empty(2, 9, 7))["VECTOR"]  # a sample of 63
    assert not walk(torch.empty(65)[1:].view(2, 32))["VECTOR"]  # starts 4 bytes after a boundary


def test_order_of_sums_depends_on_the_shape_alone():
    def order(dtype, rows):
        call = replace(DENOISE, rows=rows)
        return [(launch.kernel.fn.__name__, launch.grid) for launch in aot_sampler.launches(call, dtype)]

    assert order(torch.bfloat16, False) == order(torch.float32, False) == order(torch.float32, True)


def test_limits():
    assert triton_kernels.limits(torch.zeros(1).expand(2**20, 2048)) is None
    assert "programs" in triton_kernels.limits(torch.zeros(1).expand(2**31, 1))
