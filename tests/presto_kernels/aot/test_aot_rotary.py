"""What the compilers make of ``qk_norm_rope``'s kernels for sm_80, sm_90 and sm_100: no spills, few registers, wide
accesses."""

from dataclasses import replace

import pytest
import torch

from presto_kernels.testing import aot, aot_rotary

# A multiprocessor has 65536 registers.  Triton's programs have 4 warps:
TRITON_REGISTERS = {
    # 6 programs at once, 48 KB of reads in flight
    "rotary_forward": 80,
    # 4 programs at once where all is turned; a head in three parts, with weight and bias, takes twice as much
    "rotary_backward_rows": 128,
    "rotary_backward_sums": 64,
}
THREE_PARTS = 216
DYT = 144  # 140 for sm_100 by Triton 3.9, 3 programs at once; 102 to 118 elsewhere, and by 3.7
# CUDA's blocks of 128 threads (512 for the sums), by their launch bounds.
CUDA_REGISTERS = {
    "rotary_forward_heads": 96,  # 5 blocks at once
    "rotary_forward_any": 64,
    "rotary_backward_heads": 168,  # 3 blocks at once
    "rotary_backward_any": 80,
    "rotary_backward_sums": 64,
}
FAMILY = "rotary"
ARCHS = [80, 90, 100]


@pytest.mark.parametrize("arch", ARCHS)
def test_triton_registers_and_spills(triton_records, arch):
    records = [r for r in triton_records if r.arch == arch]
    assert {r.kernel for r in records} == set(TRITON_REGISTERS)
    for r in records:
        assert r.spills == 0, r
        limit = TRITON_REGISTERS[r.kernel]
        if r.kernel == "rotary_backward_rows" and "dyt" in r.variant:
            limit = DYT
        if r.kernel == "rotary_backward_rows" and "half turned" in r.variant:
            limit = THREE_PARTS
        assert r.registers <= limit, r
        assert r.shared <= 4 * 1024, r  # sums across warps, no rows


@pytest.mark.parametrize("arch", ARCHS)
def test_triton_accesses_are_16_bytes_wide(triton_records, arch):
    """All but the backward's sums, a row of 4 bytes a thread, and dyt's alphas and their sums; a head in three parts
    has parts of 8 bytes a thread."""
    for r in triton_records:
        if r.arch != arch or "half turned" in r.variant:
            continue
        dyt = r.variant.startswith("dyt")
        assert r.loads16 > 0, r
        if r.kernel != "rotary_backward_sums" or not dyt:
            assert r.loads_other == (2 if dyt else 0), r  # q's and k's alpha
        if r.kernel == "rotary_forward":
            assert r.stores16 > 0 and r.stores_other == 0, r
        if r.kernel == "rotary_backward_rows":
            assert r.stores16 > 0, r
            assert r.stores_other <= 4, r  # first and second half of dweight, or a dalpha, for q and for k


def test_triton_counts_are_those_of_the_formula(triton_records):
    """bf16 heads of 64, 32 of them a program: for q and for k, each half of x is one access of 16 bytes a thread."""
    (record,) = (
        r for r in triton_records
        if (r.kernel, r.dtype, r.variant, r.arch) == ("rotary_forward", "bf16", "qk_norm_rope, Dh=64", 90)
    )  # fmt: skip
    # x and weight: two halves each; cos and sin: two accesses of fp32 each
    assert (record.loads16, record.stores16) == (2 * (2 + 2 + 4), 2 * 2)


def test_unaligned_rows_would_show(monkeypatch):
    """The counts can fail: without the alignment flag the same kernel reads 2 bytes at a time."""
    pytest.importorskip("triton", reason="triton is not installed")
    call = replace(aot_rotary.CALLS[0], rotary=40)  # halves of 40 bytes
    launch = aot_rotary.launches(call)[0]
    monkeypatch.setattr(aot_rotary, "launches", lambda *_: [launch])
    monkeypatch.setattr(aot_rotary, "CALLS", aot_rotary.CALLS[:1])
    try:
        (record,) = aot.compile_triton((90,), families=("rotary",))
    except aot.Unavailable as missing:
        pytest.skip(str(missing))
    assert record.loads16 == 0 and record.stores16 == 0 and record.loads_other > 2, record


@pytest.mark.parametrize("arch", ARCHS)
def test_cuda_registers_and_spills(cuda_records, arch):
    records = [r for r in cuda_records if r.arch == arch]
    assert {r.kernel for r in records} == set(CUDA_REGISTERS)
    for r in records:
        assert r.spills == 0, r
        assert r.registers <= CUDA_REGISTERS[r.kernel], r


@pytest.mark.parametrize("arch", ARCHS)
def test_cuda_accesses_are_16_bytes_wide(cuda_records, arch):
    """Of the kernels for aligned heads, all; but the backward's sums of a block, 4 bytes a thread, and dyt's alpha, of
    either of two widths."""
    records = [r for r in cuda_records if r.arch == arch and r.kernel.endswith("_heads")]
    names = ("rotary_forward_heads", "rotary_backward_heads")
    assert {(r.kernel, r.dtype) for r in records} == {(k, d) for k in names for d in ("fp32", "bf16", "fp16")}
    for r in records:
        assert r.loads16 > 0 and r.loads_other == (2 if r.variant == "<1>" else 0) and r.stores16 > 0, r
        assert r.kernel == "rotary_backward_heads" or r.stores_other == 0, r


def test_every_dtype_of_the_calls_is_compiled():
    assert {call.dtype for call in aot_rotary.CALLS} == {torch.bfloat16, torch.float32}
