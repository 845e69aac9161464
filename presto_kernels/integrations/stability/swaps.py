"""The table of what is swapped in a codebase of Stability AI."""

from __future__ import annotations

from dataclasses import dataclass

from presto_kernels.integrations.stability import attention, block, layers, norms, roots
from presto_kernels.integrations.swapping import Swap

_TRANSFORMER = {
    "x", "prepend_embeds", "prepend_mask", "global_cond", "local_add_cond", "modular_local_cond", "return_info",
    "use_checkpointing", "exit_layer_ix", "padding_mask", "context", "mask", "kwargs",
}  # fmt: skip
_BLOCK = {
    "x",
    "context",
    "global_cond",
    "local_add_cond",
    "modular_local_cond",
    "rotary_pos_emb",
    *block.TO_SELF,
    *block.TO_CROSS,
}
_ATTENTION = {"x", "context", "rotary_pos_emb", "rotary_pos_emb_k", "causal", *block.TO_SELF.values()}


@dataclass(frozen=True)
class Codebase:
    """package: its name.  attention: our attention, which knows the package's ways."""

    package: str
    attention: type[attention.FusedAttention] = attention.FusedAttention

    def swaps(self) -> list[Swap]:
        at = f"{self.package}.models.transformer"
        return [
            Swap(
                f"{self.package}.models.dit.DiffusionTransformer",
                roots.FusedDiT,
                "what a prompt decides, once in prompt_cache",
                None,
                children={"to_cond_embed": roots.FusedConstant, "to_timestep_embed": roots.FusedModulation},
            ),
            Swap(
                f"{at}.ContinuousTransformer",
                roots.FusedTransformer,
                "the same, called by itself",
                _TRANSFORMER,
                children={"global_cond_embedder": roots.FusedModulation},
            ),
            Swap(
                f"{at}.TransformerBlock", block.FusedBlock, "norms, modulations, gates, additions", _BLOCK, block.fits
            ),
            Swap(f"{at}.Attention", self.attention, "QK norms, rotary, attention", _ATTENTION, attention.fits),
            Swap(f"{at}.GLU", layers.FusedGLU, "gated unit", {"x"}, layers.glu_fits),
            Swap(f"{at}.RotaryEmbedding", layers.FusedRotary, "angles once a length", {"t"}, layers.rotary_fits),
            *(Swap(f"{at}.{name}", norms.FusedNorm, "one pass", {"x"}) for name in norms.KINDS),
        ]
