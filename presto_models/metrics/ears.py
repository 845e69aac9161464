"""musicnn listening to sets of clips, and remembering on disk what it heard."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from presto_models.checkpoint import CheckpointError, load_weights, save_weights
from presto_models.metrics.embedded import EmbeddedClips
from presto_models.metrics.musicnn import MusicNNOutput
from presto_models.metrics.report import shown

_KIND = "embeddings"


class Tagger(Protocol):
    """What is asked of :class:`presto_models.metrics.MusicNN`."""

    tag_names: tuple[str, ...]

    def analyse(self, audio: Tensor, sample_rate: int) -> MusicNNOutput: ...


class Ears:
    """A tagger, listening to sets of clips one at a time.

    Args:
        sample_rate: of the clips, Hz.
        folder: where what was heard is kept, ``NAME.safetensors`` a set; None: nowhere.

    Attributes:
        heard: set -> the tags heard most in it, by name, with their mean probability.
    """

    def __init__(self, tagger: Tagger, sample_rate: int, folder: Path | None = None) -> None:
        self.tagger, self.sample_rate, self.folder = tagger, sample_rate, folder
        self.heard: dict[str, dict[str, float]] = {}

    def listen(
        self,
        name: str,
        waveforms: Iterable[Tensor],
        pieces: Sequence[str],
        *,
        made_from: Mapping[str, Any] | None = None,
    ) -> EmbeddedClips:
        """The embeddings of mono ``waveforms``, ``[T]`` each, one a piece.

        Args:
            made_from: plain JSON that decides the sound.  With it and a folder, a set that was heard before is read
            from disk and ``waveforms`` is not touched.
        """
        kept = None if self.folder is None or made_from is None else self.folder / f"{name}.safetensors"
        described = {
            "made_from": json.loads(json.dumps(made_from)),
            "pieces": list(pieces),
            "sample_rate": self.sample_rate,
        }
        embeddings, tags = _read(kept, described)
        if embeddings is None or tags is None:
            outputs = [
                self.tagger.analyse(waveform[None], self.sample_rate)
                for waveform in shown(waveforms, f"{name} clips", len(pieces))
            ]
            embeddings = torch.cat([output.penultimate for output in outputs])
            tags = torch.cat([output.tags for output in outputs]).mean((0, 1))
            if kept is not None:
                save_weights(kept, {"embeddings": embeddings, "tags": tags}, kind=_KIND, config=described)
        best = tags.topk(8)
        names = [self.tagger.tag_names[index] for index in best.indices.tolist()]
        self.heard[name] = dict(zip(names, best.values.tolist(), strict=True))
        return EmbeddedClips(embeddings, tuple(pieces))


def _read(path: Path | None, described: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    if path is None:
        return None, None
    try:
        tensors, found = load_weights(path, kind=_KIND)
    except (FileNotFoundError, CheckpointError):
        return None, None
    return (tensors["embeddings"], tensors["tags"]) if found == described else (None, None)
