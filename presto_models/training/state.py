"""A player's state as named whole tensors, and back: weights, averages, AdamW's moments."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from presto_models.training.ema import EMA
from presto_models.training.sharding import gather, shard_like


def capture(module: nn.Module, optimizer: torch.optim.Optimizer, average: EMA) -> dict[str, Tensor]:
    """``model.<name>``, ``ema.<name>``, ``optimizer.<name>.<moment>``, on the CPU.  With shards a collective call."""
    tensors = {f"model.{name}": gather(value) for name, value in module.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in average.state_dict().items()}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = gather(value)
    return tensors


@torch.no_grad()
def restore(tensors: Mapping[str, Tensor], module: nn.Module, optimizer: torch.optim.Optimizer, average: EMA) -> None:
    """Put back what :func:`capture` took, split as the module is now."""
    for name, value in module.state_dict().items():
        value.copy_(shard_like(tensors[f"model.{name}"], value))
    average.load_state_dict({name: tensors[f"ema.{name}"] for name in average.shadow})
    for name, parameter in module.named_parameters():
        prefix = f"optimizer.{name}."
        moments = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if moments:
            optimizer.state[parameter] = {
                # AdamW's step count is one number, on the parameter's device when the update is fused.
                key: value.to(parameter.device) if value.dim() == 0 else shard_like(value, parameter)
                for key, value in moments.items()
            }
