"""A run that was stopped or killed ends where one that was not ends, to the bit."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import toy_task

from presto_models.checkpoint import load_weights

pytest.importorskip("lightning")


def state(folder, step):
    return load_weights(Path(folder) / f"state-{step:08d}.safetensors", kind="training-state")[0]


def assert_same(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def stopped_run(out, **changes) -> int:
    """Train until the seventh step asks to stop, which the eighth then does."""

    class Stopping(toy_task.ToyTask):
        def loss(self, player, module, batch, step):
            if step == 6:
                trainer.stop()
            return super().loss(player, module, batch, step)

    trainer = toy_task.make_trainer(out, Stopping(), **changes)
    return trainer.run()


def test_it_learns_and_leaves_a_whole_folder(tmp_path):
    """Twenty steps: the loss falls, and the folder holds what is promised and no more than two checkpoints."""
    toy_task.train(tmp_path, steps=60, checkpoint_every=20, learning_rate=1e-2)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    held_out = [record["validation/loss"] for record in records if "validation/loss" in record]
    assert [record["step"] for record in records if "loss" in record] == list(range(5, 61, 5))
    assert held_out[-1] < 0.8 * held_out[0]
    names = sorted(path.name for path in tmp_path.iterdir() if "tfevents" not in path.name)
    kept = ["state-00000040.safetensors", "state-00000060.safetensors"]
    assert names == ["config.json", "curves.png", "metrics.jsonl", "samples", *kept, "toy.safetensors"]
    assert len(list((tmp_path / "samples").glob("hum-*.wav"))) == 6
    exported, config = load_weights(tmp_path / "toy.safetensors", kind="toy")
    assert config == toy_task.CONFIG.to_dict()
    averaged = state(tmp_path, 60)
    assert all(torch.equal(value, averaged[f"toy.ema.{name}"]) for name, value in exported.items())


def test_a_stopped_run_goes_on_to_the_bit(tmp_path):
    """Stopped between checkpoints and validations, by its own request, at step 7 of 13; a micro-batched one too."""
    for accumulate in (1, 2):
        straight, stopped = tmp_path / f"straight{accumulate}", tmp_path / f"stopped{accumulate}"
        toy_task.train(straight, steps=13, accumulate=accumulate)

        assert stopped_run(stopped, steps=13, accumulate=accumulate) == 8
        torch.manual_seed(5)  # global randomness is none of a run's
        going_on = toy_task.ToyTask()
        assert toy_task.train(stopped, going_on, resume=True, steps=13, accumulate=accumulate).step == 13
        assert sorted(set(going_on.seen)) == [8, 9, 10, 11, 12]
        assert_same(state(straight, 13), state(stopped, 13))
        logged = [json.loads(line)["step"] for line in (stopped / "metrics.jsonl").read_text().splitlines()]
        assert logged == [5, 10, 10]


def test_sigterm_checkpoints_and_leaves(tmp_path):
    """In the main thread, where signals arrive."""
    task = toy_task.ToyTask(pause=0.02)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    timer.start()
    trainer = toy_task.train(tmp_path, task, steps=100_000, log_every=0, validate_every=0, sample_every=0)
    assert 0 < trainer.step < 100_000
    assert trainer.folder.latest_step() == trainer.step
    assert signal.getsignal(signal.SIGTERM) is before


def test_max_minutes(tmp_path):
    assert toy_task.train(tmp_path, max_minutes=0.0, steps=100).step == 1
    assert state(tmp_path, 1)


@pytest.mark.slow
def test_kill_dash_nine(tmp_path):
    """A real process, killed without warning between two checkpoints, and its run finished by another."""
    changes = {"steps": 40, "checkpoint_every": 10}
    toy_task.train(tmp_path / "straight", **changes)
    killed = tmp_path / "ddp"
    command = [sys.executable, toy_task.__file__, str(tmp_path), json.dumps(changes)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, "--pause", "0.1"], **quiet)
    metrics = killed / "metrics.jsonl"
    try:
        while not (metrics.is_file() and '"step": 15' in metrics.read_text()):
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert state(killed, 10)
    assert not (killed / "state-00000040.safetensors").exists()
    # The rest in this process: no less than a third one would show, and quicker.
    toy_task.train(killed, resume=True, **changes)
    assert_same(state(tmp_path / "straight", 40), state(killed, 40))
