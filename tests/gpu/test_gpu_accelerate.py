"""accelerate and capture on a GPU: what the untouched model computes, and one graph a shape."""

import copy
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "presto_kernels" / "integrations"))
from small_stability import cast, dit_inputs, sa3_dit, same_decoder, tools_dit

from presto_kernels import accelerate, accelerate_report, capture, prompt_cache
from presto_kernels.testing import within

EPS = {torch.float32: 2**-23, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def on_device(given, device="cuda"):
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in given.items()}


@torch.no_grad()
@pytest.mark.parametrize("make", [tools_dit, sa3_dit])
@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_outputs(make, dtype):
    plain = make().to("cuda", dtype)
    fast, wide = accelerate(copy.deepcopy(plain)), copy.deepcopy(plain).double()
    for length in (1, 17, 64):
        given = on_device(cast(dit_inputs(plain, length=length), dtype))
        outcome = within(
            "output", fast(**given), wide(**cast(given, torch.float64)), plain(**given), rowwise=False, eps=EPS[dtype]
        )
        assert outcome.ok, str(outcome)
    assert not accelerate_report(fast).passed_on


@torch.no_grad()
def test_same_decoder():
    plain = same_decoder().to("cuda", torch.float16)
    fast, wide = accelerate(copy.deepcopy(plain)), copy.deepcopy(plain).double()
    z = torch.randn(1, 5, 9, device="cuda", dtype=torch.float16)
    outcome = within("audio", fast(z), wide(z.double()), plain(z), rowwise=False, eps=EPS[torch.float16])
    assert outcome.ok, str(outcome)


@torch.no_grad()
@pytest.mark.parametrize("make", [tools_dit, sa3_dit])
def test_a_graph_a_shape_and_results_of_their_own(make):
    model = accelerate(make().to("cuda", torch.bfloat16))
    graphed = capture(model, graphs=2)
    kept = []
    for length, seed in ((8, 0), (8, 1), (13, 2), (8, 3), (21, 4), (8, 5)):
        given = on_device(cast(dit_inputs(model, length=length, seed=seed), torch.bfloat16))
        kept.append((graphed(**given), model(**given)))
    torch.cuda.synchronize()
    for replayed, expected in kept:
        assert torch.equal(replayed, expected)


@torch.no_grad()
def test_a_replay_reads_tables_that_outlive_the_cache_of_them():
    model = accelerate(tools_dit().to("cuda"))
    graphed = capture(model)
    given = on_device(dit_inputs(model))
    expected = graphed(**given)
    for length in range(30, 130):  # more lengths than there are tables kept
        model(**on_device(dit_inputs(model, length=length)))
    torch.cuda.empty_cache()
    junk = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(32)]
    assert torch.equal(graphed(**given), expected)
    del junk


@torch.no_grad()
def test_what_a_prompt_decides_may_be_computed_once_inside_a_graph():
    """The whole walk captured: the first step's keys and values serve the others."""
    model = accelerate(tools_dit().to("cuda"))
    given = on_device(dit_inputs(model))
    x, t = given.pop("x"), given.pop("t")

    class Walk(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, t, **prompt):
            with prompt_cache(self.model):
                for _ in range(3):
                    x = x - 0.1 * self.model(x, t, **prompt)
            return x

    walk = Walk().eval()
    graphed = capture(walk)
    for seed in (0, 1):
        torch.manual_seed(seed)
        prompt = {name: torch.randn_like(value) for name, value in given.items()}
        torch.testing.assert_close(graphed(x, t, **prompt), walk(x, t, **prompt))
    # An open cache outside of the graph is not what the graph reads.
    with prompt_cache(model):
        single = capture(model)
        first = single(x=x, t=t, **given)
    torch.cuda.empty_cache()
    torch.testing.assert_close(single(x=x, t=t, **given), first)


def test_gradients_flow_as_in_the_untouched_model():
    plain = tools_dit().to("cuda")
    fast = accelerate(copy.deepcopy(plain))
    given = on_device(dit_inputs(plain))
    for model in (plain, fast):
        model(**given).square().mean().backward()
    for a, b in zip(plain.parameters(), fast.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5)
