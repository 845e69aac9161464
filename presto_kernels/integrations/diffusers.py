"""diffusers (0.35 and later): its music models, and the transformers with AdaLN-Zero.

Stable Audio Open, Stable Audio 3, ACE-Step 1.5; DiT, Flux, Stable Diffusion 3 and 3.5; and wherever else diffusers uses
the same attention, norms and gated units.
"""

from __future__ import annotations

from presto_kernels.integrations.hf import ace_step, attention, blocks, flux, layers, norms, roots, stable_audio_3
from presto_kernels.integrations.stability.roots import FusedConstant, FusedModulation
from presto_kernels.integrations.swapping import Swap

_MODELS = "diffusers.models."
_TRANSFORMERS = _MODELS + "transformers."
_STABLE_AUDIO = _TRANSFORMERS + "stable_audio_transformer.StableAudioDiT"
_STABLE_AUDIO_3 = _TRANSFORMERS + "transformer_stable_audio3.StableAudio3"
_ACE_STEP = _TRANSFORMERS + "ace_step_transformer.AceStep"
_FLUX = _TRANSFORMERS + "transformer_flux.Flux"

_PROMPT = "what a prompt decides, once in prompt_cache"
_TIMED = "modulation of a known timestep, once in prompt_cache"
_ROOT = {"hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"}
_SEAMS = "norms, modulations, gates, additions"
_HEADS = "QK norms, rotary, attention"
_MODULATED = "norm and modulation"
_ATTENTION = {"hidden_states", "encoder_hidden_states", "attention_mask"}
_FLUX_BLOCK = {
    "hidden_states", "encoder_hidden_states", "temb", "image_rotary_emb", "joint_attention_kwargs",
}  # fmt: skip

