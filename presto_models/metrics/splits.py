"""The sets a model is measured against: real music of three splits, its reconstruction, and noise like it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from presto_models.metrics.audio import ReconstructionDistances, reconstruction_distances
from presto_models.metrics.clips import Clip, choose_clips, read_mono
from presto_models.metrics.ears import Ears
from presto_models.metrics.embedded import EmbeddedClips
from presto_models.metrics.noise import average_spectrum, shaped_noise
from presto_models.metrics.report import shown


class EncodesAndDecodes(Protocol):
    """What an evaluation asks of an autoencoder; see presto_models.autoencoders.base."""

    sample_rate: int
    audio_channels: int

    def encode(self, audio: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Splits:
    """Clips of one length.  test: the reference, whose captions are the prompts.  validation: as many, of other pieces.
    training: what the tag classifiers learn from, maybe none."""

    test: list[Clip]
    validation: list[Clip]
    training: list[Clip]


def choose_splits(
    data: str,
    *,
    clips: int,
    seconds: float,
    seed: int,
    tags: Sequence[str],
    training_clips: int,
    of_pieces: bool = False,
) -> Splits:
    """A seeded choice; every test and training clip has all ``tags``; without tags there are no training clips.

    Args:
        of_pieces: test and validation have every piece at most once.

    Raises:
        FileNotFoundError, ValueError: no such folder, too few clips, a test clip without a caption, or a piece that is
        in the test split and in another one.
    """

    def choose(split: str, num: int, tagged: Sequence[str] = (), of_pieces: bool = of_pieces) -> list[Clip]:
        return choose_clips(data, split, num, seconds, seed=seed, tagged=tagged, of_pieces=of_pieces)

    test, validation = choose("test", clips, tags), choose("validation", clips)
    training = choose("train", training_clips, tags, False) if tags else []
    silent = [clip.path for clip in test if not clip.caption]
    if silent:
        raise ValueError(f"test clips need captions to generate from; {len(silent)} have none, {silent[0]} among them")
    pieces = {clip.piece for clip in test}
    for clip in (*validation, *training):
        if clip.piece in pieces:
            raise ValueError(
                f"{clip.path} is of {clip.piece}, which is also in test; splits must not share pieces "
                f"(the .json beside a file says its piece, else its name does)"
            )
    return Splits(test, validation, training)


def listen_to(ears: Ears, name: str, clips: Sequence[Clip]) -> EmbeddedClips:
    """The embeddings of clips from disk, remembered for as long as their files stay as they are."""
    waveforms = (clip.read(ears.sample_rate) for clip in clips)
    return ears.listen(name, waveforms, [clip.piece for clip in clips], made_from={"clips": described(clips)})


def listen_to_noise(ears: Ears, clips: Sequence[Clip], *, seed: int) -> EmbeddedClips:
    """For each clip as much Gaussian noise with the average spectrum and level of all."""
    rate = ears.sample_rate

    def noise() -> Iterator[Tensor]:
        spectrum = average_spectrum(shown((clip.read(rate) for clip in clips), "average spectrum", len(clips)))
        for index, clip in enumerate(clips):
            yield shaped_noise(spectrum, 1, round(clip.seconds * rate), seed=[seed, index])[0]

    pieces = [f"noise {index}" for index in range(len(clips))]
    return ears.listen("noise", noise(), pieces, made_from={"like": described(clips), "seed": seed})


def listen_to_generated(
    ears: Ears,
    name: str,
    made: Iterable[Path],
    number: int,
    seconds: float,
    *,
    made_from: Mapping[str, Any] | None = None,
) -> EmbeddedClips:
    """``number`` files of :func:`presto_models.metrics.generated.generate_clips`, each a piece of its own."""
    waveforms = (read_mono(path, ears.sample_rate, seconds=seconds) for path in made)
    return ears.listen(name, waveforms, [f"generated {index}" for index in range(number)], made_from=made_from)


def described(clips: Sequence[Clip]) -> list[list[Any]]:
    """What tells these clips from any others: file, its size and time, and the stretch of it."""
    return [
        [str(clip.path), (at := clip.path.stat()).st_size, at.st_mtime_ns, clip.start, clip.seconds] for clip in clips
    ]


def reconstructed(
    autoencoder: EncodesAndDecodes, clips: Sequence[Clip], distances: list[ReconstructionDistances] | None = None
) -> Iterator[Tensor]:
    """Each clip through the autoencoder, ``[T]``; how far each is from its original is added to ``distances``."""
    for clip in clips:
        original = clip.read(autoencoder.sample_rate)
        channels = original.expand(1, autoencoder.audio_channels, -1)
        decoded = autoencoder.decode(autoencoder.encode(channels))[0, :, : len(original)].mean(0)
        if distances is not None:
            distances.append(reconstruction_distances(decoded[None], original[None], autoencoder.sample_rate))
        yield decoded
