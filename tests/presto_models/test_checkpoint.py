"""Checkpoints come back as they were written; what is cut short or foreign is named; a failed write leaves the old."""

import json

import pytest
import torch
from safetensors.torch import save_file

from presto_models.checkpoint import CheckpointError, find_folder, load_into, load_weights, save_weights

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def test_a_round_trip(tmp_path):
    path = save_weights(tmp_path / "deep" / "one.safetensors", WEIGHTS, kind="stereo", config={"x": [1, 2.5, None]})
    weights, config = load_weights(path, kind="stereo")
    assert config == {"x": [1, 2.5, None]}
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert [file.name for file in path.parent.iterdir()] == ["one.safetensors"]


def test_views_that_are_not_contiguous_are_stored_as_they_look(tmp_path):
    path = save_weights(tmp_path / "one.safetensors", {"t": WEIGHTS["a"].T}, kind="stereo", config={})
    assert torch.equal(load_weights(path, kind="stereo")[0]["t"], WEIGHTS["a"].T)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_cut_short(tmp_path, share):
    path = save_weights(tmp_path / "one.safetensors", WEIGHTS, kind="stereo", config={})
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_weights(path, kind="stereo")


def test_files_of_others(tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_file(WEIGHTS, foreign)
    with pytest.raises(CheckpointError, match="not one of presto's"):
        load_weights(foreign, kind="stereo")
    newer = tmp_path / "newer.safetensors"
    header = {"format": "presto", "version": "2", "kind": "stereo", "config": json.dumps({})}
    save_file(WEIGHTS, newer, metadata=header)
    with pytest.raises(CheckpointError, match="version 2"):
        load_weights(newer, kind="stereo")
    other = save_weights(tmp_path / "other.safetensors", WEIGHTS, kind="diffusion", config={})
    with pytest.raises(CheckpointError, match="'diffusion', wanted 'stereo'"):
        load_weights(other, kind="stereo")
    with pytest.raises(FileNotFoundError, match="no stereo at"):
        load_weights(tmp_path / "none.safetensors", kind="stereo")


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = save_weights(tmp_path / "one.safetensors", WEIGHTS, kind="stereo", config={"old": True})

    def full(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(path, WEIGHTS, kind="stereo", config={"old": False})
    assert load_weights(path, kind="stereo")[1] == {"old": True}
    assert [file.name for file in tmp_path.iterdir()] == ["one.safetensors"]


def test_load_into_names_what_differs():
    module = torch.nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match=r"missing \['bias'\].*not expected \['gain'\]"):
        load_into(module, {"weight": torch.zeros(2, 3), "gain": torch.zeros(1)}, source="here")
    with pytest.raises(CheckpointError, match=r"weight has shape \(3, 2\), the model wants \(2, 3\)"):
        load_into(module, {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, source="here")
    load_into(module, {"weight": torch.ones(2, 3).bfloat16(), "bias": torch.zeros(2)}, source="here")
    assert module.weight.dtype == torch.float32 and module.weight.sum() == 6


def test_find_folder(tmp_path):
    assert find_folder(tmp_path) == tmp_path
    assert find_folder("presto-tiny").name == "presto-tiny"
    with pytest.raises(FileNotFoundError, match=r"'presto-huge'.*shipped are \['presto-tiny'"):
        find_folder("presto-huge")
