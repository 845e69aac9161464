"""Short distillations of the tests' teacher, and, run as a script, one process of several in turn.

python distill_runs.py '[{"out": "...", "method": "presto-s", "strategy": "ddp", "values": {...}}]' --pause 0.1
"""

import argparse
import json
import time

import torch
from torch.distributed.tensor import DTensor

from presto_models.distill.dmd import PrestoLS, PrestoS, StepConfig
from presto_models.distill.layers import LayerConfig, PrestoL
from presto_models.training.cli import make_fabric
from presto_models.training.config import build, plain
from presto_models.training.run_folder import RunFolder
from presto_models.training.trainer import Trainer

LATENTS = 64
TRAIN = {
    "precision": "fp32",
    "steps": 6,
    "learning_rate": 1e-3,
    "eps": 1e-4,  # so that a gradient of rounding errors alone does not become a step of full size
    "warmup_steps": 0,
    "log_every": 0,
    "validate_every": 0,
    "sample_every": 0,
    "checkpoint_every": 0,
    "checkpoint_minutes": 0.0,
    "clip": 10.0,
}
HEADS = {"head_width": 16, "head_groups": 4, "adversarial": 0.1, "discriminator": 0.1, "updates": 2}
METHODS = {
    "presto-l": (LayerConfig, PrestoL, {}),
    "ase": (
        LayerConfig,
        PrestoL,
        {
            "keep_last": 0,
            "self_teacher": 0.0,
            "free_share": 0.0,
            "conditioned": False,
            "edges": [1.0],
            "budgets": [2, 1],
        },
    ),
    "presto-s": (StepConfig, PrestoS, HEADS),
    "presto-ls": (StepConfig, PrestoLS, HEADS | {"drop_layers": True}),
}


def make_config(method, teacher, data, train=None, **changes):
    kind, _, values = METHODS[method]
    shared = {
        "teacher": str(teacher),
        "data": str(data),
        "crops": [{"latents": LATENTS, "batch": 8}],
        "validation_crops": 5,
        "sample_latents": 16,
        "strata": 4,
        "train": TRAIN | (train or {}),
    }
    return build(kind, shared | values | changes)


def make_task(method, teacher, data, train=None, **changes):
    return METHODS[method][1](make_config(method, teacher, data, train, **changes))


def make_trainer(out, task, *, resume=False, strategy="ddp"):
    folder = RunFolder(out, task="test", config=plain(task.config), resume=resume)
    fabric = make_fabric(task, accelerator="cpu", devices=1, nodes=1, strategy=strategy)
    fabric.launch()
    return Trainer(task, task.config.train, folder, fabric, name="test")


def run(out, task, **how):
    trainer = make_trainer(out, task, **how)
    trainer.run()
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=json.loads)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for each in given.runs:
        made = make_task(each["method"], **each["values"])
        draw = made.batch
        made.batch = lambda *position, draw=draw: (time.sleep(given.pause), draw(*position))[1]
        run(each["out"], made, strategy=each["strategy"], resume=True)
        weights = [weight for player in made.players for weight in player.module.parameters()]
        assert {isinstance(weight, DTensor) for weight in weights} == {each["strategy"] == "fsdp2"}
