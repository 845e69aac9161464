"""`bench quality`: which rows it measures, and that bad input is said before anything is."""

import pytest

from bench import quality
from bench.__main__ import main
from presto_models.checkpoint import DEFAULT_CHECKPOINT


def test_the_generator_stands_beside_its_teacher():
    rows = quality.rows_of(DEFAULT_CHECKPOINT)
    assert [(row.name, row.checkpoint) for row in rows] == [("teacher", "presto-tiny"), ("generator", "presto-tiny-ls")]
    assert [row.checkpoint for row in quality.rows_of("presto-tiny")] == ["presto-tiny"]


def test_missing_data_is_said_first(tmp_path):
    pytest.importorskip("musicnn")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main(["quality", "--data", str(tmp_path / "nowhere"), "--json", str(tmp_path / "q.json")])
    assert not (tmp_path / "q.json").exists()
