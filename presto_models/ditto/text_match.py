"""Text as a control: any model that hears music and text in one space is the objective.

    error = 1 - cosine(embedding of the music, embedding of the text), from 0 to 2

DITTO-2 (2405.20289) makes a model without text follow one by optimising its CLAP score; the score there is the cosine
[P], and its complement is minimised here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor

from presto_models.ditto.control import Bound, Control
from presto_models.ditto.scene import Made, Scene


@runtime_checkable
class AudioTextScorer(Protocol):
    """Music and text in one space of D dims, where those that belong together lie in one direction.

    :class:`presto_models.ditto.ClapScorer` is one.
    """

    def embed_text(self, texts: list[str]) -> Tensor:
        """B texts to ``[B, D]``."""
        ...

    def embed_audio(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Mono audio ``[B, samples]`` to ``[B, D]``, fp32; differentiable, and it asks the device nothing."""
        ...


@dataclass(frozen=True, eq=False)
class TextMatch(Control):
    """Music that a scorer hears a text in; ``figures``: the cosine.

    Args:
        scorer: an :class:`AudioTextScorer`, on the pipeline's device.
        text: what the music is to be; not the prompt, though it may be the same.
    """

    scorer: AudioTextScorer
    text: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.scorer, AudioTextScorer):
            raise TypeError(f"scorer must have embed_text and embed_audio, got {type(self.scorer).__name__}")
        if not isinstance(self.text, str):
            raise TypeError(f"text must be a string, got {type(self.text).__name__}")
        if not self.text.strip():
            raise ValueError("text must say something, got white space")

    def bind(self, scene: Scene) -> Bound:
        embedded = self.scorer.embed_text([self.text])
        if embedded.dim() != 2 or embedded.shape[0] != 1:
            raise ValueError(f"scorer must embed one text as [1, D], got {tuple(embedded.shape)}")
        return _Matched(self, scene, F.normalize(embedded[0].detach().float(), dim=0).to(scene.device))


class _Matched(Bound):
    name, kind = "text", "text"

    def __init__(self, control: TextMatch, scene: Scene, target: Tensor) -> None:
        self.weight, self.threshold, self.scorer = control.weight, control.threshold, control.scorer
        self.target, self.spans = target, ((0.0, scene.seconds),)

    def feature(self, made: Made) -> Tensor:
        def embedded() -> Tensor:
            return F.normalize(self.scorer.embed_audio(made.mono, made.scene.sample_rate), dim=-1)

        return made.shared(("embedding", id(self.scorer)), embedded)

    def error(self, made: Made) -> Tensor:
        return 1 - self._cosine(made)

    def figures(self, made: Made) -> dict[str, Tensor]:
        return {"cosine": self._cosine(made)}

    def _cosine(self, made: Made) -> Tensor:
        return (self.feature(made) * self.target).sum(-1)
