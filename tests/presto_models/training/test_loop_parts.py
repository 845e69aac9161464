"""The parts of the loop, each by itself."""

import json
import math
from itertools import pairwise

import pytest
import torch
import toy_task
from hypothesis import given
from hypothesis import strategies as st

from presto_models.training.config import TrainConfig, build, differences, override, plain, read
from presto_models.training.ema import EMA
from presto_models.training.run_folder import RunFolder, RunFolderError
from presto_models.training.schedule import learning_rate_factor
from presto_models.training.seeding import derived_seed, generator
from presto_models.training.task import NonFiniteError, shares

pytest.importorskip("lightning")


def test_ema_is_the_formula():
    """Against a plain loop in float64; applied and taken back to the bit."""
    module = torch.nn.Linear(3, 2)
    expected = [weight.detach().double().clone() for weight in module.parameters()]
    average = EMA(module, 0.9)
    for updates in range(30):
        with torch.no_grad():
            for weight in module.parameters():
                weight.add_(torch.randn_like(weight))
        average.update(updates)
        decay = min(0.9, (1 + updates) / (10 + updates))
        expected = [
            decay * e + (1 - decay) * w.detach().double() for e, w in zip(expected, module.parameters(), strict=True)
        ]
    for shadow, value in zip(average.shadow.values(), expected, strict=True):
        torch.testing.assert_close(shadow.double(), value, rtol=1e-5, atol=1e-6)
    own = [weight.detach().clone() for weight in module.parameters()]
    with average.applied():
        assert all(torch.equal(w, s) for w, s in zip(module.parameters(), average.shadow.values(), strict=True))
    assert all(torch.equal(w, o) for w, o in zip(module.parameters(), own, strict=True))


def test_learning_rate():
    def factor(step, **changes):
        return learning_rate_factor(
            step, **{"steps": 100, "warmup": 10, "schedule": "constant", "decay": 20, "floor": 0.1, **changes}
        )

    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == factor(50) == factor(79) == 1.0
    assert factor(84) == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(5 / 20)))
    assert factor(99) == pytest.approx(0.1)
    assert factor(99, decay=0) == 1.0
    cosine = [factor(step, schedule="cosine") for step in range(100)]
    assert max(cosine) == 1.0 and cosine[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(cosine[10:]))


def test_seeds_tell_purposes_and_positions_apart():
    seeds = [
        derived_seed(s, p, *q) for s in (0, 1) for p in ("a", "b") for q in ((), (0,), (1,), (0, 0), (0, 1), (1, 0))
    ]
    assert len(set(seeds)) == len(seeds)
    assert torch.equal(torch.rand(3, generator=generator(1, "a", 2)), torch.rand(3, generator=generator(1, "a", 2)))


@given(count=st.integers(1, 40), world=st.integers(1, 5), size=st.integers(1, 7))
def test_shares_cover_every_sample_once(count, world, size):
    """And give every process as many chunks of the same sizes."""
    total = torch.zeros(count)
    shapes = []
    for rank in range(world):
        chunks = list(shares(count, rank, world, size))
        shapes.append([len(samples) for samples, _ in chunks])
        for samples, counts in chunks:
            total.index_add_(0, torch.tensor(samples), counts)
    assert (total == 1).all()
    assert all(shape == shapes[0] for shape in shapes)


def test_a_nan_stops_the_run_before_the_weights_change(tmp_path):
    """The error names the step, the loss, its parts and what was in the batch; the checkpoint of before stays."""
    with pytest.raises(NonFiniteError, match=r"step 7, toy: loss nan, .*worst nan.*had sigmas \[3\.35"):
        toy_task.train(tmp_path, toy_task.ToyTask(broken=7), steps=20)
    assert sorted(path.name for path in tmp_path.glob("state-*")) == ["state-00000005.safetensors"]
    toy_task.train(tmp_path, resume=True, steps=20)


def test_another_run_is_not_overwritten(tmp_path):
    config = {"train": plain(toy_task.settings(steps=5))}
    toy_task.train(tmp_path, steps=5)
    with pytest.raises(RunFolderError, match="at step 5: resume it"):
        RunFolder(tmp_path, task="toy", config=config, resume=False)
    with pytest.raises(RunFolderError, match=r"train\.learning_rate was 0\.003, is 0\.1; train\.seed was 0, is 2"):
        other = {"train": {**config["train"], "learning_rate": 0.1, "seed": 2}}
        RunFolder(tmp_path, task="toy", config=other, resume=True)
    with pytest.raises(RunFolderError, match="task was 'toy', is 'stereo'"):
        RunFolder(tmp_path, task="stereo", config=config, resume=True)


def test_a_longer_run_is_the_same_run():
    old = {"train": plain(TrainConfig()), "model": {"dim": 8}}
    assert differences(old, {**old, "train": plain(TrainConfig(steps=7, checkpoint_minutes=1.0))}) == []
    assert differences(old, {"train": old["train"], "model": {"dim": 9}}) == ["model.dim was 8, is 9"]


def test_configs_from_files(tmp_path):
    toml, other = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_text("steps = 12\nbetas = [0.8, 0.9]\n")
    other.write_text(json.dumps({"steps": 12, "betas": [0.8, 0.9]}))
    wanted = TrainConfig(steps=12, betas=(0.8, 0.9))
    assert build(TrainConfig, read(toml, "toy")) == build(TrainConfig, read(other, "toy")) == wanted
    assert build(TrainConfig, plain(wanted)) == wanted
    values = override({"a": {"b": 1}}, ["a.b=2", "a.c=[1, 2]", "d.e=text", "f=3e-4", "g=true"])
    assert values == {"a": {"b": 2, "c": [1, 2]}, "d": {"e": "text"}, "f": 3e-4, "g": True}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stps": 3}, "has no stps; it has accumulate"),
        ({"steps": "many"}, "steps must be int, got 'many'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"betas": [0.9]}, "betas must have 2 values"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"clip": -1.0}, "clip must be positive"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(ValueError, match=message):
        build(TrainConfig, values)


def test_bad_files(tmp_path):
    (tmp_path / "bad.toml").write_text("steps = = 3")
    with pytest.raises(ValueError, match=r"bad\.toml cannot be read"):
        read(tmp_path / "bad.toml", "toy")
    with pytest.raises(FileNotFoundError, match=r"the presets of diffusion are presto-32s, presto-tiny"):
        read("nothing", "diffusion")
    with pytest.raises(ValueError, match="key=value"):
        override({}, ["steps"])
