"""Does the music agree with what the prompt asked for?

A classifier learns a tag (collection, instrument) from embeddings of real training clips and is then asked about other
clips.  Where the prompts' tags are found again more often than under tags dealt out at random, the model follows its
prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from presto_models.metrics.embedded import Interval


class TagClassifier:
    """Multinomial logistic regression on standardised embeddings, every tag weighing the same.

    Minimises mean cross entropy (weighted so) + penalty/2 |W|² by L-BFGS in float64: a convex problem with one
    solution.

    Args:
        embeddings: ``[n, D]``, one a clip.  tags: n names.
        penalty: chosen by hand for some hundreds of clips and 200 dimensions; never tuned on held-out pieces.
    """

    def __init__(self, embeddings: Tensor, tags: Sequence[str], *, penalty: float = 0.1) -> None:
        if embeddings.dim() != 2 or len(embeddings) != len(tags):
            raise ValueError(
                f"embeddings must be [n, D] with one tag each, got {tuple(embeddings.shape)}, {len(tags)} tags"
            )
        self.tags = tuple(sorted(set(tags)))
        if len(self.tags) < 2:
            raise ValueError(f"tags must have at least two different names to tell apart, got {list(self.tags)}")
        x = embeddings.detach().double()
        self._mean, self._scale = x.mean(0), x.std(0).clamp_min(1e-6)
        x = self._standard(x)
        target = torch.tensor([self.tags.index(tag) for tag in tags])
        class_weight = len(target) / (len(self.tags) * torch.bincount(target).double())
        self._weight = torch.zeros(x.shape[1], len(self.tags), dtype=torch.float64, requires_grad=True)
        self._bias = torch.zeros(len(self.tags), dtype=torch.float64, requires_grad=True)
        parameters = [self._weight, self._bias]
        solver = torch.optim.LBFGS(parameters, max_iter=300, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            solver.zero_grad()
            entropy = torch.nn.functional.cross_entropy(x @ self._weight + self._bias, target, weight=class_weight)
            total = entropy + penalty / 2 * self._weight.square().sum()
            total.backward()
            return total

        with torch.enable_grad():
            solver.step(loss)

    def _standard(self, embeddings: Tensor) -> Tensor:
        return (embeddings.double() - self._mean) / self._scale

    @torch.no_grad()
    def predict(self, embeddings: Tensor) -> list[str]:
        """The likeliest tag of each of ``[n, D]``."""
        best = (self._standard(embeddings) @ self._weight + self._bias).argmax(1)
        return [self.tags[index] for index in best.tolist()]


@dataclass(frozen=True)
class Agreement:
    """accuracy: with its exact binomial (Clopper-Pearson) interval.  chance: always saying the commonest tag.
    balanced_accuracy: the mean over tags of the share of its clips found; chance there is 1 / tags.
    p_value: share of random dealings of the tags to the clips that reach this balanced accuracy.
    confusion: tag asked for -> tag heard -> clips."""

    clips: int
    accuracy: Interval
    chance: float
    balanced_accuracy: float
    balanced_chance: float
    p_value: float
    confusion: dict[str, dict[str, int]]

    @property
    def better_than_chance(self) -> bool:
        """At the 1 % level."""
        return self.p_value < 0.01

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"better_than_chance": self.better_than_chance}


def tag_agreement(
    predicted: Sequence[str], asked: Sequence[str], *, permutations: int = 10_000, seed: int = 0
) -> Agreement:
    """How well the tags a classifier heard agree with those asked for, and whether chance does as well."""
    from scipy.stats import binomtest

    if len(predicted) != len(asked) or not asked:
        raise ValueError(f"predicted and asked must be as long, and not empty; got {len(predicted)} and {len(asked)}")
    names = sorted(set(asked))
    truth = np.array([names.index(tag) for tag in asked])
    heard = np.array([names.index(tag) if tag in names else -1 for tag in predicted])
    share = 1 / np.bincount(truth) / len(names)  # what one clip found adds to the balanced accuracy
    balanced = float(share[truth][heard == truth].sum())
    rng = np.random.default_rng(seed)
    dealt = rng.permuted(np.tile(truth, (permutations, 1)), axis=1)
    reached = (np.where(dealt == heard, share[dealt], 0).sum(1) >= balanced - 1e-12).sum()
    found = int((heard == truth).sum())
    low, high = binomtest(found, len(asked)).proportion_ci(0.95, "exact")
    return Agreement(
        clips=len(asked),
        accuracy=Interval(found / len(asked), float(low), float(high)),
        chance=max(Counter(asked).values()) / len(asked),
        balanced_accuracy=balanced,
        balanced_chance=1 / len(names),
        p_value=float((1 + reached) / (1 + permutations)),
        confusion={
            tag: dict(Counter(heard for heard, want in zip(predicted, asked, strict=True) if want == tag))
            for tag in names
        },
    )
