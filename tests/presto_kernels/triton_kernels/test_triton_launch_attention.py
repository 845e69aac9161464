"""What can be said of attention's Triton launches in a process without a GPU; their results: interpreted/."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from test_triton_launch import LENGTHS, compiled, specialisation

from presto_kernels.ops.attention import triton_kernels
from presto_kernels.testing import aot
from presto_kernels.testing.aot_attention import Call, launches

CALLS = (
    Call("plain"),
    Call("window", window=(17, 17), lengths=torch.int64, dim=40, kv_heads=4),
    Call("plain", dtype=torch.float32, dim=128),
    Call("norm and rotary", fused=True),
)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_launch_names_the_arguments_of_its_kernel_and_no_others(call):
    for launch in launches(call):
        assert set(launch.arguments) == {parameter.name for parameter in launch.kernel.params}


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_aot_compiles_what_the_launcher_would(call):
    for launch in launches(call):
        types, constants = aot.signature(launch)
        for (name, type_), (jit_type, jit_value) in zip(types.items(), specialisation(launch), strict=True):
            assert type_ == jit_type, name
            assert jit_value == (constants[name] if type_ == "constexpr" else None), name


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_one_compile_for_every_length_and_window(call):
    kernels = [compiled(launches(call, batch=2, queries=n, keys=n)) for n in LENGTHS]
    assert len(kernels[0]) == (1 if call.fused else 4)
    if call.window != (-1, -1):
        other = Call(call.variant, call.dim, call.dtype, call.lengths, (-1, 5), call.kv_heads)
        kernels.append(compiled(launches(other)))
    assert set.union(*kernels) == kernels[0]


def test_heads_that_are_views_of_a_fused_projection_are_read_where_they_lie():
    projection = torch.empty(2, 9, 3 * 4 * 64, dtype=torch.bfloat16)
    q, k, v = projection.unflatten(2, (3, 4, 64)).unbind(2)
    out, lse = torch.empty(2, 9, 4, 64), torch.empty(2, 4, 9)

    def arguments(q, k, v):
        return triton_kernels.plan_forward(q, k, v, None, out, lse, left=-1, right=-1, scale=1.0).arguments

    given = arguments(q, k, v)
    assert given["q"] is q and given["v"] is v and given["VECTOR"]
    assert (given["k_batch"], given["k_row"], given["k_head"]) == (9 * 768, 768, 64)
    assert not arguments(q[..., 1:33], k[..., 1:33], v[..., 1:33])["VECTOR"]
    inner = torch.empty(2, 9, 64, 4, dtype=torch.bfloat16).mT
    assert arguments(inner, k, v)["q"].is_contiguous()


def test_key_lengths_are_read_side_by_side():
    q, lse = torch.empty(2, 8, 1, 16), torch.empty(2, 1, 8)
    for lengths in (torch.tensor([5, 0, 8, 0])[::2], torch.tensor(5).expand(2)):
        launch = triton_kernels.plan_forward(q, q, q, lengths, q, lse, left=-1, right=-1, scale=1.0)
        assert launch.arguments["key_lengths"].stride() == (1,)
        assert torch.equal(launch.arguments["key_lengths"], lengths)


def test_a_window_fits_32_bits_whatever_it_says():
    q, lse = torch.empty(1, 8, 1, 16), torch.empty(1, 1, 8)
    launch = triton_kernels.plan_forward(q, q, q, None, q, lse, left=2**40, right=-1, scale=1.0)
    assert launch.arguments["left"] == triton_kernels.MAX_TOKENS and launch.arguments["right"] == -1


def test_more_than_two_to_the_31_elements():
    """Sizes that 32 bits do not hold are strides, and strides are 64-bit."""
    q = torch.empty(1, 2**22, 16, 64, device="meta", dtype=torch.bfloat16)
    assert q.numel() == 2**32 and triton_kernels.limits(q, q, q, None, -1, -1, 1.0) is None
    launch = triton_kernels.plan_forward(
        q, q, q, None, q, torch.empty(1, 16, 2**22, device="meta"), left=-1, right=-1, scale=1.0
    )
    types, _ = aot.signature(launch)
    assert all(types[f"{t}_{axis}"] == "i64" for t in "qkv" for axis in ("batch", "row", "head"))


def test_limits():
    def limits(*shape, scale=1.0):
        q = torch.empty(shape, device="meta")
        return triton_kernels.limits(q, q, q, None, -1, -1, scale)

    assert limits(1, 65536, 16, 128) is None
    assert "129" in limits(1, 4, 1, 129)
    assert "positive" in limits(1, 4, 1, 64, scale=0.0)
    assert "tokens" in limits(1, 2**30 + 1, 1, 8)
    assert "programs" in limits(2**20, 2**20, 16, 8)
