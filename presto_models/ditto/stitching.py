"""A recording and the music made to fit it, put together without clicks.

The decoder of a spectral autoencoder makes its own phases, so music that equals a recording in sound does not equal it
in waveform, and fading one into the other where it stands would cancel some partials.  Each seam is therefore searched
for: of all places in the overlap, and of all shifts of the new music up to 20 ms either way, the one where the two
waveforms correlate best.  Length, place and shift are our choice [O]; the paper (2401.12179) says "stitched".

**The law of the fade.**  Of two signals of equal power that correlate by rho, gains a and b keep the power where
a^2 + b^2 + 2 rho a b = 1.  With t rising from 0 to 1 as a squared sine, so that no corner is left at either end,

    a = (1 - t) g,   b = t g,   g = 1 / sqrt((1 - t)^2 + t^2 + 2 rho t (1 - t))

which at rho = 1 is the fade of constant sum and at rho = 0 that of constant power; rho is the one found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

FADE = 0.1  # seconds: longer, and notes that differ are heard twice; shorter, and the change of timbre is sudden
MAX_SHIFT = 0.02  # seconds: a period of 50 Hz, and below what is heard as another rhythm


@dataclass(frozen=True)
class Seam:
    """One fade: ``width`` samples from sample ``at`` of what it stands in.

    ``shift``: samples by which what is faded in (in :func:`insert` at both seams the new music) was moved, later if
    positive.  ``correlation``: of the two waveforms there, after that, from -1 to 1.
    """

    at: int
    width: int
    shift: int
    correlation: float


@dataclass(frozen=True, eq=False)
class Joined:
    """``audio`` ``[channels, samples]``, and its seams in their order."""

    audio: Tensor
    seams: tuple[Seam, ...]


@dataclass(frozen=True, eq=False)
class _Search:
    """What a seam may be: correlations ``[places, 2 shift + 1]``, the places ``step`` apart from ``shift`` on."""

    scores: Tensor
    width: int
    shift: int
    step: int

    def best(self, shift: int | None = None) -> Seam:
        """Its place in the overlap, at that shift, or at the best of all."""
        scores = self.scores if shift is None else self.scores[:, shift + self.shift, None]
        place, column = divmod(int(scores.argmax()), scores.shape[1])
        found = column - self.shift if shift is None else shift
        return Seam(self.shift + place * self.step, self.width, found, float(scores[place, column]))


def stitch(
    reference: Tensor,
    new: Tensor,
    overlap: int,
    *,
    sample_rate: int,
    fade: float = FADE,
    max_shift: float = MAX_SHIFT,
) -> Joined:
    """``reference`` and then ``new``, whose first ``overlap`` samples sound as the reference's last.

    Args:
        reference, new: ``[channels, samples]``, of as many channels.
        overlap: samples, at most as long as either.
        fade: seconds of the fade, as far as the overlap has room for it.
        max_shift: seconds; 0: ``new`` stays where it is.

    The result has reference + new - overlap + shift samples, exactly; shift is its seam's.

    Raises:
        ValueError: shapes do not fit each other, the overlap is not there, fade or max_shift is out of range.
    """
    _check(sample_rate, fade, max_shift, reference=reference, new=new)
    _check_overlap(overlap, reference=reference, new=new)
    start = reference.shape[1] - overlap
    seam = _search(reference[:, start:], new[:, :overlap], sample_rate, fade, max_shift).best()
    at, entry = start + seam.at, seam.at - seam.shift
    faded = _faded(reference[:, at:], new[:, entry:], seam)
    audio = torch.cat((reference[:, :at], faded, new[:, entry + seam.width :]), 1)
    return Joined(audio, (replace(seam, at=at),))


def insert(
    reference: Tensor,
    new: Tensor,
    gap: tuple[int, int],
    overlap: int | tuple[int, int],
    *,
    sample_rate: int,
    fade: float = FADE,
    max_shift: float = MAX_SHIFT,
) -> Joined:
    """``reference`` with its gap filled from ``new``, which has the same times and sounds as it beside the gap.

    Args:
        gap: (from, to), samples.
        overlap: samples on each side of the gap in which both sound alike, or (left, right); 0 where the gap reaches
            the reference's own start or end, and only there.

    ``new`` is moved by one shift at both seams, the best for both together (none where there is only one seam), so the
    result has the reference's length, exactly, and is the reference itself beyond the seams.  Raises as
    :func:`stitch` does.
    """
    _check(sample_rate, fade, max_shift, reference=reference, new=new)
    length, (start, stop) = reference.shape[1], gap
    if not 0 <= start < stop <= length:
        raise ValueError(f"gap must lie inside the reference's {length} samples, from before to, got {gap}")
    left, right = (overlap, overlap) if isinstance(overlap, int) else overlap
    left, right = left if start else 0, right if stop < length else 0
    if start == 0 and stop == length:
        raise ValueError(f"gap must leave some of the reference's {length} samples, got {gap}")
    for there, side in ((start, left), (length - stop, right)):
        if there and not 1 <= side <= there:
            raise ValueError(
                f"overlap must be at least 1 and at most the {start} samples before the gap and the {length - stop} "
                f"behind it, got {overlap}"
            )
    if new.shape[1] < stop + right:
        raise ValueError(f"new must reach to the overlap's end at {stop + right} samples, got {new.shape[1]}")
    places = [(a, b) for a, b in ((start - left, start), (stop, stop + right)) if a < b]
    # One shift for both seams: the room for it is that of the shorter overlap.
    most = min(max_shift, *((b - a) // 4 / sample_rate for a, b in places)) if left and right else 0.0
    found = [_search(reference[:, a:b], new[:, a:b], sample_rate, fade, most) for a, b in places]
    shift = int(torch.stack([search.scores.amax(0) for search in found]).sum(0).argmax()) - found[0].shift
    seams = []
    for search, (a, _) in zip(found, places, strict=True):
        seam = search.best(shift)
        seams.append(replace(seam, at=a + seam.at))
    first = seams[0].at if left else 0
    last = seams[-1].at + seams[-1].width if right else length
    audio = reference.clone()
    audio[:, first:last] = new[:, first - shift : last - shift]
    for seam in seams:
        old, fresh = reference[:, seam.at :], new[:, seam.at - shift :]
        going, coming = (old, fresh) if seam.at < start else (fresh, old)
        audio[:, seam.at : seam.at + seam.width] = _faded(going, coming, seam)
    return Joined(audio, tuple(seams))


def loop(
    reference: Tensor,
    new: Tensor,
    overlap: int | tuple[int, int],
    *,
    sample_rate: int,
    fade: float = FADE,
    max_shift: float = MAX_SHIFT,
) -> Joined:
    """One round of ``reference``, ``new``, ``reference``, ...: repeated, it has no seam at its own ends.

    Args:
        overlap: samples in which the new music begins as the reference ends and ends as the reference begins, or one
            for each of these; both together at most as long as either.

    The round begins at the reference's start, as the new music plays it, and has reference + new - both overlaps + both
    shifts samples, exactly.  Raises as :func:`stitch` does.
    """
    _check(sample_rate, fade, max_shift, reference=reference, new=new)
    there, back = (overlap, overlap) if isinstance(overlap, int) else overlap
    for samples in (there, back):
        _check_overlap(samples, reference=reference, new=new)
    if there + back > min(reference.shape[1], new.shape[1]):
        raise ValueError(
            f"overlap must be at most half of the reference's {reference.shape[1]} and the new music's {new.shape[1]} "
            f"samples, got {overlap}"
        )
    leave, again = reference.shape[1] - there, new.shape[1] - back
    out = _search(reference[:, leave:], new[:, :there], sample_rate, fade, max_shift).best()
    room = min(max_shift, (again - there) / sample_rate)  # of the new music, between the two overlaps
    home = _search(new[:, again:], reference[:, :back], sample_rate, fade, room).best()
    start = again + home.shift  # of the new music, where it plays the reference's first sample
    pieces = (
        new[:, start : again + home.at],
        _faded(new[:, again + home.at :], reference[:, home.at - home.shift :], home),
        reference[:, home.at - home.shift + home.width : leave + out.at],
        _faded(reference[:, leave + out.at :], new[:, out.at - out.shift :], out),
        new[:, out.at - out.shift + out.width : start],
    )
    first = replace(home, at=pieces[0].shape[1])
    second = replace(out, at=sum(piece.shape[1] for piece in pieces[:3]))
    return Joined(torch.cat(pieces, 1), (first, second))


def loop_edge(
    new: Tensor, overlap: int, *, sample_rate: int, fade: float = FADE, max_shift: float = MAX_SHIFT
) -> Joined:
    """One round of music whose last ``overlap`` samples sound as its first: new - overlap + shift samples, exactly.

    It begins at the music's start, as its end plays it.  Raises as :func:`stitch` does.
    """
    _check(sample_rate, fade, max_shift, new=new)
    _check_overlap(overlap, new=new)
    if 2 * overlap > new.shape[1]:
        raise ValueError(f"overlap must be at most half of the music's {new.shape[1]} samples, got {overlap}")
    again = new.shape[1] - overlap
    room = min(max_shift, (again - overlap) / sample_rate)  # between the two edges
    seam = _search(new[:, again:], new[:, :overlap], sample_rate, fade, room).best()
    at, entry, start = again + seam.at, seam.at - seam.shift, again + seam.shift
    faded = _faded(new[:, at:], new[:, entry:], seam)
    audio = torch.cat((new[:, start:at], faded, new[:, entry + seam.width : start]), 1)
    return Joined(audio, (replace(seam, at=at - start),))


def seam_jump(audio: Tensor, at: int, *, width: int = 1, around: int = 512) -> float:
    """The largest step between neighbouring samples in a seam, in units of the signal's own beside it.

        max |x[i] - x[i-1]|, i in [at, at + width)   /   RMS of x[i] - x[i-1] over ``around`` samples on either side

    of the channel where it is largest.  Steps of the signal itself are not counted against a seam: in white noise a
    hard cut is no step at all, nor is one heard.  Measured in 24 clips of rendered music at 44.1 kHz, 960 places: 0.7
    (99 % below 2.7) at one sample, 3.6 (99 % below 7.9, attacks to 14) over 0.1 s; at hard cuts into another clip 5.7,
    a quarter of them above 10.

    Args:
        audio: ``[channels, samples]``.
        at: the sample behind the cut, or the first of a fade of ``width``.

    Raises:
        ValueError: the seam is not inside the audio.
    """
    if audio.dim() != 2 or not (at >= 1 and width >= 1 and at + width <= audio.shape[1]):
        raise ValueError(
            f"at, width must be a seam inside audio [channels, samples] and behind its first sample, got {at}, {width} "
            f"and {tuple(audio.shape)}"
        )
    steps = audio.detach().double().diff(dim=1)  # steps[i - 1] is that to sample i
    first, last = at - 1, at - 1 + width
    beside = torch.cat((steps[:, max(0, first - around) : first], steps[:, last : last + around]), 1)
    own = beside.square().mean(1).sqrt() if beside.shape[1] else steps.new_zeros(steps.shape[0])
    return float((steps[:, first:last].abs().amax(1) / own.clamp_min(1e-6)).max())


def _search(old: Tensor, new: Tensor, sample_rate: int, fade: float, max_shift: float) -> _Search:
    """Every seam from ``old`` to ``new``, both ``[channels, overlap]``; shift and width as large as there is room for.

    score[p, s] = sum_i old[p + i] new[p + i - s] / sqrt(sum_i old[p + i]^2 sum_i new[p + i - s]^2),  i < width
    """
    overlap = old.shape[1]
    shift = min(round(max_shift * sample_rate), overlap // 4)
    width = max(1, min(round(fade * sample_rate), overlap - 2 * shift))
    step = max(1, width // 2)
    old, new = old.detach().double(), new.detach().double()
    windows = old[:, shift : overlap - shift].unfold(1, width, step)  # [channels, places, width]
    longer = new.unfold(1, width + 2 * shift, step)[:, : windows.shape[1]]
    size = width + 2 * shift
    spectra = torch.fft.rfft(longer, n=2 * size) * torch.fft.rfft(windows, n=2 * size).conj()
    products = torch.fft.irfft(spectra, n=2 * size)[..., : 2 * shift + 1].sum(0).flip(1)  # lag l is shift - l
    sums = torch.nn.functional.pad(longer.square().sum(0).cumsum(1), (1, 0))
    energies = (sums[:, width:] - sums[:, :-width]).flip(1)
    own = windows.square().sum((0, 2))[:, None]
    return _Search(products / (own * energies).sqrt().clamp_min(1e-12), width, shift, step)


def _faded(old: Tensor, new: Tensor, seam: Seam) -> Tensor:
    """The first ``seam.width`` samples of both, the one going out as the other comes in."""
    old, new = old[:, : seam.width], new[:, : seam.width]
    steps = (torch.arange(seam.width, device=old.device, dtype=torch.float64) + 0.5) / seam.width
    t = torch.sin(torch.pi / 2 * steps).square()
    rho = min(max(seam.correlation, 0.0), 1.0)
    gain = ((1 - t).square() + t.square() + 2 * rho * t * (1 - t)).rsqrt()
    return (old * ((1 - t) * gain) + new * (t * gain)).to(old.dtype)


def _check(sample_rate: int, fade: float, max_shift: float, **audio: Tensor) -> None:
    for name, tensor in audio.items():
        if not isinstance(tensor, Tensor) or tensor.dim() != 2 or not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating-point audio [channels, samples], got {_shape(tensor)}")
    if len({tensor.shape[0] for tensor in audio.values()}) > 1:
        channels = " and ".join(f"{name} {tensor.shape[0]}" for name, tensor in audio.items())
        raise ValueError(f"reference and new must have as many channels, got {channels}")
    if not sample_rate > 0:
        raise ValueError(f"sample_rate must be above 0, got {sample_rate}")
    if not fade > 0:
        raise ValueError(f"fade must be above 0 seconds, got {fade}")
    if not max_shift >= 0:
        raise ValueError(f"max_shift must be at least 0 seconds, got {max_shift}")


def _check_overlap(overlap: int, **audio: Tensor) -> None:
    for name, tensor in audio.items():
        if not 1 <= overlap <= tensor.shape[1]:
            raise ValueError(f"overlap must be 1 to the {tensor.shape[1]} samples of {name}, got {overlap}")


def _shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
