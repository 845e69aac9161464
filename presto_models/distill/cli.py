"""``python -m presto_models distill METHOD``: a teacher to a student."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from presto_models.distill.consistency import ConsistencyConfig, ConsistencyModel
from presto_models.distill.dmd import PrestoS, StepConfig
from presto_models.distill.layers import LayerConfig, PrestoL
from presto_models.distill.trajectory import ConsistencyTrajectoryModel, TrajectoryConfig
from presto_models.training.cli import TrainOptions, train


@dataclass(frozen=True)
class DistillOptions(TrainOptions):
    """Distil a teacher into a student; the folder it makes is a checkpoint."""

    config: str = "presto-tiny"
    """A .toml or .json file, or the name of a preset."""
    teacher: str | None = None
    """A shipped checkpoint's name, a folder or a hub id; without it the config's."""
    data: str | None = None
    """Folder of latents encoded with the teacher's autoencoder (`data encode`); without it the config's."""

    def chosen(self) -> TrainOptions:
        """With the teacher and the data as overrides of the config."""
        given = tuple(f"{name}={value}" for name in ("teacher", "data") if (value := getattr(self, name)) is not None)
        return replace(self, set=(*given, *self.set))


def distill(options: DistillOptions, name: str, kind: type[Any], make: Any) -> int:
    """As :func:`presto_models.training.cli.train`; the run's folder is ``runs/NAME-CONFIG`` where none is given."""
    return train(options.chosen(), name, kind, make)


def run_ase(options: DistillOptions) -> int:
    """Layer dropping of the last blocks (2408.05927), the baseline of Presto-L."""
    return distill(options, "ase", LayerConfig, PrestoL)


def run_presto_l(options: DistillOptions) -> int:
    """Layer dropping of interior blocks."""
    return distill(options, "presto-l", LayerConfig, PrestoL)


def run_cm(options: DistillOptions) -> int:
    """A consistency model (2303.01469)."""
    return distill(options, "cm", ConsistencyConfig, ConsistencyModel)


def run_ctm(options: DistillOptions) -> int:
    """A consistency trajectory model (2310.02279)."""
    return distill(options, "ctm", TrajectoryConfig, ConsistencyTrajectoryModel)


def run_presto_s(options: DistillOptions) -> int:
    """Step distillation."""
    return distill(options, "presto-s", StepConfig, PrestoS)
