"""What one row of a table of methods is measured by, and the rows that say what its figures can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from presto_models.metrics.diversity import diversity
from presto_models.metrics.ears import Ears, Tagger
from presto_models.metrics.embedded import EmbeddedClips
from presto_models.metrics.generated import generate_clips
from presto_models.metrics.method_options import MethodsOptions
from presto_models.metrics.method_rows import Row
from presto_models.metrics.players import Player
from presto_models.metrics.real_music import RealMusic
from presto_models.metrics.splits import (
    EncodesAndDecodes,
    Splits,
    listen_to_generated,
)


class Measuring:
    """The real music, and everything a row is measured by.

    Raises:
        ValueError: too few test clips for FAD; before anything is generated.
    """

    def __init__(self, options: MethodsOptions, splits: Splits, sample_rate: int, tagger: Tagger) -> None:
        self.options, self.splits = options, splits
        self.work = Path(options.work) if options.work else Path(options.out).with_suffix(".work")
        self.ears = Ears(tagger, sample_rate, self.work)
        self.real = RealMusic(
            self.ears,
            splits,
            tags=options.tags,
            resamples=options.resamples,
            seed=options.seed,
            shrinkage=options.shrinkage,
        )

    def references(self, autoencoder: EncodesAndDecodes, weights: Mapping[str, str]) -> list[dict[str, Any]]:
        """As :meth:`RealMusic.references`."""
        return self.real.references(autoencoder, weights)

    def row(self, row: Row, player: Player, weights: Mapping[str, str]) -> dict[str, Any]:
        """All figures of a row but its times; what it generates is kept in the work folder."""
        clips, of_seeds = self._generated(row, player, weights)
        spread = None
        if of_seeds is not None:
            by_prompt = of_seeds.means.unflatten(0, (-1, self.options.seeds))
            spread = diversity(
                by_prompt, self.real.test, resamples=self.options.resamples, seed=self.options.seed
            ).as_dict()
        return {
            "walk": player.settings(),
            "network": asdict(player.use()),
            **self.real.compared(row.name, clips),
            "agreement": self.real.agreement(clips),
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
