"""Rows from TOML, what a walk asks of the network, times in rounds, and diversity across seeds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")
pytest.importorskip("soundfile")
pytest.importorskip("auraloss")

from presto_kernels import LayerSchedule
from presto_models.diffusion.sampling import SAMPLERS, Sampling
from presto_models.metrics.diversity import diversity
from presto_models.metrics.embedded import EmbeddedClips
from presto_models.metrics.method_rows import NetworkUse, Row, network_use, read_rows
from presto_models.metrics.speeds import interleaved, speedup


def rows_of(tmp_path, text):
    path = tmp_path / "rows.toml"
    path.write_text(text)
    return read_rows(path)


def test_rows_are_read(tmp_path):
    text = """
    [[rows]]
    name = "teacher-40"
    checkpoint = "presto-tiny"
    steps = 40
    group = "owed"

    [[rows]]
    name = "ls_rho"
    checkpoint = "ls"
    sampler = "pingpong"
    rho = 1000
    schedule = "full"
    note = "a note"
    """
    teacher, student = rows_of(tmp_path, text)
    assert teacher == Row("teacher-40", "presto-tiny", "owed", changes={"steps": 40})
    assert teacher.settings() == {"steps": 40, "guidance": None}, "as evaluate writes it"
    assert student.settings() == {
        "steps": None,
        "guidance": None,
        "sampler": "pingpong",
        "rho": 1000,
        "schedule": "full",
    }
    own = Sampling(steps=7, guidance=3.0)
    assert teacher.sampling(own) == replace(own, steps=40)
    assert student.sampling(own) == replace(own, sampler="pingpong", spacing="interval", rho=1000)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('steps = "4"', "row bad: steps must be an int"),
        ("steps = 0", "row bad: steps must be at least 1"),
        ("guidance = -1", "row bad: guidance must be at least 0"),
        ('sampler = "euler"', "row bad: sampler must be one of"),
        ('spacing = "even"', "row bad: spacing must be"),
        ('schedule = "half"', "row bad: schedule must be one of own, full; got 'half'"),
        ("sigma_min = 1.0", "row bad: sigma_min unknown; a row has name, checkpoint"),
        ("note = 3", "row bad: note must be text"),
        ('[[rows]]\nname = "bad"\ncheckpoint = "y"', "two rows are named bad"),
        ('[[rows]]\nname = "noise"\ncheckpoint = "y"', "row noise: name must be"),
        ('[[rows]]\nname = "a/b"\ncheckpoint = "y"', "row a/b: name must be"),
        ('[[rows]]\nname = "c"', "row c: checkpoint missing"),
        ("=", "is no TOML"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path, f'[[rows]]\nname = "bad"\ncheckpoint = "x"\n{line}\n')


def test_the_rows_of_this_repository_fit():
    rows = read_rows(Path(__file__).parents[3] / "bench" / "distillation.toml")
    owed = ["presto-tiny", "presto-tiny", "ase", "presto-l", "cm", "presto-s", "presto-ls"]
    assert [row.checkpoint for row in rows[:7]] == owed


def test_a_file_without_rows_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"has no \[\[rows\]\]"):
        rows_of(tmp_path, "")
    with pytest.raises(FileNotFoundError, match="rows: no file"):
        read_rows(tmp_path / "none.toml")


@given(steps=st.integers(1, 12), sampler=st.sampled_from([name for name in SAMPLERS if name != "ctm"]))
def test_calls_are_those_that_sampling_says(steps, sampler):
    sampling = Sampling(sampler, steps)
    use = network_use(sampling, None, 6)
    assert use == NetworkUse(sampling.model_calls, sampling.model_calls, 6 * use.calls, 6 * use.calls)


def test_guided_calls_count_twice_and_dropped_blocks_not():
    sampling = Sampling("pingpong", 2, guidance=3.0, sigma_max=80, sigma_min=1e-3, spacing="interval")
    first, second, _ = sampling.sigmas
    schedule = LayerSchedule(6, ((first + second) / 2,), (5, 2))
    assert network_use(sampling, schedule, 6) == NetworkUse(2, 4, 7, 12)
    assert network_use(sampling, schedule, 6, takes_guidance=True).evaluations == 2
    assert network_use(replace(sampling, guidance=1.0), None, 6) == NetworkUse(2, 2, 12, 12)


def test_times_are_of_shuffled_rounds_and_the_first_is_not_kept():
    order = []

    def measure_of(name):
        def measure(number):
            order.append((name, number))
            return {"whole": {"slow": 4.0, "fast": 1.0}[name] * (1 + number), "part": 1.0}

        return measure

    times = interleaved({name: measure_of(name) for name in ("slow", "fast")}, rounds=8, seed=1)
    assert [number for _, number in order] == list(range(18)), "no number twice"
    rounds = [tuple(name for name, _ in order[2 * i : 2 * i + 2]) for i in range(9)]
    assert set(rounds) == {("slow", "fast"), ("fast", "slow")}
    assert len(times["slow"]["whole"]) == 8 and times["fast"]["part"] == [1.0] * 8
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        interleaved({}, rounds=0)


def test_a_speedup_is_the_median_of_ratios_within_rounds():
    drift = [1.0, 5.0, 2.0, 9.0, 3.0]
    found = speedup([4 * d for d in drift], drift)
    assert (found.value, found.low, found.high) == (4, 4, 4)
    noisy = speedup([4, 4, 8, 4, 40], [1, 1, 1, 1, 1])
    assert noisy.value == 4 and noisy.low == 4 and noisy.high > 8


def test_diversity_is_0_for_equal_clips_and_1_for_clips_like_other_pieces():
    random = torch.Generator().manual_seed(0)
    real = EmbeddedClips.of(torch.randn(200, 16, generator=random))
    equal = torch.randn(6, 1, 16, generator=random).expand(-1, 5, -1)
    assert diversity(equal, real).value == 0
    apart = diversity(torch.randn(12, 6, 16, generator=random), real)
    assert apart.value == pytest.approx(1, abs=0.08) and apart.low < 1 < apart.high + 0.05
    near = diversity(0.5 * torch.randn(12, 6, 16, generator=random) + 3, real)
    assert near.value == pytest.approx(0.5, abs=0.05) and near.low < near.value < near.high


def test_diversity_takes_real_clips_of_different_pieces_only():
    real = EmbeddedClips(torch.tensor([[[0.0]], [[100.0]], [[1.0]], [[101.0]]]), ("a", "a", "b", "b"))
    made = torch.tensor([[[0.0], [50.5]]])
    pairs = (1 + 101 + 99 + 1) / 4
    assert diversity(made, real).value == pytest.approx(50.5 / pairs)
    with pytest.raises(ValueError, match=r"made must be \[prompts, seeds, 1\] of at least 2 seeds"):
        diversity(made[:, :1], real)
    with pytest.raises(ValueError, match="at least two pieces that differ"):
        diversity(made, EmbeddedClips(real.embeddings, ("a",) * 4))
