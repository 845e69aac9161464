"""Seams: without clicks or dips, of exactly the length that is promised."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from presto_models.autoencoders import load_autoencoder
from presto_models.checkpoint import SHIPPED
from presto_models.ditto import insert, loop, loop_edge, seam_jump, stitch

RATE = 8000
CLICK, CLICK_IN_FADE = 5.0, 10.0  # of seam_jump: what tones, noise and music do not reach, at a sample and over 0.1 s


def tone(samples, frequency=220.0, phase=0.0, rate=RATE):
    return 0.5 * torch.sin(2 * math.pi * frequency * torch.arange(samples) / rate + phase)[None]


def noise(samples, seed=0, channels=1):
    return 0.2 * torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed))


def tune(rate, seconds=4.0):
    """Plucked notes of six partials, a quarter of a second each, and some breath."""
    draw = torch.Generator().manual_seed(3)
    t = torch.arange(round(seconds * rate)) / rate
    audio = 0.003 * torch.randn(len(t), generator=draw)
    for note in range(int(seconds * 4)):
        since = (t - note / 4).clamp_min(0)
        frequency = 220.0 * 2 ** (int(torch.randint(13, (), generator=draw)) / 12)
        for partial in range(1, 7):
            struck = (since > 0) * (-5 * partial**0.5 * since).exp() * (1 - (-200 * since).exp())
            audio = audio + 0.15 / partial * struck * torch.sin(2 * math.pi * frequency * partial * since)
    return audio[None]


def rms(audio):
    return float(audio.double().square().mean().sqrt())


def jump(joined, seam):
    return seam_jump(joined.audio, seam.at, width=seam.width)


def level(joined, seam):
    """RMS across the seam, as a part of that on both sides of it."""
    a, w = seam.at, seam.width
    beside = torch.cat((joined.audio[:, a - w : a], joined.audio[:, a + w : a + 2 * w]), 1)
    return rms(joined.audio[:, a : a + w]) / rms(beside)


def test_a_tone_of_another_phase_goes_on_without_click_or_dip():
    reference, new = tone(16000), tone(12000, phase=3.0)
    joined = stitch(reference, new, 8000, sample_rate=RATE)
    (seam,) = joined.seams
    assert joined.audio.shape == (1, 20000 + seam.shift) and abs(seam.shift) <= 160
    assert seam.correlation > 0.99 and jump(joined, seam) < 2 and abs(level(joined, seam) - 1) < 0.02
    unmoved = stitch(reference, new, 8000, sample_rate=RATE, max_shift=0.0)
    assert unmoved.audio.shape == (1, 20000) and unmoved.seams[0].shift == 0
    assert level(unmoved, unmoved.seams[0]) < 0.8  # what the shift is for


def test_noise_keeps_its_power_which_a_fade_of_constant_sum_would_not():
    reference, new = noise(16000, 0), noise(16000, 1)
    joined = stitch(reference, new, 8000, sample_rate=RATE, fade=0.5)
    (seam,) = joined.seams
    assert seam.width == 4000 and seam.correlation < 0.1
    assert abs(level(joined, seam) - 1) < 0.05 and jump(joined, seam) < 6
    t = torch.linspace(0, 1, 4000)
    assert rms((1 - t) * reference[:, 8000:12000] + t * new[:, :4000]) < 0.88 * rms(reference)


def test_what_fits_already_is_left_as_it_is():
    piece = noise(20000, channels=2)
    joined = stitch(piece[:, :12000], piece[:, 9000:], 3000, sample_rate=RATE)
    assert joined.seams[0].shift == 0 and joined.seams[0].correlation == pytest.approx(1)
    torch.testing.assert_close(joined.audio, piece)
    filled = insert(piece, piece, (8000, 12000), 2000, sample_rate=RATE)
    torch.testing.assert_close(filled.audio, piece)
    twice = piece[:, :10000].repeat(1, 2)
    torch.testing.assert_close(loop_edge(twice[:, :12000], 2000, sample_rate=RATE).audio, piece[:, :10000])
    around = loop(twice[:, :6000], twice[:, 4000:12500], (2000, 2500), sample_rate=RATE)
    torch.testing.assert_close(around.audio, piece[:, :10000])


def test_a_shift_that_was_planted_is_found():
    piece = noise(20000)
    joined = stitch(piece[:, :12000], piece[:, 9100:], 3000, sample_rate=RATE)  # 100 samples too late
    assert joined.seams[0].shift == 100
    torch.testing.assert_close(joined.audio, piece)
    filled = insert(piece, torch.cat((piece[:, 55:], piece[:, :55]), 1), (8000, 12000), 2000, sample_rate=RATE)
    assert [seam.shift for seam in filled.seams] == [55, 55]
    torch.testing.assert_close(filled.audio, piece)


def test_a_hard_cut_is_caught_in_tones_and_in_music():
    cut = torch.cat((tone(8000), tone(8000, phase=1.5)), 1)
    assert seam_jump(cut, 8000) > CLICK > seam_jump(cut, 4000)
    music = tune(44100)
    starts = torch.arange(20000, 70000, 1000)
    jumps = [seam_jump(torch.cat((music[:, :start], music[:, 90000:]), 1), int(start)) for start in starts]
    own = [seam_jump(music, int(start)) for start in starts]
    # Some places happen to have the value that comes next.
    assert max(own) < 5 and sum(j > CLICK for j in jumps) > len(jumps) // 2


@pytest.fixture(scope="module")
def music():
    """A tune, and what a spectral decoder, with phases of its own, makes of it."""
    autoencoder = load_autoencoder(SHIPPED / "presto-tiny")
    audio = tune(autoencoder.sample_rate)
    with torch.no_grad():
        latents = autoencoder.encode(audio[None])
        return audio, autoencoder.decode(latents)[0, :, : audio.shape[1]], autoencoder.sample_rate


def test_music_with_phases_of_its_own(music):
    audio, made, rate = music
    there = 2 * rate
    parts = {
        "stitch": stitch(audio[:, :there], made[:, rate:], rate, sample_rate=rate),
        "insert": insert(audio, made, (round(1.5 * rate), round(2.5 * rate)), rate, sample_rate=rate),
        "loop": loop(audio[:, :there], torch.cat((made[:, rate:], made[:, :rate]), 1), rate, sample_rate=rate),
        "loop_edge": loop_edge(torch.cat((made, audio[:, :rate]), 1), rate, sample_rate=rate),
    }
    for name, joined in parts.items():
        for seam in joined.seams:
            assert jump(joined, seam) < CLICK_IN_FADE, name
            assert seam.correlation > 0.5 and 0.4 < level(joined, seam) < 2.5, name
    for name in ("loop", "loop_edge"):
        assert seam_jump(parts[name].audio.roll(rate, 1), rate) < CLICK, name


def test_only_the_gap_and_its_seams_are_touched():
    reference, new = noise(16000, 0), noise(16000, 1)
    joined = insert(reference, new, (6000, 9000), (2000, 1500), sample_rate=RATE)
    left, right = joined.seams
    assert joined.audio.shape == reference.shape and left.shift == right.shift
    assert left.at >= 4000 and left.at + left.width <= 6000 and right.at >= 9000 and right.at + right.width <= 10500
    assert torch.equal(joined.audio[:, : left.at], reference[:, : left.at])
    end = right.at + right.width
    assert torch.equal(joined.audio[:, end:], reference[:, end:])
    assert torch.equal(joined.audio[:, 6000:9000], new[:, 6000 - left.shift : 9000 - left.shift])
    start = insert(reference, new, (0, 5000), 1000, sample_rate=RATE)
    assert len(start.seams) == 1 and start.seams[0].shift == 0 and torch.equal(start.audio[:, :5000], new[:, :5000])
    stop = insert(reference, new, (9000, 16000), (1000, 0), sample_rate=RATE)
    assert len(stop.seams) == 1 and torch.equal(stop.audio[:, 9000:], new[:, 9000:])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_lengths_are_exact(data):
    one, two = (data.draw(st.integers(1, 700), label=name) for name in ("overlap", "other overlap"))
    reference, new = (noise(one + two + data.draw(st.integers(0, 900)), seed, 2) for seed in (0, 1))
    fade, most = data.draw(st.sampled_from([0.1, 0.001, 0.02])), data.draw(st.sampled_from([0.0, 0.005, 0.02]))
    common = {"sample_rate": RATE, "fade": fade, "max_shift": most}
    both = reference.shape[1] + new.shape[1]
    stitched = stitch(reference, new, one, **common)
    assert stitched.audio.shape[1] == both - one + stitched.seams[0].shift
    around = loop(reference, new, (one, two), **common)
    assert around.audio.shape[1] == both - one - two + sum(seam.shift for seam in around.seams)
    own = loop_edge(new, min(one, two), **common)
    assert own.audio.shape[1] == new.shape[1] - min(one, two) + own.seams[0].shift
    length = reference.shape[1]
    longer = torch.cat((new, noise(length, 2, 2)), 1)[:, :length]
    if length > one + two:
        filled = insert(reference, longer, (one, length - two), (one, two), **common)
        assert filled.audio.shape[1] == length
        stitched = filled
    for joined in (stitched, around, own):
        assert joined.audio.isfinite().all() and all(abs(seam.shift) <= most * RATE for seam in joined.seams)
        assert all(seam.at >= 0 and seam.at + seam.width <= joined.audio.shape[1] for seam in joined.seams)


@pytest.mark.parametrize("overlaps", [(1, 4), (4, 1), (40, 60)])
def test_a_loop_without_room_between_its_overlaps_is_not_shifted_into_them(overlaps):
    reference, new = noise(sum(overlaps), 0, 2), noise(sum(overlaps), 1, 2)
    around = loop(reference, new, overlaps, sample_rate=RATE, max_shift=0.005)
    assert around.audio.shape[1] == sum(overlaps) + sum(seam.shift for seam in around.seams)
    own = loop_edge(new[:, : 2 * min(overlaps)], min(overlaps), sample_rate=RATE, max_shift=0.005)
    assert own.audio.shape[1] == min(overlaps) + own.seams[0].shift == min(overlaps)


def test_silence_is_joined_to_silence():
    quiet = torch.zeros(1, 4000)
    joined = stitch(quiet, quiet, 1000, sample_rate=RATE)
    assert not joined.audio.any() and jump(joined, joined.seams[0]) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: stitch(a, a, 0, sample_rate=RATE), "overlap must be 1 to the 100 samples of reference, got 0"),
        (lambda a: stitch(a, a[:, :9], 10, sample_rate=RATE), "the 9 samples of new"),
        (lambda a: stitch(a, a.expand(2, -1), 10, sample_rate=RATE), "as many channels, got reference 1 and new 2"),
        (lambda a: stitch(a[0], a, 10, sample_rate=RATE), r"reference must be floating-point audio .*\(100,\)"),
        (lambda a: stitch(a, a, 10, sample_rate=0), "sample_rate must be above 0"),
        (lambda a: stitch(a, a, 10, sample_rate=RATE, fade=0.0), "fade must be above 0"),
        (lambda a: stitch(a, a, 10, sample_rate=RATE, max_shift=-1.0), "max_shift must be at least 0"),
        (lambda a: insert(a, a, (50, 40), 5, sample_rate=RATE), "gap must lie inside"),
        (lambda a: insert(a, a, (0, 100), 5, sample_rate=RATE), "gap must leave some"),
        (lambda a: insert(a, a, (20, 30), 25, sample_rate=RATE), "at most the 20 samples before the gap and the 70"),
        (lambda a: insert(a, a[:, :35], (20, 30), 10, sample_rate=RATE), "new must reach .* 40 samples, got 35"),
        (lambda a: loop(a, a, 60, sample_rate=RATE), "at most half"),
        (lambda a: loop_edge(a, 60, sample_rate=RATE), "at most half"),
        (lambda a: seam_jump(a, 0), "inside audio"),
        (lambda a: seam_jump(a, 99, width=2), "inside audio"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 100))
