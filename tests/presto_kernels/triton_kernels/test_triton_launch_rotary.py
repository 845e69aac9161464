"""What can be said of ``qk_norm_rope``'s Triton launches in a process without a GPU; their results: interpreted/."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from presto_kernels.ops.rotary import triton_kernels
from presto_kernels.ops.triton_common import Launch
from presto_kernels.testing import aot, aot_rotary

CALL = aot_rotary.Call("qk_norm_rope", bias=True)
DYT = replace(CALL, norm="dyt")
LENGTHS = (1, 7, 16, 33, 48, 100, 1379, 1380, 70000)


def specialisation(launch: Launch) -> list[tuple]:
    """What Triton's launcher looks a compiled kernel up by, for each argument: its type, and what it specialises on."""
    bind = create_function_from_signature(
        launch.kernel.signature, launch.kernel.params, make_backend(GPUTarget("cuda", 90, 32))
    )
    return bind(**launch.arguments)[1]


def compiled(launches: list[Launch]) -> set[str]:
    """The kernels that Triton would compile for these launches."""
    return {repr((launch.kernel.fn.__name__, specialisation(launch), launch.options)) for launch in launches}


def test_a_launch_names_the_arguments_of_its_kernel_and_no_others():
    for launch in (*aot_rotary.launches(CALL), *aot_rotary.launches(DYT)):
        assert set(launch.arguments) == {parameter.name for parameter in launch.kernel.params}


def test_aot_compiles_what_the_launcher_would():
    for launch in (*aot_rotary.launches(CALL), *aot_rotary.launches(DYT)):
        types, constants = aot.signature(launch)
        for (name, type_), (jit_type, jit_value) in zip(types.items(), specialisation(launch), strict=True):
            assert type_ == jit_type, name
            assert jit_value == (constants[name] if type_ == "constexpr" else None), name


@pytest.mark.parametrize("dim, rotary, norm", [(64, 64, "rms"), (80, 40, "dyt"), (17, 10, "rms")])
def test_one_compile_for_every_length_and_batch(dim, rotary, norm):
    call = replace(CALL, dim=dim, rotary=rotary, norm=norm)
    kernels = [compiled(aot_rotary.launches(call, tokens=n)) for n in LENGTHS]
    kernels += [compiled(aot_rotary.launches(call, batch=b)) for b in (1, 3, 16)]
    assert len(kernels[0]) == 3  # forward, backward rows, sums
    assert set.union(*kernels) == kernels[0]


def forward(q: torch.Tensor, rotary: int = 32) -> Launch:
    table = torch.empty(q.shape[1], rotary // 2)
    tables, out = (table, table, None, None), torch.empty(q.shape, dtype=q.dtype)
    options = {"norm": 2, "eps": 1e-6, "interleaved": False}
    return triton_kernels.plan_forward(q, None, tables, (None,) * 4, (None,) * 2, out, None, **options)


def test_views_of_the_fused_projection_are_read_where_they_lie():
    fused = torch.empty(2, 9, 3, 4, 64, dtype=torch.bfloat16)
    views = {
        "q of a fused projection": fused[:, :, 0],
        "permuted": torch.empty(2, 4, 9, 64, dtype=torch.bfloat16).transpose(1, 2),
        "every other token": fused[:, ::2, 1],
        "some elements": torch.empty(2, 9, 4, 72, dtype=torch.bfloat16)[..., 8:],
    }
    for name, q in views.items():
        assert forward(q).arguments["q"] is q, f"{name} was copied"
        assert forward(q).arguments["VECTOR"], name
    assert not forward(torch.empty(2, 9, 4, 65, dtype=torch.bfloat16)[..., 1:]).arguments["VECTOR"]
    assert not forward(views["permuted"], rotary=8).arguments["VECTOR"]  # halves of 8 bytes
    assert forward(fused[:, :, 0].transpose(2, 3)).arguments["q"].is_contiguous()


def test_order_of_sums_depends_on_shape_alone():
    def order(dtype):
        launches = aot_rotary.launches(replace(CALL, dtype=dtype), tokens=1379)
        names = ("q_chunk", "k_chunk", "q_terms", "k_terms")
        return [(launch.grid, [launch.arguments.get(name) for name in names]) for launch in launches[1:]]

    assert order(torch.bfloat16) == order(torch.float32)
    ((programs,), (chunk, *_)), _ = order(torch.bfloat16)
    rows = 2 * 1379 * 16
    assert programs == 2 * -(-rows // chunk) and programs <= 2 * triton_kernels.KNOBS.max_programs


def test_limits():
    assert triton_kernels.limits(2048) is None
    assert "2049" in triton_kernels.limits(2049)
