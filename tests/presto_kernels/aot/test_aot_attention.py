"""What the compiler makes of attention for sm_80, sm_90 and sm_100: matrix instructions, registers, shared memory."""

import pytest
import torch

from presto_kernels.testing import aot, aot_attention

KERNELS = {
    "attention_forward",
    "attention_delta",
    "attention_backward_dq",
    "attention_backward_dkdv",
    "attention_qk_norm_rope_forward",
}
FAMILY = "attention"
ARCHS = [80, 90, 100]
# What a block may have: 163 KB on sm_80, 227 KB since; two blocks side by side where half precision has 8 warps.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# Bytes a thread: the tiles are Hopper's, and none spills there.  The most that Triton 3.7 and 3.9 make:
# sm_80's 156 are dk and dv under a window by 3.9, where 3.7 has 72 at most.
SPILLS = {80: 156, 90: 0, 100: 52}
SPILLS_FP32 = {80: 12, 90: 0, 100: 0}


@pytest.mark.parametrize("arch", ARCHS)
def test_registers_spills_and_shared_memory(triton_records, arch):
    chosen = [r for r in triton_records if r.arch == arch]
    assert {r.kernel for r in chosen} == KERNELS
    for r in chosen:
        assert r.spills <= (SPILLS_FP32 if r.dtype == "fp32" else SPILLS)[arch], r
        if r.dtype != "fp32" and "window" not in r.variant and r.variant.endswith("Dh=64"):
            assert r.spills <= (16 if arch == 80 else 0), r  # dk, dv with key lengths, by Triton 3.9
        assert r.shared <= SHARED[arch] // 2, r
    for r in chosen:
        if r.kernel == "attention_forward" and r.variant == "plain, Dh=64" and r.dtype == "bf16":
            assert r.registers <= 184 and r.spills == 0, r  # 8 warps: 128 x 64 accumulators and scores


@pytest.mark.parametrize("arch", ARCHS)
def test_every_product_is_a_matrix_instruction_of_its_generation(triton_records, arch):
    for r in triton_records:
        if r.arch != arch or r.kernel == "attention_delta":
            continue
        # fp32 and, under a window, heads of 128 backward have tiles below Hopper's 64 rows.
        small = r.dtype == "fp32" or (r.kernel == "attention_backward_dkdv" and r.variant == "window, Dh=128")
        kind = "hmma" if arch == 80 or small else {90: "hgmma", 100: "tcgen05"}[arch]
        assert getattr(r, kind) > 0, r
        assert sum(getattr(r, k) > 0 for k in ("hmma", "hgmma", "tcgen05")) == 1, r


def test_the_forward_has_the_products_of_the_formula(triton_records):
    """sm_90, Dh 64: 64 x 64 x 16 a warpgroup and instruction, so 4 for q k^T and 4 for p v, in each of two loops."""
    (r,) = [
        r for r in triton_records
        if r.arch == 90 and r.kernel == "attention_forward" and r.variant == "plain, Dh=64" and r.dtype == "bf16"
    ]  # fmt: skip
    assert r.hgmma == 2 * (4 + 4), r


@pytest.mark.parametrize("arch", ARCHS)
def test_accesses_are_16_bytes_wide(triton_records, arch):
    """All of q, k, v, out and the gradients; lse, delta and key lengths are 4 and 8 bytes, tables by the element."""
    for r in triton_records:
        if r.arch != arch:
            continue
        assert r.loads16 > 0, r
        if r.kernel != "attention_delta":
            assert r.stores16 > 0, r
        if r.kernel == "attention_forward":
            assert r.loads_other <= (1 if "lengths" in r.variant else 0), r
            assert r.stores_other <= 1, r  # lse
        elif r.kernel != "attention_qk_norm_rope_forward":
            assert r.loads_other <= 9 and r.stores_other <= 1, r


def test_products_in_plain_fp32_would_show(monkeypatch):
    """The counts can fail: without TF32 there is no matrix instruction."""
    pytest.importorskip("triton", reason="triton is not installed")
    launch = aot_attention.launches(aot_attention.Call("plain", dim=32, dtype=torch.float32))[0]
    launch.arguments["PRECISION"] = "ieee"
    monkeypatch.setattr(aot_attention, "launches", lambda *_: [launch])
    monkeypatch.setattr(aot_attention, "CALLS", aot_attention.CALLS[:1])
    try:
        (record,) = aot.compile_triton((90,), families=("attention",))
    except aot.Unavailable as missing:
        pytest.skip(str(missing))
    assert record.hmma == record.hgmma == 0, record
