"""What the compilers make of the AdaLN kernels for sm_80, sm_90 and sm_100: no spills, few registers, wide accesses."""

import pytest
import torch

from presto_kernels.testing import aot, aot_modulation

# A multiprocessor has 65536 registers.  Triton's programs:
TRITON_REGISTERS = {
    # 2 warps at D = 1024: 65536 / (64 x 64) = 16 programs at once, each with 8 KB of reads in flight
    "seam_forward": 64,
    # 8 warps: two programs at once, which is how many are launched
    "seam_backward_rows": 128,
    # 4 warps: 8 programs at once; there are at most 16 x batch
    "seam_backward_sums": 64,
}
# CUDA's blocks, by their launch bounds: what lets one block of 384 threads run, or of 512, or of 128.
CUDA_REGISTERS = {
    "seam_forward_rows": 168,
    "seam_forward_any": 168,
    "seam_backward_rows": 168,
    "seam_backward_means": 128,
    "seam_backward_columns": 255,
    "seam_backward_finish": 128,
    "seam_backward_alpha": 128,
}
FAMILY = "modulation"
ARCHS = [80, 90, 100]


@pytest.mark.parametrize("arch", ARCHS)
def test_triton_registers_and_spills(triton_records, arch):
    records = [r for r in triton_records if r.arch == arch]
    assert {r.kernel for r in records} == set(TRITON_REGISTERS)
    for r in records:
        assert r.spills == 0, r
        assert r.registers <= TRITON_REGISTERS[r.kernel], r
        assert r.shared <= 16 * 1024, r  # sums across warps, no rows


@pytest.mark.parametrize("arch", ARCHS)
def test_triton_accesses_are_16_bytes_wide(triton_records, arch):
    """All but the statistics: a row's mean and rstd, 4 bytes each, and the second kernel's one row of results."""
    for r in triton_records:
        if r.arch != arch:
            continue
        has_norm, rms = not r.variant.startswith("gated_residual,"), "rms" in r.variant
        if r.kernel != "seam_backward_sums":
            assert r.loads16 > 0, r
        if r.kernel == "seam_forward":
            # alpha is one element
            assert r.stores16 > 0 and r.loads_other == (1 if "dyt" in r.variant else 0), r
            assert r.stores_other == (2 if has_norm and "dyt" not in r.variant else 0), r
        elif r.kernel == "seam_backward_rows":
            # a program's sum of alpha is one element
            assert r.stores16 > 0 and r.stores_other == (1 if "dyt" in r.variant else 0), r
            # each thread has at most two rows of a group, of which it reads rstd and, but for rms, mean; or alpha
            assert r.loads_other <= (2 * (1 if rms else 2) if has_norm else 0), r
        elif r.loads16 > 0:
            assert r.loads_other == 0, r
        else:  # the programs' sums of alpha, one number each
            assert "dyt" in r.variant, r


def test_triton_counts_are_those_of_the_formula(triton_records):
    """A bf16 row of 1024 is 2 accesses of 16 bytes for each of 64 threads (forward), 1 for each of 256 (backward)."""
    for r in triton_records:
        if r.dtype == "bf16" and r.variant == "gated_residual_adaln, D=1024":
            if r.kernel == "seam_forward":  # x, branch, gate, scale, shift; x', h
                assert (r.loads16, r.stores16) == (2 * 5, 2 * 2), r
            if r.kernel == "seam_backward_rows":  # grads of x' and h, x', branch, gate, scale; dx, dbranch, three sums
                assert (r.loads16, r.stores16) == (6, 2 + 3), r


def test_unaligned_rows_would_show(monkeypatch):
    """The counts can fail: without the alignment flag the same kernel reads 2 bytes at a time."""
    pytest.importorskip("triton", reason="triton is not installed")
    launch = aot_modulation.launches(aot_modulation.Call("gated_residual_adaln"), torch.bfloat16, 1001)[0]
    monkeypatch.setattr(aot_modulation, "launches", lambda *_: [launch])
    monkeypatch.setattr(aot_modulation, "CALLS", aot_modulation.CALLS[:1])
    try:
        (record,) = aot.compile_triton((90,), families=("modulation",))
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
    """Of the kernels for aligned rows of one dtype, all but the statistics: one access of 8 bytes a row; and, in those
    for dyt and residual2, alpha of any dtype: two instructions, of which one runs.

    Forward a row's statistics are stored beside its x' and h; backward they are loaded beside four rows of 16 bytes a
    thread.  One row read or written element by element would be 4 or 8 narrow accesses and pass these bounds.
    """
    records = [r for r in cuda_records if r.arch == arch and r.kernel.endswith("_rows") and "/" not in r.dtype]
    assert {(r.kernel, r.dtype) for r in records} == {
        (kernel, dtype) for kernel in ("seam_forward_rows", "seam_backward_rows") for dtype in ("fp32", "bf16", "fp16")
    }
    for r in records:
        assert r.loads16 > 0 and r.stores16 > 0, r
        alpha = 2 if r.variant.endswith("1>") else 0
        assert r.loads_other <= alpha + (0 if r.kernel == "seam_forward_rows" else r.loads16 // 4), r
        assert r.stores_other <= (r.stores16 // 2 if r.kernel == "seam_forward_rows" else 0), r


def test_results_are_kept(tmp_path, monkeypatch):
    """A second run compiles nothing, and what was there before is not trusted for another source."""
    record = aot.AotRecord("k", "cuda", 90, "bf16", "", 1, 0, 0, 1, 0, 1, 0, 0, 0, 0)
    calls = []

    def job(key):
        return aot._Job("k", key, lambda: calls.append(key) or [record])

    seen = []
    for key in ("a", "a", "b"):
        assert aot._run([job(key)], lambda *progress: seen.append(progress), tmp_path) == [record]
    assert calls == ["a", "b"] and seen == [(1, 1, "k")] * 3
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert aot._run([job("c")], None, blocked / "folder") == [record]


def test_what_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(aot, "CSRC", tmp_path)
    monkeypatch.setattr(aot, "find_spec", lambda name: None)
    result = aot.compile_all()
    assert result.records == []
    assert any("triton is not installed" in reason for reason in result.skipped)
    assert any("run from a checkout" in reason for reason in result.skipped)


def test_symbols_of_templates():
    symbol = "_ZN6presto4cuda17seam_forward_rowsILNS_5DTypeE2ELS2_0ELS2_0ELi2ELi4ELb1EEEvNS_11SeamForwardEfNS0_6OriginE"
    assert aot._read_symbol(symbol) == ("seam_forward_rows", "bf16/fp32/fp32", "<2, 4, 1>")
    assert aot._read_symbol("_ZN6presto4cuda20seam_backward_finishENS0_6FinishENS0_6OriginE") == (
        "seam_backward_finish",
        "any",
        "",
    )
