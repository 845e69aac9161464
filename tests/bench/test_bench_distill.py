"""Distillation steps: both sides on one set of weights and checked; turns, mixtures and lines are computed right."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import distill, distill_kept
from bench.__main__ import main
from bench.distill_tasks import METHODS, PlainDiT, Sizes, Training, check, make_task, plain_of
from bench.measure import Samples
from bench.results import Report
from presto_models import Conditioning, DiT, DiTConfig, randomize_weights
from presto_models.training.task import Player

CPU = torch.device("cpu")
SIZES = Sizes("tiny", blocks=2, batch=4, latents=64, precision="fp32")
COMMAND = "distill --config tiny --blocks 2 --batch 4 --latents 64 --device cpu --rounds 3 --seconds 0"


def test_a_plain_batch_of_mixed_budgets_is_prestos():
    config = DiTConfig(num_blocks=4, dim=16, num_heads=2, mlp_dim=24, in_channels=3, text_dim=8, pooled_dim=0)
    dit = DiT(config).double()
    randomize_weights(dit)
    normal = torch.Generator().manual_seed(0)
    x, tokens = (torch.randn(5, n, c, generator=normal).double() for n, c in ((9, 3), (6, 8)))
    conditioning = Conditioning(tokens, None, torch.tensor([6, 0, 3, 1, 6]))
    budgets, sigma = [4, 4, 3, 1, 1], torch.linspace(0.1, 9, 5).double()
    plain = plain_of(dit)
    assert isinstance(plain, PlainDiT)
    expected = dit(x, sigma, conditioning, budgets=budgets)
    torch.testing.assert_close(plain(x, sigma, conditioning, budgets=budgets), expected, rtol=1e-9, atol=1e-11)


@pytest.fixture(scope="module")
def training():
    return Training("cm", SIZES, CPU)


def test_the_plain_networks_share_what_is_trained(training):
    """Also what is not: the teacher is frozen on both sides, the moving average's weights are no parameters."""
    fused, plain = training.nets["presto"], training.nets["reference"]
    assert len(fused) == len(plain) == 3  # student, target, teacher
    for ours, theirs in zip(fused, plain, strict=True):
        own = ours.state_dict(keep_vars=True)
        for name, weight in theirs.state_dict(keep_vars=True).items():
            assert weight.data_ptr() == own[name].data_ptr()
            assert weight.requires_grad == own[name].requires_grad
    assert any(p.requires_grad for p in plain[0].parameters())
    assert not any(p.requires_grad for p in (*plain[1].parameters(), *plain[2].parameters()))


def test_a_turn_runs_what_it_is_asked_for_and_puts_prestos_back(training):
    player, ran = training.turns["student"], []
    for name, nets in training.nets.items():
        for net in nets:
            net.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    losses = {}
    for name in ("reference", "presto"):
        ran.clear()
        losses[name] = training.turn(name, player)
        assert set(ran) == {name}
        assert training.task.student.dit is training.nets["presto"][0]
    torch.testing.assert_close(losses["presto"], losses["reference"], rtol=1e-4, atol=0)


def test_a_wrong_gradient_is_refused(training, monkeypatch):
    player, right = training.turns["student"], training.results
    assert check(training, player) is None

    def wrong(name, player):
        found = right(name, player)
        if name == "presto":
            found["d student.dit.proj_out.bias"] = 1.01 * found["d student.dit.proj_out.bias"]
        return found

    monkeypatch.setattr(training, "results", wrong)
    assert "proj_out.bias" in str(check(training, player))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_both_sides_agree(method, precision):
    sizes = Sizes("tiny", blocks=2, batch=4, latents=64, precision=precision)
    training = Training(method, sizes, CPU)
    assert [check(training, player) for player in training.turns.values()] == [None] * len(training.turns)


