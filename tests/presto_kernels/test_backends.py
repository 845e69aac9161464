"""Dispatch: what runs, why, and what happens where it cannot."""

import pytest
import torch

import presto_kernels
from presto_kernels import Choice, _library, backends

X = torch.randn(1, 4, 8)
compiled_only = pytest.mark.skipif(not _library.has_cpu_kernels, reason=f"no CPU kernels: {_library.error}")


def test_every_op_names_its_implementations():
    available = presto_kernels.available_backends()
    modulation = {"adaln_modulate", "gated_residual", "gated_residual_adaln"}
    others = {"qk_norm_rope", "attention", "swiglu", "geglu", "singlu", "snake", "edm_denoise", "renoise"}
    assert set(available) == modulation | others
    assert all(names[-1] == "reference" for names in available.values())


def test_explain_says_which_and_why():
    choice = presto_kernels.explain("gated_residual", X, X, None)
    assert isinstance(choice, Choice) and choice.backend in ("cpu", "reference") and choice.reason
    with presto_kernels.use_backend("reference"):
        assert presto_kernels.explain("gated_residual", X, X, None) == Choice(
            "reference", "forced by use_backend('reference')"
        )
    meta = torch.empty(1, 4, 8, device="meta")
    assert "meta" in presto_kernels.explain("gated_residual", meta, meta, None).reason
    with pytest.raises(ValueError, match="no op is called 'gelu'"):
        presto_kernels.explain("gelu", X)


@compiled_only
def test_explain_names_what_was_passed_over():
    wide = X.double()
    assert presto_kernels.explain("adaln_modulate", wide, None, None).reason == (
        "cpu: float64 runs only on the reference"
    )
    assert presto_kernels.explain("adaln_modulate", X, None, None).backend == "cpu"


def test_use_backend_nests_and_comes_back_after_an_error():
    with presto_kernels.use_backend("reference"):
        with pytest.raises(RuntimeError), presto_kernels.use_backend(None):
            assert backends._forced is None
            raise RuntimeError
        assert backends._forced == "reference"
    assert backends._forced is None


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'cudnn' is no backend; choose from reference, triton, cuda, cpu"):
        presto_kernels.use_backend("cudnn").__enter__()


def test_a_forced_backend_that_cannot_take_the_call_raises():
    with presto_kernels.use_backend("cuda"), pytest.raises(ValueError, match="use_backend\\('cuda'\\) cannot take"):
        presto_kernels.adaln_modulate(X, None, None)


@compiled_only
def test_a_forced_backend_does_not_fall_back_for_float64():
    with presto_kernels.use_backend("cpu"), pytest.raises(ValueError, match="float64 runs only on the reference"):
        presto_kernels.adaln_modulate(X.double(), None, None)
