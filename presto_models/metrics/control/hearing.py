"""What the ears say of a row's music: FAD and its like against real music, and whether the tags asked for are heard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from presto_models.metrics.clips import read_mono
from presto_models.metrics.control.options import ControlTableOptions
from presto_models.metrics.control.runs import Run, Runs
from presto_models.metrics.control.summary import FEWEST
from presto_models.metrics.ears import Ears, Tagger
from presto_models.metrics.embedded import EmbeddedClips
from presto_models.metrics.provenance import digest
from presto_models.metrics.real_music import RealMusic
from presto_models.metrics.splits import EncodesAndDecodes, choose_splits, described


class Hearing:
    """Listens to runs, each once, and compares rows with the real music of their clips.

    Args:
        runs, seconds: of a row, and of its music: those the options say or leave to the device.

    Raises:
        FileNotFoundError, ValueError: data that do not fit, too few clips.
    """

    def __init__(
        self, options: ControlTableOptions, tagger: Tagger, sample_rate: int, work: Path, *, runs: int, seconds: float
    ) -> None:
        self.options, self.runs, self.seconds = options, runs, seconds
        self.splits = choose_splits(
            options.data or "",
            clips=runs,
            seconds=seconds,
            seed=options.seed,
            tags=options.tags,
            training_clips=options.training_clips,
            of_pieces=True,
        )
        self.ears = Ears(tagger, sample_rate, work / "heard")
        self.real = RealMusic(
            self.ears,
            self.splits,
            tags=options.tags,
            resamples=options.resamples,
            seed=options.seed,
            shrinkage=options.shrinkage,
        )
        clips = described([*self.splits.test, *self.splits.validation, *self.splits.training])
        names = ("tags", "resamples", "seed", "shrinkage")
        self.common = [clips, [getattr(options, name) for name in names]]

    def references(
        self, known: dict[str, Any], autoencoder: EncodesAndDecodes, weights: dict[str, str]
    ) -> dict[str, Any]:
        """Real music, reconstructed music and noise beside the test clips; ``known`` where that is of the same."""
        key = digest([self.common, weights])
        return known if known.get("key") == key else {"key": key, "rows": self.real.references(autoencoder, weights)}

    def row(
        self, known: dict[str, Any], row: str, found: Sequence[Run], kept: Runs, *, whole: Sequence[int]
    ) -> dict[str, Any]:
        """``agreement`` of the tags; and of a row that has the ``whole`` task's runs ``fad`` and what else
        :class:`RealMusic` compares with the clips of these runs: a FAD from fewer clips is larger, so it stands beside
        no other.  ``known`` where that is of the same runs; ``of`` says which."""
        key = digest([self.common, list(whole), [run.key for run in found]])
        if known.get("key") == key:
            return known
        pieces = tuple(self.splits.test[run.number].piece for run in found)
        clips = EmbeddedClips(torch.cat([self._one(row, run, kept) for run in found]), pieces)
        numbers = [run.number for run in found]
        heard = {"key": key, "of": heard_of(found), "agreement": self.real.agreement(clips, numbers)}
        if numbers != list(whole) or len(found) < FEWEST:
            return heard
        return heard | self.real.compared(row, clips, numbers)

    def _one(self, row: str, run: Run, kept: Runs) -> torch.Tensor:
        """``[1, patches, D]``; kept on disk."""
        path = kept.audio(row, run.number)

        def waveform() -> Any:
            yield read_mono(path, self.ears.sample_rate, seconds=self.seconds)

        name = f"{row}/{run.number:04d}"
        return self.ears.listen(name, waveform(), [run.piece], made_from={"run": run.key}).embeddings


def heard_of(found: Sequence[Run]) -> str:
    """What tells these runs from others."""
    return digest([run.key for run in found])
