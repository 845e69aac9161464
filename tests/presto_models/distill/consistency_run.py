"""One process of a short run of each kind: python consistency_run.py TEACHER DATA OUT [KIND ...]."""

import sys
from pathlib import Path

import torch

from presto_models.distill.consistency import ConsistencyConfig, ConsistencyModel
from presto_models.distill.trajectory import ConsistencyTrajectoryModel, TrajectoryConfig
from presto_models.training.cli import make_fabric
from presto_models.training.config import build, plain
from presto_models.training.run_folder import RunFolder
from presto_models.training.trainer import Trainer

KINDS = {"cm": (ConsistencyConfig, ConsistencyModel), "ctm": (TrajectoryConfig, ConsistencyTrajectoryModel)}
TRAIN = {"precision": "fp32", "steps": 4, "warmup_steps": 0, "learning_rate": 1e-3, "log_every": 0}
TRAIN |= {"validate_every": 0, "sample_every": 0, "checkpoint_every": 2, "checkpoint_minutes": 0.0}


def make_task(kind, teacher, data, **changes):
    values = {
        "teacher": str(teacher),
        "data": str(data),
        "crops": [{"latents": 16, "batch": 4}, {"latents": 32, "batch": 2}],
        "levels": 8,
        "validation_crops": 5,
        "sample_latents": 16,
        "train": TRAIN | changes.pop("train", {}),
    }
    config, method = KINDS[kind]
    return method(build(config, values | changes))


def run(task, out, kind, *, resume=False, **changes) -> Trainer:
    """Train the task; ``changes`` of what may differ when a run goes on."""
    settings = build(type(task.config.train), plain(task.config.train) | changes)
    folder = RunFolder(out, task=kind, config=plain(task.config), resume=resume)
    fabric = make_fabric(task, accelerator="cpu", devices=1, nodes=1, strategy="ddp")
    fabric.launch()
    trainer = Trainer(task, settings, folder, fabric, name=kind)
    trainer.run()
    return trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    teacher, data, out = map(Path, sys.argv[1:4])
    for kind in KINDS:
        run(make_task(kind, teacher, data), out / kind, kind)
