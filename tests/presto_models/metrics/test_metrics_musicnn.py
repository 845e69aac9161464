"""musicnn: the checkpoint reader, the network against TensorFlow, log-mel against librosa, and what it hears."""

import shutil

import numpy as np
import pytest
import torch

from presto_models.metrics.tf_checkpoint import read_tf_checkpoint

pytest.importorskip("transformers")

from presto_models.metrics import musicnn
from presto_models.metrics.musicnn import MusicNN

RATE = 44_100


@pytest.fixture(scope="module")
def tagger():
    try:
        return MusicNN.load()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def checkpoint(tagger, tmp_path_factory):
    """A copy of the checkpoint that a test may damage: a function that gives the prefix of a new copy."""

    def copy():
        folder = tmp_path_factory.mktemp("checkpoint")
        for name in (".index", ".data-00000-of-00001"):
            shutil.copy(musicnn._package_folder() / "MTT_musicnn" / name, folder / name)
        return folder

    return copy


def plucked(hertz, seconds=3.2):
    """Notes of ten partials that start twice a second and die away."""
    t = torch.arange(round(seconds * RATE)) / RATE
    wave = sum(torch.sin(2 * torch.pi * hertz * n * t) / n for n in range(1, 11))
    return 0.2 * wave * torch.exp(-(t % 0.5) / 0.15)


def held(hertz, seconds=3.2):
    t = torch.arange(round(seconds * RATE)) / RATE
    return 0.1 * sum(torch.sin(2 * torch.pi * hertz * n * t) for n in (1, 2, 4, 8))


# The first eight tags as TensorFlow 2.21 runs the graph in the wheel, for default_rng(0).random((2, 187, 96)) * 3.
TENSORFLOW = {
    "MTT_musicnn": [
        [0.000206608, 0.0059546, 0.00151645, 0.16302, 0.0200616, 0.104688, 0.0679815, 0.00114209],
        [0.00014377, 0.00826572, 0.00132641, 0.217305, 0.0210457, 0.0701833, 0.0830958, 0.00101267],
    ],
    "MSD_musicnn": [
        [0.0672194, 0.0171433, 0.0270959, 0.000800216, 0.0489111, 0.00228471, 0.0248858, 0.00740176],
        [0.0664944, 0.0324505, 0.0277008, 0.000659297, 0.0399865, 0.00281434, 0.0273684, 0.00754558],
    ],
}


@pytest.mark.parametrize("name", TENSORFLOW)
def test_the_same_numbers_as_tensorflow(tagger, name):
    log_mel = (np.random.default_rng(0).random((2, 187, 96)) * 3).astype("f4")
    tags = MusicNN.load(name)(torch.from_numpy(log_mel)).tags
    np.testing.assert_allclose(tags[:, :8], TENSORFLOW[name], rtol=2e-4, atol=1e-6)


def test_the_spectrogram_is_librosas(tagger):
    librosa = pytest.importorskip("librosa")
    audio = plucked(220.0) + 0.01 * torch.randn(round(3.2 * RATE), generator=torch.Generator().manual_seed(0))
    at_16k = librosa.resample(audio.numpy(), orig_sr=RATE, target_sr=16_000)
    mel = librosa.feature.melspectrogram(y=at_16k, sr=16_000, hop_length=256, n_fft=512, n_mels=96).T[:187]
    ours = tagger.log_mel(audio[None], RATE)[0, 0].numpy()
    difference = np.abs(ours - np.log10(10_000 * mel + 1))
    assert difference[:, :92].max() < 0.02 and difference.max() < 0.5  # the topmost bands are where resamplers differ
    exact = tagger.log_mel(torch.from_numpy(at_16k)[None], 16_000)[0, 0].numpy()
    np.testing.assert_allclose(exact, np.log10(10_000 * mel + 1), atol=1e-4)


def test_loud_music_stays_finite_where_the_package_overflows(tagger):
    output = tagger.analyse(10 * held(110.0)[None], RATE)
    assert all(torch.isfinite(field).all() for field in output)


def test_shapes_and_the_mean_over_patches(tagger):
    audio = torch.stack([plucked(220.0, 6.3), held(330.0, 6.3)])
    with torch.no_grad():
        patches = tagger.embed_patches(audio, RATE, "mean_pool")
        assert patches.shape == (2, 2, 753)
        torch.testing.assert_close(tagger.embed(audio, RATE, "mean_pool"), patches.mean(1))
        of_list = tagger.embed([audio[0], held(330.0)], RATE)
        assert of_list.shape == (2, 200)
        torch.testing.assert_close(of_list[0], tagger.embed(audio, RATE)[0], rtol=1e-4, atol=1e-4)
    assert not tagger.train().training


def test_gradients_reach_the_audio(tagger):
    audio = plucked(220.0)[None].requires_grad_()
    tagger.embed(audio, RATE).square().sum().backward()
    assert torch.isfinite(audio.grad).all() and audio.grad.abs().max() > 0


def test_it_tells_plucked_from_held_from_noise(tagger):
    pitches = (165.0, 220.0, 262.0)
    noise = 0.1 * torch.randn(3, round(3.2 * RATE), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        sets = [
            tagger.embed(audio, RATE)
            for audio in (torch.stack([plucked(p) for p in pitches]), torch.stack([held(p) for p in pitches]), noise)
        ]
    for index, one in enumerate(sets):
        within = torch.cdist(one, one).max()
        for other in sets[index + 1 :]:
            assert torch.cdist(one, other).min() > within / 2
            assert torch.cdist(one.mean(0)[None], other.mean(0)[None]) > within


def test_tags_have_names(tagger):
    (best,) = tagger.top_tags(plucked(330.0)[None], RATE, count=3)
    assert [name for name, _ in best] and all(name in tagger.tag_names and 0 < p < 1 for name, p in best)
    assert best == sorted(best, key=lambda pair: -pair[1]) and len(tagger.tag_names) == 50
    assert {name for name, _ in best} & {"guitar", "harpsichord", "piano", "harp", "sitar", "electronic"}


@pytest.mark.parametrize("shape", [(48_000,), (1, 1, 48_000), (1, 40_000)])
def test_bad_audio_is_named(tagger, shape):
    with pytest.raises(ValueError, match="audio must"):
        tagger.embed(torch.zeros(shape), 16_000)


def test_bad_names_are_named(tagger):
    with pytest.raises(ValueError, match="MTT_vgg"):
        MusicNN.load("MTT_vgg")
    with pytest.raises(ValueError, match="layer"):
        tagger.embed(torch.zeros(1, 48_000), 16_000, "logits")


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(musicnn.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="--no-deps musicnn"):
        MusicNN.load()


def test_the_reader_refuses_what_is_missing_or_cut_short(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match="index"):
        read_tf_checkpoint(tmp_path / "none")
    whole = checkpoint()
    assert read_tf_checkpoint(f"{whole}/")["dense/kernel"].shape == (1506, 200)
    data = whole / ".data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cut short"):
        read_tf_checkpoint(f"{whole}/")
    for damage in (
        lambda b: b[:-10],
        lambda b: b[:40],
        lambda b: b"PK" * 100,
        lambda b: b"\xff" * (len(b) - 8) + b[-8:],
    ):
        damaged = checkpoint()
        index = damaged / ".index"
        index.write_bytes(damage(index.read_bytes()))
        with pytest.raises(ValueError, match="index"):
            read_tf_checkpoint(f"{damaged}/")
