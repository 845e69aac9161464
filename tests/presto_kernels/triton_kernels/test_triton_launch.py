"""What can be said of the Triton kernels' launches in a process without a GPU; their results: interpreted/."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from presto_kernels.ops.modulation import triton_kernels
from presto_kernels.ops.triton_common import Launch
from presto_kernels.testing import aot, aot_modulation

HERE = Path(__file__).parent


def interpret(file: Path) -> subprocess.CompletedProcess:
    """One family's tests, in a process of their own."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
    )


def test_results_in_the_interpreter():
    """Runs every test of interpreted/, as many families at a time as there are cores: it takes a minute or two."""
    files = sorted((HERE / "interpreted").glob("test_*.py"))
    assert len(files) >= 5
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for file, done in zip(files, pool.map(interpret, files), strict=True):
            passed = re.search(r"(\d+) passed", done.stdout)
            assert done.returncode == 0 and passed, done.stdout[-6000:] + done.stderr[-2000:]
            assert int(passed.group(1)) > (4 if file.stem.endswith("_common") else 50)


def specialisation(launch: Launch) -> list[tuple]:
    """What Triton's launcher looks a compiled kernel up by, for each argument: its type, and what it specialises on."""
    bind = create_function_from_signature(
        launch.kernel.signature, launch.kernel.params, make_backend(GPUTarget("cuda", 90, 32))
    )
    return bind(**launch.arguments)[1]


def compiled(launches: list[Launch]) -> set[str]:
    """The kernels that Triton would compile for these launches."""
    return {repr((launch.kernel.fn.__name__, specialisation(launch), launch.options)) for launch in launches}


LENGTHS = (1, 7, 16, 33, 48, 100, 1379, 1380, 70000)
SEAM = aot_modulation.Call("gated_residual_adaln", weight="D", bias="D")
DYT = aot_modulation.Call("gated_residual_adaln", weight="D", bias="D", norm="dyt", residual2="B")


@pytest.mark.parametrize("call", [SEAM, DYT])
def test_a_launch_names_the_arguments_of_its_kernel_and_no_others(call):
    for launch in aot_modulation.launches(call, torch.bfloat16, 64):
        assert set(launch.arguments) == {parameter.name for parameter in launch.kernel.params}


@pytest.mark.parametrize("call", [SEAM, DYT])
def test_aot_compiles_what_the_launcher_would(call):
    for launch in aot_modulation.launches(call, torch.bfloat16, 1024):
        types, constants = aot.signature(launch)
        for (name, type_), (jit_type, jit_value) in zip(types.items(), specialisation(launch), strict=True):
            assert type_ == jit_type, name
            assert jit_value == (constants[name] if type_ == "constexpr" else None), name


@pytest.mark.parametrize("dim", [1024, 1000, 1001, 24])
@pytest.mark.parametrize("call, number", [(SEAM, 4), (DYT, 5)])
def test_one_compile_for_every_length(call, number, dim):
    kernels = [compiled(aot_modulation.launches(call, torch.bfloat16, dim, batch=2, tokens=n)) for n in LENGTHS]
    # forward; backward rows; sums of gate, scale, shift (residual2); sums of weight, bias; sum of alpha
    assert len(kernels[0]) == number
    assert set.union(*kernels) == kernels[0]


def test_one_compile_for_every_batch_that_shares_nothing_new():
    kernels = [compiled(aot_modulation.launches(SEAM, torch.bfloat16, 1024, batch=b)) for b in (2, 3, 16, 65)]
    assert set.union(*kernels) == kernels[0]


def forward(x: torch.Tensor) -> Launch:
    h, stats = torch.empty(x.shape, dtype=x.dtype), torch.empty(*x.shape[:2], 2)
    return triton_kernels.plan_forward(x, *[None] * 9, h, stats, norm=1, gate_fn=0, eps=1e-6)


def test_sixteen_byte_variant_where_rows_allow_it():
    whole = torch.empty(4, 10, 1032, dtype=torch.bfloat16)
    wide = {
        "plain": whole,
        "prefix": whole[:, :7],
        "later rows": whole[1:, 3:],
        "some columns": whole[..., 8:1032],
        "permuted": whole.transpose(0, 1),
        "every other": whole[::2, ::2],
    }
    for name, x in wide.items():
        assert forward(x).arguments["VECTOR"], name
        assert forward(x).arguments["x"] is x, f"{name} was copied"
    assert not forward(whole[..., 1:1025]).arguments["VECTOR"]  # rows begin at odd multiples of 2 bytes
    assert not forward(whole[..., :1028]).arguments["VECTOR"]  # rows end at 8 bytes
    assert forward(whole.transpose(1, 2)).arguments["x"].is_contiguous()


def test_a_narrow_gradient_beside_wide_inputs_is_written_narrowly():
    """Rows of 20 are 80 bytes in fp32 and 40 in bf16: the shift's gradient alone forbids 16-byte accesses."""
    x, stats = torch.empty(2, 9, 20), torch.empty(2, 9, 2)
    for dtype, wide in ((torch.float32, True), (torch.bfloat16, False)):
        launches = triton_kernels.plan_backward(
            None, x, x, stats, *[None] * 6, {"shift": torch.empty(2, 9, 20, dtype=dtype)},
            norm=1, gate_fn=0, multiprocessors=132,
        )  # fmt: skip
        assert [launch.arguments["VECTOR"] for launch in launches] == [wide]


def test_order_of_sums_depends_on_shape_and_multiprocessors_alone():
    def order(launches):
        return [
            (launch.kernel.fn.__name__, launch.grid, [launch.arguments.get(k) for k in ("chunk", "chunks", "terms")])
            for launch in launches
        ]

    def backward(dtype, processors):
        x, stats = torch.empty(2, 1379, 1024, dtype=dtype, device="meta"), torch.empty(2, 1379, 2, device="meta")
        scale = torch.empty(2, 1024, dtype=dtype, device="meta")
        return order(
            triton_kernels.plan_backward(
                None, x, x, stats, None, None, scale, None, None, None, {"x": x, "scale": scale},
                norm=1, gate_fn=0, multiprocessors=processors,
            )
        )  # fmt: skip

    assert backward(torch.bfloat16, 132) == backward(torch.float32, 132)
    (_, (programs,), (chunk, chunks, _)), _ = backward(torch.bfloat16, 132)
    assert programs == 2 * chunks and programs <= 2 * 132 and (chunks - 1) * chunk < 1379 <= chunks * chunk


def test_limits():
    assert triton_kernels.limits(8192) is None
    assert "8193" in triton_kernels.limits(8193)
