"""The diffusion transformer over audio latents, on presto_kernels' fused seams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from presto_kernels import (
    LayerSchedule,
    adaln_modulate,
    attention,
    gated_residual_adaln,
    qk_norm_rope,
    qk_norm_rope_attention,
    swiglu,
)
from presto_models.conditioning import Conditioning
from presto_models.dit_config import DiTConfig
from presto_models.embeddings import ConditionEmbedder, rotary_tables
from presto_models.layer_dropping import Walk, mixed_walk, uniform_walk
from presto_models.precomputed import Precomputed, Step, TextCache


class SelfAttention(nn.Module):
    """Attention along time: fused QKV, RMS QK-norm per head, rotary.  No biases."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads, self.eps = config.num_heads, config.qk_norm_eps
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.q_norm = nn.Parameter(torch.ones(config.head_dim))
        self.k_norm = nn.Parameter(torch.ones(config.head_dim))
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``[B, N, D]`` to ``[B, N, D]``."""
        # The heads are read at their stride inside the projection: nothing is copied out of it.
        q, k, v = self.qkv(h).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        y = qk_norm_rope_attention(q, k, v, cos, sin, q_weight=self.q_norm, k_weight=self.k_norm, eps=self.eps)
        return self.out(y.flatten(2))


class CrossAttention(nn.Module):
    """Attention from time to text, RMS QK-norm per head on both sides.  No biases, so that zero text adds exactly 0."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads, self.eps = config.num_heads, config.qk_norm_eps
        self.q = nn.Linear(config.dim, config.dim, bias=False)
        self.kv = nn.Linear(config.text_dim, 2 * config.dim, bias=False)
        self.q_norm = nn.Parameter(torch.ones(config.head_dim))
        self.k_norm = nn.Parameter(torch.ones(config.head_dim))
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens ``[B, L, text_dim]`` to keys, already normalised, and values, each ``[B, L, H, Dh]``."""
        k, v = self.kv(tokens).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return self._normalise(k, self.k_norm), v

    def forward(self, h: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
        """``[B, N, D]`` to ``[B, N, D]``; lengths ``[B]``: how many of the tokens are text."""
        q = self._normalise(self.q(h).unflatten(-1, (self.num_heads, -1)), self.q_norm)
        return self.out(attention(q, k, v, key_lengths=lengths).flatten(2))

    def _normalise(self, heads: Tensor, weight: Tensor) -> Tensor:
        return qk_norm_rope(heads, None, None, None, q_weight=weight, eps=self.eps)[0]


class SwiGLU(nn.Module):
    """down(value * silu(gate)), (value, gate) the two halves of up(h).  No biases."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, 2 * config.mlp_dim, bias=False)
        self.down = nn.Linear(config.mlp_dim, config.dim, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """``[B, N, D]`` to ``[B, N, D]``."""
        return self.down(swiglu(self.up(h)))


class Block(nn.Module):
    """The three branches of a block.  It has no forward: the seams between branches also join one block to the next."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config)
        self.cross_norm = nn.Parameter(torch.ones(config.dim))
        self.cross_attention = CrossAttention(config)
        self.mlp = SwiGLU(config)


class DiT(nn.Module):
    """F of EDM's denoiser: latents at a noise level in, the network's raw output out.

    A block is AdaLN-Zero (Peebles & Xie 2023) around self-attention and SwiGLU, six modulations in the order scale,
    shift, gate for attention, then scale, shift, gate for SwiGLU; between them cross-attention to text behind a plain
    LayerNorm with a learned weight, ungated, as PixArt-alpha has it.  The norms that are modulated have no weight of
    their own.  With (scale_0, shift_0), ... the modulations of block l and (scale', shift') what opens the next block
    *that is kept*, or the final layer:

        x, h = x + gate_0 attn(h),   LN(x) w
        x, h = x + cross(h),         LN(x) (1 + scale_1) + shift_1
        x, h = x + gate_1 mlp(h),    LN(x) (1 + scale') + shift'

    each line one :func:`presto_kernels.gated_residual_adaln`, so a dropped block costs nothing, not even a norm.

    All blocks' modulations are rows of one linear layer: six times ``num_blocks`` and the final layer's scale and
    shift.  Gates, modulations, cross-attention's projection and the last projection start at zero.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.proj_in = nn.Linear(config.in_channels, config.dim)
        self.condition = ConditionEmbedder(config)
        self.modulation = nn.Linear(config.dim, (6 * config.num_blocks + 2) * config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.proj_out = nn.Linear(config.dim, config.in_channels)
        for zero in (self.modulation, self.proj_out):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        *,
        blocks: Sequence[int] | None = None,
        budgets: Sequence[int] | None = None,
        precomputed: Step | None = None,
        sigma_to: Tensor | None = None,
        guidance: Tensor | None = None,
        hidden_after: Sequence[int] | None = None,
        added: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """The raw network output F, for EDM's preconditioning to scale.

        Args:
            x: ``[B, N, C]``, any floating dtype, cast to the model's; c_in is already multiplied in.
            sigma: ``[B]``, fp32: the noise level itself, embedded as ln(sigma) / 4.
            conditioning: B samples of text.
            blocks: increasing indices of the blocks that run, the same for every sample; None: all.
                ``LayerSchedule.kept(sigma)`` gives them.
            budgets: how many blocks run for each sample, B host ints that do not rise along the batch; a sample with
                budget b runs the first ``b - keep_last`` and the last ``keep_last`` blocks (``config.keep_last``).  A
                block's work is done only for the samples that keep it.  For training batches.
            precomputed: one step of :meth:`precompute`.  It brings the blocks, the modulation and the text, and
                ``sigma``, ``sigma_to``, ``guidance`` and the tensors of ``conditioning`` are then not read.
            sigma_to: ``[B]``, when ``config.takes_sigma_to``.
            guidance: ``[B]``, when ``config.takes_guidance``.
            hidden_after: increasing indices of blocks that run: the residual stream behind each of them is returned
                and not F; what lies behind the last one is not computed.  For the same blocks in every sample.
            added: ``[B, N, dim]``, added to the embedded latents before the first block, as an adaptor has it; cast to
                the model's dtype.

        Returns:
            F ``[B, N, C]``, the model's dtype; with ``hidden_after`` a tuple of ``[B, N, dim]``.

        The model is conditioned on the number of blocks that run.  ``blocks`` of all of them, budgets that are all
        full and neither are bitwise the same.

        Raises:
            ValueError: a shape, or a combination of arguments, does not fit.
        """
        self._check(x, sigma, conditioning)
        batch, length, _ = x.shape
        if sum(given is not None for given in (blocks, budgets, precomputed)) > 1:
            raise ValueError("blocks, budgets and precomputed exclude each other: give one of them")
        if precomputed is None:
            config = self.config
            if budgets is None:
                walk = uniform_walk(blocks, config.num_blocks)
            else:
                walk = mixed_walk(budgets, batch, config.num_blocks, config.keep_last)
            modulation = self._modulation(
                conditioning,
                sigma=sigma,
                budget=self.condition.budget_rows((len(walk.blocks),) if budgets is None else budgets),
                sigma_to=sigma_to,
                guidance=guidance,
                blocks=walk.blocks,
            )
            tokens, lengths = self._text(conditioning)
            keys_values, rotary = None, None
        else:
            walk = Walk(precomputed.blocks, None, len(precomputed.blocks))
            modulation, rotary = precomputed.modulation, precomputed.rotary
            tokens, lengths, keys_values = conditioning.tokens, precomputed.text.lengths, precomputed.text.keys_values
            if rotary is not None and rotary[0].shape[0] != length:
                raise ValueError(f"precomputed is for length {rotary[0].shape[0]}, x has length {length}")
        cos, sin = self._rotary(length, x.device) if rotary is None else rotary
        wanted = () if hidden_after is None else tuple(hidden_after)
        if hidden_after is not None and (
            walk.active is not None or not wanted or list(wanted) != sorted(set(wanted) & set(walk.blocks))
        ):
            raise ValueError(
                f"hidden_after must be increasing indices of blocks that run for every sample, at least one; got "
                f"{wanted} of {walk.blocks}{'' if walk.active is None else ' in a batch of mixed budgets'}"
            )
        hidden: list[Tensor] = []

        x = self.proj_in(x.to(self.proj_in.weight.dtype))
        if added is not None:
            if added.shape != x.shape:
                raise ValueError(
                    f"added must be {tuple(x.shape)}, as the embedded latents are, got {tuple(added.shape)}"
                )
            x = x + added.to(x.dtype)
        h = adaln_modulate(x, *_opening(modulation, walk, 0, batch), eps=self.config.norm_eps)
        aside: list[tuple[Tensor, Tensor]] = []
        x, h = _regroup(x, h, walk, 0, aside)
        for position, index in enumerate(walk.blocks):
            block, rows, text_lengths = cast(Block, self.blocks[index]), modulation[position], lengths
            if walk.active is not None:
                active = walk.active[position]
                rows, text_lengths = rows[:active], None if lengths is None else lengths[:active]
            cross = block.cross_attention
            k, v = cross.keys_values(tokens[: x.shape[0]]) if keys_values is None else keys_values[index]
            _, _, gate_attention, scale_mlp, shift_mlp, gate_mlp = rows.unbind(1)
            branch = block.self_attention(h, cos, sin)
            x, h = self._seam(x, branch, gate_attention, None, None, weight=block.cross_norm)
            branch = cross(h, k, v, text_lengths)
            x, h = self._seam(x, branch, None, scale_mlp, shift_mlp)
            branch = block.mlp(h)
            x, h = self._seam(x, branch, gate_mlp, *_opening(modulation, walk, position + 1, x.shape[0]))
            if index in wanted:
                hidden.append(x)
                if index == wanted[-1]:
                    return tuple(hidden)
            x, h = _regroup(x, h, walk, position + 1, aside)
        return self.proj_out(h)

    @torch.no_grad()
    def precompute(
        self,
        conditioning: Conditioning,
        sigmas: Sequence[float],
        budgets: Sequence[int] | None = None,
        *,
        length: int | None = None,
        sigma_to: Sequence[float] | None = None,
        guidance: float | None = None,
        text: TextCache | None = None,
    ) -> Precomputed:
        """Everything that does not depend on x, for every step of a fixed schedule.

        The modulation of every kept block at every step is one GEMM over steps x batch (two where no step keeps all
        blocks, around the gap); text keys and values are one projection per block.  Nothing of it is kept in the
        module, and none of it carries gradients: through ``precomputed`` a gradient reaches x alone.

        Args:
            conditioning: B samples of text.
            sigmas: the noise level of each step, positive host numbers.
            budgets: how many blocks run at each step (``config.keep_last`` of them the last); None: all.
            length: N, to compute the rotary tables too.
            sigma_to, guidance: where the config takes them, a noise level per step and one scale.
            text: the text of an earlier result for the same conditioning, used again.

        Returns:
            :class:`Precomputed`; ``forward(precomputed=result.step(i))`` runs step i.  Keys and values are bitwise what
            forward computes; modulation agrees within rounding, since one GEMM for all steps may add in another order.
        """
        config, sigmas = self.config, tuple(float(s) for s in sigmas)
        budgets = (config.num_blocks,) * len(sigmas) if budgets is None else tuple(budgets)
        if not sigmas or not all(s > 0 for s in sigmas):
            raise ValueError(f"sigmas must be positive, at least one (without the schedule's last 0), got {sigmas}")
        for name, given in (("budgets", budgets), ("sigma_to", sigma_to)):
            if given is not None and len(given) != len(sigmas):
                raise ValueError(f"{name} must have one entry per sigma, {len(sigmas)}, got {len(given)}")
        self._check_conditioning(conditioning, conditioning.batch_size)
        kept = [LayerSchedule(config.num_blocks, (), (b,), config.keep_last).kept(0.0) for b in budgets]
        union = tuple(sorted(set().union(*kept)))

        like = torch.empty(0, dtype=self._level_dtype(), device=conditioning.tokens.device)
        rows = self.condition.budget_rows(budgets)
        modulation = self._modulation(
            conditioning,
            sigma=_on_device(sigmas, like)[:, None],
            budget=None if rows is None else rows[:, None],
            sigma_to=None if sigma_to is None else _on_device(sigma_to, like)[:, None],
            guidance=None if guidance is None else like.new_full((1, 1), guidance),
            blocks=union,
        )
        if text is None:
            tokens, lengths = self._text(conditioning)
            blocks = (cast(Block, block) for block in self.blocks)
            keys_values = tuple(block.cross_attention.keys_values(tokens) for block in blocks)
            text = TextCache(keys_values, lengths, None if lengths is None else conditioning.text_mask())
        rotary = None if length is None else self._rotary(length, conditioning.tokens.device)
        final, position = len(union), {block: i for i, block in enumerate(union)}
        steps = []
        for i, (sigma, indices) in enumerate(zip(sigmas, kept, strict=True)):
            parts = [modulation[p][i] for p in (*(position[block] for block in indices), final)]
            steps.append(Step(sigma, indices, tuple(parts), text, rotary))
        return Precomputed(tuple(steps), text)

    def _seam(
        self,
        x: Tensor,
        branch: Tensor,
        gate: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return gated_residual_adaln(x, branch, gate, scale, shift, weight=weight, eps=self.config.norm_eps)

    def _modulation(
        self,
        conditioning: Conditioning,
        *,
        sigma: Tensor,
        budget: Tensor | None,
        sigma_to: Tensor | None,
        guidance: Tensor | None,
        blocks: tuple[int, ...],
    ) -> tuple[Tensor, ...]:
        """``[..., 6, D]`` of each of ``blocks``, then the final layer's ``[..., 2, D]``; a GEMM per run of blocks."""
        for name, given, wanted in (
            ("sigma_to", sigma_to, self.config.takes_sigma_to),
            ("guidance", guidance, self.config.takes_guidance),
        ):
            if (given is not None) != wanted:
                raise ValueError(f"{name} must be given exactly when config.takes_{name} is set, which is {wanted}")
        c = F.silu(self.condition(sigma, conditioning.pooled, budget, sigma_to, guidance))
        size = 6 * self.config.dim
        # The final layer's two rows stand behind the last block's, so a run of neighbours may reach into them.
        indices = (*blocks, self.config.num_blocks)
        parts: list[Tensor] = []
        first = 0
        for last, index in enumerate(indices):
            if last + 1 < len(indices) and indices[last + 1] == index + 1:
                continue
            run = slice(size * indices[first], size * (index + 1))
            flat = F.linear(c, self.modulation.weight[run], self.modulation.bias[run])
            parts += [part.unflatten(-1, (-1, self.config.dim)) for part in flat.split(size, dim=-1)]
            first = last + 1
        return tuple(parts)

    def _text(self, conditioning: Conditioning) -> tuple[Tensor, Tensor | None]:
        """Tokens in the model's dtype with the padding zeroed, and how many are text, or None.

        A padded token is never attended to; zeroing it keeps what it held, NaN too, out of the projections' gradients.
        """
        tokens = conditioning.tokens.to(self.proj_in.weight.dtype)
        if conditioning.lengths is None:
            return tokens, None
        return tokens.masked_fill(~conditioning.text_mask().unsqueeze(2), 0), conditioning.lengths

    def _rotary(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        return rotary_tables(length, self.config.rotary_size, base=self.config.rotary_base, device=device)

    def _level_dtype(self) -> torch.dtype:
        return torch.promote_types(self.proj_in.weight.dtype, torch.float32)

    def _check(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> None:
        if x.dim() != 3 or x.shape[2] != self.config.in_channels or not x.is_floating_point():
            raise ValueError(
                f"x must be floating-point [B, N, {self.config.in_channels}], got {x.dtype} {tuple(x.shape)}"
            )
        if sigma.shape != x.shape[:1]:
            raise ValueError(f"sigma must be [{x.shape[0]}], one per sample, got {tuple(sigma.shape)}")
        self._check_conditioning(conditioning, x.shape[0])

    def _check_conditioning(self, conditioning: Conditioning, batch: int) -> None:
        tokens, pooled = conditioning.tokens, conditioning.pooled
        if tokens.shape[0] != batch or tokens.shape[2] != self.config.text_dim:
            raise ValueError(
                f"conditioning.tokens must be [{batch}, L, {self.config.text_dim}], got {tuple(tokens.shape)}"
            )
        width = None if pooled is None else pooled.shape[1]
        if width != (self.config.pooled_dim or None):
            raise ValueError(
                f"conditioning.pooled must be [B, {self.config.pooled_dim}] (None when pooled_dim is 0), "
                f"got width {width}"
            )


def _on_device(values: Sequence[float], like: Tensor) -> Tensor:
    """Host numbers as a tensor beside ``like``, filled there: a CUDA graph refuses a copy from the host."""
    return torch.stack([like.new_full((), value) for value in values])


def _opening(modulation: tuple[Tensor, ...], walk: Walk, position: int, rows: int) -> tuple[Tensor, Tensor]:
    """(scale, shift) with which ``rows`` samples enter the block at ``position``; those that leave there, the join."""
    scale, shift = modulation[position][:, 0], modulation[position][:, 1]
    if walk.active is None:
        return scale, shift
    staying = walk.staying(position, rows)
    leaving_scale, leaving_shift = modulation[walk.join][staying:rows].unbind(1)[:2]
    return torch.cat((scale[:staying], leaving_scale)), torch.cat((shift[:staying], leaving_shift))


def _regroup(
    x: Tensor, h: Tensor, walk: Walk, position: int, aside: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Set aside the samples that do not enter the block at ``position``; at the join, put all together again."""
    if walk.active is None:
        return x, h
    if position == walk.join:
        together = [(x, h), *reversed(aside)]
        aside.clear()
        return torch.cat([pair[0] for pair in together]), torch.cat([pair[1] for pair in together])
    staying = walk.staying(position, x.shape[0])
    if staying < x.shape[0]:
        # split, not two slices: its backward is one concatenation instead of two padded sums.
        (x, x_left), (h, h_left) = (t.split([staying, t.shape[0] - staying]) for t in (x, h))
        aside.append((x_left, h_left))
    return x, h
