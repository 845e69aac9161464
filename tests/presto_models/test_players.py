"""What the table of methods asks of a pipeline: walks as a row says, and checkpoints found or missed by name."""

from dataclasses import replace

import pytest
import torch
from small_pipeline import same, small_pipeline

pytest.importorskip("transformers")
pytest.importorskip("soundfile")
pytest.importorskip("auraloss")

from presto_models.metrics.method_rows import NetworkUse, Row
from presto_models.metrics.players import PipelinePlayer, PipelinePlayers


def test_a_player_walks_as_its_row_says():
    pipeline = small_pipeline(guidance=2.0, steps=3)
    kept = PipelinePlayer(Row("own", "x"), pipeline, 0.2)
    wave, rate = kept.generate(["slow organ"], 5)
    assert rate == 8000 and torch.equal(wave, pipeline("slow organ", seconds=0.2, seed=5).waveform)
    assert kept.settings()["schedule"]["budgets"] == [6, 5, 3] and kept.use().evaluations == 2 * kept.use().calls == 10

    changes = {"sampler": "pingpong", "steps": 2, "guidance": 1.0, "rho": 5.0}
    full = PipelinePlayer(Row("full", "x", schedule="full", changes=changes), pipeline, 0.2)
    assert full.use() == NetworkUse(2, 2, 12, 12) and full.settings()["sampling"]["spacing"] == "interval"
    other = small_pipeline(sampler="pingpong", steps=2, guidance=1.0, schedule=None)
    other.config = replace(other.config, sampling=replace(other.config.sampling, rho=5.0))
    same(full.generate(["slow organ"], 5)[0], other("slow organ", seconds=0.2, seed=5).waveform)
    times = full.time("slow organ", 0)
    assert 0 < times["steps_ms"] < times["pipeline_ms"]


def test_checkpoints_are_found_in_the_folder_first_and_missing_ones_named(tmp_path):
    place = torch.device("cpu")
    players = PipelinePlayers(1.0, place, checkpoints=str(tmp_path))
    assert "diffusion.safetensors" in players.weights(Row("r", "presto-tiny")), "shipped"
    (tmp_path / "presto-tiny").mkdir()
    with pytest.raises(FileNotFoundError, match="'presto-tiny' has no diffusion"):
        PipelinePlayers(1.0, place, checkpoints=str(tmp_path)).weights(Row("r", "presto-tiny"))
    with pytest.raises(FileNotFoundError, match=r"^no checkpoint 'presto-x'$"):
        players.weights(Row("r", str(tmp_path / "presto-x")))
    (tmp_path / "presto-tiny" / "diffusion.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"presto-tiny/diffusion\.safetensors is not a whole"):
        players.load(Row("r", "presto-tiny"))