def test_batches_are_the_methods_own():
    """Its preset's crops at presto-tiny's sizes, the config's length elsewhere; budgets as it draws them."""
    crop = Sizes("presto-tiny").method("presto-l").crops[0]
    assert (crop.latents, crop.batch) == (172, 16)
    crop = Sizes("presto-32s").method("presto-s").crops[0]
    assert (crop.latents, crop.batch) == (1379, 4)
    task = make_task("ase", SIZES)
    batch = task.batch(3, 0, 1)
    assert batch.clean.shape == (4, 64, SIZES.dit.in_channels)
    assert batch.budgets == sorted(batch.budgets, reverse=True)
    assert max(batch.budgets) <= max(task.layers.budgets)
    assert torch.equal(batch.clean, task.batch(3, 0, 1).clean)


def test_the_mean_step_of_a_cycle():
    module = torch.nn.Identity()
    players = [Player("fake", module), Player("generator", module, every=5)]
    turns = distill.by_turn(Samples({"presto": [[10.0, 20.0], [50.0, 100.0]]}), players)
    assert {turn: list(samples.ms("presto")) for turn, samples in turns.items()} == {
        "fake update": [10.0, 20.0],
        "generator update": [50.0, 100.0],
        "mean step": [20.0, 40.0],
    }
    alone = Samples({"presto": [[1.0]]})
    assert distill.by_turn(alone, players[:1]) == {"step": alone}


@settings(deadline=None, max_examples=50)
@given(st.floats(0.05, 1.0), st.integers(1, 24), st.integers(1, 40))
def test_mixtures_keep_the_share_they_are_for(share, depth, size):
    budgets = distill_kept.spread(share, depth, size, lowest=1)
    assert len(budgets) == size and budgets == sorted(budgets, reverse=True)
    assert budgets[-1] >= 1 and budgets[0] <= depth
    assert sum(budgets) == max(round(share * depth * size), size)


def test_mixtures_are_mixed():
    assert distill_kept.spread(0.5, 8, 8, lowest=1)[0] - distill_kept.spread(0.5, 8, 8, lowest=1)[-1] >= 5
    assert distill_kept.spread(1.0, 8, 4, lowest=1) == [8] * 4


@pytest.mark.parametrize("constant", [0.0, 0.25])
def test_the_line_through_what_was_measured(constant):
    """Also where every round is slower than the one before."""
    cases, report = {share: [1] for share in (0.25, 0.5, 1.0)}, Report({})
    drift = np.array([1.0, 2.0, 3.0])
    times = {distill_kept.name_of("student", s): [list(drift * (constant + (1 - constant) * s))] for s in cases}
    distill_kept.summarise(report, Samples(times), "student", cases)
    line = report.summary["student"]
    assert line["slope"] == pytest.approx(1 - constant)
    assert line["intercept"] == pytest.approx(constant, abs=1e-6)
    assert line["largest_deviation"] == pytest.approx(3 * constant)
    assert [row["over_full"] for row in report.rows] == pytest.approx([constant + (1 - constant) * s for s in cases])


@pytest.mark.slow
def test_the_command(tmp_path):
    file = tmp_path / "distill.json"
    assert main([*COMMAND.split(), "--methods", "ase", "presto-s", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    turns = {(row["method"], row["turn"], row["implementation"]) for row in content["rows"]}
    assert len(turns) == 8 and ("presto-s", "mean step", "presto") in turns
    assert all(row["rounds"] == 3 and row["ms_p50"] > 0 for row in content["rows"])
    assert len(content["summary"]["presto-s generator update"]["reference_over_presto_interval"]) == 2


@pytest.mark.slow
def test_the_command_for_kept_blocks(tmp_path):
    pytest.importorskip("matplotlib")
    file, plot = tmp_path / "kept.json", tmp_path / "kept.png"
    command = [*COMMAND.split(), "--kept", "--shares", "0.6", "--json", str(file), "--plot", str(plot)]
    assert main(command) == 0
    content = json.loads(file.read_text())
    assert [(row["series"], row["kept_share"]) for row in content["rows"]] == [
        (series, share) for series in ("student", "step") for share in (0.625, 1.0)
    ]
    assert content["summary"]["student"]["slope_interval"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_share_that_cannot_be_kept_is_refused():
    with pytest.raises(SystemExit, match="above 0 and at most 1"):
        distill_kept.run(Report({}), distill.DistillOptions(shares=(0.5, 1.5)), CPU)
