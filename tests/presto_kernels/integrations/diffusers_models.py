"""Models of diffusers, small, with seeded weights, and inputs for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AceStepTransformer1DModel,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableAudio3DiTModel,
    StableAudioDiTModel,
)
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from presto_kernels.integrations.swapping import Accelerated

Inputs = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """build: the model.  inputs: (batch, length) -> its arguments, fp32."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]

    def __str__(self) -> str:
        return self.name

    def seeded(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(0)
        model = self.build().eval()
        with torch.no_grad():
            for p in model.parameters():  # what begins as zeros or ones would hide what it is for
                if p.dim() == 1 or not p.any():
                    p.add_(torch.randn_like(p), alpha=0.1)
        return model.to(dtype)

    def seeded_inputs(self, dtype: torch.dtype = torch.float32, batch: int = 2, length: int = 9) -> Inputs:
        torch.manual_seed(1)
        return cast(self.inputs(batch, length), dtype)


def cast(inputs: Any, dtype: torch.dtype) -> Any:
    """Copies in another dtype; rotary tables stay as they are."""
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def output(model: nn.Module, inputs: Inputs) -> Tensor:
    made = model(**inputs)
    return made if isinstance(made, Tensor) else made.sample


def passed_on(model: nn.Module) -> dict[tuple[str, str], int]:
    """(class, why) -> calls of an accelerated model that ran as the original."""
    return dict(next(m for m in model.modules() if isinstance(m, Accelerated))._presto.passed_on)


class TrueDouble(TorchFunctionMode):
    """float64 stays float64 where a model would compute an island in fp32: the oracle has no error of its own."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.float and args[0].dtype == torch.float64:
            return args[0]
        if function is Tensor.to and args[0].dtype == torch.float64 and torch.float32 in args[1:]:
            return args[0]
        return function(*args, **(kwargs or {}))


def _stable_audio(batch: int, length: int) -> Inputs:
    return {
        "hidden_states": torch.randn(batch, 6, length),
        "timestep": torch.rand(batch),
        "encoder_hidden_states": torch.randn(batch, 5, 20),
        "global_hidden_states": torch.randn(batch, 1, 24),
        "rotary_embedding": get_1d_rotary_pos_embed(8, length + 1, use_real=True, repeat_interleave_real=False),
    }


def _stable_audio_3(batch: int, length: int) -> Inputs:
    return {
        "hidden_states": torch.randn(batch, 6, length),
        "timestep": torch.rand(batch),
        "encoder_hidden_states": torch.randn(batch, 5, 20),
        "global_hidden_states": torch.randn(batch, 24),
        "encoder_attention_mask": torch.arange(5) < torch.tensor([[4], [5]])[:batch],
        "local_add_cond": torch.randn(batch, 7, length),
    }


def _ace_step(batch: int, length: int) -> Inputs:
    return {
        "hidden_states": torch.randn(batch, length, 4),
        "timestep": torch.rand(batch),
        "timestep_r": torch.rand(batch),
        "encoder_hidden_states": torch.randn(batch, 5, 24),
        "context_latents": torch.randn(batch, length, 8),
    }


def _dit(batch: int, length: int) -> Inputs:
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8),
        "timestep": torch.arange(batch) + 1,
        "class_labels": torch.arange(batch) + 3,
    }


def _flux(batch: int, length: int) -> Inputs:
    return {
        "hidden_states": torch.randn(batch, length, 8),
        "encoder_hidden_states": torch.randn(batch, 5, 20),
        "pooled_projections": torch.randn(batch, 12),
        "timestep": torch.rand(batch) / 1000,
        "img_ids": torch.randint(0, 9, (length, 3)),
        "txt_ids": torch.zeros(5, 3, dtype=torch.long),
    }


def _sd3(batch: int, length: int) -> Inputs:
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8),
        "encoder_hidden_states": torch.randn(batch, length, 20),
        "pooled_projections": torch.randn(batch, 12),
        "timestep": torch.arange(batch) + 1,
    }


def _basic(batch: int, length: int) -> Inputs:
    return {
        "hidden_states": torch.randn(batch, length, 32),
        "encoder_hidden_states": torch.randn(batch, 5, 20),
    }


def _stable_audio_3_model(differential: bool) -> nn.Module:
    return StableAudio3DiTModel(
        io_channels=6, embed_dim=32, depth=2, num_heads=2, cond_token_dim=20, global_cond_dim=24, local_add_cond_dim=7,
        timestep_features_dim=16, num_memory_tokens=3, use_differential_attention=differential,
    )  # fmt: skip


def _sd3_model(**options: Any) -> nn.Module:
    return SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=20, caption_projection_dim=32, pooled_projection_dim=12, pos_embed_max_size=8, **options,
    )  # fmt: skip


STABLE_AUDIO = Model(
    "StableAudioDiTModel",
    lambda: StableAudioDiTModel(
        in_channels=6, num_layers=2, attention_head_dim=16, num_attention_heads=4, num_key_value_attention_heads=2,
        out_channels=6, cross_attention_dim=32, time_proj_dim=16, global_states_input_dim=24,
        cross_attention_input_dim=20,
    ),
    _stable_audio,
)  # fmt: skip
STABLE_AUDIO_3 = Model("StableAudio3DiTModel", lambda: _stable_audio_3_model(True), _stable_audio_3)
ACE_STEP = Model(
    "AceStepTransformer1DModel",
    lambda: AceStepTransformer1DModel(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, in_channels=12, audio_acoustic_hidden_dim=4, sliding_window=1, encoder_hidden_size=24,
    ),
    _ace_step,
)  # fmt: skip
DIT = Model(
    "DiTTransformer2DModel",
    lambda: DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    ),
    _dit,
)
FLUX = Model(
    "FluxTransformer2DModel",
    lambda: FluxTransformer2DModel(
        in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=20, pooled_projection_dim=12, axes_dims_rope=(4, 4, 8),
    ),
    _flux,
)  # fmt: skip
SD3 = Model("SD3Transformer2DModel", lambda: _sd3_model(dual_attention_layers=(0,), qk_norm="rms_norm"), _sd3)
SD3_0 = Model("SD3Transformer2DModel, 3.0", lambda: _sd3_model(), _sd3)
BASIC = Model(
    "BasicTransformerBlock",
    lambda: BasicTransformerBlock(32, 2, 16, cross_attention_dim=20),
    _basic,
)
MODELS = [
    STABLE_AUDIO,
    STABLE_AUDIO_3,
    Model("StableAudio3DiTModel, not differential", lambda: _stable_audio_3_model(False), _stable_audio_3),
    ACE_STEP,
    DIT,
    FLUX,
    SD3,
    SD3_0,
    BASIC,
]
