"""Text as a control, with a scorer of a line and with small CLAPs of random weights (real ones cannot be had here)."""

import numpy as np
import pytest
import torch
from small_clap import RATE, SECONDS, save_clap
from small_pipeline import small_pipeline

from presto_models.ditto import AudioTextScorer, ClapScorer, DittoOptions, Scene, TextMatch, optimize
from presto_models.metrics.mel import resample


class Loudness:
    """Two dims: the energy of each half of the music; the text says how much of it is in the first."""

    def embed_text(self, texts):
        return torch.tensor([[1.0, 0.0] if "first" in text else [0.0, 1.0] for text in texts])

    def embed_audio(self, audio, sample_rate):
        halves = audio[:, : audio.shape[1] // 2 * 2].unflatten(1, (2, -1))
        return halves.square().mean(2).add(1e-9).sqrt()


def test_it_is_one_less_the_cosine():
    scene = Scene(small_pipeline(), 4000, 2)
    bound = TextMatch(Loudness(), "loud in the first half").bind(scene)
    made = scene.made(torch.zeros(2, scene.length, 5))
    made.audio = torch.zeros(2, 1, 4000)
    made.audio[0, 0, :2000] = 0.5  # all in the first half
    made.audio[1, 0, :] = 0.5
    torch.testing.assert_close(bound.error(made), torch.tensor([0.0, 1 - 0.5**0.5]), atol=1e-6, rtol=0)
    torch.testing.assert_close(bound.figures(made)["cosine"], 1 - bound.error(made))
    assert bound.target.shape == (2,) and bound.feature(made).shape == (2, 2) and bound.kind == "text"


def test_optimisation_lowers_it():
    options = DittoOptions(steps=8, learning_rate=0.05, sampling_steps=2)
    control = TextMatch(Loudness(), "loud in the first half")
    result = optimize(small_pipeline(), control, prompt="organ", seconds=0.5, seed=1, options=options)
    assert float(result.outcomes["text"].error) < float(result.outcomes["text"].before)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: TextMatch("clap", "organ"), TypeError, "scorer must have embed_text and embed_audio, got str"),
        (lambda: TextMatch(Loudness(), 3), TypeError, "text must be a string, got int"),
        (lambda: TextMatch(Loudness(), " "), ValueError, "text must say something"),
    ],
)
def test_bad_input(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    return save_clap(tmp_path_factory.mktemp("clap"))


def music(samples, batch=2):
    """Noise under tones of falling loudness, another pitch each."""
    noise = 0.01 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(0))
    t = torch.arange(samples) / RATE
    pitch = 300.0 * torch.arange(1, batch + 1)[:, None]
    return noise + 0.3 * (-3 * t).exp() * torch.sin(2 * torch.pi * pitch * t)


