"""What people see of the table of ways to control: on the terminal, and in a page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Entry = dict[str, Any]
MARK = "<!-- control -->"
_REFERENCES = {
    "test": "real, test",
    "validation": "real, validation (floor)",
    "reconstruction": "reconstruction",
    "noise": "noise (ceiling)",
}


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _estimate(found: dict[str, float | None] | None) -> str:
    """``12.3 [9.8, 15.1]``; without the interval where there is none."""
    if not found:
        return ""
    value, low, high = (
        None if found[name] is None else _number(found[name] or 0.0) for name in ("value", "low", "high")
    )
    return "" if value is None else value if low is None or high is None else f"{value} [{low}, {high}]"


def _middle(found: dict[str, float | None] | None) -> str:
    return _estimate(found).split(" ")[0]


def _heard(agreement: dict[str, Any] | None) -> str:
    shares = [found.get("accuracy", {}).get("value") for found in (agreement or {}).values()]
    return " / ".join("–" if share is None else f"{share:.2f}" for share in shares)


def _steps(entry: Entry) -> str:
    """– where fewer than half of the searches came there."""
    found = entry.get("steps_to_threshold")
    return _estimate(found) or ("–" if found else "")


def _runs(entry: Entry) -> str:
    missing = entry["runs"] < entry["of_runs"]
    return f"{entry['runs']} of {entry['of_runs']}" if missing else str(entry["runs"])


QUALITY: dict[str, Callable[[Entry], str]] = {
    "runs": _runs,
    "error": lambda entry: _estimate(entry["error"]),
    "figure": lambda entry: _estimate(entry["figures"].get(entry["figure"])),
    "FAD": lambda entry: _estimate(entry["heard"].get("fad")),
    "tags heard": lambda entry: _heard(entry["heard"].get("agreement")),
}
COST: dict[str, Callable[[Entry], str]] = {
    "reached": lambda entry: "" if "reached" not in entry else f"{100 * entry['reached']:.0f}%",
    "steps to": _steps,
    "s to": lambda entry: _estimate(entry.get("seconds_to_threshold")),
    "s/step": lambda entry: _middle(entry["seconds_per_step"]),
    "s in all": lambda entry: _estimate(entry["seconds"]),
    "MB": lambda entry: _middle(entry["memory_mb"]),
}


def _tasks(result: dict[str, Any]) -> dict[str, list[Entry]]:
    """Rows by task."""
    tasks: dict[str, list[Entry]] = {}
    for entry in result["rows"]:
        tasks.setdefault(entry["task"], []).append(entry)
    return tasks


def _title(task: str, entries: list[Entry]) -> str:
    first = entries[0]
    threshold = "" if first["threshold"] is None else f", reached at {first['threshold']:g}"
    return f"{task}: error in {first['unit']}{threshold}; figure: {first['figure']}"


def _references(result: dict[str, Any]) -> list[list[str]]:
    """Title, FAD, tags heard."""
    return [
        [_REFERENCES[entry["name"]], _estimate(entry.get("fad")), _heard(entry.get("agreement"))]
        for entry in result["references"].get("rows", [])
    ]


def _left_out(entry: Entry) -> str | None:
    if "left_out" in entry:
        return f"left out: {entry['left_out']}"
    failed = entry.get("failed")
    return None if failed is None else f"{failed['runs']} runs failed: {failed['first']}"


RACE: dict[str, Callable[[Entry], str]] = {
    "runs": lambda found: str(found["runs"]),
    "error": lambda found: _number(found["error"]),
    "s, first": lambda found: _seconds(found["seconds"][0]),
    "s, second": lambda found: _seconds(found["seconds"][1]),
    "times sooner": lambda found: "–" if not found["ratio"]["value"] else _estimate(found["ratio"]),
    "errors of their music": lambda found: " / ".join(map(_number, found["music"])),
}


def _seconds(value: float | None) -> str:
    return "never" if value is None else _number(value)


def _racers(found: dict[str, Any]) -> str:
    return f"{found['task']}: {found['of']}, {found['by']}"


def markdown(result: dict[str, Any]) -> str:
    """The table, how much sooner DITTO-2 is there, a line about how all was made, and the rows' notes."""
    columns = QUALITY | COST
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    empty = dict.fromkeys(columns, "")
    for title, fad, heard in _references(result):
        lines.append(f"| {title} | {' | '.join((empty | {'FAD': fad, 'tags heard': heard}).values())} |")
    for task, entries in _tasks(result).items():
        lines.append(f"| **{_title(task, entries)}** |{' |' * len(columns)}")
        for entry in entries:
            cells = [*empty] if entry["runs"] == 0 else [column(entry) for column in columns.values()]
            if entry["runs"] == 0:
                cells = [(_left_out(entry) or "").replace("|", "\\|"), *[""] * (len(columns) - 1)]
            lines.append(f"| {entry['name']} | {' | '.join(cells)} |")
    if result["races"]:
        lines += ["", f"| the time to one error | {' | '.join(RACE)} |", f"|---|{'---:|' * len(RACE)}"]
        for found in result["races"]:
            lines.append(f"| {_racers(found)} | {' | '.join(column(found) for column in RACE.values())} |")
    notes = {entry["name"]: entry["note"] for entry in result["rows"] if entry["note"]}
    failed = [f"- {entry['id']}: {_left_out(entry)}" for entry in result["rows"] if "failed" in entry and entry["runs"]]
    told = [*(f"- {name}: {note}" for name, note in notes.items()), *failed]
    return "\n".join([*lines, "", made(result["meta"]), *(["", *told] if told else [])])


def made(meta: dict[str, Any]) -> str:
    """How the table came about."""
    tags = f" Tags heard: {' / '.join(meta['tags'])}." if meta["tags"] else ""
    return (
        f"{meta['runs']} runs of {meta['seconds']:g} s a row, each from a held-out clip of a piece of its own; 95 % "
        f"intervals over runs, {meta['resamples']} resamples; FAD with shrinkage {meta['shrinkage']:g}; "
        f"seconds on a CPU are of processor time.{tags} "
        f"{meta['device']}, torch {meta['torch']} (`{meta['command']}`)."
    )


def show_control(result: dict[str, Any]) -> None:
    """Tables of quality, of cost, and of the race, that fit 100 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=100, highlight=False)

    def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("", min_width=12, overflow="fold")
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(title, style="bold")
        console.print(table)

    meta = result["meta"]
    show("Real music, and what the autoencoder and noise make of it", ["FAD", "tags heard"], _references(result))
    for task, entries in _tasks(result).items():
        there = [entry for entry in entries if entry["runs"]]
        figure = {entries[0]["figure"] if name == "figure" else name: column for name, column in QUALITY.items()}
        for title, columns in ((_title(task, entries), figure), (f"{task}: cost of one call", COST)):
            rows = [[entry["name"], *(column(entry) for column in columns.values())] for entry in there]
            if rows:
                show(title, list(columns), rows)
    if result["races"]:
        rows = [[_racers(found), *(column(found) for column in RACE.values())] for found in result["races"]]
        show("The time to the error that the first ends with", list(RACE), rows)
    for entry in result["rows"]:
        if said := _left_out(entry):
            console.print(f"{entry['id']}: {said}", markup=False)
    console.print(
        f"{meta['runs']} runs a row are wanted; a row of fewer says so and has no FAD where others have more."
    )
    console.print("Intervals are of 95 % and need 5 runs; a dash: fewer than half of the searches came there.")
