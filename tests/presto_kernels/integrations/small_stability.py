"""Small real models of stable-audio-tools and Stable Audio 3, every layer of which matters."""

import copy

import peers
import torch

PACKAGES = ("stable_audio_tools", "stable_audio_3")


def perturbed(module):
    """Nothing is zero, one or alike that starts so."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return module.eval()


def tools_dit(**changes):
    """Stable Audio Open in small: prepended global token, keys of fewer heads, LayerNorm."""
    package = peers.stable_audio_tools()
    torch.manual_seed(0)
    config = {
        "io_channels": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "cond_token_dim": 32, "global_cond_dim": 24,
        "project_cond_tokens": False,
    }  # fmt: skip
    return perturbed(package.dit.DiffusionTransformer(**config | changes))


def sa3_dit(**changes):
    """Stable Audio 3 in small: AdaLN, RMSNorm, memory tokens, local conditioning, text keys of as many heads."""
    package = peers.stable_audio_3()
    torch.manual_seed(0)
    config = {
        "io_channels": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "cond_token_dim": 24, "global_cond_dim": 24,
        "global_cond_type": "adaLN", "timestep_features_type": "expo", "timestep_features_dim": 32,
        "diffusion_objective": "rectified_flow", "num_memory_tokens": 3, "norm_type": "rms_norm",
        "local_add_cond_dim": 9, "attn_kwargs": {"qk_norm": "rms"},
    }  # fmt: skip
    return perturbed(package.dit.DiffusionTransformer(**config | changes))


def same_decoder(**changes):
    """SAME in small: DynamicTanh everywhere, differential attention, chunks that shift half-way."""
    package = peers.stable_audio_3()
    torch.manual_seed(0)
    config = {
        "out_channels": 6, "channels": 64, "latent_dim": 5, "c_mults": [1], "strides": [4], "transformer_depths": [3],
        "chunk_size": 8, "chunk_midpoint_shift": True, "dim_heads": 32, "differential": True, "conv_mapping": True,
    }  # fmt: skip
    return perturbed(package.autoencoders.SAMEDecoder(**config | changes))


def dit_inputs(model, *, batch=2, length=11, text=5, seed=0):
    """Arguments of a call, by name."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    given = {
        "x": draw(batch, model.postprocess_conv.out_channels, length),
        "t": torch.rand(batch, generator=generator) * 0.8 + 0.1,
        "cross_attn_cond": draw(batch, text, model.cond_token_dim),
        "global_embed": draw(batch, 24),
    }
    if hasattr(model.transformer.layers[0], "to_local_embed"):
        given["local_add_cond"] = draw(batch, 9, length)
    return given


def cast(given, dtype):
    """Floating tensors in another dtype; t too, as the models round it themselves."""
    return {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in given.items()
    }


def three(model, dtype):
    """The model in a dtype, to be accelerated; untouched; and in float64 with the same, rounded, weights."""
    plain = model.to(dtype)
    return copy.deepcopy(plain), plain, copy.deepcopy(plain).double()
