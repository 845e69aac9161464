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
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_are_one(tmp_path, strategy):
    """Two gloo processes under torchrun take over from a checkpoint of one process and go on in micro-batches, with
    validation and sampling on the way: the same weights, averages and moments within float error.  One process can go
    on from theirs."""
    toy_task.train(tmp_path / "one", steps=20)
    toy_task.train(tmp_path / "two", steps=7, accumulate=2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, toy_task.__file__, str(tmp_path / "two"), json.dumps({"steps": 20, "accumulate": 2})]
    done = subprocess.run([*command, "--strategy", strategy], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = final(tmp_path / "one"), final(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=2e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )

    def validation(folder):
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        return [record["validation/loss"] for record in map(json.loads, lines) if "validation/loss" in record]

    assert validation("two") == pytest.approx(validation("one"), rel=1e-4)
    assert toy_task.train(tmp_path / "two", resume=True, steps=21, accumulate=2).step == 21