@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("samples", [RATE * SECONDS, 5000])
def test_features_are_transformers_own(tmp_path, truncation, padding, samples):
    from transformers import ClapFeatureExtractor

    folder = save_clap(tmp_path, truncation=truncation, padding=padding)
    scorer, extractor = ClapScorer.from_pretrained(folder), ClapFeatureExtractor.from_pretrained(folder)
    audio = music(samples)
    audio[1, : samples // 2] = 0  # silence, at the floor
    theirs = extractor(list(audio.numpy()), sampling_rate=RATE, return_tensors="np")["input_features"]
    ours = scorer.log_mel(scorer.pieces(audio).flatten(0, 1))
    np.testing.assert_allclose(ours.numpy(), theirs[:, 0], atol=0.02)  # dB
    np.testing.assert_allclose(ours.numpy(), theirs[:, -1], atol=0.02)


@pytest.mark.parametrize("fusion", [False, True])
def test_embeddings_are_transformers_own(tmp_path, fusion):
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    folder = save_clap(tmp_path, fusion=fusion, truncation="fusion" if fusion else "rand_trunc")
    scorer = ClapScorer.from_pretrained(folder)
    assert isinstance(scorer, AudioTextScorer)
    model = ClapModel.from_pretrained(folder).eval()
    texts, audio = ["slow organ", "waltz"], music(9000)
    features = ClapFeatureExtractor.from_pretrained(folder)(list(audio.numpy()), sampling_rate=RATE)["input_features"]
    features = torch.from_numpy(np.stack(features)).float()
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        text = model.text_projection(model.text_model(tokens["input_ids"], tokens["attention_mask"]).pooler_output)
        heard = model.audio_model(features, is_longer=torch.zeros(2, 1, dtype=torch.bool)).pooler_output
        heard = model.audio_projection(heard)
    torch.testing.assert_close(scorer.embed_text(texts), torch.nn.functional.normalize(text), atol=1e-5, rtol=0)
    torch.testing.assert_close(scorer.embed_audio(audio, RATE), torch.nn.functional.normalize(heard), atol=1e-4, rtol=0)
    one, other = scorer.embed_audio(audio, RATE)
    assert float((one - other).norm()) > 0.05


def test_longer_music_is_the_mean_of_its_pieces(clap):
    scorer = ClapScorer.from_pretrained(clap)
    audio = music(2 * RATE * SECONDS + 1000)
    pieces = scorer.pieces(audio)
    assert pieces.shape == (2, 3, RATE * SECONDS)
    assert torch.equal(pieces[:, 0], audio[:, :16000]) and torch.equal(pieces[:, 2], audio[:, -16000:])
    assert torch.equal(pieces[:, 1], audio[:, 8500:24500])
    mean = torch.stack([scorer.embed_audio(pieces[:, i], RATE) for i in range(3)]).mean(0)
    expected = torch.nn.functional.normalize(mean, dim=-1)
    torch.testing.assert_close(scorer.embed_audio(audio, RATE), expected, atol=1e-5, rtol=0)


def test_its_gradient_reaches_the_music_through_another_rate(clap):
    scorer, target = ClapScorer.from_pretrained(clap), torch.randn(12, generator=torch.Generator().manual_seed(2))
    audio = music(22050, batch=1).requires_grad_()

    def score(audio):
        return (scorer.embed_audio(audio, 11025) @ target).sum()

    (gradient,) = torch.autograd.grad(score(audio), audio)
    direction, step = gradient / gradient.norm(), 3e-3
    with torch.no_grad():
        slope = (score(audio + step * direction) - score(audio - step * direction)) / (2 * step)
        torch.testing.assert_close(slope, gradient.norm(), rtol=0.03, atol=0)
        same = scorer.embed_audio(resample(audio, 11025, RATE), RATE)
        torch.testing.assert_close(scorer.embed_audio(audio, 11025), same)


def test_clap_as_a_control(clap):
    options = DittoOptions(steps=6, learning_rate=0.05, sampling_steps=2)
    control = TextMatch(ClapScorer.from_pretrained(clap), "slow organ")
    result = optimize(small_pipeline(), control, prompt="organ", seconds=0.5, seed=1, options=options)
    outcome = result.outcomes["text"]
    assert float(outcome.error) < float(outcome.before) and 0 <= float(outcome.error) <= 2


def test_what_is_no_clap(tmp_path, clap):
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    with pytest.raises(FileNotFoundError, match="no CLAP at"):
        ClapScorer.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        ClapScorer.from_pretrained(tmp_path / "empty")
    tower = save_clap(tmp_path / "tower")
    small = ClapTextConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ClapTextModelWithProjection(small).save_pretrained(tower)
    with pytest.raises(ValueError, match="holds a clap_text_model model, wanted a clap one"):
        ClapScorer.from_pretrained(tower)
    cut = save_clap(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(OSError, match="does not hold a whole CLAP"):
        ClapScorer.from_pretrained(cut)
    with pytest.raises(ValueError, match=r"audio must be mono, \[B, samples\]"):
        ClapScorer.from_pretrained(clap).embed_audio(torch.zeros(1, 1, 9000), RATE)
