"""Reading and writing audio: what differs is said, what is broken is refused, and no half file is left."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from presto_models.data import audio_files
from presto_models.data.audio_files import read_audio, write_audio
from presto_models.files import written_beside

soundfile = pytest.importorskip("soundfile")


def tone(seconds: float = 1.0, rate: int = 44_100, channels: int = 2, hertz: float = 440.0) -> torch.Tensor:
    wave = 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(round(seconds * rate)) / rate)
    return torch.stack([wave * (1 - 0.5 * channel) for channel in range(channels)])


@pytest.fixture(autouse=True)
def said_anew():
    audio_files._say.cache_clear()


@pytest.mark.parametrize(("suffix", "error"), [("wav", 4e-5), ("flac", 4e-5), ("ogg", 0.05)])
def test_what_is_written_is_read(tmp_path, suffix, error):
    wave = tone()
    write_audio(tmp_path / f"a.{suffix}", wave, 44_100)
    back = read_audio(tmp_path / f"a.{suffix}", sample_rate=44_100, channels=2)
    assert back.dtype == torch.float32 and back.shape == wave.shape
    assert (back - wave).abs().max() < error
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{suffix}"]


def test_a_part_is_that_part_of_the_whole(tmp_path):
    write_audio(tmp_path / "a.flac", tone(), 44_100)
    whole = read_audio(tmp_path / "a.flac", sample_rate=44_100, channels=2)
    part = read_audio(tmp_path / "a.flac", sample_rate=44_100, channels=2, start=0.25, seconds=0.1)
    assert torch.equal(part, whole[:, 11_025 : 11_025 + 4410])
    assert read_audio(tmp_path / "a.flac", sample_rate=44_100, channels=2, start=0.9, seconds=1).shape == (2, 4410)


@pytest.mark.parametrize("rate", [22_050, 48_000])
@pytest.mark.parametrize("without_soxr", [False, True])
def test_another_rate_is_resampled_and_said_once(tmp_path, caplog, monkeypatch, rate, without_soxr):
    if without_soxr:
        monkeypatch.setitem(sys.modules, "soxr", None)
    write_audio(tmp_path / "a.wav", tone(rate=rate), rate)
    for _ in range(2):
        back = read_audio(tmp_path / "a.wav", sample_rate=44_100, channels=2, seconds=0.5)
    assert back.shape == (2, 22_050)
    middle = slice(2000, 20_000)
    assert (back - tone(0.5))[:, middle].abs().max() < 0.01
    assert caplog.text.count(f"resampling audio from {rate} to 44100 Hz") == 1


def test_channels_are_mixed_down_or_copied_and_said(tmp_path, caplog):
    write_audio(tmp_path / "stereo.wav", tone(), 44_100)
    write_audio(tmp_path / "mono.wav", tone(channels=1), 44_100)
    mono = read_audio(tmp_path / "stereo.wav", sample_rate=44_100, channels=1)
    assert torch.allclose(mono, tone().mean(0, keepdim=True), atol=1e-4)
    stereo = read_audio(tmp_path / "mono.wav", sample_rate=44_100, channels=2)
    assert torch.equal(stereo[0], stereo[1])
    assert "mixing 2 channels down to mono" in caplog.text and "copying mono to 2 channels" in caplog.text
    with pytest.raises(ValueError, match="cannot make 3 of 2"):
        read_audio(tmp_path / "stereo.wav", sample_rate=44_100, channels=3)


def test_bad_files_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*missing\.wav"):
        read_audio(tmp_path / "missing.wav", sample_rate=44_100, channels=1)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "noise.flac").write_bytes(b"this is no audio" * 99)
    for name in ("empty.wav", "noise.flac"):
        with pytest.raises(ValueError, match=f"cannot read .*{name} as audio"):
            read_audio(tmp_path / name, sample_rate=44_100, channels=1)
    soundfile.write(tmp_path / "nothing.wav", np.zeros((0, 2)), 44_100)
    with pytest.raises(ValueError, match=r"nothing.wav holds no audio"):
        read_audio(tmp_path / "nothing.wav", sample_rate=44_100, channels=1)
    write_audio(tmp_path / "a.flac", torch.rand(2, 200_000) - 0.5, 44_100)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "a.flac").read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"cut\.flac"):
        read_audio(tmp_path / "cut.flac", sample_rate=44_100, channels=2)
    with pytest.raises(ValueError, match="start: 9"):
        read_audio(tmp_path / "a.flac", sample_rate=44_100, channels=2, start=9)


def test_what_cannot_be_written_is_refused(tmp_path):
    for path, wave, message in (
        ("a.mp4", tone(), r"must end in \.wav"),
        ("a.wav", tone()[0], "expected \\[channels, samples\\]"),
        ("a.wav", tone() * float("nan"), "NaN or infinite"),
        ("a.wav", torch.zeros(2, 0), "expected"),
    ):
        with pytest.raises(ValueError, match=message):
            write_audio(tmp_path / path, wave, 44_100)
    assert not list(tmp_path.iterdir())


def test_clipping_is_said(tmp_path, caplog):
    write_audio(tmp_path / "a.wav", 3 * tone(), 44_100)
    assert "clipped, its peak was 1.50" in caplog.text
    assert read_audio(tmp_path / "a.wav", sample_rate=44_100, channels=2).abs().max() > 0.99


def test_a_write_that_fails_leaves_the_old_file_and_no_half_one(tmp_path):
    """A limit on file size fails the write part of the way, as a full disk does."""
    resource = pytest.importorskip("resource")
    write_audio(tmp_path / "a.wav", tone(0.1), 44_100)
    before = (tmp_path / "a.wav").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*a\.wav: File too large"):
            write_audio(tmp_path / "a.wav", tone(), 44_100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "a.wav").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_a_full_disk_is_named(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with (
        pytest.raises(OSError, match=r"cannot write .*a\.json: No space left"),
        written_beside(tmp_path / "a.json") as beside,
    ):
        beside.symlink_to("/dev/full")
        beside.write_text("x")
    assert not list(tmp_path.iterdir())
