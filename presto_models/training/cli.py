"""`python -m presto_models train TASK`: what the three tasks' commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from presto_models.training.config import TrainConfig, build, override, plain, read

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from presto_models.training.task import Task


@dataclass(frozen=True)
class TrainOptions:
    """Train a model.  In a run that torchrun started, devices and nodes are torchrun's."""

    config: str
    """A .toml or .json file, or the name of a preset."""
    out: Path | None = None
    """The run's folder; without it runs/TASK-CONFIG."""
    resume: bool = False
    """Go on from the folder's last checkpoint; from the start where there is none."""
    set: tuple[str, ...] = ()
    """Overrides of single values, as in train.steps=1000 model.dim=256."""
    accelerator: str = "auto"
    """cpu, cuda, ..."""
    devices: int = 1
    """Processes on this machine, each with its device."""
    nodes: int = 1
    """Machines."""
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """How several processes share the work: each holds all weights, or a share of them."""
    max_minutes: float | None = None
    """Checkpoint and leave after this long."""


def train(options: TrainOptions, name: str, kind: type[Any], make: Callable[[Any], Task]) -> int:
    """Read the config (a dataclass ``kind`` with a field ``train``), make the task of it and run it.

    Returns 0 when the run is complete, 3 when it left early with a checkpoint (a signal, max_minutes).
    """
    from presto_models.training.run_folder import RunFolder
    from presto_models.training.trainer import Trainer

    config: Any = build(kind, override(read(options.config, name), options.set))
    settings: TrainConfig = config.train
    out = options.out or Path("runs") / f"{name}-{Path(options.config).stem}"
    folder = RunFolder(out, task=name, config=plain(config), resume=options.resume)
    task = make(config)
    fabric = make_fabric(
        task,
        accelerator=options.accelerator,
        devices=options.devices,
        nodes=options.nodes,
        strategy=options.strategy,
    )
    fabric.launch()
    done = Trainer(task, settings, folder, fabric, name=name).run(max_minutes=options.max_minutes)
    return 0 if done == settings.steps else 3


def make_fabric(task: Task, *, accelerator: str, devices: int, nodes: int, strategy: str) -> Fabric:
    """Lightning's Fabric for this many processes; where torchrun started them, as many as it says."""
    import torch

    try:
        from lightning.fabric import Fabric
        from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy
    except ImportError as error:
        raise ImportError("training needs lightning: pip install 'presto-kernels[train]'") from error

    if torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    several: DDPStrategy | ModelParallelStrategy
    if strategy == "fsdp2":

        def parallelize(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
            return task.shard(module, mesh["data_parallel"])

        several = ModelParallelStrategy(parallelize, data_parallel_size=devices * nodes, tensor_parallel_size=1)
    else:
        several = DDPStrategy()
    # Full precision here: a task autocasts its network itself, since Fabric's mixed precision would also round what
    # goes in (noise levels, latents, audio) to bf16.
    return Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy="auto" if devices * nodes == 1 else several,
        precision="32-true",
    )
