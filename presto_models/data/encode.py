"""`data encode`: a folder of audio as latents in sharded safetensors, once, so that training the DiT reads no audio."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from presto_models.autoencoders import Autoencoder, load_autoencoder
from presto_models.data.audio_files import read_audio
from presto_models.data.folder import AudioFolder, AudioItem
from presto_models.data.scores import SPLITS
from presto_models.files import written_beside

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class EncodeOptions:
    """What `data encode` takes."""

    autoencoder: str
    """Folder or file of a trained autoencoder."""
    data: str
    """Folder of audio with captions, as `data render` writes."""
    out: str
    """Folder for the shards and index.json; a run into the same folder goes on where it was."""
    shard_megabytes: float = 64.0
    """Size of a shard."""
    dtype: str = "float16"
    """What latents are stored in: float16, bfloat16 or float32."""
    max_seconds: float = 60.0
    """Longer files are encoded in pieces of at most this length."""
    device: str = "cpu"
    """Where the autoencoder runs."""


def run(options: EncodeOptions) -> None:
    """Loads the autoencoder, encodes, and prints how much there is."""
    autoencoder = load_autoencoder(options.autoencoder).to(options.device).eval()
    index = encode_folder(
        autoencoder,
        options.data,
        options.out,
        shard_megabytes=options.shard_megabytes,
        dtype=options.dtype,
        max_seconds=options.max_seconds,
        device=options.device,
    )
    latents = sum(clip["latents"] for clip in index["clips"])
    print(f"{len(index['clips'])} clips, {latents} latents in {options.out}; skipped: {index['skipped'] or 'none'}")


@torch.inference_mode()
def encode_folder(
    autoencoder: Autoencoder,
    data: str | Path,
    out: str | Path,
    *,
    shard_megabytes: float = 64.0,
    dtype: str = "float16",
    max_seconds: float = 60.0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Latents `[N, C]` of every file of every split below `data`, in `out/latents-00000.safetensors` and so on.

    `out/index.json` has the clips (id, shard, split, N, seconds, piece, captions, tags), mean and std of each channel
    over the training clips, and the latent of silence. A shard is complete once the `.json` beside it is; a killed run
    goes on after the last complete one. Raises ValueError where `out` was made with other weights or settings, where
    latents are not finite in `dtype`, or where nothing is usable; OSError where the disk is full.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r}; choose from {', '.join(DTYPES)}")
    if shard_megabytes <= 0 or max_seconds <= 0:
        raise ValueError(f"shard_megabytes, max_seconds: {shard_megabytes}, {max_seconds}; both must be above 0")
    out = Path(out)
    made_with = {
        "weights": _fingerprint(autoencoder),
        "dtype": dtype,
        "max_seconds": max_seconds,
        "sample_rate": autoencoder.sample_rate,
        "hop": autoencoder.hop,
        "latent_channels": autoencoder.latent_channels,
    }
    done = _finished_shards(out, made_with)
    known = {clip["id"] for shard in done for clip in shard["clips"]}
    shard: dict[str, Tensor] = {}
    clips: list[dict[str, Any]] = []
    limit = shard_megabytes * 2**20

    def finish_shard() -> None:
        done.append(_write_shard(out, len(done), shard, clips, made_with))
        shard.clear()
        clips.clear()

    skipped: dict[str, int] = {}
    for clip, item, start in _clips(Path(data), max_seconds, skipped):
        if clip["id"] in known:
            continue
        try:
            audio = read_audio(
                item.path,
                sample_rate=autoencoder.sample_rate,
                channels=autoencoder.audio_channels,
                start=start,
                seconds=clip["seconds"],
            )
        except ValueError:  # a header that promised what is not there
            skipped["no readable audio"] = skipped.get("no readable audio", 0) + 1
            continue
        latents = autoencoder.encode(audio[None].to(device))[0].to("cpu", DTYPES[dtype]).contiguous()
        if not torch.isfinite(latents).all():
            raise ValueError(f"latents of {item.path} are not finite in {dtype}")
        shard[clip["id"]] = latents
        clips.append(clip | {"latents": len(latents)})
        if sum(each.nbytes for each in shard.values()) >= limit:
            finish_shard()
    if shard:
        finish_shard()
    silence = torch.zeros(1, autoencoder.audio_channels, 2 * autoencoder.sample_rate, device=device)
    index = {
        **made_with,
        **_statistics(done),
        "silence": autoencoder.encode(silence)[0].float().mean(0).tolist(),
        "skipped": skipped,
        "clips": [clip for each in done for clip in each["clips"]],
    }
    with written_beside(out / "index.json") as beside:
        beside.write_text(json.dumps(index, ensure_ascii=False))
    return index


def _clips(
    data: Path, max_seconds: float, skipped: dict[str, int]
) -> Iterator[tuple[dict[str, Any], AudioItem, float]]:
    """Every clip to encode, in a fixed order, with the file that it is of and where it starts."""
    from rich.progress import track

    found: list[tuple[str, AudioItem]] = []
    for split in SPLITS:
        try:
            folder = AudioFolder(data, split=split)
        except ValueError:
            continue  # a small folder may lack a split
        found += [(split, item) for item in folder.items]
        for reason, count in folder.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + count
    if not found:
        AudioFolder(data, split=None)  # says why there is nothing
    for split, item in track(found, "encoding", transient=True, disable=not sys.stdout.isatty()):
        whole = str(item.path.relative_to(data).with_suffix(""))
        for part in range(max(1, int(np.ceil(item.seconds / max_seconds)))):
            start = part * max_seconds
            seconds = min(max_seconds, item.seconds - start)
            if part and seconds < 1:
                continue
            clip = {"id": f"{whole}#{part}" if part else whole, "split": split, "seconds": seconds}
            clip |= {"piece": item.piece, "captions": list(item.captions), "tags": dict(item.tags)}
            yield clip, item, start


def _write_shard(
    out: Path, number: int, shard: dict[str, Tensor], clips: list[dict[str, Any]], made_with: dict[str, Any]
) -> dict[str, Any]:
    name = f"latents-{number:05d}.safetensors"
    with written_beside(out / name) as beside:
        beside.write_bytes(save(shard))  # its own save_file does not report a full disk as an OSError
    training = [shard[clip["id"]].double() for clip in clips if clip["split"] == "train"]
    joined = torch.cat(training) if training else torch.zeros(0, made_with["latent_channels"], dtype=torch.float64)
    record = {
        "made_with": made_with,
        "count": len(joined),
        "sum": joined.sum(0).tolist(),
        "squares": joined.square().sum(0).tolist(),
        "clips": [clip | {"shard": name} for clip in clips],
    }
    with written_beside((out / name).with_suffix(".json")) as beside:
        beside.write_text(json.dumps(record, ensure_ascii=False))
    return record


def _finished_shards(out: Path, made_with: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while (path := out / f"latents-{len(found):05d}.json").exists():
        record = json.loads(path.read_text())
        if record["made_with"] != made_with:
            raise ValueError(f"out: {out} was made with other weights or settings; choose another folder")
        found.append(record)
    return found


def _statistics(shards: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel over the training clips (0 and 1 where there are none)."""
    count = sum(shard["count"] for shard in shards)
    total = np.sum([shard["sum"] for shard in shards], 0)
    squares = np.sum([shard["squares"] for shard in shards], 0)
    if not count:
        return {"mean": np.zeros_like(total).tolist(), "std": np.ones_like(total).tolist()}
    mean = total / count
    return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(squares / count - mean**2, 0)).tolist()}


def _fingerprint(autoencoder: Autoencoder) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(autoencoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
