"""Encoded music as a training set: crops of N latents that depend on nothing but a seed and a number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from presto_models.data.scores import SPLITS


class LatentDataset(Dataset[dict[str, Any]]):
    """Crops of `latents` consecutive latents of what `encode_folder` wrote, number i always the same for a seed.

    `dataset[i]` is `{"latents": [N, C] fp32 as stored (not normalised), "valid": int, "caption": str, "item": int,
    "start": int}`: a clip drawn in proportion to its length, one of its captions ("" where it has none), its number in
    `.clips`, and the latent of it the crop begins with. A clip shorter than N is followed by the latent of silence;
    `valid` counts its own. `.mean` and `.std` `[C]` are those of the training clips. `length` (default: as many as the
    clips hold end to end) is what `len` says.

    Raises FileNotFoundError where `root` has no index.json, ValueError where the split is unknown or empty.
    """

    def __init__(self, root: str | Path, split: str, *, latents: int, seed: int, length: int | None = None):
        self.root, self.latents, self.seed = Path(root), latents, seed
        if split not in SPLITS:
            raise ValueError(f"split: {split!r}; choose from {', '.join(SPLITS)}")
        if latents < 1:
            raise ValueError(f"latents: {latents} is below 1")
        if not (self.root / "index.json").is_file():
            raise FileNotFoundError(f"root: no index.json in {root}; `data encode` writes it when it is done")
        self.index: dict[str, Any] = json.loads((self.root / "index.json").read_text())
        self.clips: list[dict[str, Any]] = [clip for clip in self.index["clips"] if clip["split"] == split]
        if not self.clips:
            raise ValueError(f"split: {root} has no clips for {split!r}")
        self.mean, self.std, self.silence = (torch.tensor(self.index[name]) for name in ("mean", "std", "silence"))
        self._until = np.cumsum([clip["latents"] for clip in self.clips])
        self.length = max(1, int(self._until[-1]) // latents) if length is None else length
        self._open: dict[str, Any] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"crop {index} of {self.length}")
        rng = np.random.default_rng([self.seed, index])
        number = int(np.searchsorted(self._until, rng.integers(self._until[-1]), "right"))
        clip = self.clips[number]
        start = int(rng.integers(max(0, clip["latents"] - self.latents) + 1))
        caption = str(rng.choice(clip["captions"])) if clip["captions"] else ""
        own = self._slice(clip, start, min(self.latents, clip["latents"]))
        padding = self.silence.expand(self.latents - len(own), -1)
        return {
            "latents": torch.cat([own, padding]),
            "valid": len(own),
            "caption": caption,
            "item": number,
            "start": start,
        }

    def whole(self, number: int) -> Tensor:
        """All latents `[N, C]` fp32 of clip `number`."""
        return self._slice(self.clips[number], 0, self.clips[number]["latents"])

    def _slice(self, clip: dict[str, Any], start: int, count: int) -> Tensor:
        from safetensors import safe_open

        if clip["shard"] not in self._open:  # mapped, not read: a crop touches only its own pages
            self._open[clip["shard"]] = safe_open(str(self.root / clip["shard"]), "pt")
        return self._open[clip["shard"]].get_slice(clip["id"])[start : start + count].float()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # a data loader's workers open the shards for themselves
