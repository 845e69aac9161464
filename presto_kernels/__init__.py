"""Fused kernels for diffusion transformers: ``import presto_kernels`` and call the ops; the fastest one there runs.

Works with PyTorch alone; the compiled library (CPU, CUDA) and Triton are used when they are there.
``python -m presto_kernels.env_report`` says what is.
"""

from presto_kernels import layers
from presto_kernels.backends import Choice, available_backends, explain, use_backend
from presto_kernels.integrations.cuda_graph import capture
from presto_kernels.integrations.prompt import prompt_cache
from presto_kernels.integrations.report import accelerate_report
from presto_kernels.integrations.swapping import accelerate, restore
from presto_kernels.layer_schedule import LayerSchedule
from presto_kernels.ops.activation.api import geglu, singlu, snake, swiglu
from presto_kernels.ops.attention.api import attention, qk_norm_rope_attention
from presto_kernels.ops.modulation.api import adaln_modulate, gated_residual, gated_residual_adaln
from presto_kernels.ops.rotary.api import qk_norm_rope
from presto_kernels.ops.sampler.api import edm_denoise, renoise

__all__ = [
    "Choice",
    "LayerSchedule",
    "accelerate",
    "accelerate_report",
    "adaln_modulate",
    "attention",
    "available_backends",
    "capture",
    "edm_denoise",
    "explain",
    "gated_residual",
    "gated_residual_adaln",
    "geglu",
    "layers",
    "qk_norm_rope",
    "prompt_cache",
    "qk_norm_rope_attention",
    "renoise",
    "restore",
    "singlu",
    "snake",
    "swiglu",
    "use_backend",
]
