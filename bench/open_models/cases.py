"""Which models `python -m bench open` times, and what they are called with: the classes and sizes of the libraries
themselves, random weights.

Sizes: Stable Audio 3 small and medium and SAME-S as in optimized/mlx/models/defs of its repository, Stable Audio Open
as the defaults of diffusers' classes and stable_audio_2_0.json of stable-audio-tools have them.  30 s are 324 latents
at hop 4096 and 646 at hop 2048; diffusers' own pipeline always runs 1024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.open_models import peers

RATE = 44100


@dataclass(frozen=True)
class Case:
    """A model and what it is called with.

    make: a new module in fp32, its initialisation drawn from torch's generator.
    inputs: seconds -> the arguments of one call, floating ones in fp32.
    seconds: of audio that a call is for.
    target: how many times faster than eager it is to be with the prompt's constants kept (issue 8).
    prompted: whether a prompt decides anything in it.
    fixed: arguments that stay as they are, whatever the dtype.
    """

    name: str
    title: str
    make: Callable[[], nn.Module]
    inputs: Callable[[float], dict[str, Any]]
    seconds: float
    target: float
    prompted: bool = True
    fixed: Mapping[str, Any] | None = None

    def build(self, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The module with the weights it always has here; layers that start at zero do something."""
        torch.manual_seed(0)
        module = self.make().eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        for name, parameter in module.named_parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02, generator=generator)
            elif name.endswith(("alpha", "beta")) and parameter.numel() > 1:  # Snakes that differ
                parameter.normal_(0, 0.3, generator=generator)
        return module.to(device=device, dtype=dtype)

    def arguments(self, seconds: float, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        torch.manual_seed(1)
        given = self.inputs(seconds)

        def cast(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device=device, dtype=dtype if value.is_floating_point() else value.dtype)
            # diffusers' rotary tables stay fp32, as its pipeline makes them
            return tuple(t.to(device) for t in value) if isinstance(value, tuple) else value

        cast_given = {name: cast(value) for name, value in given.items()}
        return cast_given | dict(self.fixed or {})


def latents(seconds: float, hop: int) -> int:
    """Rounded up, and to an even number as Stable Audio 3's own optimized builds do."""
    return 2 * math.ceil(math.ceil(seconds * RATE / hop) / 2)


def _sa3_dit(width: int, depth: int, heads: int, differential: bool) -> nn.Module:
    return peers.stable_audio_3().dit.DiffusionTransformer(
        io_channels=256, embed_dim=width, depth=depth, num_heads=heads, cond_token_dim=768, global_cond_dim=768,
        project_cond_tokens=True, global_cond_type="adaLN", timestep_features_type="expo", timestep_features_dim=256,
        diffusion_objective="rectified_flow", num_memory_tokens=64, norm_type="rms_norm", local_add_cond_dim=257,
        attn_kwargs={"qk_norm": "rms", "differential": differential},
    )  # fmt: skip


def _sa3_inputs(seconds: float) -> dict[str, Any]:
    count = latents(seconds, 4096)
    return {
        "x": torch.randn(1, 256, count),
        "t": torch.full((1,), 0.5),
        "cross_attn_cond": torch.randn(1, 257, 768),
        "global_embed": torch.randn(1, 768),
        "local_add_cond": torch.zeros(1, 257, count),
    }


def _same_s() -> nn.Module:
    return peers.stable_audio_3().autoencoders.SAMEDecoder(
        out_channels=512, channels=128, latent_dim=256, c_mults=[6], strides=[16], transformer_depths=[6],
        chunk_size=32, chunk_midpoint_shift=True, dim_heads=64, differential=True, conv_mapping=True,
    )  # fmt: skip


def _sao_tools() -> nn.Module:
    return peers.stable_audio_tools().dit.DiffusionTransformer(
        io_channels=64, embed_dim=1536, depth=24, num_heads=24, cond_token_dim=768, global_cond_dim=1536,
        project_cond_tokens=False,
    )  # fmt: skip


def _sao_tools_inputs(seconds: float) -> dict[str, Any]:
    return {
        "x": torch.randn(1, 64, latents(seconds, 2048)),
        "t": torch.full((1,), 0.5),
        "cross_attn_cond": torch.randn(1, 130, 768),
        "global_embed": torch.randn(1, 1536),
    }


def _sao_diffusers() -> nn.Module:
    from diffusers import StableAudioDiTModel

    return StableAudioDiTModel()


def _sao_diffusers_inputs(seconds: float) -> dict[str, Any]:
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    count = latents(seconds, 2048)
    return {
        "hidden_states": torch.randn(1, 64, count),
        "timestep": torch.full((1,), 0.5),
        "encoder_hidden_states": torch.randn(1, 130, 768),
        "global_hidden_states": torch.randn(1, 1, 1536),
        "rotary_embedding": get_1d_rotary_pos_embed(32, count + 1, use_real=True, repeat_interleave_real=False),
    }


def _oobleck_diffusers() -> nn.Module:
    from diffusers import AutoencoderOobleck

    return AutoencoderOobleck().decoder


def _oobleck_tools() -> nn.Module:
    return peers.stable_audio_tools().autoencoders.OobleckDecoder(
        out_channels=2, channels=128, c_mults=[1, 2, 4, 8, 16], strides=[2, 4, 4, 8, 8], latent_dim=64,
        use_snake=True, final_tanh=False,
    )  # fmt: skip


CASES = (
    Case("sa3-small", "Stable Audio 3 small, DiT", lambda: _sa3_dit(1024, 20, 16, False), _sa3_inputs, 30, 1.35,
         fixed={"use_checkpointing": False}),
    Case("sa3-medium", "Stable Audio 3 medium, DiT", lambda: _sa3_dit(1536, 24, 24, True), _sa3_inputs, 30, 1.35,
         fixed={"use_checkpointing": False}),
    Case("sao-tools", "Stable Audio Open, DiT of stable-audio-tools", _sao_tools, _sao_tools_inputs, 30, 1.15,
         fixed={"use_checkpointing": False}),
    Case("sao-diffusers", "Stable Audio Open, DiT of diffusers", _sao_diffusers, _sao_diffusers_inputs, 30, 1.2),
    Case("same-s", "SAME-S, decoder of Stable Audio 3", _same_s, lambda s: {"x": torch.randn(1, 256, latents(s, 4096))},
         30, 1.8, prompted=False),
    Case("oobleck-diffusers", "Oobleck, decoder of diffusers", _oobleck_diffusers,
         lambda s: {"hidden_state": torch.randn(1, 64, latents(s, 2048))}, 10, 2.5, prompted=False),
    Case("oobleck-tools", "Oobleck, decoder of stable-audio-tools", _oobleck_tools,
         lambda s: {"x": torch.randn(1, 64, latents(s, 2048))}, 10, 2.5, prompted=False),
)  # fmt: skip
