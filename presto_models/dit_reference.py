"""The same transformer in plain PyTorch: what the fused one is checked against and timed beside.

Written as one would write it for speed without kernels of one's own: fused QKV, scaled_dot_product_attention,
F.layer_norm, F.rms_norm, F.silu, addcmul where a product is added, no casts but rotary's and that of the QK-norms'
weights under autocast (of two dtypes F.rms_norm would not be fused).  It shares no fused op with
:mod:`presto_models.dit`, only the config, the data it is given, and the formulas of Fourier features and rotary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from presto_models.conditioning import Conditioning
from presto_models.dit_config import DiTConfig
from presto_models.embeddings import apply_rotary, embedding_mlp, fourier_features, noise_level, rotary_tables
from presto_models.precomputed import Step


def _modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale)


class ReferenceSelfAttention(nn.Module):
    """Fused QKV, QK-norm, rotary, SDPA."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.eps = config.num_heads, config.head_dim, config.qk_norm_eps
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.q_norm = nn.Parameter(torch.ones(config.head_dim))
        self.k_norm = nn.Parameter(torch.ones(config.head_dim))
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``[B, N, D]`` to ``[B, N, D]``."""
        q, k, v = self.qkv(h).unflatten(-1, (3, self.num_heads, self.head_dim)).transpose(1, 3).unbind(2)
        q = apply_rotary(F.rms_norm(q, (self.head_dim,), self.q_norm.to(q.dtype), self.eps), cos, sin)
        k = apply_rotary(F.rms_norm(k, (self.head_dim,), self.k_norm.to(k.dtype), self.eps), cos, sin)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class ReferenceCrossAttention(nn.Module):
    """Queries from the latents, keys and values from text."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.eps = config.num_heads, config.head_dim, config.qk_norm_eps
        self.q = nn.Linear(config.dim, config.dim, bias=False)
        self.kv = nn.Linear(config.text_dim, 2 * config.dim, bias=False)
        self.q_norm = nn.Parameter(torch.ones(config.head_dim))
        self.k_norm = nn.Parameter(torch.ones(config.head_dim))
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, L, text_dim]`` to k, v ``[B, L, H, Dh]``."""
        k, v = self.kv(tokens).unflatten(-1, (2, self.num_heads, self.head_dim)).unbind(2)
        return F.rms_norm(k, (self.head_dim,), self.k_norm.to(k.dtype), self.eps), v

    def forward(self, h: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """``[B, N, D]`` to ``[B, N, D]``."""
        q = self.q(h).unflatten(-1, (self.num_heads, self.head_dim))
        q = F.rms_norm(q, (self.head_dim,), self.q_norm.to(q.dtype), self.eps)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


class ReferenceSwiGLU(nn.Module):
    """value * silu(gate) between two projections."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, 2 * config.mlp_dim, bias=False)
        self.down = nn.Linear(config.mlp_dim, config.dim, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """``[B, N, D]`` to ``[B, N, D]``."""
        value, gate = self.up(h).chunk(2, dim=-1)
        return self.down(value * F.silu(gate))


class ReferenceBlock(nn.Module):
    """AdaLN-Zero around self-attention and SwiGLU, plain cross-attention between them."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.self_attention = ReferenceSelfAttention(config)
        self.cross_norm = nn.Parameter(torch.ones(config.dim))
        self.cross_attention = ReferenceCrossAttention(config)
        self.mlp = ReferenceSwiGLU(config)

    def forward(
        self, x: Tensor, modulation: Tensor, rotary: tuple[Tensor, Tensor], k: Tensor, v: Tensor, mask: Tensor | None
    ) -> Tensor:
        """``[B, N, D]`` to ``[B, N, D]``; modulation ``[B|1, 6, D]``."""
        scale_0, shift_0, gate_0, scale_1, shift_1, gate_1 = modulation.unsqueeze(2).unbind(1)
        x = torch.addcmul(x, gate_0, self.self_attention(_modulate(x, scale_0, shift_0, self.eps), *rotary))
        h = F.layer_norm(x, x.shape[-1:], self.cross_norm, eps=self.eps)
        x = x + self.cross_attention(h, k, v, mask)
        return torch.addcmul(x, gate_1, self.mlp(_modulate(x, scale_1, shift_1, self.eps)))


class ReferenceCondition(nn.Module):
    """The embeddings of noise level, pooled text, student's extras and layer budget."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.sigma = embedding_mlp(config.noise_features, config.dim)
        self.pooled = embedding_mlp(config.pooled_dim, config.dim) if config.pooled_dim else None
        self.sigma_to = embedding_mlp(config.noise_features, config.dim) if config.takes_sigma_to else None
        self.guidance = embedding_mlp(config.noise_features, config.dim) if config.takes_guidance else None
        self.budget = nn.Parameter(torch.zeros(config.num_blocks - 1, config.dim))


class ReferenceDiT(nn.Module):
    """Plain PyTorch's :class:`presto_models.DiT`: same config, same ``state_dict``, same inference features.

    ``reference.load_state_dict(dit.state_dict())`` gives it a DiT's weights (``assign=True`` shares them).  Training
    batches of mixed budgets are the fused one's alone.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.proj_in = nn.Linear(config.in_channels, config.dim)
        self.condition = ReferenceCondition(config)
        self.modulation = nn.Linear(config.dim, (6 * config.num_blocks + 2) * config.dim)
        self.blocks = nn.ModuleList(ReferenceBlock(config) for _ in range(config.num_blocks))
        self.proj_out = nn.Linear(config.dim, config.in_channels)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        *,
        blocks: Sequence[int] | None = None,
        precomputed: Step | None = None,
        sigma_to: Tensor | None = None,
        guidance: Tensor | None = None,
        hidden_after: Sequence[int] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """As :meth:`presto_models.DiT.forward`."""
        config = self.config
        if precomputed is not None:
            kept, modulation = precomputed.blocks, precomputed.modulation
            keys_values, mask, rotary = precomputed.text.keys_values, precomputed.text.mask, precomputed.rotary
        else:
            kept = tuple(range(config.num_blocks)) if blocks is None else tuple(blocks)
            modulation = self._modulation(sigma, conditioning, kept, sigma_to, guidance)
            tokens, mask, rotary = conditioning.tokens.to(self.proj_in.weight.dtype), None, None
            if conditioning.lengths is not None:
                mask = conditioning.text_mask()
                tokens = tokens.masked_fill(~mask.unsqueeze(2), 0)
        if mask is not None:
            # SDPA over no key at all is NaN on some backends: without text the first, zeroed token is let through.
            mask = torch.cat((torch.ones_like(mask[:, :1]), mask[:, 1:]), dim=1)[:, None, None]
        if rotary is None:
            rotary = rotary_tables(x.shape[1], config.rotary_size, base=config.rotary_base, device=x.device)

        hidden: list[Tensor] = []
        x = self.proj_in(x.to(self.proj_in.weight.dtype))
        for rows, index in zip(modulation, kept, strict=False):  # the last rows are the final layer's
            block = cast(ReferenceBlock, self.blocks[index])
            k, v = keys_values[index] if precomputed is not None else block.cross_attention.keys_values(tokens)
            x = block(x, rows, rotary, k, v, mask)
            if hidden_after is not None and index in hidden_after:
                hidden.append(x)
                if index == hidden_after[-1]:
                    return tuple(hidden)
        scale, shift = modulation[-1].unsqueeze(2).unbind(1)
        return self.proj_out(_modulate(x, scale, shift, config.norm_eps))

    def _modulation(
        self,
        sigma: Tensor,
        conditioning: Conditioning,
        kept: tuple[int, ...],
        sigma_to: Tensor | None,
        guidance: Tensor | None,
    ) -> tuple[Tensor, ...]:
        config, condition, dtype = self.config, self.condition, self.proj_in.weight.dtype
        c = condition.sigma(fourier_features(noise_level(sigma), config.noise_features).to(dtype))
        if condition.pooled is not None and conditioning.pooled is not None:
            c = c + condition.pooled(conditioning.pooled.to(dtype))
        if condition.sigma_to is not None and sigma_to is not None:
            c = c + condition.sigma_to(fourier_features(noise_level(sigma_to), config.noise_features).to(dtype))
        if condition.guidance is not None and guidance is not None:
            c = c + condition.guidance(fourier_features(guidance.log1p() / 4, config.noise_features).to(dtype))
        if len(kept) < config.num_blocks:
            c = c + condition.budget[len(kept) - 1]
        c, dim = F.silu(c), config.dim
        weight, bias = self.modulation.weight, self.modulation.bias
        if len(kept) == config.num_blocks:
            return F.linear(c, weight, bias).unflatten(-1, (-1, dim)).split(6, dim=1)
        rows = [slice(6 * dim * i, 6 * dim * (i + 1)) for i in kept] + [slice(6 * dim * config.num_blocks, None)]
        return tuple(F.linear(c, weight[r], bias[r]).unflatten(-1, (-1, dim)) for r in rows)
