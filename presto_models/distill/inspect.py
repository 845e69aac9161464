"""``python -m presto_models distill inspect``: how large the hidden state is behind every block, by noise level.

Every block adds to the residual stream, so the stream grows with depth, and the final layer has learned to read it as
the last block leaves it.  Dropping the last blocks (ASE) hands it an earlier, smaller stream; dropping inner ones
(Presto-L) keeps the block that makes it what it is.  This measures by how much, on noised held-out latents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from presto_kernels import LayerSchedule, renoise
from presto_models.checkpoint import find_folder
from presto_models.components import DIFFUSION_FILE
from presto_models.diffusion import EDM, karras_sigmas
from presto_models.diffusion_config import load_diffusion
from presto_models.distill.inspect_report import draw, show
from presto_models.distill.teacher import Teacher
from presto_models.files import written_beside
from presto_models.metrics.report import shown
from presto_models.plots import check_plot_path
from presto_models.training.audio import signed
from presto_models.training.examples import CropConfig, DropConfig, Examples, MusicCrops
from presto_models.training.seeding import derived_seed

WALK = 4  # steps of the walk whose noise levels are looked at beside the even ones


@dataclass(frozen=True)
class InspectOptions:
    """Plot the standard deviation of the hidden state after every block, by noise level."""

    data: str
    """Folder of latents encoded with the teacher's autoencoder (`data encode`); its validation split is looked at."""
    out: str
    """Where the figure goes (.png, .svg, .pdf)."""
    teacher: str = "presto-tiny"
    """A shipped checkpoint's name, a folder or a hub id."""
    ase: str | None = None
    """A student whose last blocks are dropped (`distill ase`)."""
    presto_l: str | None = None
    """A student whose inner blocks are dropped (`distill presto-l`)."""
    json: str | None = None
    """Where the numbers go, if anywhere."""
    crops: int = 32
    """Held-out crops, each with its caption and tags."""
    latents: int = 172
    """Length of a crop."""
    batch: int = 8
    """Crops at once."""
    levels: int = 9
    """Noise levels, even in their logarithm from the teacher's sigma_min to its sigma_max; those of a four-step walk
    come on top."""
    seed: int = 0
    """Draws the noise, which is the same for every model and level."""
    device: str = "cpu"
    """Where the models run."""

    def __post_init__(self) -> None:
        for name, least in (("crops", 1), ("latents", 1), ("batch", 1), ("levels", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.ase is None and self.presto_l is None:
            raise ValueError("ase or presto_l must name a student; without one there is nothing to compare with")


def run(options: InspectOptions) -> dict[str, Any]:
    """Measures, writes ``options.out`` (and ``options.json``), shows a table, and returns what was measured.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint or data, or one that does not fit the teacher.
    """
    check_plot_path(options.out)
    result = measure(options)
    if options.json is not None:
        with written_beside(options.json) as beside:
            beside.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, options.out)
    show(result)
    return result


@torch.no_grad()
def measure(options: InspectOptions) -> dict[str, Any]:
    """``{"options", "num_blocks", "sigmas": [...], "walk": [...], "models": {name: {"checkpoint", "blocks", "std"}}}``.

    ``blocks`` and ``std`` have a list for each of ``sigmas``, which rise: the indices of the blocks that run there, and
    behind each of them the standard deviation of the hidden state over samples, positions and channels.  ``walk``:
    those of ``sigmas`` at which a four-step walk calls the model.
    """
    teacher = Teacher.load(options.teacher)
    depth = teacher.config.dit.num_blocks
    models = {"full": (options.teacher, EDM(teacher.dit, teacher.config.sigma_data), LayerSchedule.full(depth))}
    for name, checkpoint in (("ASE", options.ase), ("Presto-L", options.presto_l)):
        if checkpoint is not None:
            models[name] = (checkpoint, *_student(name, checkpoint, teacher))
    sampling = teacher.config.sampling
    walk = karras_sigmas(WALK, sigma_min=sampling.sigma_min, sigma_max=sampling.sigma_max, spacing="interval")[:-1]
    sigmas = sorted({*_even(sampling.sigma_min, sampling.sigma_max, options.levels), *walk})
    spreads = {name: [_Spread() for _ in sigmas] for name in models}
    device = torch.device(options.device)
    for _, edm, _ in models.values():
        edm.to(device)
    teacher.conditioner.to(device)
    tagged = teacher.conditioner.tags is not None
    batches = -(-options.crops // options.batch)
    for first, examples in shown(_held_out(options, teacher), "looking at hidden states", batches):
        examples = examples.to(device)
        conditioning = teacher.conditioner.join(examples.text, examples.tags if tagged else None)
        rows = range(first, first + len(examples.names))
        seeds = signed([derived_seed(options.seed, "inspect", row) for row in rows]).to(device)
        for index, sigma in enumerate(sigmas):
            level = torch.full((len(rows),), sigma, device=device)
            noisy = renoise(examples.clean, level, seed=seeds, offset=0)
            for name, (_, edm, schedule) in models.items():
                kept = schedule.kept(sigma)
                spreads[name][index].add(edm.hidden(noisy, level, conditioning, kept, blocks=kept))
    return {
        "options": {name: getattr(options, name) for name in ("crops", "latents", "levels", "seed")},
        "num_blocks": depth,
        "sigmas": sigmas,
        "walk": sorted(walk),
        "models": {
            name: {
                "checkpoint": Path(checkpoint).name,
                "blocks": [list(schedule.kept(sigma)) for sigma in sigmas],
                "std": [spread.std() for spread in spreads[name]],
            }
            for name, (checkpoint, _, schedule) in models.items()
        },
    }


class _Spread:
    """Standard deviations of several tensors that come in batches, from float64 sums."""

    def __init__(self) -> None:
        self.count, self.sums = 0, torch.zeros(2, 1, dtype=torch.float64)

    def add(self, states: tuple[Tensor, ...]) -> None:
        wide = torch.stack([state.double().flatten() for state in states])
        self.sums = self.sums + torch.stack((wide.sum(1), wide.square().sum(1))).cpu()
        self.count += wide.shape[1]

    def std(self) -> list[float]:
        mean, square = self.sums / self.count
        return [float(value) for value in (square - mean.square()).clamp(min=0).sqrt()]


def _even(low: float, high: float, count: int) -> list[float]:
    """``count`` numbers from ``low`` to ``high``, even in their logarithm, the ends exact."""
    ratio = math.log(high / low) / (count - 1)
    return [low, *(low * math.exp(i * ratio) for i in range(1, count - 1)), high]


def _student(name: str, checkpoint: str, teacher: Teacher) -> tuple[EDM, LayerSchedule]:
    """A layer-dropping student of the teacher, and its schedule."""
    config, dit, _ = load_diffusion(find_folder(checkpoint) / DIFFUSION_FILE)
    teacher.check_architecture(f"{name} {checkpoint!r}", config.dit)
    schedule, wanted = config.schedule, "drops its last blocks" if name == "ASE" else "keeps its last blocks"
    if schedule is None or (schedule.keep_last == 0) != (name == "ASE"):
        found = "none, so it drops no layers" if schedule is None else f"one of keep_last {schedule.keep_last}"
        raise ValueError(f"{name} must be a model whose schedule {wanted}; the schedule of {checkpoint!r} is {found}")
    return EDM(dit, config.sigma_data), schedule


def _held_out(options: InspectOptions, teacher: Teacher) -> Iterator[tuple[int, Examples]]:
    """(number of its first crop, crops) of the validation split."""
    mean, std = teacher.normalisation()
    music = MusicCrops(
        options.data,
        crops=(CropConfig(options.latents, options.batch),),
        drops=DropConfig(),
        seed=0,
        encoder=teacher.conditioner.cache.encoder,
        sigma_data=teacher.config.sigma_data,
        validation_crops=options.crops,
        mean=mean,
        std=std,
    )
    teacher.check_latents(options.data, music.train.mean)
    if teacher.conditioner.tags is not None:
        music.vocabulary = teacher.conditioner.tags.vocabulary
    for first in range(0, options.crops, options.batch):
        yield first, music.validation(range(first, min(first + options.batch, options.crops)))
