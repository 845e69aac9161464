"""The report names what is missing and how to get it."""

import json
import subprocess
import sys

from presto_kernels import _library, env_report


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "presto_kernels.env_report", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_table_fits_and_the_json_parses():
    text = run()
    assert "torch" in text and "adaln_modulate" in text
    data = json.loads(run("--json"))
    assert {item["name"] for item in data["items"]} >= {"Python", "torch", "GPU", "triton"}
    assert "reference" in data["backends"]["gated_residual"]


def test_a_missing_library_is_said_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(_library, "loaded", False)
    monkeypatch.setattr(_library, "error", "it was not built")
    (item,) = env_report._libraries()
    assert item.found == "none: it was not built" and "pip install" in item.advice


def test_missing_packages_come_with_advice(monkeypatch):
    monkeypatch.setattr(env_report.importlib.util, "find_spec", lambda name: None)
    item = env_report._package("triton", "pip install triton")
    assert item.found == "not installed" and item.advice == "pip install triton"
