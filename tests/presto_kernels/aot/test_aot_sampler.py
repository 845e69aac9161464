"""What the compilers make of the sampler's kernels for sm_80, sm_90 and sm_100: no spills, few registers, wide
accesses."""

import pytest

# A multiprocessor has 65536 registers and holds 2048 threads: up to 32 each cost nothing, 64 halve their number.
TRITON_REGISTERS = {
    "edm_denoise": 64,
    "edm_denoise_backward": 64,
    "renoise": 48,
    "renoise_backward": 48,
    "sample_sums": 40,
}
CUDA_REGISTERS = {
    "edm_denoise_vectors": 40,
    "edm_denoise_any": 64,
    "edm_denoise_backward_vectors": 64,
    "edm_denoise_backward_any": 96,
    "renoise_vectors": 40,
    "renoise_any": 48,
    "renoise_backward_vectors": 40,
    "renoise_backward_any": 48,
    "sample_sums": 40,
}
FAMILY = "sampler"
ARCHS = [80, 90, 100]


@pytest.mark.parametrize("arch", ARCHS)
def test_triton_registers_and_spills(triton_records, arch):
    found = [r for r in triton_records if r.arch == arch]
    assert {r.kernel for r in found} == set(TRITON_REGISTERS)
    for r in found:
        assert r.spills == 0, r
        # Triton 3.9 keeps more addresses where rows are not dense, the path that is right and not fast.
        assert r.registers <= TRITON_REGISTERS[r.kernel] + (16 if "rows" in r.variant else 0), r
        assert r.shared <= 4096, r  # a tile in another layout, sums across warps


@pytest.mark.parametrize("arch", ARCHS)
def test_triton_accesses_are_16_bytes_wide(triton_records, arch):
    """All but one number a sample (sigma, seed, offset), the sum of a program, and 8 bytes of a half beside fp32."""
    for r in triton_records:
        if r.arch != arch or "rows" in r.variant or r.kernel == "sample_sums":
            continue
        assert r.loads16 > 0, r
        assert r.loads_other <= (1 if r.kernel.startswith("edm") else 3), r
        if r.kernel != "renoise_backward":
            assert r.stores16 > 0, r
        assert r.stores_other <= (1 if "sigma" in r.variant or r.kernel == "renoise_backward" else 0), r


def test_triton_counts_are_those_of_the_formula(triton_records):
    """1024 elements of fp32 are two accesses of 16 bytes for each of 128 threads, and one for each of 256."""
    for r in triton_records:
        if r.dtype == "fp32" and r.kernel == "edm_denoise" and r.variant == "edm_denoise":  # x, F; D
            assert (r.loads16, r.stores16) == (4, 2), r
        if r.dtype == "fp32" and r.kernel == "renoise" and r.variant == "renoise":
            assert (r.loads16, r.loads_other, r.stores16) == (1, 0, 1), r


def test_rows_that_are_not_dense_would_show(triton_records):
    """The counts can fail: rows of a longer tensor are read element by element."""
    rows = [r for r in triton_records if r.variant.endswith("rows") and r.kernel != "sample_sums"]
    assert rows and all(r.loads16 == 0 and r.loads_other > 3 for r in rows)


@pytest.mark.parametrize("arch", ARCHS)
def test_cuda_registers_and_spills(cuda_records, arch):
    found = [r for r in cuda_records if r.arch == arch]
    assert {r.kernel for r in found} == set(CUDA_REGISTERS)
    for r in found:
        assert r.spills == 0, r
        assert r.registers <= CUDA_REGISTERS[r.kernel], r


@pytest.mark.parametrize("arch", ARCHS)
def test_cuda_accesses_are_16_bytes_wide(cuda_records, arch):
    """Of the vector kernels, all but the numbers of a sample (sigma in two dtypes, seed, offset) and a block's sum."""
    found = [r for r in cuda_records if r.arch == arch and r.kernel.endswith("_vectors") and "/" not in r.dtype]
    assert {(r.kernel, r.dtype) for r in found} == {
        (kernel, dtype)
        for kernel in CUDA_REGISTERS
        if kernel.endswith("_vectors")
        for dtype in ("fp32", "bf16", "fp16")
    }
    for r in found:
        assert r.loads16 == {"edm_denoise_vectors": 2, "edm_denoise_backward_vectors": 3}.get(r.kernel, 1), r
        assert r.loads_other <= 4, r
        stores = {"edm_denoise_vectors": (1, 0), "edm_denoise_backward_vectors": (2, 1), "renoise_vectors": (1, 0)}
        assert (r.stores16, r.stores_other) == stores.get(r.kernel, (0, 1)), r
