"""The real music that a table's rows are measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from presto_models.components import AUTOENCODER_FILE
from presto_models.metrics.compare import compare
from presto_models.metrics.ears import Ears
from presto_models.metrics.embedded import EmbeddedClips
from presto_models.metrics.frechet import check_enough
from presto_models.metrics.judge import TagJudge
from presto_models.metrics.recall import NEIGHBOURS, density_and_coverage
from presto_models.metrics.report import shown
from presto_models.metrics.splits import (
    EncodesAndDecodes,
    Splits,
    described,
    listen_to,
    listen_to_noise,
    reconstructed,
)


class RealMusic:
    """The test clips (``test``) and what judges the tags in music, listened to once.

    Args:
        tags: to be looked for.  resamples, seed, shrinkage: of the distances, as for :func:`compare`.

    Raises:
        ValueError: too few test clips for FAD.
    """

    def __init__(
        self, ears: Ears, splits: Splits, *, tags: Sequence[str], resamples: int, seed: int, shrinkage: float
    ) -> None:
        self.ears, self.splits = ears, splits
        self.resamples, self.seed, self.shrinkage = resamples, seed, shrinkage
        self.test = listen_to(ears, "test", splits.test)
        check_enough(self.test, "test", shrinkage)
        learnt = listen_to(ears, "train", splits.training) if tags else None
        self.judges = {tag: TagJudge(tag, splits.training, learnt, splits.test) for tag in tags if learnt}

    def references(self, autoencoder: EncodesAndDecodes, weights: Mapping[str, str]) -> list[dict[str, Any]]:
        """The test clips themselves, other real music, the test clips through the autoencoder (of these weights),
        noise."""
        test = self.splits.test
        sets = {
            "validation": listen_to(self.ears, "validation", self.splits.validation),
            "reconstruction": self.ears.listen(
                "reconstruction",
                reconstructed(autoencoder, test),
                self.test.pieces,
                made_from={"clips": described(test), "autoencoder": weights.get(AUTOENCODER_FILE)},
            ),
            "noise": listen_to_noise(self.ears, test, seed=self.seed),
        }
        agreement = {"test": self.agreement(self.test), "reconstruction": self.agreement(sets["reconstruction"])}
        rows: list[dict[str, Any]] = [{"name": "test"}]
        rows += [{"name": name, **self.compared(name, clips)} for name, clips in sets.items()]
        return [row | {"agreement": agreement.get(row["name"])} for row in rows]

    def compared(self, name: str, clips: EmbeddedClips, numbers: Sequence[int] | None = None) -> dict[str, Any]:
        """FAD, MMD, KID, and where there are clips enough density, recall and coverage.

        Args:
            clips: as many as there are test clips, or as ``numbers``: those it is compared with.
        """
        real = self.test if numbers is None else _some(self.test, numbers)
        found = compare(
            real,
            {name: clips},
            floor="validation",
            ceiling="noise",
            of=name,
            resamples=self.resamples,
            seed=self.seed,
            shrinkage=self.shrinkage,
            progress=lambda numbers: shown(numbers, f"{name} resamples", self.resamples),
        )
        enough = len(clips.means) > NEIGHBOURS
        near = density_and_coverage(real.means, clips.means)._asdict() if enough else {}
        return {measure: distances.to_reference[name].as_dict() for measure, distances in found.items()} | near

    def agreement(self, clips: EmbeddedClips, numbers: Sequence[int] | None = None) -> dict[str, Any]:
        """Tag to how often it is heard; ``numbers``: as for :meth:`TagJudge.of`."""
        found = {tag: judge.of(clips, numbers) for tag, judge in self.judges.items()}
        return {tag: {name: v for name, v in of.items() if name != "confusion"} for tag, of in found.items()}


def _some(clips: EmbeddedClips, numbers: Sequence[int]) -> EmbeddedClips:
    return EmbeddedClips(clips.embeddings[list(numbers)], tuple(clips.pieces[number] for number in numbers))
