"""``python -m presto_models distill METHOD``: a teacher to a student."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from presto_models.distill.consistency import ConsistencyConfig, ConsistencyModel
from presto_models.distill.dmd import PrestoLS, PrestoS, StepConfig
from presto_models.distill.layers import LayerConfig, PrestoL
from presto_models.distill.trajectory import ConsistencyTrajectoryModel, TrajectoryConfig
from presto_models.training.cli import TrainOptions, train
from presto_models.training.config import build, override, read


@dataclass(frozen=True)
class DistillOptions(TrainOptions):
    """Distil a teacher into a student; the folder it makes is a checkpoint."""

    config: str = "presto-tiny"
    """A .toml or .json file, or the name of a preset."""
    teacher: str | None = None
    """A shipped checkpoint's name, a folder or a hub id; without it the config's."""
    data: str | None = None
    """Folder of latents encoded with the teacher's autoencoder (`data encode`); without it the config's."""

    def chosen(self, **more: object) -> TrainOptions:
        """With the teacher, the data and what else is given as overrides of the config."""
        values = {"teacher": self.teacher, "data": self.data, **more}
        given = tuple(f"{name}={value}" for name, value in values.items() if value is not None)
        return replace(self, set=(*given, *self.set))


@dataclass(frozen=True)
class AseOptions(DistillOptions):
    """ASE, the baseline of Presto-L: the last blocks are dropped where there is more noise."""


@dataclass(frozen=True)
class PrestoLOptions(DistillOptions):
    """Presto-L: interior blocks are dropped where there is more noise."""


@dataclass(frozen=True)
class PrestoSOptions(DistillOptions):
    """Presto-S: few steps."""


@dataclass(frozen=True)
class PrestoLSOptions(DistillOptions):
    """Presto-LS: few steps and fewer layers in each; layers first, then steps."""

    layers: Path | None = None
    """A layer-distilled checkpoint to start from (a Presto-S one is the reverse order); without it one is trained
    first, in OUT/layers."""
    layers_config: str = "presto-tiny"
    """Config of that first training."""
    layers_set: tuple[str, ...] = ()
    """Its overrides, as in train.steps=1000."""


@dataclass(frozen=True)
class CmOptions(DistillOptions):
    """A consistency model."""


@dataclass(frozen=True)
class CtmOptions(DistillOptions):
    """A consistency trajectory model."""


# Options to (the task's name, its config, the task).
METHODS: dict[type[DistillOptions], tuple[str, type[Any], Any]] = {
    AseOptions: ("ase", LayerConfig, PrestoL),
    PrestoLOptions: ("presto-l", LayerConfig, PrestoL),
    PrestoSOptions: ("presto-s", StepConfig, PrestoS),
    CmOptions: ("cm", ConsistencyConfig, ConsistencyModel),
    CtmOptions: ("ctm", TrajectoryConfig, ConsistencyTrajectoryModel),
}


def run(options: DistillOptions) -> int:
    """Distil; see :func:`presto_models.training.cli.train`."""
    if isinstance(options, PrestoLSOptions):
        return _presto_ls(options)
    return train(options.chosen(), *METHODS[type(options)])


def _presto_ls(options: PrestoLSOptions) -> int:
    out = options.out or Path("runs") / f"presto-ls-{Path(options.config).stem}"
    layers = options.layers
    if layers is None:
        # What is wrong with the second training is said before the first one.
        second = override(read(options.config, "presto-ls"), options.chosen().set)
        PrestoLS(build(StepConfig, second | {"start": None}))
        layers = out / "layers"
        first = replace(options.chosen(), config=options.layers_config, out=layers, set=())
        chosen = DistillOptions(options.layers_config, teacher=options.teacher, data=options.data).chosen()
        status = train(replace(first, set=(*chosen.set, *options.layers_set)), *METHODS[PrestoLOptions])
        if status != 0:
            return status
    return train(replace(options.chosen(start=layers), out=out), "presto-ls", StepConfig, PrestoLS)
