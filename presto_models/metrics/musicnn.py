"""musicnn (Pons and Serra, "musicnn: pre-trained convolutional neural networks for music audio tagging", 2019) in
PyTorch.

The weights (ISC licence) are read from the installed ``musicnn`` package, which is not imported: importing it needs
TensorFlow.

log-mel ``[N, 187, 96]`` -> batch norm -> two timbral convolutions (7 frames x 38 or 67 mel bands) and three temporal
ones (128, 64, 32 frames), each ReLU, batch norm, maximum over the bands -> 561 channels -> three convolutions of 64
channels, the second and third with a residual -> 753 channels -> maximum and mean over time -> batch norm, dense,
ReLU, batch norm -> 200 (penultimate) -> 50 tags.

One difference from the package: it rounds mel power to float16, where ``10000 x`` overflows on loud music; here it is
float32.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from presto_models.metrics.mel import mel_spectrogram, resample
from presto_models.metrics.tf_checkpoint import read_tf_checkpoint

Layer = Literal["penultimate", "mean_pool"]

SAMPLE_RATE = 16_000
N_FFT, HOP, NUM_MELS = 512, 256, 96
PATCH_FRAMES = 187  # 3 s
MODELS = ("MTT_musicnn", "MSD_musicnn")
_PATCHES_AT_ONCE = 4  # 69 ms of one core a patch; 91 ms at 16, whose activations leave the caches


class MusicNNOutput(NamedTuple):
    """tags: probabilities ``[N, 50]``.  penultimate: ``[N, 200]``.  mean_pool: ``[N, 753]``."""

    tags: Tensor
    penultimate: Tensor
    mean_pool: Tensor


class MusicNN(nn.Module):
    """The tagger as a measuring instrument: weights fixed, always in evaluation mode; gradients reach the audio.

    Make one with :meth:`load`.  Attributes: tag_names, the 50 tags in the order of the output.
    """

    def __init__(self, tag_names: Sequence[str]) -> None:
        super().__init__()
        self.tag_names = tuple(tag_names)
        self.input_norm = _norm2d(1)
        timbral = [nn.Conv2d(1, 204, (7, bands), padding=(3, 0)) for bands in (38, 67)]
        temporal = [_TimeSame(1, 51, (frames, 1)) for frames in (128, 64, 32)]
        self.front = nn.ModuleList(
            nn.Sequential(conv, nn.ReLU(), _norm2d(conv.out_channels)) for conv in timbral + temporal
        )
        self.middle = nn.ModuleList(
            nn.Sequential(nn.Conv1d(channels, 64, 7, padding=3), nn.ReLU(), _norm1d(64)) for channels in (561, 64, 64)
        )
        self.penultimate = nn.Sequential(_norm1d(1506), nn.Linear(1506, 200), nn.ReLU(), _norm1d(200))
        self.classes = nn.Linear(200, len(self.tag_names))
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, name: str = "MTT_musicnn") -> MusicNN:
        """The network as the ``musicnn`` package ships it.

        Args:
            name: ``"MTT_musicnn"`` (trained on MagnaTagATune: instruments, moods) or ``"MSD_musicnn"`` (Million Song
                Dataset: genres, decades).

        Raises:
            ValueError: another name, or the checkpoint is not the one expected.  ImportError: the package is not
            installed.
        """
        if name not in MODELS:
            raise ValueError(f"name must be one of {list(MODELS)}, got {name!r}")
        package = _package_folder()
        model = cls(_tag_names(package, name))
        weights = read_tf_checkpoint(f"{package / name}/")
        try:
            model.load_state_dict(dict(_converted(weights, model)))
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{package / name} does not hold the musicnn network expected: {error}") from error
        return model

    def train(self, mode: bool = True) -> MusicNN:
        """Stays in evaluation mode: its batch statistics are part of the instrument."""
        return super().train(False)

    def forward(self, log_mel: Tensor) -> MusicNNOutput:
        """Patches ``[N, frames, 96]`` of ``log10(10000 mel + 1)``, in training of 187 frames, to tags and features."""
        x = self.input_norm(log_mel[:, None])
        front = torch.cat([block(x).amax(3) for block in self.front], 1)  # [N, 561, T]
        first = self.middle[0](front)
        second = first + self.middle[1](first)
        third = second + self.middle[2](second)
        features = torch.cat([front, first, second, third], 1)
        mean = features.mean(2)
        pooled = torch.stack([features.amax(2), mean], 2).flatten(
            1
        )  # maximum and mean beside each other, channel by channel
        penultimate = self.penultimate(pooled)
        return MusicNNOutput(self.classes(penultimate).sigmoid(), penultimate, mean)

    def log_mel(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Mono audio ``[B, T]`` to its whole 3 s patches ``[B, patches, 187, 96]``; what is left over at the end is
        dropped.

        Raises:
            ValueError: ``audio`` is not ``[B, T]`` or is shorter than one patch, 2.976 s.
        """
        if audio.dim() != 2:
            raise ValueError(f"audio must be mono, [B, T], got {tuple(audio.shape)}")
        mel = mel_spectrogram(
            resample(audio, sample_rate, SAMPLE_RATE), SAMPLE_RATE, n_fft=N_FFT, hop=HOP, num_mels=NUM_MELS
        )
        patches = mel.shape[2] // PATCH_FRAMES
        if not patches:
            seconds = audio.shape[1] / sample_rate
            raise ValueError(f"audio must last at least 2.976 s, one patch of musicnn, got {seconds:.3f} s")
        log_mel = torch.log10(10_000 * mel[..., : patches * PATCH_FRAMES] + 1)
        return log_mel.unflatten(2, (patches, PATCH_FRAMES)).permute(0, 2, 3, 1)

    def analyse(self, audio: Tensor, sample_rate: int) -> MusicNNOutput:
        """Mono audio ``[B, T]`` to tags and features of each patch, ``[B, patches, ...]``."""
        patches = self.log_mel(audio, sample_rate)
        chunks = [self(chunk) for chunk in patches.flatten(0, 1).split(_PATCHES_AT_ONCE)]
        fields = (torch.cat(field).unflatten(0, patches.shape[:2]) for field in zip(*chunks, strict=True))
        return MusicNNOutput(*fields)

    def embed_patches(self, audio: Tensor, sample_rate: int, layer: Layer = "penultimate") -> Tensor:
        """Mono audio ``[B, T]`` to ``[B, patches, D]``, D 200 (``"penultimate"``) or 753 (``"mean_pool"``)."""
        if layer not in ("penultimate", "mean_pool"):
            raise ValueError(f"layer must be 'penultimate' or 'mean_pool', got {layer!r}")
        return getattr(self.analyse(audio, sample_rate), layer)

    def embed(self, audio: Tensor | Sequence[Tensor], sample_rate: int, layer: Layer = "penultimate") -> Tensor:
        """Mono clips, ``[B, T]`` or ``[T]`` of any lengths, to ``[B, D]``: the mean over each clip's patches."""
        if isinstance(audio, Tensor):
            return self.embed_patches(audio, sample_rate, layer).mean(1)
        return torch.cat([self.embed_patches(clip[None], sample_rate, layer).mean(1) for clip in audio])

    def top_tags(self, audio: Tensor, sample_rate: int, count: int = 5) -> list[list[tuple[str, float]]]:
        """The likeliest tags of each clip of ``[B, T]`` by name, with their probabilities averaged over its patches."""
        mean = self.analyse(audio, sample_rate).tags.mean(1)
        best = mean.topk(count, dim=1)
        return [
            [(self.tag_names[tag], value) for tag, value in zip(tags, values, strict=True)]
            for tags, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


class _TimeSame(nn.Conv2d):
    """TensorFlow's "same" along time: for an even kernel the odd zero goes behind."""

    def forward(self, input: Tensor) -> Tensor:
        total = self.kernel_size[0] - 1
        return super().forward(nn.functional.pad(input, (0, 0, total // 2, total - total // 2)))


def _norm2d(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)  # TensorFlow's default


def _norm1d(channels: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(channels, eps=1e-3)


def _package_folder() -> Path:
    spec = importlib.util.find_spec("musicnn")  # finds it without running it
    if spec is None or spec.origin is None:
        raise ImportError(
            "musicnn is not installed; its weights are needed, not TensorFlow: pip install --no-deps musicnn"
        )
    return Path(spec.origin).parent


def _tag_names(package: Path, name: str) -> list[str]:
    """The list ``MTT_LABELS`` or ``MSD_LABELS`` of the package's configuration, read without running it."""
    wanted = f"{name.split('_')[0]}_LABELS"
    for node in ast.parse((package / "configuration.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == wanted:
            return ast.literal_eval(node.value)
    raise ValueError(f"{package / 'configuration.py'} has no {wanted}: not the musicnn package expected")


def _converted(weights: dict[str, Tensor], model: MusicNN):
    """TensorFlow numbers its layers in the order they were made, which is the order here; kernels end in channels."""
    modules = dict(model.named_modules())
    counts: dict[str, int] = {}
    for path, module in modules.items():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            kind = "batch_normalization"
        elif isinstance(module, nn.Conv1d | nn.Conv2d):
            kind = "conv2d"
        elif isinstance(module, nn.Linear):
            kind = "dense"
        else:
            continue
        number = counts.get(kind, 0)
        counts[kind] = number + 1
        source = f"{kind}_{number}" if number else kind
        if kind == "batch_normalization":
            yield f"{path}.weight", weights[f"{source}/gamma"]
            yield f"{path}.bias", weights[f"{source}/beta"]
            yield f"{path}.running_mean", weights[f"{source}/moving_mean"]
            yield f"{path}.running_var", weights[f"{source}/moving_variance"]
            yield f"{path}.num_batches_tracked", torch.tensor(0)
            continue
        kernel = weights[f"{source}/kernel"]
        if isinstance(module, nn.Conv2d):
            kernel = kernel.permute(3, 2, 0, 1)  # [frames, bands, in, out]
        elif isinstance(module, nn.Conv1d):
            kernel = kernel[:, :, 0].permute(2, 1, 0)  # [frames, in, 1, out]: the channels stand where bands stood
        else:
            kernel = kernel.T
        yield f"{path}.weight", kernel
        yield f"{path}.bias", weights[f"{source}/bias"]
