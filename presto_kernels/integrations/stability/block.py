"""``TransformerBlock`` of both codebases: norms, modulations, gates and additions in a pass for each seam.

    h      = norm(x) (1 + scale_self) + shift_self
    x, h   = seam(x, self_attn(h), sigmoid(1 - gate_self); cross_attend_norm)
    x, h   = seam(x, cross_attn(h); ff_norm, scale_ff, shift_ff)            + the local embedding, an addend more
    x      = x + sigmoid(1 - gate_ff) ff(h)

Without ``global_cond`` there is no scale, shift or gate; a ``LayerScale`` is a gate.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from presto_kernels.integrations.stability import norms
from presto_kernels.integrations.swapping import Accelerated
from presto_kernels.ops.modulation.api import adaln_modulate, gated_residual, gated_residual_adaln

TO_SELF = {
    "self_attention_block_mask": "flex_attention_block_mask",
    "self_attention_score_mod": "flex_attention_score_mod",
    "self_attention_flash_sliding_window": "flash_attn_sliding_window",
    "padding_mask": "padding_mask",
    "varlen_metadata": "varlen_metadata",
}
TO_CROSS = {
    "cross_attention_block_mask": "flex_attention_block_mask",
    "cross_attention_score_mod": "flex_attention_score_mod",
    "cross_attention_flash_sliding_window": "flash_attn_sliding_window",
    "cross_attn_rotary_pos_emb": "rotary_pos_emb_k",
}


class FusedBlock(Accelerated):
    """``TransformerBlock.forward`` on ``adaln_modulate``, ``gated_residual_adaln`` and ``gated_residual``."""

    def forward(self, x: Tensor, context: Tensor | None = None, *more: Any, **given: Any) -> Tensor:
        reason = "arguments by position" if more else _refusal(self)
        if reason:
            self._presto.pass_on(self, reason)
            return super().forward(x, context, *more, **given)
        with self._presto.settings.running():
            return _forward(self, x, context if self.cross_attend else None, given)


def _refusal(self: Any) -> str | None:
    passed_by = [self.pre_norm, self.self_attn_scale, self.ff_norm, self.ff_scale]
    if self.cross_attend:
        passed_by += [self.cross_attend_norm, self.cross_attn_scale]
    return "a hook on a norm or a LayerScale" if norms.hooked(*passed_by) else None


def _forward(self: Any, x: Tensor, context: Tensor | None, given: dict[str, Any]) -> Tensor:
    rotary = given.get("rotary_pos_emb")
    if rotary is None and self.add_rope:
        rotary = self.rope.forward_from_seq_len(x.shape[-2])
    scale, shift, gate, ff_scale, ff_shift, ff_gate = _modulation(self, given.get("global_cond"))

    h = adaln_modulate(x, scale, shift, **norms.arguments(self.pre_norm))
    branch = self.self_attn(h, rotary_pos_emb=rotary, **_renamed(given, TO_SELF))
    gating = _gating(gate, self.self_attn_scale)
    if context is not None:
        x, h = gated_residual_adaln(
            x, branch, scale=None, shift=None, **gating, **norms.arguments(self.cross_attend_norm)
        )
        to_cross = _renamed(given, TO_CROSS)
        if "rotary_pos_emb_k" in to_cross:
            to_cross["rotary_pos_emb"] = rotary
        branch, gating = self.cross_attn(h, context=context, **to_cross), _gating(None, self.cross_attn_scale)
    if self.conformer is not None:
        x = gated_residual(x, branch, **gating)
        branch, gating = self.conformer(x), _gating(None, self.conformer_scale)
    local = _local(self, x.shape[-2], given)
    x, h = gated_residual_adaln(
        x, branch, scale=ff_scale, shift=ff_shift, residual2=local, **gating, **norms.arguments(self.ff_norm)
    )
    branch = self.ff(h, **_renamed(given, {"varlen_metadata": "varlen_metadata"}))
    return gated_residual(x, branch, **_gating(ff_gate, self.ff_scale))


def _renamed(given: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The arguments that are there, under the names of the layer they are for."""
    return {to: given[name] for name, to in names.items() if given.get(name) is not None}


def _modulation(self: Any, global_cond: Tensor | None) -> tuple[Tensor | None, ...]:
    """scale, shift and gate of self-attention, and of the feedforward: ``[B, 1, D]`` each."""
    if global_cond is None or not self.global_cond_dim:
        return (None,) * 6
    return (self.to_scale_shift_gate + global_cond).unsqueeze(1).chunk(6, dim=-1)


def _gating(gate: Tensor | None, layer_scale: nn.Module) -> dict[str, Any]:
    """``gate`` and ``gate_fn`` of a branch that is gated by sigmoid(1 - gate) and scaled by a LayerScale, or either."""
    scale = getattr(layer_scale, "scale", None)
    if gate is None:
        return {"gate": scale, "gate_fn": "identity"}
    if scale is None:
        return {"gate": gate, "gate_fn": "sigmoid_one_minus"}
    return {"gate": torch.sigmoid(1 - gate.float()) * scale.float(), "gate_fn": "identity"}


def _local(self: Any, length: int, given: dict[str, Any]) -> Tensor | None:
    """The embedded local conditioning ``[B, N, D]``, zero for the tokens in front, or None."""
    sources = []
    if given.get("local_add_cond") is not None and getattr(self, "to_local_embed", None) is not None:
        sources.append((self.to_local_embed, given["local_add_cond"]))
    modular = given.get("modular_local_cond") or {}
    sources += [
        (embed, modular[name]) for name, embed in getattr(self, "modular_local_embeds", {}).items() if name in modular
    ]
    if not sources:
        return None

    def embedded() -> Tensor:
        addends = [_at_the_end(embed(source), length) for embed, source in sources]
        return addends[0] if len(addends) == 1 else torch.stack(addends).sum(0)

    shapes = tuple(tuple(source.shape) for _, source in sources)
    return self._presto.constant(
        (id(self), "local", length, shapes), sources[0][1], tuple(e for e, _ in sources), embedded
    )


def _at_the_end(embedded: Tensor, length: int) -> Tensor:
    """Cut to the last ``length`` tokens, or with zeros in front."""
    missing = length - embedded.shape[-2]
    return F.pad(embedded, (0, 0, missing, 0)) if missing > 0 else embedded[:, -length:]


def fits(module: Any) -> str | None:
    names = ["pre_norm", "ff_norm", *(["cross_attend_norm"] if module.cross_attend else [])]
    for name in names:
        if norms.kind(getattr(module, name)) is None:
            return f"its {name} is a {type(getattr(module, name)).__name__}"
    scales = [module.self_attn_scale, module.ff_scale, *([module.cross_attn_scale] if module.cross_attend else [])]
    for scale in scales:
        if type(scale).__name__ not in ("Identity", "LayerScale"):
            return f"a branch is scaled by a {type(scale).__name__}"
    return None
