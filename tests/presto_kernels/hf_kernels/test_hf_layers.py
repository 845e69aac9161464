"""What ``kernels`` loads, and each layer in place of the plain one."""

import copy
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import presto_kernels
from presto_kernels import _library, layers

kernels = pytest.importorskip("kernels", reason="Hugging Face's `kernels` is not installed: pip install kernels")

ROOT = Path(presto_kernels.__file__).parents[1]
LAYERS = [
    name for name, value in vars(layers).items() if inspect.isclass(value) and value.__module__ == layers.__name__
]


class PlainGamma(nn.Module):
    """LayerNorm of stable-audio-tools, RMSNorm of Stable Audio 3: as they write it."""

    def __init__(self, dim, rms):
        super().__init__()
        self.gamma, self.beta, self.eps, self.rms = nn.Parameter(torch.ones(dim)), torch.zeros(dim), 1e-5, rms

    def forward(self, x):
        if self.rms:
            return nn.functional.rms_norm(x, x.shape[-1:], self.gamma, self.eps)
        return nn.functional.layer_norm(x, x.shape[-1:], self.gamma, self.beta, self.eps)


class PlainGlu(nn.Module):
    def __init__(self, dim, act, use_conv=False):
        super().__init__()
        self.act, self.use_conv = act, use_conv
        self.proj = nn.Conv1d(dim, 2 * dim, 3, padding=1) if use_conv else nn.Linear(dim, 2 * dim)

    def forward(self, x):
        x = self.proj(x.transpose(1, 2)).transpose(1, 2) if self.use_conv else self.proj(x)
        value, gate = x.chunk(2, dim=-1)
        return value * self.act(gate)


