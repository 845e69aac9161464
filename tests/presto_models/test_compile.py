"""One graph, forward and backward, and one compilation for every length."""

import pytest
import torch
from small_models import make_dit, make_inputs, reference_of, small_config

from presto_kernels import use_backend

LENGTHS = (41, 1379, 87, 39)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def models(num_blocks):
    dit = make_dit(small_config(num_blocks=num_blocks), torch.float32)
    return {"presto": dit, "reference": reference_of(dit)}


def sweep(name, way, compiler, num_blocks=2):
    """The compiled model against the eager one over lengths; anything compiled after the first raises."""
    both = models(num_blocks)
    model = both[name]
    compiled = torch.compile(model, backend=compiler, fullgraph=True, dynamic=True)
    text = make_inputs(model.config).to(torch.float32).conditioning
    step = both["presto"].precompute(text, (2.0,), (1,)).step(0)
    options = {"plain": {}, "blocks": {"blocks": (1,)}, "precomputed": {"precomputed": step}}[way]

    def same(length):
        args = make_inputs(model.config, length=length).to(torch.float32).args
        torch.testing.assert_close(compiled(*args, **options), model(*args, **options), rtol=1e-4, atol=1e-5)

    with torch.no_grad():
        same(37)
        with torch.compiler.set_stance("fail_on_recompile"):
            for length in LENGTHS:
                same(length)


@pytest.mark.parametrize(
    ("backend", "way"), [(None, "plain"), ("reference", "plain"), (None, "blocks"), (None, "precomputed")]
)
def test_the_fused_model_is_one_graph_for_every_length(backend, way):
    with use_backend(backend):
        sweep("presto", way, "eager")


def test_so_is_the_plain_one():
    sweep("reference", "precomputed", "eager")


@pytest.mark.slow
def test_and_through_inductor():
    sweep("presto", "precomputed", "inductor", num_blocks=1)


@pytest.mark.slow
def test_training_on_mixed_budgets_is_one_graph():
    dit = models(2)["presto"]
    compiled = torch.compile(dit, backend="aot_eager", fullgraph=True)
    inputs = make_inputs(dit.config).to(torch.float32)
    gradients = []
    for model in (compiled, dit):
        dit.zero_grad()
        model(*inputs.args, budgets=(2, 1, 1)).square().sum().backward()
        gradients.append({name: p.grad for name, p in dit.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        other = gradients[1][name]
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
