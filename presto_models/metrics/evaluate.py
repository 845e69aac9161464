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

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from presto_models.files import written_beside
from presto_models.metrics.audio import ReconstructionDistances
from presto_models.metrics.compare import compare
from presto_models.metrics.ears import Ears
from presto_models.metrics.embedded import Interval
from presto_models.metrics.frechet import check_enough
from presto_models.metrics.generated import Generate, generate_clips, weights_sha256
from presto_models.metrics.judge import TagJudge
from presto_models.metrics.musicnn import MusicNN
from presto_models.metrics.recall import density_and_coverage
from presto_models.metrics.report import draw, show, shown
from presto_models.metrics.splits import (
    EncodesAndDecodes,
    choose_splits,
    listen_to,
    listen_to_generated,
    listen_to_noise,
    reconstructed,
)

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


def run(options: EvaluateOptions) -> dict[str, Any]:
    """Evaluates a checkpoint, writes ``options.out`` (and ``options.plot``), shows tables, and returns what was
    written.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint or data, too few clips.  ImportError: musicnn is not
        installed.
    """
    from presto_models.autoencoders import load_autoencoder
    from presto_models.checkpoint import find_folder
    from presto_models.pipeline import PrestoPipeline

    folder = find_folder(options.checkpoint)
    dtype = None if options.dtype is None else {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    pipeline = PrestoPipeline.from_pretrained(options.checkpoint, dtype=dtype)

    def generate(prompts: list[str], seed: int) -> tuple[Tensor, int]:
        made = pipeline(prompts, seconds=options.seconds, steps=options.steps, guidance=options.guidance, seed=seed)
        return made.waveform, made.sample_rate

    weights = weights_sha256(folder)
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
    splits = choose_splits(
        options.data,
        clips=number,
        seconds=options.seconds,
        seed=options.seed,
        tags=options.tags,
        training_clips=options.training_clips,
    )
    test = splits.test
    folder = Path(options.generated) if options.generated else Path(options.out).with_suffix(".clips")
    made_with = {name: getattr(options, name) for name in ("seconds", "steps", "guidance", "dtype")} | {
        "weights": identity
    }
    made = generate_clips(
        generate, [clip.caption for clip in test], folder, settings=made_with, seed=options.seed, batch=options.batch
    )
    distances: list[ReconstructionDistances] = []

    ears = Ears(MusicNN.load(), rate)
    real = listen_to(ears, "test", test)
    check_enough(real, "test", options.shrinkage)  # before hours of generating
    sets = {
        "validation": listen_to(ears, "validation", splits.validation),
        "reconstruction": ears.listen("reconstruction", reconstructed(autoencoder, test, distances), real.pieces),
        "generated": listen_to_generated(ears, "generated", made, number, options.seconds),
        "noise": listen_to_noise(ears, test, seed=options.seed),
    }
    learnt = listen_to(ears, "train", splits.training) if options.tags else None
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
    judges = {tag: TagJudge(tag, splits.training, learnt, test) for tag in options.tags} if learnt else {}
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
        "agreement": {
            tag: {"left_out": judge.left_out}
            if judge.left_out
            else {name: judge.of(clips) for name, clips in asked.items()}
            for tag, judge in judges.items()
        },
        "heard": ears.heard,
    }


def _summary(distances: Sequence[ReconstructionDistances], counts: Tensor) -> dict[str, Any]:
    """The mean over clips of each distance, with an interval that resamples pieces."""
    summaries = {}
    for name, values in zip(ReconstructionDistances._fields, zip(*distances, strict=True), strict=True):
        of_clips = torch.cat(values).double()
        drawn = counts @ of_clips / counts.sum(1)
        summaries[name] = Interval.around(float(of_clips.mean()), drawn).as_dict()
    return summaries
