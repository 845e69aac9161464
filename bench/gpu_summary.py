"""The last line of gpu_run.sh: what ran, what passed, the ratios people ask for.

python -m bench.gpu_summary OUTDIR SECONDS
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any


def summary_line(folder: Path, seconds: str) -> tuple[str, bool]:
    """One line from the files gpu_run.sh left in `folder`, whatever is missing, and whether every stage passed."""
    stages = [line.rsplit(" ", 1) for line in (folder / "stages.txt").read_text().splitlines()]
    parts = [f"{what} {took} s" for what, took in stages]
    details = [_tests(folder / "tests.xml"), _ops(folder), _latency(folder / "latency.json")]
    passed = bool(stages) and all(what.endswith(" ok") for what, _ in stages)
    verdict = "PASSED" if passed else "NOT PASSED"
    return f"gpu_run {verdict} in {seconds} s: " + "; ".join([*parts, *filter(None, details)]), passed


def _tests(path: Path) -> str | None:
    try:
        suite = next(ElementTree.parse(path).iter("testsuite")).attrib
    except (OSError, ElementTree.ParseError, StopIteration):
        return None
    wrong = int(suite["failures"]) + int(suite["errors"])
    skipped = int(suite["skipped"])
    return f"tests: {int(suite['tests']) - wrong - skipped} passed, {wrong} failed, {skipped} skipped"


def _ops(folder: Path) -> str | None:
    """The largest time over a plain copy, attention apart, and the smallest gain over torch.compile, of all forwards in
    CUDA graphs.
    """
    summary: dict[str, Any] = {}
    for path in sorted(folder.glob("ops*.json")):
        summary |= _read(path).get("summary", {})
    forward = [
        figures
        for case, figures in summary.items()
        if case.endswith("forward graph") and not case.startswith("attention")
    ]
    over_copy = [figures["presto_over_copy"] for figures in forward if "presto_over_copy" in figures]
    compiled = [figures["compile_over_presto"] for figures in forward if "compile_over_presto" in figures]
    if not over_copy:
        return None
    gains = f", compile/presto at least {min(compiled):.2f}" if compiled else ""
    return f"ops in graphs: at most {max(over_copy):.2f}x a plain copy{gains}"


def _latency(path: Path) -> str | None:
    summary = _read(path).get("summary", {})
    names = ("reference_over_presto_graph", "compile_over_presto_graph", "scheduled_over_full_graph")
    figures = [f"{name} {summary[name]:.3f}" for name in names if name in summary]
    one_graph = summary.get("one_graph_ms", {}).get("presto")
    if one_graph is not None:
        figures.append(f"latents in one graph {one_graph:.2f} ms")
    for output, milliseconds in summary.get("total_ms", {}).items():
        figures.append(f"prompt to waveform, {output}, {milliseconds:.2f} ms")
    return ", ".join(figures) or None


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    line, passed = summary_line(Path(sys.argv[1]), sys.argv[2])
    (Path(sys.argv[1]) / "summary.txt").write_text(line + "\n")
    print(line)
    sys.exit(0 if passed else 1)