SWAPS: list[Swap] = [
    Swap(
        _STABLE_AUDIO + "Model",
        roots.FusedRoot,
        _PROMPT,
        None,
        children={
            "cross_attention_proj": FusedConstant, "global_proj": FusedConstant, "timestep_proj": FusedModulation,
        },
    ),
    Swap(
        _STABLE_AUDIO + "Block",
        blocks.FusedStableAudioBlock,
        "norms, additions",
        {
            "hidden_states", "attention_mask", "encoder_hidden_states", "encoder_attention_mask", "rotary_embedding",
        },
        blocks.stable_audio_fits,
    ),
    Swap(
        _MODELS + "attention_processor.Attention",
        attention.FusedAttention,
        _HEADS,
        {*_ATTENTION, "cross_attention_kwargs"},
        attention.fits,
    ),
    Swap(
        _MODELS + "attention.BasicTransformerBlock",
        blocks.FusedBasicBlock,
        _SEAMS,
        {
            "hidden_states", "attention_mask", "encoder_hidden_states", "encoder_attention_mask", "timestep",
            "cross_attention_kwargs", "class_labels", "added_cond_kwargs",
        },
        blocks.basic_fits,
    ),
    Swap(
        _MODELS + "attention.JointTransformerBlock",
        blocks.FusedJointBlock,
        _SEAMS,
        _FLUX_BLOCK - {"image_rotary_emb"},
        blocks.joint_fits,
    ),
    Swap(
        _FLUX + "Transformer2DModel",
        roots.FusedModulatedRoot,
        _TIMED,
        {
            *_ROOT, "img_ids", "txt_ids", "guidance", "joint_attention_kwargs", "controlnet_block_samples",
            "controlnet_single_block_samples", "return_dict", "controlnet_blocks_repeat",
        },
    ),
    Swap(
        _TRANSFORMERS + "transformer_sd3.SD3Transformer2DModel",
        roots.FusedModulatedRoot,
        _TIMED,
        {*_ROOT, "block_controlnet_hidden_states", "joint_attention_kwargs", "return_dict", "skip_layers"},
    ),
    Swap(
        _TRANSFORMERS + "dit_transformer_2d.DiTTransformer2DModel",
        roots.FusedModulatedRoot,
        _TIMED,
        {"hidden_states", "timestep", "class_labels", "cross_attention_kwargs", "return_dict"},
    ),
    Swap(_FLUX + "TransformerBlock", flux.FusedFluxBlock, _SEAMS, _FLUX_BLOCK, flux.block_fits),
    Swap(_FLUX + "SingleTransformerBlock", flux.FusedFluxSingleBlock, "gate, addition", _FLUX_BLOCK),
    Swap(
        _FLUX + "Attention",
        flux.FusedFluxAttention,
        _HEADS,
        {*_ATTENTION, "image_rotary_emb", "kwargs"},
        flux.attention_fits,
    ),
    Swap(
        _ACE_STEP + "Transformer1DModel",
        roots.FusedRoot,
        _PROMPT,
        None,
        children={
            "condition_embedder": FusedConstant, "time_embed": FusedModulation, "time_embed_r": FusedModulation,
        },
    ),
    Swap(
        _ACE_STEP + "TransformerBlock",
        ace_step.FusedAceStepBlock,
        _SEAMS,
        {
            "hidden_states", "position_embeddings", "temb", "attention_mask", "encoder_hidden_states",
            "encoder_attention_mask",
        },
        ace_step.block_fits,
    ),
    Swap(
        _ACE_STEP + "Attention",
        ace_step.FusedAceStepAttention,
        _HEADS,
        {*_ATTENTION, "image_rotary_emb", "kwargs"},
        ace_step.attention_fits,
    ),
    Swap(
        _STABLE_AUDIO_3 + "DiTModel",
        roots.FusedRoot,
        _PROMPT,
        None,
        children={
            "to_cond_embed": FusedConstant, "to_global_embed": FusedConstant, "to_timestep_embed": FusedModulation,
            "global_cond_embedder": FusedModulation,
        },
    ),
    Swap(
        _STABLE_AUDIO_3 + "DiTBlock",
        stable_audio_3.FusedStableAudio3Block,
        _SEAMS,
        {
            "hidden_states", "context", "global_modulation", "rope", "context_mask", "local_seq", "num_memory_tokens",
        },
        stable_audio_3.block_fits,
    ),
    Swap(
        _STABLE_AUDIO_3 + "SelfAttention",
        stable_audio_3.FusedStableAudio3SelfAttention,
        _HEADS,
        {"hidden_states", "rope"},
        stable_audio_3.attention_fits,
    ),
    Swap(
        _STABLE_AUDIO_3 + "CrossAttention",
        stable_audio_3.FusedStableAudio3CrossAttention,
        "QK norms, attention",
        {"hidden_states", "context", "context_mask"},
        stable_audio_3.attention_fits,
    ),
    Swap(_STABLE_AUDIO_3 + "FeedForward", layers.FusedStableAudio3FeedForward, "gated unit", {"hidden_states"}),
    Swap(
        _STABLE_AUDIO_3 + "RotaryEmbedding",
        stable_audio_3.FusedStableAudio3Rotary,
        "angles once a length",
        {"seq_len", "device"},
    ),
    *(
        Swap(_MODELS + "normalization." + name, fused, _MODULATED, parameters, norms.fits)
        for name, fused, parameters in (
            (
                "AdaLayerNormZero",
                norms.FusedAdaLayerNormZero,
                {"x", "timestep", "class_labels", "hidden_dtype", "emb"},
            ),
            ("SD35AdaLayerNormZeroX", norms.FusedAdaLayerNormZeroX, {"hidden_states", "emb"}),
            ("AdaLayerNormZeroSingle", norms.FusedAdaLayerNormZeroSingle, {"x", "emb"}),
            ("AdaLayerNormContinuous", norms.FusedAdaLayerNormContinuous, {"x", "conditioning_embedding"}),
        )
    ),
    Swap(_MODELS + "normalization.RMSNorm", norms.FusedRMSNorm, "one pass", {"hidden_states"}),
    Swap(_MODELS + "activations.SwiGLU", layers.FusedSwiGLU, "gated unit", {"hidden_states"}, layers.swiglu_fits),
    Swap(_MODELS + "activations.GEGLU", layers.FusedGEGLU, "gated unit", {"hidden_states", "args", "kwargs"}),
]  # fmt: skip