class PlainAndMul(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        gate, value = x.chunk(2, dim=-1)
        return self.act(gate) * value


class PlainSnakeBeta(nn.Module):
    def __init__(self, dim, logscale):
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.alpha_logscale = logscale

    def forward(self, x):
        alpha, beta = self.alpha[:, None], self.beta[:, None]
        if self.alpha_logscale:
            alpha, beta = alpha.exp(), beta.exp()
        return x + (1.0 / (beta + 1e-9)) * torch.sin(x * alpha) ** 2


D = 24


def case(name):
    """(the layer it stands for as its library has it, the shapes of its inputs)"""
    from diffusers.models import activations, normalization
    from diffusers.models.autoencoders.autoencoder_oobleck import Snake1d

    x, row = (2, 5, D), (2, D)
    return {
        "LayerNorm": lambda: (nn.LayerNorm((5, D)), [x]),
        "LayerNorm, no weights": lambda: (nn.LayerNorm(D, elementwise_affine=False), [(3, D)]),
        "LayerNorm, fp32": lambda: (normalization.FP32LayerNorm(D), [x]),
        "RMSNorm": lambda: (normalization.RMSNorm(D, 1e-5), [(2, 3, 4, D)]),
        "RMSNorm, bias": lambda: (normalization.RMSNorm(D, 1e-5, bias=True), [x]),
        "RMSNorm, no weights": lambda: (normalization.RMSNorm(D, 1e-5, elementwise_affine=False), [x]),
        "TorchRMSNorm": lambda: (nn.RMSNorm((5, D)), [x]),
        "TorchRMSNorm, eps": lambda: (nn.RMSNorm(D, eps=1e-2), [x]),
        "StableAudioLayerNorm": lambda: (PlainGamma(D, rms=False), [x]),
        "StableAudioRMSNorm": lambda: (PlainGamma(D, rms=True), [x]),
        "AdaLayerNormZero": lambda: (normalization.AdaLayerNormZero(D), [x, {"emb": row}]),
        "AdaLayerNormZeroSingle": lambda: (normalization.AdaLayerNormZeroSingle(D), [x, row]),
        "AdaLayerNormContinuous": lambda: (normalization.AdaLayerNormContinuous(D, D), [x, row]),
        "AdaLayerNormContinuous, rms": lambda: (
            normalization.AdaLayerNormContinuous(D, D, norm_type="rms_norm"),
            [x, row],
        ),
        "SwiGLU": lambda: (activations.SwiGLU(D, D), [x]),
        "GEGLU": lambda: (activations.GEGLU(D, D), [x]),
        "StableAudioGLU": lambda: (PlainGlu(D, nn.SiLU()), [x]),
        "StableAudioGLU, gelu": lambda: (PlainGlu(D, nn.GELU()), [x]),
        "StableAudioGLU, tanh": lambda: (PlainGlu(D, nn.Tanh()), [x]),
        "StableAudioGLU, conv": lambda: (PlainGlu(D, nn.SiLU(), use_conv=True), [x]),
        "SiluAndMul": lambda: (PlainAndMul(nn.SiLU()), [x]),
        "GeluAndMul": lambda: (PlainAndMul(nn.GELU()), [x]),
        "Snake1d": lambda: (Snake1d(D), [(2, D, 7)]),
        "Snake1d, no logarithms": lambda: (Snake1d(D, logscale=False), [(2, D, 3, 4)]),
        "SnakeBeta": lambda: (PlainSnakeBeta(D, True), [(2, D, 7)]),
        "SnakeBeta, no logarithms": lambda: (PlainSnakeBeta(D, False), [(2, D, 7)]),
    }[name]()


CASES = [
    *("LayerNorm", "LayerNorm, no weights", "LayerNorm, fp32", "RMSNorm", "RMSNorm, bias", "RMSNorm, no weights"),
    *("TorchRMSNorm", "TorchRMSNorm, eps", "StableAudioLayerNorm", "StableAudioRMSNorm"),
    *("AdaLayerNormZero", "AdaLayerNormZeroSingle", "AdaLayerNormContinuous", "AdaLayerNormContinuous, rms"),
    *("SwiGLU", "GEGLU", "StableAudioGLU", "StableAudioGLU, gelu", "StableAudioGLU, tanh", "StableAudioGLU, conv"),
    *("SiluAndMul", "GeluAndMul", "Snake1d", "Snake1d, no logarithms", "SnakeBeta", "SnakeBeta, no logarithms"),
]


def marked(module, layer_name):
    """The module with its class marked for ``kernelize``; a subclass, so that nobody else's is."""
    use = kernels.use_kernel_forward_from_hub(layer_name)
    module.__class__ = use(type(type(module).__name__, (type(module),), {}))
    return module


def kernelized(module, repository, layer_name, mode=None):
    mode = mode or kernels.Mode.TRAINING
    model = nn.Sequential(marked(copy.deepcopy(module), layer_name))
    where = {layer_name: {"cpu": kernels.LocalLayerRepository(repository, layer_name=layer_name)}}
    with kernels.use_kernel_mapping(where, inherit_mapping=False):
        kernels.kernelize(model, mode=mode, device="cpu", use_fallback=False)
    assert model[0].forward.__func__.__module__.startswith("_presto_kernels_cpu_test")
    return model[0]


def outcome(module, shapes):
    """Outputs and gradients of a sum of products with fixed numbers."""
    torch.manual_seed(1)
    options = shapes[-1] if isinstance(shapes[-1], dict) else {}
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes if not isinstance(shape, dict)]
    named = {name: torch.randn(shape, requires_grad=True) for name, shape in options.items()}
    out = module(*inputs, **named)
    outputs = out if isinstance(out, tuple) else (out,)
    sum((o * torch.randn(o.shape)).sum() for o in outputs).backward()
    leaves = [*inputs, *named.values(), *module.parameters()]
    return list(outputs), [leaf.grad for leaf in leaves]


def perturbed(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.3, 0.5)
    return module


def check_against_plain(repository, name):
    module, shapes = case(name)
    fused = kernelized(perturbed(module), repository, name.split(",")[0])
    assert dict(fused.named_parameters()).keys() == dict(module.named_parameters()).keys()
    torch.testing.assert_close(outcome(fused, shapes), outcome(module, shapes), rtol=2e-4, atol=2e-5)


def test_every_layer_is_compared():
    assert {name.split(",")[0] for name in CASES} == set(LAYERS)


@pytest.mark.parametrize("name", CASES)
def test_a_kernelized_layer_computes_what_the_plain_one_does(repository, name):
    check_against_plain(repository, name)


