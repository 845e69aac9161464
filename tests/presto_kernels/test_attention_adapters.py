"""SDPA and flash-attn: what they are given, what they are refused, and how a call is translated for them."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

import presto_kernels
from presto_kernels.ops.attention import flash, sdpa
from presto_kernels.testing import check
from presto_kernels.testing.attention import Case, cases, judge

Q, K = torch.randn(2, 5, 4, 16, dtype=torch.bfloat16), torch.randn(2, 5, 2, 16, dtype=torch.bfloat16)
LENGTHS = torch.tensor([3, 5])


@pytest.mark.parametrize("case", [c for c in cases() if c.lengths is None and c.window is None], ids=str)
def test_sdpa_error_is_at_most_twice_plain_pytorch(case):
    with presto_kernels.use_backend(attention="sdpa"):
        check(judge(case))


def test_sdpa_is_refused_what_would_leak():
    with presto_kernels.use_backend(attention="sdpa"):
        with pytest.raises(ValueError, match="window"):
            presto_kernels.attention(Q, Q, Q, window=(1, 1))
        with pytest.raises(ValueError, match="beyond a key length would leak"):
            presto_kernels.attention(Q, K, K, key_lengths=LENGTHS)
        presto_kernels.attention(Q, Q, Q, window=(4, 9))  # hides nothing
    assert sdpa.limits(Q, K[:, :0], K[:, :0], None, -1, -1, 1.0) is not None


def test_the_leak_is_real():
    """Why SDPA gets no mask: on the day it does not leak any more, it may have one."""
    q, k = (t.float().transpose(1, 2) for t in (Q, Q))
    v = k.clone()
    v[..., 3:, :] = torch.nan
    mask = torch.arange(5) < 3
    assert F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None].expand(5, 5)).isnan().all()


def test_sdpa_on_a_gpu_is_refused_gradients_that_differ_from_run_to_run(monkeypatch):
    class OnGpu(torch.Tensor):
        device = torch.device("cuda")

    q = torch.randn(1, 5, 2, 16, dtype=torch.bfloat16).as_subclass(OnGpu)
    assert sdpa.limits(q, q, q, None, -1, -1, 1.0) is None
    wanted = torch.randn(1, 5, 2, 16, dtype=torch.bfloat16).as_subclass(OnGpu).requires_grad_()
    assert "from run to run" in sdpa.limits(wanted, q, q, None, -1, -1, 1.0)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert sdpa.limits(wanted, q, q, None, -1, -1, 1.0) is None
    odd = torch.randn(1, 5, 2, 20).as_subclass(OnGpu)
    assert "8, 16" in sdpa.limits(odd, odd, odd, None, -1, -1, 1.0)


def test_results_ignore_autocast():
    q = torch.randn(1, 5, 2, 16)
    expected = presto_kernels.attention(q, q, q)
    for backend in ("sdpa", "reference"):
        with presto_kernels.use_backend(attention=backend), torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(presto_kernels.attention(q, q, q), expected)


class Recorder(ModuleType):
    """Stands in for an installed flash-attn: keeps what it was called with and answers with q."""

    def __init__(self, name: str, *, deterministic: bool = True, tuples: bool = False):
        super().__init__(name)
        self.calls: list[dict] = []

        def answer(q, options):
            self.calls.append(options)
            return (q.clone(), None) if tuples else q.clone()

        def with_determinism(q, k, v, softmax_scale=None, causal=False, window_size=(-1, -1), deterministic=False):
            options = {"scale": softmax_scale, "window": window_size, "deterministic": deterministic}
            return answer(q, options | {"causal": causal})

        def without(q, k, v, softmax_scale=None, causal=False, window_size=(-1, -1)):
            return answer(q, {"scale": softmax_scale, "window": window_size, "causal": causal})

        def kvcache(q, k_cache, v_cache, cache_seqlens=None, softmax_scale=None, causal=False, window_size=(-1, -1)):
            return answer(q, {"scale": softmax_scale, "window": window_size, "lengths": cache_seqlens})

        self.flash_attn_func = with_determinism if deterministic else without
        self.flash_attn_with_kvcache = kvcache


@pytest.fixture
def installed(monkeypatch):
    """install(major, **modules) makes these the installed ones on a device of this compute capability."""

    def install(major: int, *modules: Recorder) -> None:
        for release in flash.RELEASES:
            monkeypatch.setitem(sys.modules, release.module, None)
        for module in modules:
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(flash, "_capability", lambda device: major)
        flash._load.cache_clear()
        flash._takes.cache_clear()

    yield install
    flash._load.cache_clear()
    flash._takes.cache_clear()


def refusal(q, k, lengths=None, left=-1, right=-1):
    return flash.limits(q, k, k, lengths, left, right, 0.25)


def run(q, k, lengths=None):
    return flash.attention(q, k, k, lengths, -1, -1, 0.25)


PLAIN = {"scale": 0.25, "window": (-1, -1), "causal": False, "deterministic": False}


def test_flash_2(installed):
    module = Recorder("flash_attn")
    installed(8, module)
    assert refusal(Q, K) is None and run(Q, K).shape == Q.shape
    wanted = Q.clone().requires_grad_()
    assert refusal(wanted, K) is None
    run(wanted, K)
    assert module.calls == [PLAIN, PLAIN | {"deterministic": True}]


def test_flash_2_clamps_key_lengths_on_the_device(installed):
    module = Recorder("flash_attn")
    installed(9, module)
    lengths = torch.tensor([-4, 99])
    assert refusal(Q, K, lengths) is None
    run(Q, K, lengths)
    (call,) = module.calls
    assert call["lengths"].dtype == torch.int32 and call["lengths"].tolist() == [0, 5]
    assert "no backward" in refusal(Q.clone().requires_grad_(), K, lengths)


def test_flash_3_on_hopper_before_2(installed):
    new, old = Recorder("flash_attn_interface", tuples=True), Recorder("flash_attn")
    installed(9, new, old)
    assert refusal(Q, K) is None
    assert run(Q, K).shape == Q.shape and new.calls == [PLAIN] and not old.calls
    run(Q, K, LENGTHS)
    assert len(old.calls) == 1  # 3 loads whole blocks
    installed(10, new)
    assert "no kernels for compute capability 10.x" in refusal(Q, K)


def test_flash_4_on_blackwell(installed):
    module = Recorder("flash_attn.cute", tuples=True)
    installed(10, module)
    assert refusal(Q, K) is None
    assert run(Q, K).shape == Q.shape and module.calls == [PLAIN | {"window": (None, None)}]
    assert "leak" in refusal(Q, K, LENGTHS)
    wide = torch.randn(1, 2, 1, 192, dtype=torch.float16)
    assert "heads of at most 128" in refusal(wide, wide)


def test_flash_without_a_deterministic_backward_gets_no_gradients(installed):
    installed(10, Recorder("flash_attn.cute", deterministic=False))
    assert refusal(Q, K) is None
    assert "deterministic" in refusal(Q.clone().requires_grad_(), K)


def test_flash_is_refused_what_it_cannot_honour(installed):
    installed(9, Recorder("flash_attn"))
    assert "window" in refusal(Q, Q, left=3, right=3)
    assert "float32" in refusal(Q.float(), K.float())
    assert "multiple of 8" in refusal(Q[..., :12], K[..., :12])
    assert "nothing to run" in refusal(Q[:, :0], K)
    installed(7, Recorder("flash_attn"))
    assert "capability 7.x" in refusal(Q, K)
    installed(9)
    assert refusal(Q, K) == "flash-attn 3: not installed, flash-attn 4: not installed, flash-attn 2: not installed"


def test_rows_that_do_not_lie_side_by_side_are_copied(installed):
    module = Recorder("flash_attn")
    installed(8, module)
    assert run(Q.mT.contiguous().mT, K).stride(-1) == 1


def test_a_case_of_every_kind_is_refused_or_right():
    """Whatever auto takes on the CPU without our own kernels."""
    base = Case(batch=2, queries=20, dim=16, heads=4, kv_heads=2)
    for case in (base, replace(base, lengths=(3, 20)), replace(base, window=(2, 2))):
        check(judge(case))
