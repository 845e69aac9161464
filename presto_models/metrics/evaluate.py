"""`python -m presto_models evaluate`: how near a checkpoint's music is to real music it has never seen.

Four sets of equally many clips of one length are compared with the real music of the test split:

    validation       other real pieces: the floor, what two sets of real music differ by
    reconstruction   the test clips through the autoencoder: the most the diffusion model could reach
    generated        music from the captions of the test clips
    noise            Gaussian noise with the test clips' average spectrum: the ceiling

by FAD, MMD and KID on musicnn's embeddings, each with a 95 % interval that resamples pieces; by density and coverage;
by the distances of the reconstructions from their originals; and by whether musicnn hears in a clip the tags its
prompt asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from presto_models.files import written_beside
from presto_models.metrics.agreement import TagClassifier, tag_agreement
from presto_models.metrics.audio import ReconstructionDistances, reconstruction_distances
from presto_models.metrics.clips import Clip, choose_clips, read_mono
from presto_models.metrics.compare import compare
from presto_models.metrics.embedded import EmbeddedClips, Interval
from presto_models.metrics.frechet import check_enough
from presto_models.metrics.generated import Generate, generate_clips
from presto_models.metrics.musicnn import MusicNN
from presto_models.metrics.noise import average_spectrum, shaped_noise
from presto_models.metrics.recall import density_and_coverage
from presto_models.metrics.report import draw, show, shown

_FEWEST = 5  # training clips a tag needs before a classifier is taught it
GOAL = 0.4  # of the way from real music to noise: the most the generated music may be away


@dataclass(frozen=True)
class EvaluateOptions:
    """What `evaluate` takes."""

    data: str
    """Folder of audio files with captions, tags and splits (presto_models.data.folder)."""
    out: str
    """Where the results go, as JSON."""
    checkpoint: str = "presto-tiny"
    """A shipped checkpoint's name, a folder, or a hub id."""
    clips: int = 128
    """Clips in each set.  FAD needs more than 200 patches: clips times whole 3 s patches in a clip."""
    seconds: float = 10.0
    """Length of each clip."""
    steps: int = 40
    """Solver steps of a generation."""
    guidance: float | None = None
    """Classifier-free guidance; the checkpoint's own by default."""
    seed: int = 0
    """Draws clips, noise, generations and resamples."""
    batch: int = 8
    """Clips generated at once."""
    dtype: Literal["fp32", "bf16"] | None = None
    """Of the diffusion model; by default bf16 on CUDA and fp32 on a CPU."""
    generated: str | None = None
    """Folder the generated clips are kept in; by default beside the results."""
    training_clips: int = 400
    """Real training clips the tag classifiers learn from."""
    tags: tuple[str, ...] = ("collection", "instrument")
    """Tags to look for in the generated music."""
    resamples: int = 1000
    """Bootstrap resamples for the intervals."""
    shrinkage: float = 0.0
    """Of FAD's covariances towards a multiple of one; above 0 only where there are too few patches."""
    plot: str | None = None
    """Where a figure goes, if anywhere (.png, .svg, .pdf)."""


