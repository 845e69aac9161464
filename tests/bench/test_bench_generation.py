"""The generation that is timed: shared weights, equal work, and a wrong model is refused."""

import copy
import dataclasses

import pytest
import torch

from bench import latency, op_profile
from bench.generation import Generation, Implementation, Setup
from bench.results import Report

CPU = torch.device("cpu")


def make(**changes):
    with torch.no_grad():
        return Generation(
            Setup(**{"config": "tiny", "steps": 4, "dtype": "fp32", "guidance": 1.0, "device": CPU} | changes)
        )


@pytest.fixture(scope="module")
def generation():
    return make()


def test_weights_are_held_once(generation):
    presto, reference = (dict(model.named_parameters()) for model in (generation.presto, generation.reference))
    assert presto.keys() == reference.keys()
    assert all(presto[name].data_ptr() == reference[name].data_ptr() for name in presto)


def test_nothing_stays_zero_so_that_every_weight_matters(generation):
    assert all(parameter.abs().max() > 0 for parameter in generation.presto.parameters())


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_steps_and_whole_walks_agree_between_the_models(guidance):
    generation = make(guidance=guidance)
    presto, reference = (Implementation(model, generation.full) for model in (generation.presto, generation.reference))
    with torch.no_grad():
        for ours, theirs in zip(generation.steps(presto), generation.steps(reference), strict=True):
            torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(generation.walk(presto), generation.walk(reference), rtol=1e-2, atol=1e-2)


def test_the_schedule_drops_blocks_at_high_noise(generation):
    kept = [Implementation(generation.presto, generation.scheduled).blocks(step) for step in range(4)]
    assert kept == sorted(kept) and kept[0] < kept[-1] < 8
    assert generation.sigmas == pytest.approx((80, 17.5, 2.52, 0.17), rel=0.02)


def test_guidance_runs_two_samples_a_step_on_both_sides():
    assert make(guidance=2.0).conditioning.batch_size == 2
    assert make(guidance=1.0).conditioning.batch_size == 1


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_right_models_pass_the_check_and_a_wrong_one_does_not(dtype):
    generation = make(dtype=dtype)
    wrong = copy.deepcopy(generation.presto)
    with torch.no_grad():
        wrong.blocks[7].mlp.down.weight.mul_(1.2)
        verdicts = generation.check(
            {
                "reference": Implementation(generation.reference, generation.full),
                "presto": Implementation(generation.presto, generation.full),
                "scheduled": Implementation(generation.presto, generation.scheduled),
                "wrong": Implementation(wrong, generation.full),
                "crashing": Implementation(torch.nn.Linear(1, 1), generation.full),
            }
        )
    assert {name for name, reason in verdicts.items() if reason is None} == {"reference", "presto", "scheduled"}
    assert "model output" in str(verdicts["wrong"])


def test_a_wrong_model_is_refused_and_not_timed(generation):
    wrong = copy.copy(generation)
    wrong.presto = copy.deepcopy(generation.presto)
    report = Report({})
    with torch.no_grad():
        wrong.presto.proj_out.weight.mul_(1.1)
        found = latency.implementations(wrong, latency.LatencyOptions(compile=False), report)
    assert set(found) == {"reference"}
    assert {entry["implementation"] for entry in report.refused} == {"presto", "scheduled"}


@pytest.mark.parametrize("side", ["reference", "presto"])
def test_the_profile_finds_every_kind_of_op(generation, side):
    model = getattr(generation, side)
    call = generation.steps(Implementation(model, generation.full))[0]
    with torch.no_grad(), op_profile.marked(model):
        kinds = op_profile.profile(call, CPU).kinds
    assert set(kinds) == set(generation.counts(8))
    assert all(part.ms > 0 and part.launches > 0 for part in kinds.values())


def test_the_profile_counts_a_slow_op_where_it_is(generation):
    slow = copy.deepcopy(generation.reference)
    slow.blocks[0].mlp.down.register_forward_pre_hook(lambda *_: None)

    class Slow(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, h):
            torch.randn(300, 300) @ torch.randn(300, 300)
            for _ in range(100):  # so much that other work on the machine does not outweigh it
                torch.randn(400, 400) @ torch.randn(400, 400)
            return self.inner(h)

    slow.blocks[0].mlp.up = Slow(slow.blocks[0].mlp.up)
    call = generation.steps(Implementation(slow, generation.full))[0]
    with torch.no_grad(), op_profile.marked(slow):
        kinds = op_profile.profile(call, CPU).kinds
    assert kinds["mlp up"].ms > 0.5 * sum(part.ms for part in kinds.values())


def test_setup_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Setup("tiny", 4, "fp32", 1.0, CPU).steps = 2
