"""One training step: both sides on one set of weights, checked, timed, and their memory compared."""

import json

import pytest
import torch

from bench import train
from bench.__main__ import main

OPTIONS = train.TrainOptions(config="tiny", dtype="fp32", blocks=2, device="cpu", compile=False)
CPU = torch.device("cpu")


def test_both_sides_train_the_same_parameters():
    training = train.Training(OPTIONS, CPU)
    plain, ours = training.gradients(training.reference), training.gradients(training.presto)
    # Rows of budgets that no sample has get a gradient of zero from ours, for which DDP would wait; plain gives none.
    assert ours.keys() - plain.keys() <= {"condition.budget"} and plain.keys() <= ours.keys() and len(plain) > 20
    assert not ours["condition.budget"].any()
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-3, atol=1e-4)


def test_a_wrong_gradient_is_refused(monkeypatch):
    training = train.Training(OPTIONS, CPU)
    assert train.check(training, OPTIONS) is None
    right = training.gradients

    def wrong(model):
        found = right(model)
        if model is training.presto:
            found["proj_out.bias"] = 1.01 * found["proj_out.bias"]
        return found

    monkeypatch.setattr(training, "gradients", wrong)
    assert "proj_out.bias" in str(train.check(training, OPTIONS))


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    file = tmp_path / "train.json"
    command = "train --config tiny --blocks 2 --dtype fp32 --device cpu --rounds 3 --seconds 0 --no-compile --json"
    assert main([*command.split(), str(file)]) == 0
    content = json.loads(file.read_text())
    assert {row["implementation"] for row in content["rows"]} == {"reference", "presto"}
    assert all(row["peak_bytes"] > 1e8 and row["rounds"] == 3 for row in content["rows"])
    assert 0.5 < content["summary"]["peak_presto_over_reference"] < 2
