"""LoRA fine-tuning of Stable Audio Open's DiT through the fused backward: `python examples/lora.py --model stabilityai/stable-audio-open-1.0`.

The adapters are peft's, the weights stay as they are, and every step runs forward and backward on the fused ops. Without
--model the DiT is small and random, and without --latents so is what it learns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from diffusers import StableAudioDiTModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

import presto_kernels


@dataclass(frozen=True)
class Options:
    """Trains adapters on latents and their conditioning."""

    model: str | None = None  # on the Hugging Face hub, or a folder; None: small and random
    latents: str | None = None  # safetensors: latents [S, C, N], text [S, M, D], seconds [S, 1, E]; None: random
    steps: int = 20
    batch: int = 2
    rank: int = 8
    lr: float = 1e-3
    out: str = "lora"  # folder of the adapters


def main(options: Options) -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = dit(options.model).to(device)
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=options.rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    presto_kernels.accelerate(model)  # before or after the adapters, as you like
    print(presto_kernels.accelerate_report(model))

    data = load_file(options.latents) if options.latents else random_data(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.lr)
    for step in range(options.steps):
        picked = torch.randint(len(data["latents"]), (options.batch,))
        loss = v_loss(model, *(data[name][picked].to(device) for name in ("latents", "text", "seconds")))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0 or step == options.steps - 1:
            print(f"step {step}: loss {loss.item():.3f}")
    model.save_lora_adapter(options.out)
    print(options.out)


def v_loss(model: Any, x0: Tensor, text: Tensor, seconds: Tensor) -> Tensor:
    """Mean square error of the velocity v = cos(t pi/2) noise - sin(t pi/2) x0."""
    t = torch.rand(len(x0), device=x0.device)
    cos, sin = (f(t * math.pi / 2)[:, None, None] for f in (torch.cos, torch.sin))
    noise = torch.randn_like(x0)
    rotary = get_1d_rotary_pos_embed(
        model.config.attention_head_dim // 2, x0.shape[2] + 1, use_real=True, repeat_interleave_real=False
    )
    rotary = tuple(table.to(x0.device) for table in rotary)
    v = model(cos * x0 + sin * noise, t, text, seconds, rotary_embedding=rotary, return_dict=False)[0]
    return (v - (cos * noise - sin * x0)).square().mean()


def dit(name: str | None) -> Any:
    if name is not None:
        return StableAudioDiTModel.from_pretrained(name, subfolder="transformer")
    return StableAudioDiTModel(
        in_channels=8, out_channels=8, num_layers=4, attention_head_dim=32, num_attention_heads=4,
        num_key_value_attention_heads=2, cross_attention_dim=64, cross_attention_input_dim=32, global_states_input_dim=64,
    )  # fmt: skip


def random_data(model: Any) -> dict[str, Tensor]:
    config = model.config
    return {
        "latents": torch.randn(4, config.in_channels, 64),
        "text": torch.randn(4, 16, config.cross_attention_input_dim),
        "seconds": torch.randn(4, 1, config.global_states_input_dim),
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
