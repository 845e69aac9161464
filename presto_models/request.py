"""What a caller of the pipeline may ask for, as it is used: one entry a prompt, one seed a sample."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from presto_models.conditioning import Conditioning
from presto_models.text.tags import Tags


def check_prompts(prompt: str | Sequence[str]) -> list[str]:
    """One or several prompts as a list."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, Sequence) or not all(isinstance(each, str) for each in prompts):
        raise TypeError(f"prompt must be a string or a list of strings, got {prompt!r}")
    if not prompts:
        raise ValueError("prompt must hold at least one string (an empty one is no text), got an empty list")
    return list(prompts)


def tags_of_each(tags: Tags | Sequence[Tags | None] | None, count: int) -> list[Tags | None] | None:
    """Tags for ``count`` prompts, given once for all or for each."""
    if tags is None:
        return None
    if isinstance(tags, Mapping):
        return [tags] * count
    if isinstance(tags, str) or not isinstance(tags, Sequence) or len(tags) != count:
        raise ValueError(f"tags must be a mapping, or one for each of the {count} prompts, got {tags!r}")
    return list(tags)


def seeds_of_each(seed: int | Sequence[int] | None, batch: int) -> list[int]:
    """A seed in [-2^63, 2^63) for each sample."""
    if seed is None:
        seed = secrets.randbits(31)  # short enough to be typed again
    if isinstance(seed, int) and not isinstance(seed, bool):
        seeds = [seed + i for i in range(batch)]
    elif isinstance(seed, Sequence) and not isinstance(seed, str) and len(seed) == batch:
        seeds = list(seed)
    else:
        raise ValueError(f"seed must be an int, or one for each of the {batch} samples, got {seed!r}")
    for each in seeds:
        if isinstance(each, bool) or not isinstance(each, int) or not -(2**63) <= each < 2**63:
            raise ValueError(f"seed must be an int in [-2^63, 2^63), for every sample, got {each!r}")
    return seeds


def repeated(text: Conditioning, times: int, *, pooled: bool) -> Conditioning:
    """Each prompt ``times`` times; without the pooled vector for a model that takes none."""
    vector = text.pooled if pooled else None
    parts = (None if t is None else t.repeat_interleave(times, 0) for t in (text.tokens, vector, text.lengths))
    return Conditioning(*parts)  # type: ignore[arg-type]
