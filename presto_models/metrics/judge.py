"""Is the tag a prompt asked for heard in the music?  A classifier taught on real clips listens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from presto_models.metrics.agreement import TagClassifier, tag_agreement
from presto_models.metrics.clips import Clip
from presto_models.metrics.embedded import EmbeddedClips

_FEWEST = 5  # training clips a tag needs before a classifier is taught it


class TagJudge:
    """How often the value of one tag that a test clip (and so the prompt made of it) has is heard in other clips.

    Args:
        training, learnt: real training clips and what the ears made of them.
        test: the clips whose tags are asked for.

    Attributes:
        left_out: why it cannot judge, or None.
    """

    def __init__(self, tag: str, training: Sequence[Clip], learnt: EmbeddedClips, test: Sequence[Clip]) -> None:
        names = [_single(clip, tag) for clip in training]
        taught = [index for index, name in enumerate(names) if name and names.count(name) >= _FEWEST]
        labels = [names[index] or "" for index in taught]
        self._judged = [index for index, clip in enumerate(test) if _single(clip, tag) in labels]
        self._wanted = [_single(test[index], tag) or "" for index in self._judged]
        self.left_out: str | None = None
        if len(set(labels)) < 2 or not self._judged:
            self.left_out = (
                f"{len(set(labels))} values of {tag} have {_FEWEST} training clips and "
                f"{len(self._judged)} test clips are of those; two and one are needed"
            )
            return
        self._classifier = TagClassifier(learnt.means[taught], labels)

    def of(self, clips: EmbeddedClips, numbers: Sequence[int] | None = None) -> dict[str, Any]:
        """Agreement (:class:`presto_models.metrics.Agreement`) of clips that stand in the order of the test clips.

        Args:
            numbers: which of the test clips each is made for; None: all.
        """
        if self.left_out:
            return {"left_out": self.left_out}
        order = {number: index for index, number in enumerate(range(len(clips.means)) if numbers is None else numbers)}
        judged = [
            (order[number], name) for number, name in zip(self._judged, self._wanted, strict=True) if number in order
        ]
        if not judged:
            return {"left_out": "none of these clips has a value of this tag that was taught"}
        indices, wanted = zip(*judged, strict=True)
        return tag_agreement(self._classifier.predict(clips.means[list(indices)]), wanted).as_dict()


def _single(clip: Clip, tag: str) -> str | None:
    """A tag's value; None where it has several (two instruments), which one classifier of one value cannot judge."""
    value = clip.tags[tag]
    if isinstance(value, list | tuple):
        return str(value[0]) if len(value) == 1 else None
    return str(value)