class EncodesAndDecodes(Protocol):
    """What an evaluation asks of an autoencoder; see presto_models.autoencoders.base."""

    sample_rate: int
    audio_channels: int

    def encode(self, audio: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


def run(options: EvaluateOptions) -> dict[str, Any]:
    """Evaluates a checkpoint, writes ``options.out`` (and ``options.plot``), shows tables, and returns what was
    written.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint or data, too few clips.  ImportError: musicnn is not
        installed.
    """
    from presto_models.autoencoders import load_autoencoder
    from presto_models.checkpoint import find_folder
    from presto_models.components import component_files
    from presto_models.pipeline import PrestoPipeline

    folder = find_folder(options.checkpoint)
    dtype = None if options.dtype is None else {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    pipeline = PrestoPipeline.from_pretrained(options.checkpoint, dtype=dtype)

    def generate(prompts: list[str], seed: int) -> tuple[Tensor, int]:
        made = pipeline(prompts, seconds=options.seconds, steps=options.steps, guidance=options.guidance, seed=seed)
        return made.waveform, made.sample_rate

    weights = {path.name: _sha256(path) for path in component_files(folder)}
    autoencoder = load_autoencoder(folder)
    result = measure(options, generate, autoencoder, identity=weights)
    with written_beside(options.out) as beside:
        beside.write_text(json.dumps(result, indent=1))
    show(result)
    if options.plot:
        draw(result, options.plot)
    return result


@torch.no_grad()
def measure(
    options: EvaluateOptions, generate: Generate, autoencoder: EncodesAndDecodes, *, identity: dict[str, Any]
) -> dict[str, Any]:
    """As :func:`run`, of any function that generates and any autoencoder; writes nothing but the generated clips.

    Args:
        identity: what tells the checkpoint from another, plain JSON: clips generated under another identity are made
        anew.
    """
    number, rate = options.clips, autoencoder.sample_rate

    def choose(split: str, num: int, tagged: Sequence[str] = ()) -> list[Clip]:
        return choose_clips(options.data, split, num, options.seconds, seed=options.seed, tagged=tagged)

    test, validation = choose("test", number, options.tags), choose("validation", number)
    training = choose("train", options.training_clips, options.tags) if options.tags else []
    _check_split(test, validation, training)
    folder = Path(options.generated) if options.generated else Path(options.out).with_suffix(".clips")
    made_with = {name: getattr(options, name) for name in ("seconds", "steps", "guidance", "dtype")} | {
        "weights": identity
    }
    made = generate_clips(
        generate, [clip.caption for clip in test], folder, settings=made_with, seed=options.seed, batch=options.batch
    )
    spectrum = average_spectrum(shown((clip.read(rate) for clip in test), "average spectrum", number))
    samples = round(options.seconds * rate)
    noise = (shaped_noise(spectrum, 1, samples, seed=[options.seed, index])[0] for index in range(number))
    distances: list[ReconstructionDistances] = []

    ears = _Ears(MusicNN.load(), rate)
    real = ears.listen("test", (clip.read(rate) for clip in test), [clip.piece for clip in test])
    check_enough(real, "test", options.shrinkage)  # before hours of generating
    sets = {
        "validation": ears.listen(
            "validation", (clip.read(rate) for clip in validation), [clip.piece for clip in validation]
        ),
        "reconstruction": ears.listen("reconstruction", _reconstructed(autoencoder, test, distances), real.pieces),
        "generated": ears.listen(
            "generated",
            (read_mono(path, rate, seconds=options.seconds) for path in made),
            [f"generated {index}" for index in range(number)],
        ),
        "noise": ears.listen("noise", noise, [f"noise {index}" for index in range(number)]),
    }
    learnt = (
        ears.listen("train", (clip.read(rate) for clip in training), [clip.piece for clip in training])
        if training
        else None
    )
    compared = compare(
        real,
        sets,
        floor="validation",
        ceiling="noise",
        of="generated",
        resamples=options.resamples,
        seed=options.seed,
        shrinkage=options.shrinkage,
        progress=lambda numbers: shown(numbers, "resamples", options.resamples),
    )
    asked = {"test": real, "reconstruction": sets["reconstruction"], "generated": sets["generated"]}
    return {
        "options": asdict(options),
        "weights": identity,
        "torch": torch.__version__,
        "pieces": {"test": len(set(real.pieces)), "validation": len(set(sets["validation"].pieces))},
        "distances": {
            measure: found.as_dict() | {"goal": GOAL, "within_goal": bool(found.ratio and found.ratio.value <= GOAL)}
            for measure, found in compared.items()
        },
        "coverage": {name: density_and_coverage(real.means, clips.means)._asdict() for name, clips in sets.items()},
        "reconstruction": _summary(distances, real.resamples(options.resamples, options.seed)),
        "agreement": {tag: _agreement(tag, training, learnt, test, asked) for tag in options.tags} if learnt else {},
        "heard": ears.heard,
    }


class _Ears:
    """musicnn, listening to sets of clips one at a time.  heard: set -> the tags it hears most, by name."""

    def __init__(self, tagger: MusicNN, sample_rate: int) -> None:
        self.tagger, self.sample_rate = tagger, sample_rate
        self.heard: dict[str, dict[str, float]] = {}

    def listen(self, name: str, waveforms: Iterable[Tensor], pieces: Sequence[str]) -> EmbeddedClips:
        outputs = [
            self.tagger.analyse(waveform[None], self.sample_rate)
            for waveform in shown(waveforms, f"{name} clips", len(pieces))
        ]
        best = torch.cat([output.tags for output in outputs]).mean((0, 1)).topk(8)
        names = [self.tagger.tag_names[index] for index in best.indices.tolist()]
        self.heard[name] = dict(zip(names, best.values.tolist(), strict=True))
        return EmbeddedClips(torch.cat([output.penultimate for output in outputs]), tuple(pieces))


def _check_split(test: Sequence[Clip], *others: Sequence[Clip]) -> None:
    silent = [clip.path for clip in test if not clip.caption]
    if silent:
        raise ValueError(f"test clips need captions to generate from; {len(silent)} have none, {silent[0]} among them")
    pieces = {clip.piece for clip in test}
    for clip in (clip for other in others for clip in other):
        if clip.piece in pieces:
            raise ValueError(
                f"{clip.path} is of {clip.piece}, which is also in test; splits must not share pieces "
                f"(the .json beside a file says its piece, else its name does)"
            )


def _reconstructed(
    autoencoder: EncodesAndDecodes, clips: Sequence[Clip], distances: list[ReconstructionDistances]
) -> Iterator[Tensor]:
    """Each clip through the autoencoder, ``[T]``; how far each is from its original is added to ``distances``."""
    for clip in clips:
        original = clip.read(autoencoder.sample_rate)
        channels = original.expand(1, autoencoder.audio_channels, -1)
        decoded = autoencoder.decode(autoencoder.encode(channels))[0, :, : len(original)].mean(0)
        distances.append(reconstruction_distances(decoded[None], original[None], autoencoder.sample_rate))
        yield decoded


def _summary(distances: Sequence[ReconstructionDistances], counts: Tensor) -> dict[str, Any]:
    """The mean over clips of each distance, with an interval that resamples pieces."""
    summaries = {}
    for name, values in zip(ReconstructionDistances._fields, zip(*distances, strict=True), strict=True):
        of_clips = torch.cat(values).double()
        drawn = counts @ of_clips / counts.sum(1)
        summaries[name] = Interval.around(float(of_clips.mean()), drawn).as_dict()
    return summaries


def _agreement(
    tag: str, training: Sequence[Clip], learnt: EmbeddedClips, test: Sequence[Clip], asked: dict[str, EmbeddedClips]
) -> dict[str, Any]:
    """How often a classifier taught on real training clips hears in each set the tag its test clip (or prompt) has."""
    names = [_single(clip, tag) for clip in training]
    taught = [index for index, name in enumerate(names) if name and names.count(name) >= _FEWEST]
    labels = [names[index] or "" for index in taught]
    judged = [index for index, clip in enumerate(test) if _single(clip, tag) in labels]
    if len(set(labels)) < 2 or not judged:
        return {
            "left_out": f"{len(set(labels))} values of {tag} have {_FEWEST} training clips and "
            f"{len(judged)} test clips are of those; two and one are needed"
        }
    classifier = TagClassifier(learnt.means[taught], labels)
    wanted = [_single(test[index], tag) or "" for index in judged]
    return {
        name: tag_agreement(classifier.predict(clips.means[judged]), wanted).as_dict() for name, clips in asked.items()
    }


def _single(clip: Clip, tag: str) -> str | None:
    """A tag's value; None where it has several (two instruments), which one classifier of one value cannot judge."""
    value = clip.tags[tag]
    if isinstance(value, list | tuple):
        return str(value[0]) if len(value) == 1 else None
    return str(value)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