def test_a_model_of_several_layers_trains_alike_and_goes_back(repository):
    from diffusers.models import activations, normalization

    norm = kernels.use_kernel_forward_from_hub("RMSNorm")(type("RMSNorm", (normalization.RMSNorm,), {}))
    glu = kernels.use_kernel_forward_from_hub("SwiGLU")(type("SwiGLU", (activations.SwiGLU,), {}))
    model = perturbed(nn.Sequential(nn.Linear(D, D), norm(D, 1e-6), glu(D, D), norm(D, 1e-6), nn.Linear(D, 3)))
    plain = copy.deepcopy(model)
    names = {name: {"cpu": kernels.LocalLayerRepository(repository, layer_name=name)} for name in ("RMSNorm", "SwiGLU")}
    with kernels.use_kernel_mapping(names, inherit_mapping=False):
        kernels.kernelize(model, mode=kernels.Mode.TRAINING, device="cpu", use_fallback=False)
    assert model.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(outcome(model, [(2, 5, D)]), outcome(plain, [(2, 5, D)]), rtol=2e-4, atol=2e-5)
    with kernels.use_kernel_mapping({name: {} for name in names}, inherit_mapping=False):
        kernels.kernelize(model, mode=kernels.Mode.TRAINING, device="cpu")
    assert model[1].forward.__func__ is normalization.RMSNorm.forward


def test_rms_norm_has_the_weights_dtype_as_in_diffusers(repository):
    module, _ = case("RMSNorm")
    for weights, inputs in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        plain = perturbed(module).to(weights)
        x = torch.randn(2, 5, D, dtype=inputs)
        fused = kernelized(plain, repository, "RMSNorm")
        torch.testing.assert_close(fused(x), plain(x), rtol=2e-2, atol=2e-2)  # also: one dtype


@pytest.mark.parametrize("name", ["RMSNorm", "LayerNorm", "SwiGLU", "Snake1d"])
def test_a_kernelized_layer_compiles_without_a_graph_break(repository, name):
    module, shapes = case(name)
    fused = kernelized(perturbed(module), repository, name, kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(outcome(compiled, shapes), outcome(module, shapes), rtol=2e-4, atol=2e-5)


def test_a_kernel_stands_beside_the_installed_package(repository):
    loaded = kernels.get_local_kernel(repository)
    assert loaded is not presto_kernels and loaded.__all__ == presto_kernels.__all__
    assert loaded.available_backends()["swiglu"][-1] == "reference"
    assert "cpu" not in loaded.available_backends()["swiglu"]  # there is no library in it
    assert str(loaded.adaln_modulate.__module__).startswith("_presto_kernels_cpu_test_python.")


# With the CPU kernels.


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a compiler run on a busy machine
@pytest.mark.parametrize("name", CASES)
def test_the_compiled_kernels_of_a_build_compute_what_the_plain_layers_do(compiled_repository, name):
    check_against_plain(compiled_repository, name)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a compiler run on a busy machine
def test_a_compiled_build_is_preferred_and_has_a_namespace_of_its_own(compiled_repository):
    loaded = kernels.get_local_kernel(compiled_repository)
    assert loaded.__name__ == "_presto_kernels_cpu_test"
    variant = Path(loaded.__file__).parent.name
    assert re.fullmatch(r"torch-stable-abi211-cpu-\w+-linux", variant) and os.uname().machine in variant
    assert loaded._library.instruction_set == _library.instruction_set
    x = torch.randn(2, 5, 2 * D)
    assert loaded.explain("swiglu", x).backend in ("cpu", "reference")
    with loaded.use_backend("cpu"), presto_kernels.use_backend("cpu"):
        torch.testing.assert_close(loaded.swiglu(x), presto_kernels.swiglu(x), rtol=1e-6, atol=1e-6)
    assert "swiglu" in loaded.available_backends()
    torch.testing.assert_close(torch.ops._presto_kernels_cpu_test.glu(x, 0, False), presto_kernels.swiglu(x))


def test_the_example_of_the_page_runs(repository, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/hf-kernels.md").read_text(), re.DOTALL)
    (tmp_path / "build").mkdir()
    (tmp_path / "build/hf").symlink_to(repository)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"layer `{name}`" in done.stderr for name in ("SiluAndMul", "TorchRMSNorm"))
