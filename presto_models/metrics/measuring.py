"""What one row of a table of methods is measured by, and the rows that say what its figures can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from presto_models.components import AUTOENCODER_FILE
from presto_models.metrics.compare import compare
from presto_models.metrics.diversity import diversity
from presto_models.metrics.ears import Ears, Tagger
from presto_models.metrics.embedded import EmbeddedClips
from presto_models.metrics.frechet import check_enough
from presto_models.metrics.generated import generate_clips
from presto_models.metrics.judge import TagJudge
from presto_models.metrics.method_options import MethodsOptions
from presto_models.metrics.method_rows import Row
from presto_models.metrics.players import Player
from presto_models.metrics.recall import density_and_coverage
from presto_models.metrics.report import shown
from presto_models.metrics.splits import (
    EncodesAndDecodes,
    Splits,
    described,
    listen_to,
    listen_to_generated,
    listen_to_noise,
    reconstructed,
)


class Measuring:
    """The real music, listened to once, and everything that is measured against it.

    Raises:
        ValueError: too few test clips for FAD; before anything is generated.
    """

    def __init__(self, options: MethodsOptions, splits: Splits, sample_rate: int, tagger: Tagger) -> None:
        self.options, self.splits = options, splits
        self.work = Path(options.work) if options.work else Path(options.out).with_suffix(".work")
        self.ears = Ears(tagger, sample_rate, self.work)
        self.real = listen_to(self.ears, "test", splits.test)
        check_enough(self.real, "test", options.shrinkage)
        learnt = listen_to(self.ears, "train", splits.training) if options.tags else None
        self.judges = {tag: TagJudge(tag, splits.training, learnt, splits.test) for tag in options.tags if learnt}

    def references(self, autoencoder: EncodesAndDecodes, weights: Mapping[str, str]) -> list[dict[str, Any]]:
        """The test clips themselves, other real music, the test clips through the autoencoder (of these weights),
        noise."""
        test = self.splits.test
        sets = {
            "validation": listen_to(self.ears, "validation", self.splits.validation),
            "reconstruction": self.ears.listen(
                "reconstruction",
                reconstructed(autoencoder, test),
                self.real.pieces,
                made_from={"clips": described(test), "autoencoder": weights.get(AUTOENCODER_FILE)},
            ),
            "noise": listen_to_noise(self.ears, test, seed=self.options.seed),
        }
        agreement = {"test": self._agreement(self.real), "reconstruction": self._agreement(sets["reconstruction"])}
        rows: list[dict[str, Any]] = [{"name": "test"}]
        rows += [{"name": name, **self._compared(name, clips)} for name, clips in sets.items()]
        return [row | {"agreement": agreement.get(row["name"])} for row in rows]

    def row(self, row: Row, player: Player, weights: Mapping[str, str]) -> dict[str, Any]:
        """All figures of a row but its times; what it generates is kept in the work folder."""
        clips, of_seeds = self._generated(row, player, weights)
        spread = None
        if of_seeds is not None:
            by_prompt = of_seeds.means.unflatten(0, (-1, self.options.seeds))
            spread = diversity(by_prompt, self.real, resamples=self.options.resamples, seed=self.options.seed).as_dict()
        return {
            "walk": player.settings(),
            "network": asdict(player.use()),
            **self._compared(row.name, clips),
            "agreement": self._agreement(clips),
            "diversity": spread,
        }

    def _generated(
        self, row: Row, player: Player, weights: Mapping[str, str]
    ) -> tuple[EmbeddedClips, EmbeddedClips | None]:
        """One clip for each test clip's caption; and, prompt by prompt, clips of several seeds."""
        options = self.options
        settings = {"seconds": options.seconds, "dtype": options.dtype, "weights": dict(weights)} | row.settings()

        def generated(name: str, prompts: list[str], batch: int) -> EmbeddedClips:
            made = generate_clips(
                player.generate,
                prompts,
                self.work / f"{name}.clips",
                settings=settings,
                seed=options.seed,
                batch=batch,
            )
            made_from = settings | {"prompts": prompts, "seed": options.seed, "batch": batch}
            return listen_to_generated(self.ears, name, made, len(prompts), options.seconds, made_from=made_from)

        captions = [clip.caption for clip in self.splits.test]
        clips = generated(row.name, captions, options.batch)
        if not options.prompts:
            return clips, None
        few = list(dict.fromkeys(captions))[: options.prompts]
        repeated = [prompt for prompt in few for _ in range(options.seeds)]
        return clips, generated(f"{row.name}.seeds", repeated, options.seeds)

    def _compared(self, name: str, clips: EmbeddedClips) -> dict[str, Any]:
        options = self.options
        found = compare(
            self.real,
            {name: clips},
            floor="validation",
            ceiling="noise",
            of=name,
            resamples=options.resamples,
            seed=options.seed,
            shrinkage=options.shrinkage,
            progress=lambda numbers: shown(numbers, f"{name} resamples", options.resamples),
        )
        return {
            **{measure: distances.to_reference[name].as_dict() for measure, distances in found.items()},
            **density_and_coverage(self.real.means, clips.means)._asdict(),
        }

    def _agreement(self, clips: EmbeddedClips) -> dict[str, Any]:
        found = {tag: judge.of(clips) for tag, judge in self.judges.items()}
        return {tag: {name: v for name, v in of.items() if name != "confusion"} for tag, of in found.items()}
