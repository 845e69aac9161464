"""Several processes compute what one computes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy_task

from presto_models.checkpoint import load_weights

pytest.importorskip("lightning")


def final(folder):
    return load_weights(Path(folder) / "state-00000020.safetensors", kind="training-state")[0]


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Two gloo processes under torchrun, with DDP and with FSDP2, take over from a checkpoint of one process and go on
    in micro-batches, with validation and sampling on the way: the same weights, averages and moments within float
    error.  One process can go on from theirs."""
    toy_task.train(tmp_path / "one", steps=20)
    strategies = ("ddp", "fsdp2")
    for strategy in strategies:
        toy_task.train(tmp_path / strategy, steps=7, accumulate=2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, toy_task.__file__, str(tmp_path), json.dumps({"steps": 20, "accumulate": 2})]
    done = subprocess.run([*command, "--strategies", *strategies], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one = final(tmp_path / "one")
    for strategy in strategies:
        two = final(tmp_path / strategy)
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert torch.allclose(two[name], value, rtol=2e-3, atol=2e-5), f"{strategy}: {name}"
        assert validation(tmp_path / strategy) == pytest.approx(validation(tmp_path / "one"), rel=1e-4)
        assert toy_task.train(tmp_path / strategy, resume=True, steps=21, accumulate=2).step == 21


def validation(folder):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["validation/loss"] for record in records if "validation/loss" in record]
