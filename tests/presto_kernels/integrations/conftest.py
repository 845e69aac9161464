"""`--compatibility docs/accelerate.md`: which classes are known, and what these tests found right of which model, as
tables behind their marks.

A test says with `@pytest.mark.covers(column, ...)` what it holds; of which model, its parameters say.
"""

import os
from collections import defaultdict
from pathlib import Path

import pytest
from known_classes import classes

MARK, CLASSES = "<!-- compatibility -->", "<!-- classes -->"
COLUMNS = ("output", "gradients", "masks", "sampling", "prompt_cache", "adapters", "copies, hooks")
STABILITY = {"tools": "stable-audio-tools: DiT", "sa3": "Stable Audio 3: DiT"}
PROJECTS = {"tools": "stable-audio-tools", "diffusers": "diffusers"}

_found: dict[tuple[str, str], list[str]] = defaultdict(list)


def pytest_addoption(parser):
    parser.addoption("--compatibility", metavar="PAGE", help="write the table of what was found right into this page")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    marker = item.get_closest_marker("covers")
    if marker is not None and (report.when == "call" or report.outcome != "passed"):
        for model in models(item):
            for column in marker.args:
                _found[model, column].append(report.outcome)


def pytest_sessionfinish(session):
    page = session.config.getoption("--compatibility")
    if page is not None and _found:
        write(Path(page), CLASSES, classes())
        write(Path(page), MARK, table())


def models(item) -> list[str]:
    """The models a test is about."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    if "dit" in given or "make" in given:
        name = given.get("dit") or given["make"].__name__
        return [STABILITY[name.replace("_", ",").split(",")[0].split()[0]]]
    if "project" in given:
        return [f"{PROJECTS[given['project']]}: Oobleck {given.get('side', 'decoder')}"]
    if "model" in given:
        return [f"diffusers: {given['model']}"]
    marker = item.get_closest_marker("about")
    return list(marker.args) if marker is not None else []


def table() -> str:
    rows = sorted({model for model, _ in _found}, key=lambda name: (name.split(":")[0] != "diffusers", name))
    lines = ["| tests that passed | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row} | " + " | ".join(cell(_found[row, column]) for column in COLUMNS) + " |")
    return "\n".join(lines)


def cell(outcomes: list[str]) -> str:
    if not outcomes:
        return ""
    if "failed" in outcomes:
        return f"{outcomes.count('failed')} failed"
    passed = outcomes.count("passed")
    return str(passed) if passed else "skipped"


def write(page: Path, mark: str, text: str) -> None:
    """The table behind its mark, up to the next empty line; written beside and renamed."""
    before, after = page.read_text().split(f"{mark}\n")
    after = after.lstrip("\n")
    if after.startswith("|"):  # the table that was there
        after = after.partition("\n\n")[2]
    beside = page.with_name(f".{page.name}.new")
    beside.write_text(f"{before}{mark}\n\n{text}\n" + (f"\n{after}" if after else ""))
    os.replace(beside, page)
