"""From conditioning and seeds to waveforms: the stages of a generation, and on CUDA all of them as one graph.

    prepare   conditioning -> every step's modulation, every block's text keys and values
    noise     seeds -> x at the highest noise level
    step      x at sigma_i -> x at sigma_{i+1}: the network (with guidance twice the batch), the solver
    decode    x -> latents in the autoencoder's units -> audio
    widen     mono -> stereo

No stage asks the device a question or takes a shape from data, so a CUDA graph can hold them all.  Each is a function
of its arguments through which gradients flow; ``no_grad`` stands only around the whole, in :meth:`Engine.__call__`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from presto_kernels import LayerSchedule
from presto_models.autoencoders import Autoencoder
from presto_models.conditioning import Conditioning
from presto_models.diffusion import EDM, ScheduledDenoiser, initial_noise
from presto_models.diffusion.sampling import Sampling

OnStage = Callable[[str], None]
LONG = 2048  # latents; a longer piece is decoded in chunks, so that its memory is bounded


@dataclass(frozen=True)
class Plan:
    """Everything about a generation that is not data; plans that are equal share a graph.

    Args:
        batch: B samples.
        length: N latents, exactly.
        sampling: the sampler and its steps.
        schedule: which blocks run at which noise level; None: all.
        stereo: whether the mono-to-stereo module runs.
    """

    batch: int
    length: int
    sampling: Sampling
    schedule: LayerSchedule | None = None
    stereo: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Engine:
    """Runs plans.

    Args:
        edm: the denoiser around a :class:`presto_models.DiT`.
        autoencoder: decodes; its ``latent_channels`` are the DiT's ``in_channels``.
        latent_mean, latent_std: C numbers each.  The DiT works on z = (latent - mean) / std * sigma_data.
        stereo: the module that makes two channels of ``[B, 1, T]``, or None.
        capture: whether a plan is captured as a CUDA graph; None: on CUDA.
        max_graphs: how many graphs are kept, the least recently used going first.  They share one memory pool.

    Attributes:
        batched: whether a call makes all samples at once.

    The modules are used as they stand: in ``eval()``, on one device.  A graph holds the weights' memory and the kernels
    chosen when it was captured: weights changed in place are seen, another ``use_backend`` is not until
    :meth:`forget`.  One thread at a time.
    """

    def __init__(
        self,
        edm: EDM,
        autoencoder: Autoencoder,
        *,
        latent_mean: Sequence[float],
        latent_std: Sequence[float],
        stereo: nn.Module | None = None,
        capture: bool | None = None,
        max_graphs: int = 4,
    ) -> None:
        channels = edm.dit.config.in_channels  # type: ignore[union-attr]
        if autoencoder.latent_channels != channels:
            raise ValueError(
                f"autoencoder must have the DiT's {channels} latent channels, got {autoencoder.latent_channels}"
            )
        for name, values in (("latent_mean", latent_mean), ("latent_std", latent_std)):
            if len(values) != channels:
                raise ValueError(f"{name} must hold {channels} numbers, got {len(values)}")
        if not all(s > 0 for s in latent_std):
            raise ValueError(f"latent_std must be positive, got {min(latent_std)}")
        if stereo is not None and autoencoder.audio_channels != 1:
            raise ValueError("stereo is for a mono autoencoder; this one already has 2 channels")
        if max_graphs < 1:
            raise ValueError(f"max_graphs must be at least 1, got {max_graphs}")
        self.edm, self.autoencoder, self.stereo = edm, autoencoder, stereo
        self.device = next(edm.parameters()).device
        self.mean = torch.tensor(tuple(latent_mean), dtype=torch.float32, device=self.device)
        self.scale = torch.tensor(tuple(latent_std), dtype=torch.float32, device=self.device) / edm.sigma_data
        self.capture = self.device.type == "cuda" if capture is None else capture
        if self.capture and self.device.type != "cuda":
            raise ValueError(f"capture needs a CUDA device, the modules are on {self.device}")
        self.batched, self.max_graphs = self.device.type != "cpu", max_graphs
        self._graphs: OrderedDict[object, _Captured] = OrderedDict()
        self._pool: Any = None

    def prepare(self, plan: Plan, conditioning: Conditioning) -> ScheduledDenoiser:
        """The denoiser of this plan and text, ``[B]`` of it on the engine's device."""
        return ScheduledDenoiser(
            self.edm,
            conditioning,
            sigmas=plan.sampling.levels,
            sigma_to=plan.sampling.targets,
            schedule=plan.schedule,
            guidance=plan.sampling.guidance,
            length=plan.length,
        )

    def noise(self, plan: Plan, seeds: Tensor) -> Tensor:
        """x ``[B, N, C]``, fp32, at the highest noise level; seeds int64 ``[B]`` on the engine's device."""
        shape = (plan.batch, plan.length, self.autoencoder.latent_channels)
        return plan.sampling.sigmas[0] * initial_noise(shape, seed=seeds, device=self.device)

    def step(
        self, plan: Plan, denoise: Callable[..., Tensor], x: Tensor, index: int, seeds: Tensor | None = None
    ) -> Tensor:
        """x after step ``index`` of ``plan.sampling.steps``; seeds are needed by samplers that add noise."""
        return plan.sampling.step(denoise, x, index, seed=seeds, boundary_sigma=self.edm.boundary_sigma)

    def decode(self, x: Tensor) -> Tensor:
        """Audio ``[B, channels, N hop]``, fp32, of what the DiT works on."""
        latents = torch.addcmul(self.mean, x, self.scale)
        decode: Callable[[Tensor], Tensor] = self.autoencoder.decode
        chunked = getattr(self.autoencoder, "decode_chunked", None)
        if chunked is not None and latents.shape[1] > LONG:
            decode = partial(chunked, chunk=LONG // 2)
        return decode(latents)

    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, channels, T]`` to what the DiT works on, ``[B, ceil(T / hop), C]``, fp32; undoes decode."""
        return (self.autoencoder.encode(audio) - self.mean) / self.scale

    def widen(self, audio: Tensor) -> Tensor:
        """Mono ``[B, 1, T]`` to stereo ``[B, 2, T]``."""
        if self.stereo is None:
            raise ValueError("stereo needs a mono-to-stereo module, and this model has none")
        return self.stereo(audio)

    def walk(self, plan: Plan, conditioning: Conditioning, seeds: Tensor, *, on_stage: OnStage | None = None) -> Tensor:
        """All stages in turn; ``on_stage`` is told the name of each when it is done (on CUDA: when it is queued)."""

        def done(stage: str) -> None:
            if on_stage is not None:
                on_stage(stage)

        denoise = self.prepare(plan, conditioning)
        done("prepare")
        x = self.noise(plan, seeds)
        done("noise")
        for index in range(plan.sampling.steps):
            x = self.step(plan, denoise, x, index, seeds)
            done("step")
        audio = self.decode(x)
        done("decode")
        if plan.stereo:
            audio = self.widen(audio)
            done("stereo")
        return audio

    @torch.no_grad()
    def __call__(
        self, plan: Plan, conditioning: Conditioning, seeds: Tensor, *, on_stage: OnStage | None = None
    ) -> Tensor:
        """Audio ``[B, channels, N hop]``, fp32.

        Args:
            conditioning: B samples of text, on any device.
            seeds: int64 ``[B]``, on any device.
            on_stage: see :meth:`walk`; with it nothing is captured, since a graph has no stages to watch.

        On a CPU the samples are made one after another (:attr:`batched` is False): one keeps every core busy, memory
        does not grow with the batch, and each is bitwise what it is alone.

        With capture the first call of a plan takes seconds and the result is the graph's own memory, which the next
        call of that plan overwrites: clone what is to stay.  A later call copies its inputs in and replays; it
        allocates nothing.
        """
        if conditioning.batch_size != plan.batch or seeds.shape != (plan.batch,) or seeds.dtype != torch.int64:
            raise ValueError(
                f"conditioning and seeds must be for the plan's {plan.batch} samples, seeds int64; got "
                f"{conditioning.batch_size}, and {seeds.dtype} {tuple(seeds.shape)}"
            )
        if plan.stereo and self.stereo is None:
            raise ValueError("stereo needs a mono-to-stereo module, and this model has none")
        if not self.capture or on_stage is not None:
            conditioning, seeds = conditioning.to(self.device), seeds.to(self.device)
            if self.batched:
                return self.walk(plan, conditioning, seeds, on_stage=on_stage)
            single, samples = replace(plan, batch=1), [slice(i, i + 1) for i in range(plan.batch)]
            return torch.cat([self.walk(single, conditioning[s], seeds[s], on_stage=on_stage) for s in samples])
        return self._captured(plan, conditioning, seeds).replay(conditioning, seeds)

    def forget(self) -> None:
        """Drop every graph and its memory."""
        self._graphs.clear()
        self._pool = None

    @property
    def captured(self) -> tuple[Plan, ...]:
        """The plans there are graphs for, the least recently used first."""
        return tuple(graph.plan for graph in self._graphs.values())

    def _captured(self, plan: Plan, conditioning: Conditioning, seeds: Tensor) -> _Captured:
        key = (plan, *(None if t is None else (t.shape, t.dtype) for t in _tensors(conditioning)))
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        while len(self._graphs) >= self.max_graphs:
            self._graphs.popitem(last=False)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        self._graphs[key] = captured = _Captured(self, plan, conditioning, seeds, self._pool)
        return captured


class _Captured:
    """One plan's walk as a CUDA graph: inputs are copied into fixed memory, the result stands in fixed memory."""

    def __init__(self, engine: Engine, plan: Plan, conditioning: Conditioning, seeds: Tensor, pool: Any) -> None:
        device = engine.device
        self.plan = plan
        # Its own memory, whatever device and memory the caller's tensors have.
        parts = (None if t is None else torch.empty_like(t, device=device).copy_(t) for t in _tensors(conditioning))
        self.conditioning = Conditioning(*parts)  # type: ignore[arg-type]
        self.seeds = torch.empty_like(seeds, device=device).copy_(seeds)

        def walk() -> Tensor:
            return engine.walk(plan, self.conditioning, self.seeds)

        with torch.cuda.device(device):
            # Compilation, library handles and Fourier plans are made before the capture and not in it.
            side, current = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(2):
                    walk()
            current.wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=pool):
                self.audio = walk()

    def replay(self, conditioning: Conditioning, seeds: Tensor) -> Tensor:
        for own, given in zip(_tensors(self.conditioning), _tensors(conditioning), strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self.seeds.copy_(seeds)
        self.graph.replay()
        return self.audio


def _tensors(conditioning: Conditioning) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return conditioning.tokens, conditioning.pooled, conditioning.lengths
