"""What the compilers make of the activations for sm_80, sm_90 and sm_100: no spills, few registers, wide accesses."""

import pytest

# A multiprocessor has 65536 registers.  Programs of 4 warps: 12 at once with 42 registers a thread, which 64 of sm_90's
# warps are 16; 5 at once with 96.
TRITON_REGISTERS = {
    "glu_forward": 40,
    "glu_backward": 52,
    "snake_forward": 64,
    "snake_backward": 104,
    "snake_backward_sums": 40,
}
# Blocks of 256 threads: 6 at once with 40 registers, 4 with 64.
CUDA_REGISTERS = {
    "glu_forward_rows": 40,
    "glu_backward_rows": 48,
    "glu_forward_any": 64,
    "glu_backward_any": 64,
    "snake_forward_rows": 48,
    "snake_backward_rows": 48,
    "snake_backward_finish": 40,
}
FAMILY = "activation"
ARCHS = [80, 90, 100]


@pytest.mark.parametrize("arch", ARCHS)
def test_triton_registers_and_spills(triton_records, arch):
    """Snake's stores to local memory are the accurate sine's: beyond |x| = 105615 it looks up 2 / pi by an index that
    is known only when it runs, about two words for each sine or cosine of a thread."""
    records = [r for r in triton_records if r.arch == arch]
    assert {r.kernel for r in records} == set(TRITON_REGISTERS)
    for r in records:
        sines = {"snake_forward": 2048 // 128, "snake_backward": 2 * 1024 // 128}.get(r.kernel, 0)
        assert r.spills <= 8 * sines + (8 if sines else 0), r
        # Triton 3.9 takes five more where rows are not aligned.
        slack = 8 if "1379" in r.variant else 0
        assert r.registers <= TRITON_REGISTERS[r.kernel] + slack, r
        assert r.shared <= 1024, r


@pytest.mark.parametrize("arch", ARCHS)
def test_triton_accesses_are_16_bytes_wide(triton_records, arch):
    """On aligned rows all but a channel's parameters, its sums, and the accurate sine's table (one load a sine)."""
    for r in triton_records:
        if r.arch != arch or "1365" in r.variant or "1379" in r.variant:
            continue
        words = {"bf16": 8, "fp32": 4}[r.dtype]  # a thread has 8 elements, 16 of snake's forward
        if r.kernel == "glu_forward":
            assert (r.loads16, r.loads_other, r.stores16, r.stores_other) == (16 // words, 0, 8 // words, 0), r
        if r.kernel == "glu_backward":
            assert (r.loads16, r.loads_other, r.stores16, r.stores_other) == (24 // words, 0, 16 // words, 0), r
        if r.kernel == "snake_forward":
            assert (r.loads16, r.stores16, r.stores_other) == (16 // words, 16 // words, 0), r
            assert r.loads_other <= 2 + 16, r
        if r.kernel == "snake_backward":
            assert (r.loads16, r.stores16, r.stores_other) == (16 // words, 8 // words, 2), r
            assert r.loads_other <= 2 + 16, r


@pytest.mark.parametrize("arch", ARCHS)
def test_unaligned_rows_show(triton_records, arch):
    """The counts can fail: rows of an odd length are read 2 bytes at a time."""
    odd = [r for r in triton_records if r.arch == arch and ("1365" in r.variant or "1379" in r.variant)]
    assert {r.kernel for r in odd} >= {"glu_forward", "glu_backward", "snake_forward", "snake_backward"}
    assert all(r.loads16 == r.stores16 == 0 for r in odd)


@pytest.mark.parametrize("arch", ARCHS)
def test_cuda_registers_and_spills(cuda_records, arch):
    records = [r for r in cuda_records if r.arch == arch]
    assert {r.kernel for r in records} == set(CUDA_REGISTERS)
    for r in records:
        assert r.registers <= CUDA_REGISTERS[r.kernel], r
        if r.kernel.startswith("snake") and "rows" in r.kernel:  # the accurate sine's, as in Triton
            elements = {"<1>": 8 if "forward" in r.kernel else 1}.get(r.variant, 16 // {"fp32": 4}.get(r.dtype, 2))
            loads = 2 if "forward" in r.kernel and r.variant != "<1>" else 1
            assert r.spills <= 8 * elements * loads + 8, r
        else:
            assert r.spills == 0, r


@pytest.mark.parametrize("arch", ARCHS)
def test_cuda_accesses_are_16_bytes_wide(cuda_records, arch):
    """Of the kernels for aligned rows; backward snake also stores a block's two sums."""
    counts = {
        "glu_forward_rows": (2, 1),
        "glu_backward_rows": (3, 2),
        "snake_forward_rows": (2, 2),
        "snake_backward_rows": (2, 1),
    }
    records = [r for r in cuda_records if r.arch == arch and r.kernel in counts and r.variant != "<1>"]
    records += [r for r in cuda_records if r.arch == arch and r.kernel.startswith("glu") and r.kernel in counts]
    assert {(r.kernel, r.dtype) for r in records} == {
        (kernel, dtype) for kernel in counts for dtype in ("fp32", "bf16", "fp16")
    }
    for r in records:
        assert (r.loads16, r.stores16) == counts[r.kernel], r
        assert r.stores_other == (2 if r.kernel == "snake_backward_rows" else 0), r
        if r.kernel.startswith("glu"):
            assert r.loads_other == 0, r
