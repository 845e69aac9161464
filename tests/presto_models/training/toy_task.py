"""A small transformer fitting fixed latents: a task for tests of the loop, and, run as a script, one process of it.

python toy_task.py OUT '{"steps": 20}' --strategy ddp --pause 0.05
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from presto_models import EDM, Conditioning, DiT, DiTConfig, edm_loss
from presto_models.checkpoint import save_weights
from presto_models.training.cli import make_fabric
from presto_models.training.config import TrainConfig, plain
from presto_models.training.run_folder import RunFolder
from presto_models.training.seeding import generator, seeded_weights
from presto_models.training.sharding import shard_parts
from presto_models.training.task import Player, Samples, Task, shares
from presto_models.training.trainer import Trainer

BATCH, LATENTS, VALIDATION = 4, 12, 5
CONFIG = DiTConfig(
    num_blocks=2,
    dim=16,
    num_heads=2,
    mlp_dim=24,
    in_channels=3,
    text_dim=6,
    pooled_dim=4,
    noise_features=8,
)
SETTINGS = {
    "precision": "fp32",
    "learning_rate": 3e-3,
    "warmup_steps": 4,
    "log_every": 5,
    "validate_every": 10,
    "sample_every": 10,
    "checkpoint_every": 5,
}


class Objective(nn.Module):
    def __init__(self, edm: EDM):
        super().__init__()
        self.edm = edm

    def forward(self, clean, sigma, noise, tokens, pooled):
        return edm_loss(self.edm, clean, Conditioning(tokens, pooled), sigma=sigma, noise=noise)


class Batch:
    def __init__(self, *tensors: Tensor):
        self.tensors = tensors

    def to(self, device):
        return Batch(*(tensor.to(device) for tensor in self.tensors))


class ToyTask(Task):
    """``broken``: the step whose second sample is NaN; ``pause``: seconds a step takes at least."""

    def __init__(self, seed: int = 0, broken: int | None = None, pause: float = 0.0):
        self.seed, self.broken, self.pause, self.seen = seed, broken, pause, []
        with seeded_weights(seed):
            self.objective = Objective(EDM(DiT(CONFIG)))
        self.objective.edm.dit.condition.budget.requires_grad_(False)
        self.players = (Player("toy", self.objective),)

    def draw(self, purpose, *position):
        random = generator(self.seed, purpose, *position)
        sizes = (
            (LATENTS, CONFIG.in_channels),
            (),
            (LATENTS, CONFIG.in_channels),
            (5, CONFIG.text_dim),
            (CONFIG.pooled_dim,),
        )
        clean, sigma, noise, tokens, pooled = (torch.randn(size, generator=random) for size in sizes)
        # One wave, a little different each time: there is something to learn.
        wave = torch.sin(torch.arange(LATENTS)[:, None] + torch.arange(CONFIG.in_channels))
        return 0.7 * wave + 0.1 * clean, sigma.exp(), noise, tokens, pooled

    def batch(self, step, part, parts):
        rows = [self.draw("row", step, sample) for sample in range(part * BATCH // parts, (part + 1) * BATCH // parts)]
        if step == self.broken:
            rows[-1][0][3] = float("nan")
        return Batch(*(torch.stack(column) for column in zip(*rows, strict=True)))

    def loss(self, player, module, batch, step):
        time.sleep(self.pause)
        self.seen.append(step)
        losses = module(*batch.tensors)
        return losses.mean(), {"worst": losses.detach().max()}

    def describe(self, batch):
        return f"sigmas {batch.tensors[1].tolist()}"

    def validate(self, rank, world):
        losses, counted = torch.zeros(()), torch.zeros(())
        for samples, counts in shares(VALIDATION, rank, world, 2):
            rows = [self.draw("held out", sample) for sample in samples]
            columns = (torch.stack(column) for column in zip(*rows, strict=True))
            losses += (self.objective(*columns) * counts).sum()
            counted += counts.sum()
        return {"loss": (losses, counted)}

    def sample(self):
        return Samples(8000, {"hum": torch.zeros(1, 800)}, {"picture": torch.zeros(3, 8, 8)})

    def export(self, folder, weights):
        return save_weights(folder / "toy.safetensors", weights["toy"], kind="toy", config=CONFIG.to_dict())

    def shard(self, module, mesh):
        shard_parts(self.objective.edm.dit, ("self_attention", "cross_attention", "mlp"), mesh, None)
        return module


def settings(**changes) -> TrainConfig:
    return TrainConfig(**{**SETTINGS, **changes})


def make_trainer(out, task=None, *, resume=False, strategy="ddp", **changes) -> Trainer:
    config, task = settings(**changes), task or ToyTask()
    folder = RunFolder(out, task="toy", config={"train": plain(config)}, resume=resume)
    fabric = make_fabric(task, accelerator="cpu", devices=1, nodes=1, strategy=strategy)
    fabric.launch()
    return Trainer(task, config, folder, fabric, name="toy")


def train(out, task=None, *, max_minutes=None, **changes) -> Trainer:
    """Train the toy in this process."""
    trainer = make_trainer(out, task, **changes)
    trainer.run(max_minutes=max_minutes)
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("changes", type=json.loads)
    parser.add_argument("--strategies", nargs="+", default=["ddp"], help="a run of each, in a folder of its name")
    parser.add_argument("--pause", type=float, default=0.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for strategy in given.strategies:
        task = ToyTask(pause=given.pause)
        train(given.out / strategy, task, strategy=strategy, resume=True, **given.changes)
        sharded = any(isinstance(weight, DTensor) for weight in task.objective.parameters())
        assert sharded == (strategy == "fsdp2")
