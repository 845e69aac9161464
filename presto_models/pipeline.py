"""Prompt to waveform: a checkpoint's components around the engine."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from presto_kernels import LayerSchedule
from presto_models.autoencoders import Autoencoder, load_autoencoder
from presto_models.checkpoint import CheckpointError, find_folder
from presto_models.components import DIFFUSION_FILE, STEREO_FILE, find_component
from presto_models.diffusion.sampling import Sampling
from presto_models.diffusion_config import DiffusionConfig, load_diffusion
from presto_models.dit import DiT
from presto_models.dit_config import DiTConfig
from presto_models.engine import Engine, Plan
from presto_models.random_weights import randomize_weights
from presto_models.request import check_prompts, repeated, seeds_of_each, tags_of_each
from presto_models.saving import save_pipeline
from presto_models.stereo import MonoToStereo, StereoConfig, load_stereo
from presto_models.text import Conditioner
from presto_models.text.tags import Tags
from presto_models.watching import Stopwatch, Timings, all_of, progress_bar

Scheduled = LayerSchedule | None | Literal["own"]


@dataclass(frozen=True, eq=False)
class Generated:
    """What a generation gives.

    ``waveform``: fp32 ``[num_samples_total, channels, samples]`` on the pipeline's device, prompts in their order and
    the samples of one prompt side by side.  ``sample_rate``: Hz.  ``seeds``: of each sample; the sample alone is made
    again with it.  ``model_calls``: of the network, a guided call being one.  ``timings``: where they were asked for.
    """

    waveform: Tensor
    sample_rate: int
    seeds: tuple[int, ...]
    model_calls: int
    timings: Timings | None = None


class PrestoPipeline:
    """Text to music.

    Args:
        config: of the diffusion model.
        dit: the transformer.
        autoencoder: decodes its latents.
        conditioner: embeds prompts and tags; without one only :attr:`engine` can be used.
        stereo: the module that makes two channels of one, or None.

    Attributes:
        engine: the stages by themselves, for conditioning that is at hand.

    All modules are on one device, in ``eval()``.
    """

    def __init__(
        self,
        config: DiffusionConfig,
        dit: DiT,
        autoencoder: Autoencoder,
        *,
        conditioner: Conditioner | None = None,
        stereo: MonoToStereo | None = None,
    ) -> None:
        if conditioner is not None:
            widths = conditioner.text_dim, config.dit.pooled_dim and conditioner.pooled_dim
            if widths != (config.dit.text_dim, config.dit.pooled_dim):
                raise ValueError(
                    f"conditioner must give text_dim {config.dit.text_dim} and pooled_dim {config.dit.pooled_dim}, "
                    f"got {conditioner.text_dim} and {conditioner.pooled_dim}"
                )
        if stereo is not None and stereo.config.sample_rate != autoencoder.sample_rate:
            raise ValueError(
                f"stereo is for {stereo.config.sample_rate} Hz, the autoencoder for {autoencoder.sample_rate} Hz"
            )
        self.config, self.dit, self.autoencoder = config, dit, autoencoder
        self.conditioner, self.stereo = conditioner, stereo
        self._warned = False
        self.engine = Engine(
            config.denoiser(dit),
            autoencoder,
            latent_mean=config.latent_mean,
            latent_std=config.latent_std,
            stereo=stereo,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        audio_dtype: torch.dtype = torch.float32,
    ) -> PrestoPipeline:
        """A checkpoint that ships with the package, in a local folder, or on the Hugging Face hub (``owner/name``).

        Args:
            device: None: CUDA where there is one, else the CPU.
            dtype: the DiT's; None: bf16 on CUDA, fp32 on a CPU (where bf16 is faster only with AVX512-BF16 or AMX).
            audio_dtype: of the autoencoder and the stereo module.

        Raises:
            FileNotFoundError: no such checkpoint, or a component is missing, also in the base it is shared with.
            CheckpointError: a file is cut short or foreign, or components do not fit each other.
        """
        folder, place = find_folder(name), _device(device)
        config, dit, conditioner = load_diffusion(folder / DIFFUSION_FILE, device=place, dtype=dtype or _dtype(place))
        autoencoder = load_autoencoder(folder, device=place, dtype=audio_dtype)
        file = find_component(folder, STEREO_FILE)
        stereo = None if file is None else load_stereo(file).to(device=place, dtype=audio_dtype)
        try:
            return cls(config, dit, autoencoder, conditioner=conditioner, stereo=stereo)
        except ValueError as error:
            raise CheckpointError(f"the components in {folder} do not fit each other: {error}") from error

    def save_pretrained(self, folder: str | os.PathLike[str], *, base: str | os.PathLike[str] | None = None) -> Path:
        """Write every component into ``folder``, in the dtypes they have; each file is whole or what it was before.

        Args:
            base: a checkpoint, as :meth:`from_pretrained` takes it.  The autoencoder and the stereo module are then
                written only where they differ from its own, and are read from there; a folder is remembered by the way
                to it, an absolute one as such.  None: the result stands alone, whatever this pipeline was loaded from.

        The text encoder is named and not stored.

        Raises:
            FileNotFoundError, ValueError: no such base, or one that cannot be shared with.  OSError: a file cannot be
            written.
        """
        return save_pipeline(self, folder, base=base)

    @classmethod
    def random(
        cls,
        name: str = "presto-32s",
        *,
        seed: int = 0,
        text: str | Mapping[str, Any] | None = "minilm",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> PrestoPipeline:
        """A model of a named size with random weights: for timing, and for trying what a size costs.  It plays noise.

        Args:
            name: of a :class:`presto_models.DiTConfig`, an Oobleck and a :class:`StereoConfig`; ``"presto-32s"`` is the
                paper's scale: mono 44.1 kHz, 64 latent channels, hop 1024, four ping-pong steps.
            text: spec of a text encoder with weights of its own, whose width the DiT takes; None: no prompts, the
                engine alone.
            device, dtype: as for :meth:`from_pretrained`; dtype is that of all modules.
        """
        from presto_models.autoencoders import Oobleck, OobleckConfig

        place = _device(device)
        dtype = dtype or _dtype(place)
        oobleck = replace(OobleckConfig.named(name), audio_channels=1)
        dit_config, conditioner = replace(DiTConfig.named(name), in_channels=oobleck.latent_channels), None
        if text is not None:
            conditioner = Conditioner.from_config({"text": text, "tags": None}, device=place)
            dit_config = replace(dit_config, text_dim=conditioner.text_dim, pooled_dim=conditioner.pooled_dim)
        with torch.device("meta"):
            dit = DiT(dit_config)
        dit = dit.to(dtype).to_empty(device=place)
        randomize_weights(dit, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            autoencoder, stereo = Oobleck(oobleck), MonoToStereo(StereoConfig.named(name))
        config = DiffusionConfig(
            dit=dit_config,
            latent_mean=(0.0,) * dit_config.in_channels,
            latent_std=(1.0,) * dit_config.in_channels,
            text=None if conditioner is None else conditioner.config["text"],
            sampling=Sampling("pingpong", steps=4, spacing="interval"),
        )
        for module in (dit, autoencoder, stereo):
            module.to(device=place, dtype=dtype).eval().requires_grad_(False)
        return cls(config, dit, autoencoder, conditioner=conditioner, stereo=stereo)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.engine.device

    @property
    def sample_rate(self) -> int:
        """Hz of what it makes."""
        return self.autoencoder.sample_rate

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        seconds: float = 32.0,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | Sequence[int] | None = None,
        stereo: bool = False,
        num_samples: int = 1,
        tags: Tags | Sequence[Tags | None] | None = None,
        sampler: str | None = None,
        rho: float | None = None,
        schedule: Scheduled = "own",
        progress: bool = False,
        timings: bool = False,
    ) -> Generated:
        """Music for a prompt, or for each of several.

        Args:
            prompt: text; ``""`` is no text.
            seconds: cropped to ``round(seconds * sample_rate)`` samples, exactly.
            steps, guidance, sampler, rho: None: the checkpoint's own.  ``guidance=1`` is none.  ``rho`` bends the noise
                levels: 7 is Karras', larger ones are nearer to even in ln sigma.
            schedule: how many blocks run at each noise level; None: all; ``"own"``: the checkpoint's.
            seed: sample i, counted over all prompts, has seed + i; or one for each sample; None: drawn.  See
                ``Generated.seeds``.
            stereo: two channels, through the mono-to-stereo module (an autoencoder of two channels needs none, and
                gives two whatever is asked).
            num_samples: variations of each prompt; all samples are one batch on CUDA, and made in turn on a CPU.
            tags: field to value or values, for all prompts; or one such mapping for each.
            progress: a bar over the steps, on a terminal, where the steps are not one CUDA graph.
            timings: measure each stage; on CUDA the stages then run one by one and not as a graph.

        Raises:
            TypeError, ValueError: an argument does not fit; said before anything is computed.

        **Seeds.**  A sample's noise is a function of its own seed alone: bitwise the same alone or in a batch of any
        size, for any prompt, and on every device within the rounding of a logarithm and a sine.  On a CPU so is the
        music, on one machine with one number of threads.  On CUDA it is bitwise the same for the same call; in another
        batch or on another device its latents agree within the rounding of matrix products.
        """
        if self.conditioner is None:
            raise ValueError("prompt cannot be embedded: this pipeline was made without a text encoder")
        prompts = check_prompts(prompt)
        each_tags = tags_of_each(tags, len(prompts))
        if isinstance(num_samples, bool) or not isinstance(num_samples, int):
            raise TypeError(f"num_samples must be an int, got {type(num_samples).__name__}")
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        batch = len(prompts) * num_samples
        plan = self.plan(
            seconds,
            batch=batch,
            steps=steps,
            guidance=guidance,
            stereo=stereo,
            sampler=sampler,
            rho=rho,
            schedule=schedule,
        )
        seeds = seeds_of_each(seed, batch)

        watch = Stopwatch(self.device) if timings else None
        text = self.conditioner(prompts, each_tags)
        conditioning = repeated(text, num_samples, pooled=self.config.dit.pooled_dim > 0)
        if watch is not None:
            watch("prompt")
        rounds = 1 if self.engine.batched else batch
        with progress_bar(plan, rounds, progress and not self.engine.capture) as bar:
            on_stage = None if bar is None and watch is None else all_of(bar, watch)
            audio = self.engine(plan, conditioning, torch.tensor(seeds, dtype=torch.int64), on_stage=on_stage)
        # Its own memory: the engine's is overwritten by the next call.
        waveform = audio[..., : self.samples(seconds)].clone(memory_format=torch.contiguous_format)
        return Generated(
            waveform,
            self.sample_rate,
            tuple(seeds),
            plan.sampling.model_calls,
            None if watch is None else watch.timings(),
        )

    def plan(
        self,
        seconds: float = 32.0,
        *,
        batch: int = 1,
        steps: int | None = None,
        guidance: float | None = None,
        stereo: bool = False,
        sampler: str | None = None,
        rho: float | None = None,
        schedule: Scheduled = "own",
    ) -> Plan:
        """What the engine is to do; arguments as for a call, ``batch`` samples in all."""
        samples = self.samples(seconds)
        sampling = self.config.sampling.changed(sampler=sampler, steps=steps, guidance=guidance, rho=rho)
        kept = self.config.schedule if schedule == "own" else schedule
        if not (kept is None or isinstance(kept, LayerSchedule)):
            raise TypeError(f"schedule must be a LayerSchedule, None or 'own', got {kept!r}")
        self.config.check(sampling, kept)
        if guidance is not None:
            self._warn_of_guidance(guidance)
        mono = self.autoencoder.audio_channels == 1
        if stereo and mono and self.stereo is None:
            raise ValueError("stereo=True needs a mono-to-stereo module, and this checkpoint has none")
        return Plan(batch, self.autoencoder.latents_for(samples), sampling, kept, stereo and mono)

    def _warn_of_guidance(self, guidance: float) -> None:
        """Said once: guidance on top of what a student was distilled with."""
        baked = None if self.config.dit.takes_guidance else self.config.guidance_baked
        if baked is None or guidance == 1 or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"this checkpoint was distilled from a teacher guided with {baked:g} and needs no guidance; guidance="
            f"{guidance:g} runs classifier-free guidance on top of that, at twice the cost",
            UserWarning,
            stacklevel=3,
        )

    def samples(self, seconds: float) -> int:
        """``round(seconds * sample_rate)``; ValueError where ``seconds`` is out of range."""
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise TypeError(f"seconds must be a number, got {type(seconds).__name__}")
        longest = self.config.max_seconds
        if not (math.isfinite(seconds) and round(seconds * self.sample_rate) >= 1):
            raise ValueError(f"seconds must be positive and finite, at least one sample long, got {seconds}")
        if longest is not None and seconds > longest:
            raise ValueError(f"seconds must be at most {longest:g}, which this checkpoint was made for, got {seconds}")
        return round(seconds * self.sample_rate)


def _device(device: torch.device | str | None) -> torch.device:
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # torch's two ways to say that a device is not there
        raise ValueError(f"device {str(device)!r} cannot be used here: {error}") from error
    return place


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32
