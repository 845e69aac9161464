"""What the accelerated modules of one model share: how they run, and what they keep between two calls."""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from presto_kernels import backends
from presto_kernels.integrations.modules import class_name, hooked

MASKS = ("faithful", "exact")
PROMPTS = 4  # kept at a time: with and without the prompt, and as many again
MOMENTS = 256  # timesteps of a prompt whose modulation is kept
TABLES = 64  # angles and their cosines; the blocks of a decoder have a table each

_FIXED = {
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.activation.SiLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.normalization.LayerNorm",
    "torch.nn.modules.normalization.RMSNorm",
    "torch.nn.modules.sparse.Embedding",
    *(
        f"diffusers.models.embeddings.{name}"
        for name in (
            "CombinedTimestepGuidanceTextProjEmbeddings", "CombinedTimestepLabelEmbeddings",
            "CombinedTimestepTextProjEmbeddings", "LabelEmbedding", "PixArtAlphaTextProjection", "TimestepEmbedding",
            "Timesteps",
        )
    ),
    "diffusers.models.transformers.ace_step_transformer.AceStepTimestepEmbedding",
    "diffusers.models.normalization.RMSNorm",
    "diffusers.models.transformers.transformer_stable_audio3.StableAudio3RMSNorm",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How accelerated modules run.

    backend: of the ops, as in :func:`presto_kernels.use_backend`, or "auto".
    masks: "faithful" does with a mask what the original does; "exact" hides what it masks.
    """

    backend: str = "auto"
    masks: str = "faithful"

    def __post_init__(self) -> None:
        if self.backend not in ("auto", *backends.BACKENDS):
            raise ValueError(f"backend: {self.backend!r} is none; choose from auto, {', '.join(backends.BACKENDS)}")
        if self.masks not in MASKS:
            raise ValueError(f"masks: {self.masks!r} is none; choose from {', '.join(MASKS)}")

    def running(self) -> contextlib.AbstractContextManager[None]:
        """The ops inside run on ``backend``; attention on what comes nearest where it has no such kernel."""
        if self.backend == "auto":
            return contextlib.nullcontext()
        attention = ("triton" if backends.TRITON_INSTALLED else "sdpa") if self.backend == "cuda" else self.backend
        return backends.use_backend(self.backend, attention=attention)


class Session:
    """Shared by the accelerated modules of one tree; belongs to no state dict."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.passed_on: Counter[tuple[str, str]] = Counter()  # (class, why) -> calls that ran as the original
        self._prompts: OrderedDict[Hashable, _Prompt] | None = None
        self._opened_capturing = False
        self._reads_timesteps: bool | None = None
        self._prompt: _Prompt | None = None
        self._moment: dict[Hashable, Any] | None = None
        self._tables: OrderedDict[Hashable, tuple[Hashable, tuple[Tensor, ...], Any]] = OrderedDict()
        self._recorded: list[Any] = []  # tables in CUDA graphs

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """A copied model begins with nothing kept."""
        memo[id(self)] = copied = Session(self.settings)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return Session, (self.settings,)

    def pass_on(self, module: nn.Module, reason: str) -> None:
        """Remember that this call runs as the original does."""
        if not torch.compiler.is_compiling():
            self.passed_on[type(module).__name__, reason] += 1

    # What does not change over a prompt ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def keeping(self, read_timesteps: bool | None = None) -> Iterator[None]:
        if self._prompts is not None:  # one inside another keeps what the outer one has
            yield
            return
        self._prompts, self._opened_capturing = OrderedDict(), _capturing()
        self._reads_timesteps = read_timesteps
        try:
            yield
        finally:
            self._prompts = None

    @contextlib.contextmanager
    def call_with(
        self,
        inputs: tuple[object, ...],
        timesteps: tuple[object, ...] = (),
        embeddings: tuple[nn.Module, ...] = (),
    ) -> Iterator[None]:
        """A call of the outermost accelerated module; ``inputs``: its arguments that a prompt decides; ``embeddings``:
        the modules that these go through before the blocks.

        The call may use what an earlier call kept whose inputs were the same objects, unchanged, with the same weights;
        and, of what ``timesteps`` decide too, what one kept whose timesteps were equal.  A CUDA graph uses only what
        was kept while it was recorded: it would go on reading the memory of the rest when that is gone.
        """
        if self._prompts is None or self._prompt is not None or torch.is_grad_enabled():
            yield
            return
        if self._opened_capturing != _capturing() or not all(map(_is_fixed, embeddings)):
            yield
            return
        inputs += tuple(p for module in embeddings for p in module.parameters())
        key = tuple(_identity(value) for value in inputs)
        prompt = self._prompts.setdefault(key, _Prompt(inputs))
        self._prompts.move_to_end(key)
        while len(self._prompts) > PROMPTS:
            self._prompts.popitem(last=False)
        self._prompt, self._moment = prompt, prompt.at(self._read(timesteps))
        try:
            yield
        finally:
            self._prompt = self._moment = None

    def _read(self, timesteps: tuple[object, ...]) -> Hashable:
        """The values of a call's timesteps, or None where they may not be read."""
        if not timesteps or self._reads_timesteps is False or _capturing():
            return None
        values: list[Hashable] = []
        for t in timesteps:
            if isinstance(t, Tensor):
                if t.device.type != "cpu" and not self._reads_timesteps:  # waits for a GPU
                    return None
                values.append((t.dtype, tuple(t.shape), tuple(t.flatten().tolist())))
            else:
                values.append(t if isinstance(t, Hashable) else id(t))
        return tuple(values)

    def constant(self, key: Hashable, source: Tensor, layers: tuple[nn.Module, ...], compute: Callable[[], Any]) -> Any:
        """``compute()``, once per prompt: of ``source``, which it alone decides, by the weights of ``layers``."""
        return self._once(None if self._prompt is None else self._prompt.kept, key, source, layers, compute)

    def modulation(
        self, key: Hashable, source: Tensor, layers: tuple[nn.Module, ...], compute: Callable[[], Any]
    ) -> Any:
        """:meth:`constant` of what a prompt and a timestep decide together."""
        return self._once(self._moment, key, source, layers, compute)

    @staticmethod
    def _once(
        kept: dict[Hashable, Any] | None,
        key: Hashable,
        source: Tensor,
        layers: tuple[nn.Module, ...],
        compute: Callable[[], Any],
    ) -> Any:
        if kept is None or torch.compiler.is_compiling() or not all(map(_is_fixed, layers)):
            return compute()
        weights = tuple(_identity(p) for layer in layers for p in layer.parameters())
        key = (key, tuple(source.shape), source.dtype)
        if key not in kept or kept[key][0] != weights:
            kept[key] = (weights, compute())
        return kept[key][1]

    # Tables -------------------------------------------------------------------------------------------------------

    def table(self, key: Hashable, made_of: tuple[Tensor, ...], compute: Callable[[], Any]) -> Any:
        """``compute()``, once for these tensors as they are; the last few keys are kept."""
        now = tuple(_identity(t) for t in made_of)
        kept = self._tables.get(key)
        if kept is not None and kept[0] != now:
            kept = None
        if _capturing():  # the calls that warm up made them; a graph reads them as long as it lives
            if kept is None:
                return compute()
            self._recorded.append(kept)
        if kept is None:
            kept = self._tables[key] = now, made_of, compute()  # the tensors are held: see _Prompt
        self._tables.move_to_end(key)
        while len(self._tables) > TABLES:
            self._tables.popitem(last=False)
        return kept[2]

    def cos_sin(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin ``[N, R/2]`` fp32 of half-split angles ``[N, R]``, whose halves are equal."""
        if torch.compiler.is_compiling():
            return _cos_sin(angles)
        return self.table(("cos, sin", id(angles)), (angles,), lambda: _cos_sin(angles))


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class _Prompt:
    """What was computed from one set of inputs, which are held so that nothing else takes their place in memory."""

    def __init__(self, inputs: tuple[object, ...]) -> None:
        self.inputs = inputs
        self.kept: dict[Hashable, Any] = {}
        self.moments: OrderedDict[Hashable, dict[Hashable, Any]] = OrderedDict()

    def at(self, timesteps: Hashable) -> dict[Hashable, Any] | None:
        """What was computed from them at these timesteps."""
        if timesteps is None:
            return None
        kept = self.moments.setdefault(timesteps, {})
        self.moments.move_to_end(timesteps)
        while len(self.moments) > MOMENTS:
            self.moments.popitem(last=False)
        return kept


def _identity(value: object) -> Hashable:
    """Equal for the same object holding the same values."""
    if not isinstance(value, Tensor):
        return value if isinstance(value, Hashable) else id(value)
    version = 0 if value.is_inference() else value._version
    return id(value), value.data_ptr(), version, value.dtype


def _is_fixed(layer: nn.Module) -> bool:
    """Whether a layer computes the same as long as its parameters do: adapters and parametrizations are switched, and
    hooks may do anything."""
    return not any(
        class_name(part) not in _FIXED or hooked(part) or parametrize.is_parametrized(part) for part in layer.modules()
    )


@torch.no_grad()
def _cos_sin(angles: Tensor) -> tuple[Tensor, Tensor]:
    half = angles[..., : angles.shape[-1] // 2].float()
    return half.cos(), half.sin()
